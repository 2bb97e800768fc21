"""The files of encoder-decoders: transformers' and ours, both ways, and what stands in published ones. Of these no
weights are at hand: each manifest says what was found where, and what was derived."""

import dataclasses
import json
import math
import re

import encoder_decoder_reference as theirs_of  # before what imports torchvision
import manifests
import pytest
import torch
from encoder_decoder_reference import CLASSES, END, KINDS, PAD, START, ids
from safetensors.torch import load_file, save_file
from torch import nn

import scratchformers as sf
from scratchformers.checkpoints import tables
from scratchformers.checkpoints.pretrained import Generation
from scratchformers.nn import sinusoids

SOURCE, TARGET = ids(3, 9, seed=1), ids(3, 7, seed=2)
SIZES = {"vocab": 29, "length": 11, "dim": 18, "depth": 2, "heads": 3, "decoder_depth": 1, "hidden": 31}
PUBLISHED = {
    "bart": {"embedding_norm": True, "pre_norm": False, "final_norm": False},
    "mbart": {"embedding_norm": True},
    "marian": {"positions": "sinusoids", "pre_norm": False, "final_norm": False, "scale_embedding": True},
}


@pytest.fixture
def saved(tmp_path):
    """A folder of each kind, saved by transformers, and the model."""

    def save(kind, **changes):
        theirs = theirs_of.published(kind, **changes)
        theirs.save_pretrained(tmp_path / "theirs")
        return theirs, tmp_path / "theirs"

    return save


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def change(folder, **fields):
    said = {**config_of(folder), **fields}
    said = {name: value for name, value in said.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")


def retensor(folder, edit):
    """The same folder with other tensors."""
    save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def new(**fields):
    torch.manual_seed(0)
    model = sf.EncoderDecoder(sf.EncoderDecoderConfig(**{**SIZES, **fields})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


# --- both ways


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_back_what_it_wrote(saved, tmp_path, kind):
    theirs, folder = saved(kind)
    model = sf.load(folder, dtype=torch.float64)
    model.save_pretrained(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float64)
    for name, value in theirs.state_dict().items():
        found = again.state_dict()[name]
        if "embed_positions" in name and KINDS[kind][0] != "marian":  # no position reads the first two
            found, value = found[2:], value[2:]
        assert torch.equal(found, value), name
    said = theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits  # of tensors that lie elsewhere in memory
    assert (again(input_ids=SOURCE, decoder_input_ids=TARGET).logits - said).abs().max() < 1e-12
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(load_file(folder / "model.safetensors"))
    before, after = config_of(folder), config_of(tmp_path / "ours")
    assert {name: after[name] for name in before} == {**before, "tie_word_embeddings": True}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_transformers_reads_a_new_one(tmp_path, kind):
    """Which has no bias of the scores, and says with what a target begins."""
    model = new(**PUBLISHED[kind], decoder_heads=2, decoder_hidden=37)
    model.generation = Generation(start=5, end=(6,), pad=7)
    model.save_pretrained(tmp_path)
    assert model.saved_as().model_type == config_of(tmp_path)["model_type"] == kind
    theirs, report = CLASSES[kind][1].from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert set(report["missing_keys"]) <= {"final_logits_bias"}
    source, target = ids(3, 9, vocab=29), ids(3, 7, seed=2, vocab=29)
    found = theirs.eval()(input_ids=source, decoder_input_ids=target).logits
    assert (found - model(source, target)).abs().max() < 1e-4
    assert theirs.generation_config.decoder_start_token_id == theirs.config.decoder_start_token_id == 5
    again = sf.load(tmp_path)
    assert again.config == dataclasses.replace(model.config, decoder_heads=2)
    assert again.generation.start == 5
    torch.testing.assert_close(again(source, target), model(source, target), atol=1e-5, rtol=0)


OWN = {
    "learned, pre-norm": {},
    "sinusoids, pre-norm, two vocabularies": {"positions": "sinusoids", "target_vocab": 23},
    "learned, post-norm": {"pre_norm": False, "final_norm": False, "activation": "quick_gelu"},
    "another eps": {**PUBLISHED["bart"], "eps": 1e-6},
    "two vocabularies": {**PUBLISHED["bart"], "target_vocab": 29},
    "torch's": {"pre_norm": False},
}


@pytest.mark.parametrize("form", OWN)
def test_what_no_published_layout_can_express_is_saved_in_ours(tmp_path, form):
    model = new(**OWN[form])
    model.generation = Generation(start=5, end=(6,), pad=7)
    model.save_pretrained(tmp_path)
    assert config_of(tmp_path)["model_type"] == "scratchformers-encoder-decoder"
    again = sf.load(tmp_path)
    source, target = ids(3, 9, vocab=29), ids(3, 7, seed=2, vocab=23)
    torch.testing.assert_close(again(source, target), model(source, target), atol=1e-5, rtol=0)
    spelt = {**vars(model.config), "decoder_heads": 3, "decoder_hidden": 31}
    assert vars(again.config) == spelt
    assert again.generation.start == 5
    again.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again") == config_of(tmp_path)


def test_a_bias_that_is_learnt_is_saved(tmp_path):
    model = new()
    model.bias = nn.Parameter(torch.randn(29))
    model.save_pretrained(tmp_path)
    assert torch.equal(sf.load(tmp_path).bias, model.bias)


def test_a_config_may_be_given_with_what_follows_left_out(saved):
    _, folder = saved("mbart", decoder_attention_heads=3, decoder_ffn_dim=59, encoder_layers=3)
    config = sf.load(folder).config
    given = dataclasses.replace(config, decoder_heads=None, decoder_hidden=None, decoder_depth=None)
    assert sf.load(folder, config=given).config == given
    with pytest.raises(ValueError, match="decoder_depth is 3 in the file and 2 in config="):
        sf.load(folder, config=dataclasses.replace(config, decoder_depth=2))


# --- names


def test_a_table_may_stand_under_any_of_its_names(saved):
    _, folder = saved("bart")
    expected, tensors = sf.load(folder).state_dict(), load_file(folder / "model.safetensors")
    shared = tensors.pop("model.shared.weight")
    for name in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"):
        retensor(folder, lambda _, name=name: {**tensors, name: shared})
        found = sf.load(folder).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_all_names_of_a_table_hold_the_same(saved):
    _, folder = saved("marian", tie_word_embeddings=False)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"(lm_head|embed_tokens).* differs from another tensor of the file"):
        sf.load(folder)
    shared = load_file(folder / "model.safetensors")["model.shared.weight"]
    same = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    retensor(folder, lambda found: {**found, **{name: shared.clone() for name in same}})
    model = sf.load(folder)
    model.save_pretrained(folder)
    assert config_of(folder)["tie_word_embeddings"] is True


def test_a_file_without_prefix_and_bias(saved):
    """As a model without a head is saved."""
    theirs, folder = saved("bart")
    theirs.model.save_pretrained(folder)
    model = sf.load(folder, dtype=torch.float64)
    assert model.bias is None
    said = theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits - theirs.final_logits_bias
    assert (model(SOURCE, TARGET) - said).abs().max() < 1e-10


def test_old_files_hold_the_sinusoids(saved):
    theirs, folder = saved("marian")
    table = sinusoids(torch.arange(31), 42)
    assert torch.allclose(theirs.model.encoder.embed_positions.weight.float(), table, atol=1e-6)
    positions = [f"model.{half}.embed_positions.weight" for half in ("encoder", "decoder")]
    retensor(folder, lambda found: {**found, **{name: table.clone() for name in positions}})
    expected = theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    assert (sf.load(folder, dtype=torch.float64)(SOURCE, TARGET) - expected).abs().max() < 1e-10
    other = torch.stack(table.chunk(2, -1), dim=-1).flatten(-2)
    retensor(folder, lambda found: {**found, positions[1]: other})
    with pytest.raises(ValueError, match=r"decoder\.embed_positions\.weight does not hold sinusoids"):
        sf.load(folder)


def test_unknown_tensors_are_listed(saved):
    _, folder = saved("marian")
    retensor(folder, lambda found: {**found, "model.encoder.layernorm_embedding.weight": torch.ones(42)})
    with pytest.raises(ValueError, match=r"1 unknown: encoder\.layernorm_embedding\.weight"):
        sf.load(folder)


# --- config.json


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("bart", {"activation_function": "gelu_new"}, "activation_function 'gelu_new': expected one of gelu, quick_g"),
        ("bart", {"d_model": ..., "encoder_layers": ...}, "config.json does not say d_model, encoder_layers"),
        ("bart", {"normalize_before": True}, "normalize_before True: a bart is read with False alone"),
        ("mbart", {"add_final_layer_norm": False}, "add_final_layer_norm False: a mbart is read with True alone"),
        ("marian", {"normalize_embedding": True}, "normalize_embedding True: a marian is read with False alone"),
        ("bart", {"is_encoder_decoder": False}, "is_encoder_decoder False: a bart is read with True alone"),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, "only models that write are read here"),
        ("bart", {"architectures": ["BartForCausalLM"]}, "'BartForCausalLM': only models that write"),
        ("bart", {"model_type": "scratchformers-encoder-decoder"}, "says scratchformers None: expected where norms"),
        ("bart", {"max_position_embeddings": 32}, "length is 32 in the file and 31 in its tensors"),
        ("bart", {"decoder_layers": 4}, "decoder_depth is 4 in the file and 3 in its tensors"),
    ],
)
def test_configs_of_other_models_are_refused(saved, kind, fields, said):
    _, folder = saved(kind)
    change(folder, **fields)
    with pytest.raises(ValueError, match=re.escape(said)):
        sf.load(folder)


def test_a_file_without_a_config(saved):
    """What its tensors do not tell is asked for."""
    for kind, name in (("bart", "bart"), ("mbart", "mbart"), ("marian", "marian")):
        theirs, folder = saved(kind)
        config = sf.load(folder).config
        (folder / "config.json").unlink()
        with pytest.raises(ValueError, match="heads, activation, scale_embedding: pass config=") as caught:
            sf.load(folder)
        asked = ("length, " if kind == "marian" else "") + "heads, activation, scale_embedding"
        assert f"do not tell all of {asked}: pass" in str(caught.value)
        model = sf.load(folder, config=config, dtype=torch.float64)
        assert model.layout == name
        said = theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits
        assert (model(SOURCE, TARGET) - said).abs().max() < 1e-10


def test_generation_settings(saved, tmp_path):
    """The target begins with `decoder_start_token_id`, from generation_config.json, else config.json."""
    theirs, folder = saved("bart")
    theirs.generation_config.num_beams, theirs.generation_config.forced_bos_token_id = 4, 3
    theirs.save_pretrained(folder)
    model = sf.load(folder)
    found = model.generation
    assert (found.start, found.end, found.pad, found.forced_start) == (START, (END,), PAD, 3)
    (folder / "generation_config.json").unlink()
    assert sf.load(folder).generation.start == START
    model.generation = dataclasses.replace(found, start=11)
    model.save_pretrained(tmp_path / "ours")
    said = json.loads((tmp_path / "ours" / "generation_config.json").read_text(encoding="utf-8"))
    assert (said["decoder_start_token_id"], said["bos_token_id"], said["num_beams"]) == (11, 0, 4)
    assert config_of(tmp_path / "ours")["decoder_start_token_id"] == 11
    assert sf.load(tmp_path / "ours").generation.start == 11


def test_a_decoder_only_model_still_begins_with_its_first_id(published):
    model = sf.load(published[1])
    assert model.generation.start == model.generation.other["bos_token_id"]


# --- published files

MANIFESTS = {
    name: manifests.Manifest(
        {**each.content, "config": {**each.config, "num_hidden_layers": each.config["encoder_layers"]}}
    )
    for name, each in manifests.read("encoder_decoder").items()
}
PRESETS = {
    "bart-large-cnn": dataclasses.replace(sf.EncoderDecoder.preset("bart-large"), vocab=50264),
    "opus-mt-en-zh": dataclasses.replace(sf.EncoderDecoder.preset("opus-mt"), vocab=65001),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_agrees_with_what_is_known(name):
    manifests.check(MANIFESTS[name])


def test_a_pickle_holds_a_table_three_times():
    manifest = MANIFESTS["opus-mt-en-zh"]
    known = manifest.content["files"]["pytorch_model.bin"]
    assert len(manifest.shapes()) + 2 == known["tensors"]
    assert manifest.data() // 4 + 2 * 65001 * 512 == known["numbers"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_published_file_fits(name):
    manifest = MANIFESTS[name]
    (layout,) = [each for each in sf.EncoderDecoder.layouts if each.model_type == manifest.config["model_type"]]
    config = layout.read(manifest.config)
    expected = dataclasses.replace(PRESETS[name], **{field: getattr(config, field) for field in (
        "hidden", "decoder_depth", "decoder_heads", "decoder_hidden"
    )})  # fmt: skip
    assert config == expected
    assert config.hidden == config.decoder_hidden == 4 * config.dim
    tensors = manifest.tensors()
    for keys in (tensors, {**tensors, "model.encoder.embed_tokens.weight": tensors["model.shared.weight"]}):
        with torch.device("meta"):
            model = sf.EncoderDecoder(config)
            layout.build(model, manifest.config, layout.bare(keys))
            shapes = {key: value.shape for key, value in model.state_dict().items()}
        assert tables.load(layout, keys, shapes, config).keys() == shapes.keys()
        told = layout.infer(layout.bare(keys))
        assert dataclasses.replace(config, **told) == config
        assert math.prod(tensors["model.shared.weight"].shape) == config.vocab * config.dim
