"""What stands in the published BERTs, by name, shape and dtype, and how it loads. One file is known whole
(all-MiniLM-L6-v2); of the others no weights are at hand: each manifest says what was found where, and what was derived.
"""

import json
import re

import bert_reference
import manifests
import pytest
import torch
from bert_reference import SIZES
from safetensors.torch import load_file, save_file

import scratchformers as sf
from scratchformers.checkpoints import tables
from scratchformers.checkpoints.pretrained import spelt_out
from scratchformers.models.bert import read

MANIFESTS = manifests.read("bert")
PRESETS = {
    "bert-base-uncased": "base",
    "bert-base-cased": "base-cased",
    "bert-large-uncased": "large",
    "bert-large-cased": "large-cased",
    "bert_uncased_L-8_H-512_A-8": "medium",
    "bert_uncased_L-4_H-512_A-8": "small",
    "bert_uncased_L-4_H-256_A-4": "mini",
    "bert_uncased_L-2_H-128_A-2": "tiny",
    "all-MiniLM-L6-v2": "minilm",
}
# Norms called gamma and beta; weight and bias; tied tensors written twice; no prefix, no head, positions.
STYLES = ("bert-base-uncased", "bert_uncased_L-2_H-128_A-2", "bert_uncased_L-4_H-256_A-4", "all-MiniLM-L6-v2")
(LAYOUT,) = sf.BERT.layouts
POSITIONS = "embeddings.position_ids"  # which nothing needs


def plain(key):
    """As transformers calls it today."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m[1]], key)


def bare(key):
    return key.removeprefix(LAYOUT.prefix)


def ours(name, tensors, depth=None):
    """Names and shapes of a model with the parts that these tensors call for."""
    config = {**MANIFESTS[name].config, "num_hidden_layers": depth or MANIFESTS[name].depth}
    with torch.device("meta"):
        model = sf.BERT(read(config))
        LAYOUT.build(model, config, LAYOUT.bare(tensors))
    return {key: value.shape for key, value in model.state_dict().items()}


def load(name, tensors, depth=None):
    return tables.load(LAYOUT, tensors, ours(name, tensors, depth))


def test_there_is_one_per_published_size():
    assert MANIFESTS.keys() == PRESETS.keys()
    assert set(PRESETS.values()) == sf.BERT.presets.keys() - {"simple"}, "which nobody published"


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_agrees_with_what_is_known_of_the_file(name):
    manifests.check(MANIFESTS[name])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert-base-cased", {".gamma": ".weight", ".beta": ".bias"}),
        ("bert-large-uncased", {".gamma": ".weight", ".beta": ".bias"}),
        ("bert_uncased_L-2_H-128_A-2", {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}),
        *((name, {"bert.": ""}) for name in PRESETS if name.startswith("bert-") and name != "bert-large-cased"),
    ],
)
def test_a_header_of_other_names_would_be_of_another_length(name, changes):
    content, known = MANIFESTS[name].content, MANIFESTS[name].content["files"]["model.safetensors"]["header"]
    named = content["tensors"]
    for old, new in changes.items():
        named = {key.replace(old, new): value for key, value in named.items()}
    assert known not in manifests.Manifest({**content, "tensors": named}).headers()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_published_config_is_the_preset(name):
    assert spelt_out(read(MANIFESTS[name].config)) == spelt_out(sf.BERT.preset(PRESETS[name]))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_loads_with_nothing_missing_and_nothing_unknown(name):
    tensors = MANIFESTS[name].tensors()
    loaded = load(name, tensors)
    assert {key: value.shape for key, value in loaded.items()} == ours(name, tensors)
    kept = {plain(key) for key in tensors.keys() - MANIFESTS[name].tied.keys() - {POSITIONS}}
    assert tables.save(LAYOUT, loaded).keys() == kept, "and what we save are the published names"
    parts = {key.partition(".")[0] for key in loaded} & {"head", "pooler", "next_sentence"}
    assert parts == ({"pooler"} if name == "all-MiniLM-L6-v2" else {"head", "pooler", "next_sentence"})


def fails(name, tensors, said, *keys):
    with pytest.raises(ValueError, match=said) as caught:
        load(name, tensors, depth=2)
    assert any(key in str(caught.value) for key in keys), str(caught.value)


@pytest.mark.parametrize("name", STYLES)
def test_every_key_that_is_lost_is_caught(name):
    """In two layers; the others are as these."""
    tensors, tied = MANIFESTS[name].tensors(depth=2, device="cpu"), MANIFESTS[name].tied
    whole = ours(name, tensors, depth=2)
    for key in tensors:
        rest = {other: value for other, value in tensors.items() if other != key}
        if key == POSITIONS or key in {*tied, *tied.values()}:  # not needed, or there twice
            assert {name: value.shape for name, value in load(name, rest, depth=2).items()} == whole
        elif bare(key) in ("pooler.dense.weight", "cls.seq_relationship.weight"):  # by which the part is known
            fails(name, rest, "1 unknown: ", bare(key).replace(".weight", ".bias"))
        else:
            fails(name, rest, "1 missing: ", plain(bare(key)))


@pytest.mark.parametrize("name", STYLES)
def test_every_key_that_is_added_or_misshapen_is_caught(name):
    tensors = MANIFESTS[name].tensors(depth=2, device="cpu")
    load(name, tensors, depth=2)
    for key in tensors:
        fails(name, {**tensors, key + "x": tensors[key]}, "1 unknown: ", bare(key) + "x")
        if key != POSITIONS:
            fails(name, {**tensors, key: tensors[key][:-1]}, "1 wrong: ", bare(key))
    fails(name, {**tensors, "cls.predictions.decoder.kernel": torch.zeros(97, 39)}, "unknown", "decoder.kernel")


# --- small models in the exact style of published files


def small(folder, manifest):
    """A scrambled BERT of transformers written as the published file: its keys, its dtypes, its config in small."""
    shapes = manifest.shapes(SIZES["num_hidden_layers"])
    config = {name: value for name, value in manifest.config.items() if name not in SIZES}
    kind = "PreTraining" if "cls.predictions.bias" in shapes else "Model"
    theirs = bert_reference.scrambled(kind, **config).float().double()  # what single precision can hold
    known = theirs.state_dict() | {POSITIONS: torch.arange(SIZES["max_position_embeddings"])[None]}
    tensors = {key: known[plain(key)].to(manifests.DTYPES[dtype]) for key, (dtype, _) in shapes.items()}
    tensors |= {key: tensors[other] for key, other in manifest.tied.items()}
    left_out = theirs.state_dict().keys() - {plain(key) for key in tensors}
    assert left_out <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}, "which are tied"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**manifest.config, **SIZES}), encoding="utf-8")
    if "model.safetensors" in manifest.content["files"]:
        save_file(tensors, folder / "model.safetensors", metadata=manifest.content["metadata"])
    else:  # as torch wrote in 2020
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return theirs


def same(model, theirs):
    """Every number that transformers gives of a padded batch of two segments."""
    ids, segments, keep = bert_reference.batch()
    expected = bert_reference.answers(theirs, ids, segments, keep)
    states = model.encode(ids, segments=segments, keep=keep)
    found = {"states": states, "pooled": model.pool(states, keep)}
    if "next" in expected:
        found |= {"next": model.next_sentence(found["pooled"]), "output": model(ids, segments=segments, keep=keep)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        real = keep if value.ndim == 3 else slice(None)
        torch.testing.assert_close(found[name][real], value[real], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_small_model_in_the_files_own_style_gives_the_references_numbers(tmp_path, name):
    theirs = small(tmp_path / "in", MANIFESTS[name])
    model = sf.load(tmp_path / "in", dtype=torch.float64)
    assert isinstance(model, sf.BERT)
    same(model, theirs)
    assert (model.head is None) == (name == "all-MiniLM-L6-v2")
    model.save_pretrained(tmp_path / "out")
    again, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(again.state_dict()[key], value) for key, value in theirs.state_dict().items())
    saved = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert MANIFESTS[name].config.keys() <= saved.keys(), "what we do not read is kept"
    same(sf.load(tmp_path / "out", dtype=torch.float64), again)


@pytest.mark.parametrize("name", STYLES)
def test_it_is_loaded_in_single_precision_as_it_stands(tmp_path, name):
    small(tmp_path / "in", MANIFESTS[name])
    sf.load(tmp_path / "in").save_pretrained(tmp_path / "out")
    file = tmp_path / "in" / "model.safetensors"
    before = load_file(file) if file.is_file() else torch.load(tmp_path / "in" / "pytorch_model.bin")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == {plain(key) for key in before.keys() - MANIFESTS[name].tied.keys() - {POSITIONS}}
    assert all(torch.equal(value, after[plain(key)]) for key, value in before.items() if plain(key) in after)


def test_a_tied_tensor_that_differs_is_refused(tmp_path):
    manifest = MANIFESTS["bert_uncased_L-4_H-256_A-4"]
    small(tmp_path / "in", manifest)
    file = tmp_path / "in" / "pytorch_model.bin"
    whole = torch.load(file)
    for key, other in manifest.tied.items():
        torch.save({**whole, key: whole[other] + 1}, file)
        with pytest.raises(ValueError, match=f"1 wrong: {re.escape(key)} differs from another tensor"):
            sf.load(tmp_path / "in")
