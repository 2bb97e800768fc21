"""CLIP against transformers and open_clip on scrambled weights in float64, in every published layout; what its files
say, and how they come and go."""

import dataclasses
import json
import shutil
from pathlib import Path

import clip_reference  # before open_clip
import numpy as np
import open_clip
import pytest
import torch
from clip_reference import END, OTHER_END, answers, pictures, save_open_clip, texts
from timm.layers import resample_abs_pos_embed
from transformers import CLIPModel

import scratchformers as sf
from scratchformers.checkpoints import clip as published_clip
from scratchformers.checkpoints.pretrained import spelt_out
from scratchformers.images import CLIP as MEAN_STD
from scratchformers.images import Preprocess
from scratchformers.models import clip

DTYPE = torch.float64
FROZEN = Path(__file__).parent / "frozen" / "clip.npz"
SIZES = {"image": 12, "patch": 4, "image_dim": 20, "image_depth": 2, "image_heads": 5, "vocab": 31, "length": 9}
TINY = sf.CLIPConfig(**SIZES, text_dim=18, text_depth=2, text_heads=3, dim=11)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@torch.no_grad()
def ours(model, images, ids):
    """All that our model says, under the names of `clip_reference.answers`."""
    return {"image": model.encode_image(images), "text": model.encode_text(ids), "scores": model(images, ids)}


def compare(mine, theirs, atol=1e-10):
    assert mine.keys() == theirs.keys()
    for name in mine:
        close(mine[name], theirs[name], atol=atol)


def of_transformers(act, end):
    def make(folder):
        theirs = clip_reference.clip(act, end)
        theirs.save_pretrained(folder)
        return theirs, folder

    return make


def of_open_clip(quick, safe):
    def make(folder):
        theirs, cfg = clip_reference.open_clip(quick=quick)
        return theirs, save_open_clip(theirs, cfg, folder, safe=safe)

    return make


def of_openai(folder):
    folder.mkdir()
    theirs, _ = clip_reference.open_clip(quick=True)
    torch.save(clip_reference.openai(theirs), folder / "ViT.pt")
    return theirs, folder / "ViT.pt"


# How a CLIP is published: what writes one of theirs to a folder, and gives it and what to load.
FORMS = {
    "transformers, quick": of_transformers("quick_gelu", 2),
    "transformers, end": of_transformers("gelu", END),
    "open_clip": of_open_clip(False, False),
    "open_clip, quick": of_open_clip(True, True),
    "openai": of_openai,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    place = tmp_path_factory.mktemp("published")
    return {name: make(place / str(i)) for i, (name, make) in enumerate(FORMS.items())}


@pytest.fixture(params=FORMS)
def form(request, published):
    return request.param, *published[request.param]


def test_both_towers_and_the_scores_are_the_originals(form):
    _, theirs, source = form
    model = sf.load(source, dtype=DTYPE)
    assert type(model) is sf.CLIP
    assert not model.training
    compare(ours(model, pictures(), texts()), answers(theirs, pictures(), texts()))


def test_float32_is_as_near_as_float32_is(form):
    _, theirs, source = form
    images, ids = pictures(), texts()
    compare(ours(sf.load(source), images.float(), ids), {k: v.float() for k, v in answers(theirs, images, ids).items()},
            atol=2e-4)  # fmt: skip


def test_frozen_answers(form):
    kind, _, source = form
    frozen = np.load(FROZEN)
    kind = "open_clip, quick" if kind == "openai" else kind
    expected = {key.partition("/")[2]: torch.from_numpy(frozen[key]) for key in frozen if key.startswith(f"{kind}/")}
    images, ids = torch.from_numpy(frozen["images"]), torch.from_numpy(frozen["ids"])
    compare(ours(sf.load(source, dtype=DTYPE), images, ids), expected)


def test_the_references_still_answer_what_was_frozen(published):
    frozen = np.load(FROZEN)
    theirs = answers(published["open_clip"][0], torch.from_numpy(frozen["images"]), torch.from_numpy(frozen["ids"]))
    for name, value in theirs.items():
        close(value, torch.from_numpy(frozen[f"open_clip/{name}"]))


def test_a_text_ends_at_its_first_end_id_though_a_larger_one_stands_in_it(tmp_path):
    theirs, ids = clip_reference.clip("gelu", OTHER_END), texts(end=OTHER_END)
    theirs.save_pretrained(tmp_path)
    compare(ours(sf.load(tmp_path, dtype=DTYPE), pictures(), ids), answers(theirs, pictures(), ids))


def test_what_stands_after_the_end_of_a_text_changes_nothing(published):
    for kind in ("transformers, quick", "transformers, end", "openai"):
        model, ids = sf.load(published[kind][1], dtype=DTYPE), texts()
        other = ids.clone()
        for row in other:
            row[int(row.argmax()) + 1 :] = 7
        assert not ids.equal(other)
        with torch.no_grad():
            assert model.encode_text(ids).equal(model.encode_text(other))


def test_a_text_alone_is_as_it_is_among_longer_ones(published):
    model, ids = sf.load(published["transformers, quick"][1], dtype=DTYPE), texts()
    with torch.no_grad():
        together = model.encode_text(ids)
        for row, expected in zip(ids, together):
            close(model.encode_text(row[None, : int(row.argmax()) + 1])[0], expected, atol=1e-12)


def test_a_text_sees_nothing_after_its_tokens(published):
    """Changed before the end, the vector changes; the text tower is causal, so that no state before it does."""
    model, ids = sf.load(published["openai"][1], dtype=DTYPE), texts()[-1:]
    assert int(ids[0, -1]) == END
    other = ids.clone()
    other[0, 5] = 3
    with torch.no_grad(), sf.record(model) as r:
        model.encode_text(ids)
        before = [r.hidden[name].clone() for name in r.hidden if name.startswith("text.blocks")]
    with torch.no_grad(), sf.record(model) as r:
        model.encode_text(other)
        after = [r.hidden[name] for name in r.hidden if name.startswith("text.blocks")]
    assert len(before) > 3  # the states of all blocks
    for a, b in zip(before, after):
        assert a[:, :5].equal(b[:, :5])
        assert not a[:, 5:].equal(b[:, 5:])


@pytest.mark.unhooked
def test_compiled_is_eager(published):
    model, ids = sf.load(published["transformers, end"][1], dtype=DTYPE), texts()
    with torch.no_grad():
        expected = model(pictures(), ids)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        close(compiled(pictures(), ids), expected, atol=1e-12)


def test_recorded_is_fused(published):
    model = sf.load(published["transformers, quick"][1], dtype=DTYPE)
    with torch.no_grad():
        expected = model(pictures(), texts())
        with sf.record(model) as r:
            close(model(pictures(), texts()), expected, atol=1e-12)
    weights = r.attention["image.blocks.0.attention"]
    assert weights.shape == (4, 5, 10, 10)
    close(weights.sum(-1), torch.ones(4, 5, 10, dtype=DTYPE), atol=1e-12)
    text = r.attention["text.blocks.2.attention"]
    assert text.triu(1).abs().max() == 0


def test_no_text_and_no_picture():
    model = sf.CLIP(TINY).eval()
    assert model.encode_text(torch.zeros(0, 5, dtype=torch.long)).shape == (0, 11)
    assert model.encode_image(torch.zeros(0, 3, 12, 12)).shape == (0, 11)


def test_scores_are_cosines_times_the_scale():
    model = sf.CLIP(TINY).eval()
    with torch.no_grad():
        scores = model(torch.randn(3, 3, 12, 12), texts(4, 9) % 31)
    assert scores.abs().max() <= model.scale.exp() * (1 + 1e-6)
    assert float(model.scale.detach().exp()) == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("image", [(12, 12), (24, 24), (12, 20), (8, 16), (40, 28)])
def test_positions_for_another_size_are_timms(image, tmp_path):
    torch.manual_seed(0)
    model = sf.CLIP(TINY)
    model.save_pretrained(tmp_path)
    other = sf.CLIP.from_pretrained(tmp_path, config=dataclasses.replace(TINY, image=image))
    grid = [side // 4 for side in image]
    expected = resample_abs_pos_embed(model.image.position, grid, [3, 3], num_prefix_tokens=1)
    close(other.image.position, expected, atol=1e-6)
    assert other.encode_image(torch.zeros(1, 3, *image)).shape == (1, 11)
    assert other.text.position.weight.equal(model.text.position.weight)


# How files come and go.


@pytest.mark.parametrize("kind", FORMS)
def test_saved_it_is_read_by_transformers_bit_for_bit(published, kind, tmp_path):
    model = sf.load(published[kind][1], dtype=DTYPE)
    model.save_pretrained(tmp_path)
    theirs, said = CLIPModel.from_pretrained(tmp_path, dtype=DTYPE, output_loading_info=True)
    assert not [*said["missing_keys"], *said["unexpected_keys"], *said["mismatched_keys"]]
    compare(answers(theirs, pictures(), texts()), answers(published[kind][0], pictures(), texts()))
    again = sf.load(tmp_path, dtype=DTYPE)
    assert spelt_out(again.config) == spelt_out(model.config)
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].equal(value), name


def test_an_activation_is_the_checkpoints(published):
    found = {kind: sf.load(source).config.activation for kind, (_, source) in published.items()}
    quick = {"transformers, quick", "open_clip, quick", "openai"}
    assert found == {kind: "quick_gelu" if kind in quick else "gelu" for kind in FORMS}


def test_a_config_goes_with_its_weights(published, tmp_path):
    """On the hub transformers' files and open_clip's lie side by side; somebody may have fetched some of them."""
    for kind in ("transformers, end", "open_clip"):
        shutil.copytree(published[kind][1], tmp_path, dirs_exist_ok=True)
    assert sf.load(tmp_path).config.image_dim == 35
    (tmp_path / "model.safetensors").unlink()
    assert sf.load(tmp_path).config.image_dim == 128


def test_a_bare_file_of_open_clips_asks_for_its_activation(tmp_path):
    theirs, _ = clip_reference.open_clip()
    torch.save(theirs.state_dict(), tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"do not tell all of .*activation.*: pass config="):
        sf.load(tmp_path / "weights.bin")
    config = sf.CLIPConfig(
        image=21, patch=7, image_dim=128, image_depth=2, image_heads=2, vocab=97, length=13, text_dim=64,
        text_depth=3, text_heads=1, dim=23, activation="gelu",
    )  # fmt: skip
    model = sf.load(tmp_path / "weights.bin", config=config, dtype=DTYPE)
    compare(ours(model, pictures(), texts()), answers(theirs, pictures(), texts()))


@pytest.mark.parametrize(
    ("name", "value"), [("input_resolution", 28), ("context_length", 14), ("vocab_size", 96)], ids=lambda x: str(x)
)
def test_sizes_that_an_openai_file_states_are_those_of_its_tensors(tmp_path, name, value):
    tensors = {**clip_reference.openai(clip_reference.open_clip()[0]), name: torch.tensor(value)}
    torch.save(tensors, tmp_path / "ViT.pt")
    with pytest.raises(ValueError, match=f"{name} is {value}, and the tensors are of"):
        sf.load(tmp_path / "ViT.pt")


def test_towers_of_two_sizes_in_one_file_are_refused(tmp_path):
    theirs = clip_reference.clip()
    theirs.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text("utf-8"))
    said["text_config"]["hidden_size"] = 36
    (tmp_path / "config.json").write_text(json.dumps(said), "utf-8")
    with pytest.raises(ValueError, match="text_dim is 36 in the file and 33 in its tensors"):
        sf.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"hidden_act": "gelu"}, "hidden_act 'quick_gelu' for pictures and 'gelu' for texts"),
        ("text_config", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-05 for pictures and 1e-06 for texts"),
        ("vision_config", {"image_size": 20}, "image is 20: expected a multiple of the patch, 7"),
        ("vision_config", [], "config.json says vision_config \\[1\\]: expected a JSON object"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path, part, changes, message):
    clip_reference.clip().save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text("utf-8"))
    said[part] = said[part] | changes if isinstance(changes, dict) else [1]
    (tmp_path / "config.json").write_text(json.dumps(said), "utf-8")
    with pytest.raises(ValueError, match=message):
        sf.load(tmp_path)


def test_an_activation_that_is_not_written_here_is_named(tmp_path):
    clip_reference.clip().save_pretrained(tmp_path)
    said = (tmp_path / "config.json").read_text("utf-8").replace("quick_gelu", "gelu_new")
    (tmp_path / "config.json").write_text(said, "utf-8")
    with pytest.raises(ValueError, match="activation is 'gelu_new': expected one of gelu, quick_gelu"):
        sf.load(tmp_path)


def test_what_a_config_says_twice_is_read_as_transformers_does(tmp_path):
    """Some of OpenAI's on the hub have a text_config_dict, which comes before text_config."""
    theirs = clip_reference.clip()
    theirs.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text("utf-8"))
    said["text_config_dict"], said["vision_config_dict"] = dict(said["text_config"]), None
    said["text_config"]["num_attention_heads"] = 11
    (tmp_path / "config.json").write_text(json.dumps(said), "utf-8")
    assert sf.load(tmp_path).config.text_heads == 3
    assert CLIPModel.from_pretrained(tmp_path).config.text_config.num_attention_heads == 3


@pytest.mark.parametrize("name", published_clip.OPEN_CLIP)
def test_presets_are_open_clips(name):
    found = clip.read({"model_cfg": open_clip.get_model_config(name)})
    assert spelt_out(found) == spelt_out(sf.CLIP.preset(name))


def test_presets_of_openai_have_its_activation_and_the_same_sizes():
    for name in published_clip.OPENAI:
        theirs = open_clip.get_model_config(name.replace("/", "-").replace("@336px", "-336"))
        expected = clip.read({"model_cfg": {**theirs, "quick_gelu": True}})
        assert spelt_out(sf.CLIP.preset(name)) == spelt_out(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EVA02-B-16", "custom_text True"),
        ("ViT-B-16-SigLIP", "init_logit_bias -10"),
        ("coca_ViT-B-32", "multimodal_cfg"),
        ("roberta-ViT-B-32", "hf_model_name 'roberta-base'"),
        ("convnext_base", "timm_model_name 'convnext_base'"),
        ("RN50-quickgelu", r"layers \[3, 4, 6, 3\], those of a ResNet"),
    ],
)
def test_what_open_clip_has_beside_clip_is_refused(name, expected):
    with pytest.raises(ValueError, match=expected):
        clip.read({"model_cfg": open_clip.get_model_config(name)})


def test_a_word_that_is_not_known_is_refused():
    """A word that a later open_clip adds may change the mathematics: somebody must look first."""
    with pytest.raises(ValueError, match="says surprise 1: that is not written here"):
        clip.read({"model_cfg": {"embed_dim": 3, "vision_cfg": {"surprise": 1}, "text_cfg": {}}})
    with pytest.raises(ValueError, match="says proj_type 'mlp': only 'linear' is written here"):
        clip.read({"model_cfg": {"embed_dim": 3, "vision_cfg": {}, "text_cfg": {"proj_type": "mlp"}}})
    with pytest.raises(ValueError, match="has no model_cfg with vision_cfg and text_cfg"):
        clip.read({"model_cfg": {"embed_dim": 3}})


def test_pictures_are_prepared_as_open_clip_says(tmp_path):
    theirs, cfg = clip_reference.open_clip()
    save_open_clip(theirs, cfg, tmp_path / "a", mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], interpolation="bilinear")
    expected = Preprocess(21, (21, 21), interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert sf.load_preprocess(tmp_path / "a") == expected
    save_open_clip(theirs, cfg, tmp_path / "b", resize_mode="squash")
    assert sf.load_preprocess(tmp_path / "b") == Preprocess((21, 21), mean=MEAN_STD[0], std=MEAN_STD[1])
    save_open_clip(theirs, cfg, tmp_path / "c", resize_mode="longest")
    with pytest.raises(ValueError, match="resize_mode 'longest': expected shortest or squash"):
        sf.load_preprocess(tmp_path / "c")


def test_openais_files_say_nothing_of_pictures_and_are_prepared_as_it_does(published):
    expected = Preprocess(21, (21, 21), mean=MEAN_STD[0], std=MEAN_STD[1])
    assert sf.load_preprocess(published["openai"][1]) == expected
    assert sf.load_preprocess(published["transformers, quick"][1]) == dataclasses.replace(expected, middle="floor")


# What is asked wrongly.


@pytest.mark.parametrize(
    ("images", "ids", "message"),
    [
        (torch.zeros(1, 3, 12, 16), None, r"Pictures of shape \[1, 3, 12, 16\]: this model reads"),
        (torch.zeros(1, 1, 12, 12), None, r"Pictures of shape \[1, 1, 12, 12\]"),
        (None, torch.ones(1, 10, dtype=torch.long), "A text has 10 tokens and the model reads 9: truncate it"),
    ],
)
def test_what_does_not_fit(images, ids, message):
    model = sf.CLIP(TINY)
    with pytest.raises(ValueError, match=message):
        model.encode_image(images) if ids is None else model.encode_text(ids)


def test_a_text_without_an_end_is_not_read_at_its_beginning():
    model = sf.CLIP(dataclasses.replace(TINY, end=30))
    ids = torch.tensor([[29, 1, 30], [29, 1, 2]])
    with pytest.raises(ValueError, match="A text has no end: expected the id 30 in each"):
        model.encode_text(ids)
    assert model.encode_text(ids[:1]).shape == (1, 11)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "tanh"}, "activation is 'tanh': expected one of gelu, quick_gelu"),
        ({"text_heads": 7}, "7 heads do not divide a width of 18"),
        ({"patch": 5}, "image is 12: expected a multiple of the patch, 5"),
        ({"dim": 0}, "dim is 0: expected a positive integer"),
    ],
)
def test_sizes_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        sf.CLIP(dataclasses.replace(TINY, **changes))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = sf.CLIP(TINY)
    ids = texts(4, 9) % 31
    scores = model(torch.randn(4, 3, 12, 12), ids)
    torch.nn.functional.cross_entropy(scores, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
