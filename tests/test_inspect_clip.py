"""`record` and `inspect` of CLIP: both towers' attention, and where in a picture a text is seen."""

import inspect
import json

import clip_reference
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import scratchformers as sf
from scratchformers import nn as bricks
from scratchformers.checkpoints import files
from scratchformers.cli import main
from scratchformers.clip_text import train_clip_bpe
from scratchformers.images import Preprocess
from scratchformers.insight import pictures as drawings
from scratchformers.insight.inspect import look_at_picture, look_for

DTYPE = torch.float64
EAGER = 1e-5  # transformers writes attention out with its weights rounded to float32


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """transformers', scrambled, and ours of the same weights."""
    folder, theirs = tmp_path_factory.mktemp("clip"), clip_reference.clip(attn_implementation="eager")
    theirs.save_pretrained(folder)
    return theirs, sf.load(folder, dtype=DTYPE)


def test_attention_of_both_towers_is_the_references(made):
    theirs, model = made
    images, ids = clip_reference.pictures(), clip_reference.texts()
    expected = theirs(pixel_values=images, input_ids=ids, output_attentions=True)
    with torch.no_grad(), sf.record(model) as r:
        scores = model(images, ids)
    close(scores, expected.logits_per_image, EAGER)
    towers = {"image": expected.vision_model_output.attentions, "text": expected.text_model_output.attentions}
    assert list(r.attention) == [f"{part}.blocks.{i}.attention" for part in towers for i in range(len(towers[part]))]
    for part, attentions in towers.items():
        for i, weights in enumerate(attentions):
            close(r.attention[f"{part}.blocks.{i}.attention"], weights, EAGER)


def test_recorded_is_fused_and_leaves_no_trace(made):
    _, model = made
    images, ids = clip_reference.pictures(), clip_reference.texts()
    with torch.no_grad():
        before = model(images, ids)
        with sf.record(model) as r:
            close(model(images, ids), before)
        assert torch.equal(model(images, ids), before)
    for weights in r.attention.values():
        close(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=DTYPE))
    assert all(each.attend is bricks.attend for each in model.modules() if isinstance(each, bricks.Attention))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- relevance


def by_hand(attention, gradients):
    """Chefer et al. 2021, a number at a time."""
    count = attention[0].shape[-1]
    whole = [[float(i == j) for j in range(count)] for i in range(count)]
    for weights, gradient in zip(attention, gradients):
        heads = range(weights.shape[1])
        step = [
            [sum(max(0.0, (weights[0, h, i, j] * gradient[0, h, i, j]).item()) for h in heads) / len(heads)
             for j in range(count)] for i in range(count)
        ]  # fmt: skip
        whole = [
            [whole[i][j] + sum(step[i][k] * whole[k][j] for k in range(count)) for j in range(count)]
            for i in range(count)
        ]
    return torch.tensor(whole, dtype=DTYPE)


def test_relevance_is_that_of_the_paper():
    draw = torch.Generator().manual_seed(0)
    shape = (1, 3, 5, 5)
    attention = [torch.randn(shape, generator=draw, dtype=DTYPE).mul(2).softmax(-1) for _ in range(3)]
    gradients = [torch.randn(shape, generator=draw, dtype=DTYPE) for _ in range(3)]
    close(drawings.relevance(attention, gradients)[0], by_hand(attention, gradients))
    nothing = [torch.zeros(shape, dtype=DTYPE)] * 3
    assert torch.equal(drawings.relevance(attention, nothing)[0], torch.eye(5, dtype=DTYPE))
    with pytest.raises(ValueError, match="no attention to follow"):
        drawings.relevance([], [])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("step @ whole", "whole @ step"),
        ("whole + step @ whole", "step @ whole"),
        ("own + step", "step"),
        (".clamp(min=0)", ""),
        (".clamp(min=0)", ".abs()"),
        (".mean(1)", ".sum(1)"),
        (".mean(1)", ".amax(1)"),
        ("(weights * gradient)", "weights"),
        ("(weights * gradient)", "gradient"),
        ("(weights * gradient).clamp(min=0).mean(1)", "(weights * gradient).mean(1).clamp(min=0)"),
    ],
)
def test_another_relevance_is_caught(monkeypatch, right, wrong):
    source = inspect.getsource(drawings.relevance)
    assert source.count(right) == 1
    scope = dict(vars(drawings))
    exec(source.replace(right, wrong), scope)
    monkeypatch.setattr(drawings, "relevance", scope["relevance"])
    with pytest.raises(AssertionError):
        test_relevance_is_that_of_the_paper()


# --- a CLIP of which it is known what it looks at


WORDS = ("cat", "dog", "owl")
LOUD = 3  # the kind of patch that attention loves and no text is about
ROWS, COLUMNS, PATCH = 3, 4, 2
TOKENIZER = train_clip_bpe(WORDS * 50, 600)


def planted():
    """A patch of kind k gives coordinate 1 + k, the class token coordinate 0, each once more with the opposite sign, so
    that norms change lengths alone. One head looks for the three kinds that there are words for, and moves what it
    finds to the class token; the other looks for LOUD, and moves nothing. Texts are their last words."""
    config = sf.CLIPConfig(
        image=(ROWS * PATCH, COLUMNS * PATCH), patch=PATCH, image_dim=10, image_depth=1, image_heads=2, text_dim=10,
        text_depth=1, text_heads=2, dim=5, vocab=TOKENIZER.vocab, length=8, end=TOKENIZER.end,
    )  # fmt: skip
    model = sf.CLIP(config).eval()
    half = torch.cat([torch.eye(5), -torch.eye(5)])  # (10, 5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("norm.weight" in name))
        image, text = model.image, model.text
        image.class_token[0, 0] = half[:, 0]
        image.patches.project.weight.copy_(half[:, 1:] @ kinds().flatten(1))
        (block,) = image.blocks
        block.attention.q.bias.copy_(torch.tensor([0.0, 4, 4, 4, 0, 0, 0, 0, 0, 8]))
        block.attention.kv.weight[:10] = torch.cat([half.T, half.T]) / 2  # keys of both heads
        block.attention.kv.weight[10:15] = half.T / 2  # values of the first
        block.attention.out.weight[:, :5] = half
        (block,) = text.blocks
        block.attention.kv.weight[10:] = torch.eye(10)  # every token sees itself and those before it alike
        block.attention.out.weight.copy_(torch.eye(10))
        for k, word in enumerate(WORDS):
            text.token.weight[TOKENIZER.encode(word)[-2]] = half[:, 1 + k]
        image.project.weight.copy_(half.T)
        text.project.weight.copy_(half.T)
        model.scale.fill_(3.0)
    return model


def kinds():
    """Pixels of the four kinds of patches, (4, 3, PATCH, PATCH), at right angles."""
    return torch.linalg.qr(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))[0].T.reshape(4, 3, PATCH, -1)


def picture_of(patches):
    """A picture that is black but for patches, their kinds by their places; what the model is given."""
    x = torch.zeros(3, ROWS * PATCH, COLUMNS * PATCH)
    for place, kind in patches.items():
        y, left = (PATCH * each for each in divmod(place, COLUMNS))
        x[:, y : y + PATCH, left : left + PATCH] = kinds()[kind]
    return x


def seen(model, patches, texts):
    """The maps of these texts on such a picture, (texts, patches), and the cosines."""

    class Given(Preprocess):
        def __call__(self, image):
            return picture_of(patches)

    given = Given((ROWS * PATCH, COLUMNS * PATCH))
    found = look_for(model, TOKENIZER, given, Image.new("RGB", (COLUMNS * PATCH, ROWS * PATCH)), texts).data
    return torch.tensor(found["relevance"]).flatten(1), found["cosine"]


@pytest.mark.parametrize("kind", range(3))
def test_a_text_is_seen_where_the_only_patch_is_that_it_is_about(kind):
    model = planted()
    for place in range(ROWS * COLUMNS):
        loud = (place + 5) % (ROWS * COLUMNS)
        maps, cosines = seen(model, {place: kind, loud: LOUD}, WORDS)
        own = maps[kind]
        assert int(own.argmax()) == place
        assert float(own.max()) > 0.01
        assert float(own.sum() - own.max()) < 1e-6, "and nowhere else"
        others = [k for k in range(3) if k != kind]
        assert float(maps[others].abs().max()) < 1e-6, "texts that are not there are seen nowhere"
        assert cosines[kind] > max(cosines[k] for k in others) + 0.1


def test_of_two_patches_each_text_has_its_own():
    model = planted()
    for a in range(3):
        for b in range(3):
            if a != b:
                maps, _ = seen(model, {2: a, 9: b, 4: LOUD}, WORDS)
                assert (int(maps[a].argmax()), int(maps[b].argmax())) == (2, 9)
                assert float(F.cosine_similarity(maps[a], maps[b], dim=0)) < 0.01


def test_attention_alone_would_show_another_patch():
    """What makes the gradient worth its while: the rollout, which is the same for all texts, is drawn to LOUD."""
    model = planted()
    with torch.no_grad(), sf.record(model) as r:
        model.encode_image(picture_of({2: 0, 9: LOUD})[None])
    maps, _ = drawings.as_read(model, drawings.rollout(r.attention.values()))
    assert int(maps.argmax()) == 9


def test_a_model_that_does_not_learn_is_looked_at_too_and_keeps_no_gradient():
    model = planted().requires_grad_(False)
    with torch.no_grad():
        maps, _ = seen(model, {2: 0}, WORDS[:1])
    assert int(maps.argmax()) == 2
    model = planted()
    seen(model, {2: 0}, WORDS[:1])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["encode_image", "encode_text"])
def test_a_map_that_forgets_the_text_or_the_picture_is_caught(monkeypatch, name):
    real = getattr(sf.CLIP, name)
    changed = (lambda self, x: real(self, x.roll(PATCH, -1))) if name == "encode_image" else (
        lambda self, x: real(self, x[[0] * len(x)]))  # fmt: skip
    monkeypatch.setattr(sf.CLIP, name, changed)
    with pytest.raises(AssertionError):
        test_of_two_patches_each_text_has_its_own()


# --- the program


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "clip"
    config = sf.CLIPConfig(
        image=16, patch=4, image_dim=20, image_depth=2, image_heads=5, text_dim=18, text_depth=2, text_heads=3, dim=11,
        vocab=TOKENIZER.vocab, length=9, end=TOKENIZER.end,
    )  # fmt: skip
    model = sf.CLIP(config)
    model.assets = {**TOKENIZER.files, files.PREPROCESSOR: files.to_json(Preprocess(20, (16, 16)).write())}
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path):
    levels = np.random.RandomState(1).randint(0, 256, (30, 45, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a $photo$ 日本.png")
    return str(tmp_path / "a $photo$ 日本.png")


WAYS = [[], ["--layer", "0", "--head", "4"], ["--what", "rollout"], ["--text", "a cat"],
        ["--text", "$日$", "--text", "dog", "--what", "relevance"]]  # fmt: skip


@pytest.mark.parametrize("what", WAYS, ids=" ".join)
def test_pictures_without_a_warning(source, photo, tmp_path, what, recwarn, capsys):
    for suffix in ("png", "svg"):
        out = tmp_path / f"a b.{suffix}"
        assert main(["inspect", photo, "--model", source, "--out", str(out), *what]) == 0
        assert out.stat().st_size > 2000
    assert not [each for each in recwarn if "glyph" in str(each.message).lower()]
    assert capsys.readouterr().err == ""


def test_the_picture_names_the_method_the_texts_and_their_cosines(source, photo):
    model, preprocess, image = sf.load(source), sf.load_preprocess(source), Image.open(photo)
    found = look_for(model, TOKENIZER, preprocess, image, ["a cat", "a dog"], name="photo.png")
    figure = found.figure()
    titles = [axes.get_title() for axes in figure.axes[:3]]
    cosines = [f"cosine {each:.3f}" for each in found.data["cosine"]]
    assert titles == ["the part that is seen", f"a cat\n{cosines[0]}", f"a dog\n{cosines[1]}"]
    assert figure.axes[3].get_ylabel() == "relevance of a patch for the text\n(Chefer et al. 2021)"
    assert [each.get_text() for each in figure.texts] == ["Where a text is seen: photo.png"] or (
        figure.get_suptitle() == "Where a text is seen: photo.png"
    )
    for axes, values in zip(figure.axes[1:3], found.data["relevance"]):
        close(torch.from_numpy(np.asarray(axes.images[1].get_array())), torch.tensor(values), 1e-6)
    seen = figure.axes[0].images[0].get_array()
    left, top, right, bottom = (round(side) for side in preprocess.seen(image))
    assert np.array_equal(seen, np.asarray(image)[top:bottom, left:right]), "the part that the model saw"


def test_the_figures_as_json(source, photo, capsys):
    model, preprocess = sf.load(source), sf.load_preprocess(source)
    assert main(["inspect", photo, "--model", source, "--text", "a cat", "--text", "a dog", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {"picture", "method", "texts", "cosine", "relevance", "class_token"}
    assert (said["picture"], said["texts"]) == ("a $photo$ 日本.png", ["a cat", "a dog"])
    x = preprocess(Image.open(photo))[None]
    with sf.record(model) as r:
        image = F.normalize(model.encode_image(x), dim=-1)
    with torch.no_grad():
        texts = [F.normalize(model.encode_text(torch.tensor([TOKENIZER.encode(t)])), dim=-1) for t in said["texts"]]
    for i, text in enumerate(texts):
        cosine = (image @ text.T).sum()
        assert said["cosine"][i] == pytest.approx(cosine.item(), abs=1e-6)
        attention = list(r.attention.values())
        found = by_hand(attention, torch.autograd.grad(model.scale.exp() * cosine, attention, retain_graph=True))
        close(torch.tensor(said["relevance"][i], dtype=DTYPE), found[0, 1:].reshape(4, 4), 1e-5)
        assert said["class_token"][i] == pytest.approx(float(found[0, 0]), abs=1e-5)
    assert main(["inspect", photo, "--model", source, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["layer"], said["heads"], said["read"]) == ("image.blocks.1.attention", [*range(5)], "the class token")
    close(torch.tensor(said["attention"]), r.attention[1][0, :, 0, 1:].detach().reshape(5, 4, 4), 1e-6)
    assert main(["inspect", photo, "--model", source, "--json", "--what", "rollout"]) == 0
    said = json.loads(capsys.readouterr().out)
    close(torch.tensor(said["rollout"]), drawings.rollout(r.attention.values())[0, 0, 1:].detach().reshape(4, 4), 1e-6)


def test_a_text_has_the_same_map_alone_and_among_others(source, photo):
    model, preprocess, image = sf.load(source), sf.load_preprocess(source), Image.open(photo)
    together = look_for(model, TOKENIZER, preprocess, image, ["a dog and a cat", "owl"]).data
    for i, text in enumerate(together["texts"]):
        alone = look_for(model, TOKENIZER, preprocess, image, [text]).data
        close(torch.tensor(alone["relevance"][0]), torch.tensor(together["relevance"][i]), 1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000)])
@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16"])
def test_odd_pictures_are_drawn(source, size, mode):
    model, preprocess, image = sf.load(source), sf.load_preprocess(source), Image.new(mode, size)
    for seen in (look_at_picture(model, preprocess, image, what="rollout"),
                 look_for(model, TOKENIZER, preprocess, image, ["owl"])):  # fmt: skip
        seen.figure().savefig("/dev/null", format="png", dpi=20)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{photo}", "--text", "a cat", "--what", "rollout"], "--text asks for its relevance, and --what for rollout"),
        (["{photo}", "--text", "a cat", "--layer", "0"], "Relevance goes through every layer and head: leave --layer"),
        (["{photo}", "--text", "a cat", "--head", "0"], "Relevance goes through every layer and head: leave --layer"),
        (["{photo}", "--what", "relevance"], "Relevance is that of a picture for a text: say which (--text)"),
        (["{photo}", "--text", " "], "The text is empty: there is nothing to look for"),
        (["{photo}", "--text", "cat " * 20], "A text has 22 tokens and the model reads 9: truncate it."),
        (["{missing}", "--text", "a cat"], "missing.jpg is no file: expected a picture"),
    ],
)
def test_bad_input(source, photo, tmp_path, capsys, arguments, said):
    places = {"photo": photo, "missing": tmp_path / "missing.jpg"}
    out = tmp_path / "map.png"
    assert main(["inspect", *(each.format(**places) for each in arguments), "--model", source, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_model_that_holds_no_numbers_is_refused(source, photo):
    model = sf.load(source)
    model.text.project.weight.data[0, 0] = torch.nan
    given = sf.load_tokenizer(source), sf.load_preprocess(source), Image.open(photo), ["a cat"]
    with pytest.raises(ValueError, match="The cosines are not finite: the model's weights hold NaN"):
        look_for(model, *given)


def test_a_tokeniser_of_another_model_is_refused(source, photo):
    other = train_clip_bpe(["one two three four five six seven eight nine ten eleven twelve thirteen"] * 9, 900)
    assert other.vocab > TOKENIZER.vocab
    given = sf.load(source), other, sf.load_preprocess(source), Image.open(photo)
    with pytest.raises(ValueError, match=r"The tokeniser has \d+ ids and the model \d+: they do not belong together"):
        look_for(*given, ["one"])


def test_a_text_for_a_model_that_reads_none_is_refused(tmp_path, photo, capsys):
    model = sf.ViT(sf.ViTConfig(image=16, patch=4, dim=20, depth=1, heads=5))
    model.assets[files.PREPROCESSOR] = files.to_json(Preprocess((16, 16)).write())
    model.save_pretrained(tmp_path / "vit")
    out = ["--out", str(tmp_path / "map.png")]
    assert main(["inspect", photo, "--model", str(tmp_path / "vit"), "--text", "a cat", *out]) == 2
    assert "ViT reads no texts: leave --text out." in capsys.readouterr().err
    with pytest.raises(ValueError, match="ViT reads no texts beside pictures: expected a CLIP, or no --text"):
        look_for(model, TOKENIZER, sf.load_preprocess(tmp_path / "vit"), Image.open(photo), ["a cat"])
