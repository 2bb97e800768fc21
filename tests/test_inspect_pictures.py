"""`record` and `inspect` of models that read pictures: they show what the model does, and where in the picture."""

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from vision_reference import mae, noise, pictures, vit

import scratchformers as sf
from scratchformers import nn as bricks
from scratchformers.checkpoints import files
from scratchformers.cli import main
from scratchformers.images import Preprocess
from scratchformers.insight import pictures as drawings
from scratchformers.insight.inspect import look_at_picture


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- record


EAGER = 1e-5  # transformers writes attention out with its weights rounded to float32


def made(kind, folder, **config):
    """Ours, of transformers' scrambled weights, in float64."""
    theirs = {"ViT": vit, "MAE": mae}[kind](**config)
    theirs.save_pretrained(folder)
    return theirs, sf.load(folder, dtype=torch.float64)


def test_attention_and_states_of_a_vit_are_the_references(tmp_path):
    theirs, model = made("ViT", tmp_path, attn_implementation="eager")
    images = pictures()
    expected = theirs(images, output_attentions=True, output_hidden_states=True)
    with sf.record(model) as r:
        logits = model(images)
    close(logits, expected.logits, EAGER)
    assert list(r.attention) == ["blocks.0.attention", "blocks.1.attention"]
    assert list(r.hidden) == ["blocks.input", "blocks.0", "blocks.1", "norm"]
    for mine, weights in zip(r.attention.values(), expected.attentions, strict=True):
        close(mine, weights, EAGER)
    for mine, state in zip(list(r.hidden.values())[:3], expected.hidden_states, strict=True):
        close(mine, state, EAGER)


def test_attention_of_an_autoencoder_is_that_of_what_it_sees_and_of_all(tmp_path):
    theirs, model = made("MAE", tmp_path, attn_implementation="eager")
    images, given = pictures(size=(35, 35)), noise()
    with sf.record(model) as r:
        model(images, noise=given)
    encoder = [f"blocks.{i}.attention" for i in range(3)]
    assert list(r.attention) == [*encoder, "decoder.blocks.0.attention", "decoder.blocks.1.attention"]
    assert list(r.hidden)[:5] == ["blocks.input", "blocks.0", "blocks.1", "blocks.2", "norm"]
    assert list(r.hidden)[5:] == ["decoder.blocks.input", "decoder.blocks.0", "decoder.blocks.1", "decoder.norm"]
    assert [r.attention[i].shape[-1] for i in (0, 3)] == [1 + 6, 1 + 25]
    expected = theirs.vit(images, noise=given, output_attentions=True)
    for name, weights in zip(encoder, expected.attentions, strict=True):
        close(r.attention[name], weights, EAGER)
    with sf.record(model) as r:
        model.encode(images)
    assert list(r.attention) == encoder
    assert r.attention[0].shape == (3, 5, 26, 26)


@pytest.mark.parametrize("name", ["ViT", "MAE"])
def test_recorded_is_fused_and_leaves_no_trace(tmp_path, name):
    _, model = made(name, tmp_path)
    images = pictures(size=(35, 77) if name == "ViT" else (35, 35))
    call = (lambda: model(images)) if name == "ViT" else lambda: model(images, noise=noise()).prediction
    before = call()
    with sf.record(model) as r:
        close(call(), before)
    close(r.attention[-1].sum(-1), torch.ones(r.attention[-1].shape[:-1], dtype=torch.float64))
    assert all(each.attend is bricks.attend for each in model.modules() if isinstance(each, bricks.Attention))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(call(), before)


# --- the rollout


def by_hand(attention):
    """Abnar and Zuidema 2020, equation 1, a number at a time."""
    whole = None
    for weights in attention:
        heads, count = len(weights), len(weights[0])
        step = [[sum(weights[h][i][j] for h in range(heads)) / heads for j in range(count)] for i in range(count)]
        step = [[0.5 * step[i][j] + 0.5 * (i == j) for j in range(count)] for i in range(count)]
        rows = range(count)
        known = step if whole is None else [
            [sum(step[i][k] * whole[k][j] for k in rows) for j in rows] for i in rows
        ]  # fmt: skip
        whole = known
    return torch.tensor(whole)


def drawn(layers=3, heads=2, tokens=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, tokens, tokens, generator=generator).mul(2).softmax(-1) for _ in range(layers)]


def test_the_rollout_is_that_of_the_paper():
    attention = drawn()
    found = drawings.rollout(attention)
    close(found[0], by_hand([weights[0].tolist() for weights in attention]), atol=1e-6)
    close(found.sum(-1), torch.ones(1, 5), atol=1e-6)
    alone = [torch.eye(4)[None, None]] * 3
    assert torch.equal(drawings.rollout(alone)[0], torch.eye(4)), "what sees itself alone stays itself"
    with pytest.raises(ValueError, match="no attention to roll out"):
        drawings.rollout([])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("step @ whole", "whole @ step"),
        ("step + torch.eye", "step + 0 * torch.eye"),
        ("step + torch.eye", "step + 2 * torch.eye"),
        ("weights.mean(1)", "weights.amax(1)"),
        ("weights.mean(1)", "weights[:, 0]"),
        ("step @ whole", "step"),
        ("step @ whole", "step * whole"),
        ("step / step.sum(-1, keepdim=True)", "step"),
    ],
)
def test_another_rollout_is_caught(monkeypatch, right, wrong):
    source = inspect.getsource(drawings.rollout)
    assert right in source
    scope = dict(vars(drawings))
    exec(source.replace(right, wrong), scope)
    monkeypatch.setattr(drawings, "rollout", scope["rollout"])
    with pytest.raises(AssertionError):
        test_the_rollout_is_that_of_the_paper()


# --- where it lies


SMALL = {"image": (8, 12), "patch": 4, "dim": 20, "depth": 2, "heads": 5}
PAINTS = {**SMALL, "decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 3}


@pytest.mark.parametrize(
    ("model", "row", "own"),
    [
        (lambda: sf.ViT(sf.ViTConfig(**SMALL)), [1, 2, 3, 4, 5, 6], 0),
        (lambda: sf.MAE(sf.MAEConfig(**PAINTS)), [1, 2, 3, 4, 5, 6], 0),
        (lambda: sf.ViT(sf.ViTConfig(**SMALL, pool="patches")), [351, 352, 353, 354, 355, 356], 350),
        (lambda: sf.ViT(sf.ViTConfig(**SMALL, pool="mean")), [250, 251, 252, 253, 254, 255], 0),
        (lambda: sf.MAE(sf.MAEConfig(**PAINTS, class_token=False)), [250, 251, 252, 253, 254, 255], 0),
    ],
    ids=["ViT", "MAE", "ViT that ignores its class token", "ViT without", "MAE without"],
)
def test_what_is_read_in_the_end_is_shown_row_by_row(model, row, own):
    """Weights that tell their query (hundreds) and their key (ones)."""
    model = model()
    tokens = 6 + (model.class_token is not None)
    weights = 100.0 * torch.arange(tokens)[:, None] + torch.arange(tokens)
    found, kept = drawings.as_read(model, weights[None])
    assert found.tolist() == [[row[:3], row[3:]]]
    assert kept.tolist() == [own]


@pytest.mark.parametrize(
    ("preprocess", "size", "seen"),
    [
        (Preprocess((32, 32)), (640, 427), (0, 0, 640, 427)),  # squeezed
        (Preprocess(40, (32, 32)), (80, 40), (24, 4, 56, 36)),
        (Preprocess(20, (16, 16)), (40, 80), (4, 24, 36, 56)),  # at half the size
        (Preprocess(None, (32, 32)), (20, 40), (-6, 4, 26, 36)),  # black at the sides
        (Preprocess(None), (20, 40), (0, 0, 20, 40)),
    ],
)
def test_the_part_that_is_seen(preprocess, size, seen):
    levels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(levels)
    assert preprocess.seen(picture) == seen
    if preprocess.crop is not None and preprocess.size in (None, 40):
        part = picture.crop(seen).resize(preprocess.crop[::-1])
        assert np.array_equal(np.asarray(part), np.asarray(preprocess.pixels(picture)))


def test_the_drawing_keeps_the_shape_of_the_picture_and_the_place_of_its_patches():
    picture, maps = Image.new("RGB", (640, 427)), [np.arange(6.0).reshape(2, 3), np.ones((2, 3))]
    figure = drawings.over_picture(picture, maps, names=["a", "b"], label="share", title="$no mathematics$")
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == ["the part that is seen", "a", "b"]
    for axes, values in zip(panels[1:], maps):
        grey, heat = axes.images
        assert heat.get_extent() == grey.get_extent() == [0, 640, 427, 0], "the first row at the top"
        assert np.array_equal(heat.get_array(), values)
        assert axes.get_aspect() == 1
        assert heat.get_interpolation() == "nearest"
        assert heat.get_clim() == panels[1].images[1].get_clim(), "heads are compared in one scale"
    assert figure.axes[3].get_ylabel() == "share"
    nothing = drawings.over_picture(picture, [np.zeros((2, 3))], names=["a"], label="share")
    assert nothing.axes[1].images[1].get_clim() == (0, 1)


# --- the program


def saved(folder, model, preprocess):
    model.assets[files.PREPROCESSOR] = files.to_json(preprocess.write())
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    whole = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    square = {**SMALL, "image": 16}
    return {
        "ViT": saved(whole / "vit", sf.ViT(sf.ViTConfig(**SMALL, classes=3)), Preprocess((8, 12))),
        "mean": saved(whole / "mean", sf.ViT(sf.ViTConfig(**square, pool="mean")), Preprocess(20, (16, 16))),
        "grey": saved(
            whole / "grey", sf.ViT(sf.ViTConfig(**square, channels=1)), Preprocess((16, 16), mean=(0.5,), std=(0.5,))
        ),
        "MAE": saved(whole / "mae", sf.MAE(sf.MAEConfig(**{**PAINTS, "image": 16})), Preprocess((16, 16))),
    }


@pytest.fixture
def photo(tmp_path):
    levels = np.random.RandomState(1).randint(0, 256, (30, 45, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a $photo$ 日本.png")
    return str(tmp_path / "a $photo$ 日本.png")


@pytest.mark.parametrize("name", ["ViT", "mean", "grey", "MAE"])
@pytest.mark.parametrize("what", [[], ["--what", "rollout"], ["--layer", "0"], ["--layer", "-2", "--head", "4"]])
def test_pictures_of_any_model_without_a_warning(sources, photo, tmp_path, name, what, recwarn, capsys):
    for suffix in ("png", "svg", "pdf"):
        out = tmp_path / f"a b.{suffix}"
        assert main(["inspect", photo, "--model", sources[name], "--out", str(out), *what]) == 0
        assert out.stat().st_size > 2000
    assert not [each for each in recwarn if "glyph" in str(each.message).lower()]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["ViT", "mean", "MAE"])
def test_the_figures_as_json(sources, photo, name, capsys):
    model, preprocess = sf.load(sources[name]), sf.load_preprocess(sources[name])
    with torch.no_grad(), sf.record(model) as r:
        model.encode(preprocess(Image.open(photo))[None])
    before = int(name != "mean")
    rows, columns = (2, 3) if name == "ViT" else (4, 4)

    def read(weights):
        row = weights[:, 0] if before else weights.mean(1)
        return row[:, before:].reshape(-1, rows, columns), row[:, :before].sum(-1)

    assert main(["inspect", photo, "--model", sources[name], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {"picture", "read", "layer", "heads", "attention", "class_token"}
    assert (said["picture"], said["layer"]) == ("a $photo$ 日本.png", "blocks.1.attention")
    assert said["heads"] == [0, 1, 2, 3, 4]
    assert said["read"] == ("the class token" if before else "the mean of the patches")
    maps, own = read(r.attention[-1][0])
    close(torch.tensor(said["attention"]), maps, atol=1e-6)
    close(torch.tensor(said["class_token"]), own, atol=1e-6)
    assert main(["inspect", photo, "--model", sources[name], "--json", "--layer", "0", "--head", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["layer"], said["heads"]) == ("blocks.0.attention", [3])
    close(torch.tensor(said["attention"])[0], read(r.attention[0][0])[0][3], atol=1e-6)
    assert main(["inspect", photo, "--model", sources[name], "--json", "--what", "rollout"]) == 0
    said = json.loads(capsys.readouterr().out)
    maps, own = read(by_hand([weights[0].tolist() for weights in r.attention.values()])[None])
    close(torch.tensor(said["rollout"]), maps[0], atol=1e-5)
    assert np.sum(said["rollout"]) + said["class_token"] == pytest.approx(1, abs=1e-5)


def test_a_picture_on_its_side_is_turned_and_the_part_that_is_seen_is_drawn(sources, tmp_path):
    model, preprocess = sf.load(sources["mean"]), sf.load_preprocess(sources["mean"])
    levels = np.random.RandomState(2).randint(0, 256, (20, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(levels)
    panel = look_at_picture(model, preprocess, picture, what="attention").figure().axes[0].images[0]
    assert np.array_equal(panel.get_array(), levels[2:18, 12:28]), "the middle, which is all that it saw"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "side.png", exif=exif)
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    turned.save(tmp_path / "up.png")
    outs = [tmp_path / f"{name}.json" for name in ("side", "up")]
    for name, out in zip(("side", "up"), outs):
        with pytest.MonkeyPatch.context() as patch:
            said = []
            patch.setattr("builtins.print", lambda text, *_, said=said, **__: said.append(text))
            assert main(["inspect", str(tmp_path / f"{name}.png"), "--model", sources["ViT"], "--json"]) == 0
        out.write_text(json.dumps(json.loads(said[0])["attention"]), encoding="utf-8")
    assert outs[0].read_text(encoding="utf-8") == outs[1].read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 2000)])
@pytest.mark.parametrize("mode", ["RGBA", "L", "1", "CMYK", "P", "I;16"])
def test_odd_pictures_are_drawn(sources, size, mode):
    model, preprocess = sf.load(sources["ViT"]), sf.load_preprocess(sources["ViT"])
    for what in ("attention", "rollout"):
        figure = look_at_picture(model, preprocess, Image.new(mode, size), what=what).figure()
        figure.savefig("/dev/null", format="png", dpi=20)
        assert max(figure.axes[0].images[0].get_array().shape[:2]) <= 1200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{missing}", "--out", "a.png"], "missing.jpg is no file: expected a picture"),
        (["{text}", "--out", "a.png"], "text.jpg is no picture"),
        (
            ["{photo}", "--out", "a.png", "--what", "lens"],
            "The lens shows the words of a model that writes: choose",
        ),
        (["{photo}", "--out", "a.png", "--what", "lens", "--layer", "1"], "leave --layer out"),
        (
            ["{photo}", "--out", "a.png", "--what", "rollout", "--layer", "1"],
            "goes through every layer and head",
        ),
        (["{photo}", "--out", "a.png", "--what", "rollout", "--head", "1"], "goes through every layer and head"),
        (["{photo}", "--out", "a.png", "--layer", "2"], "--layer is 2: this model has layers 0 to 1"),
        (["{photo}", "--out", "a.png", "--head", "5"], "--head is 5: this model has heads 0 to 4"),
        (["{photo}"], "There is nowhere to draw"),
    ],
)
def test_bad_input(sources, photo, tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "text.jpg").write_text("To be", encoding="utf-8")
    places = {"missing": tmp_path / "missing.jpg", "text": tmp_path / "text.jpg", "photo": photo}
    assert main(["inspect", *(each.format(**places) for each in arguments), "--model", sources["ViT"]]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "here").iterdir())


def test_a_preprocessing_of_another_kind_of_picture_is_said(tmp_path, photo, capsys):
    model = sf.ViT(sf.ViTConfig(**{**SMALL, "channels": 1}))
    source = saved(tmp_path / "model", model, Preprocess((8, 12)))
    assert main(["inspect", photo, "--model", source, "--out", str(tmp_path / "a.png")]) == 2
    assert "Pictures of shape [1, 3, 8, 12]: this model reads (batch, 1, 8, 12)" in capsys.readouterr().err


def test_a_text_has_no_rollout(tmp_path, capsys):
    from test_encoders import WORDPIECE

    torch.manual_seed(0)
    gpt2 = sf.GPT2(sf.GPT2Config(vocab=WORDPIECE.vocab, length=40, dim=16, depth=1, heads=2))
    gpt2.assets = WORDPIECE.files
    gpt2.save_pretrained(tmp_path / "gpt2")
    out = ["--out", str(tmp_path / "a.png")]
    assert main(["inspect", "The value", "--model", str(tmp_path / "gpt2"), "--what", "rollout", *out]) == 2
    assert "The rollout is laid over a picture: choose attention or lens for a text." in capsys.readouterr().err
