"""`record` and `inspect` of an encoder-decoder: where in the source it looked as it wrote each token."""

import json

import numpy as np
import pytest
import torch
from test_translator import TEXTS, marian, mbart  # noqa: F401 (fixtures)

import scratchformers as sf
from scratchformers.cli import main
from scratchformers.generate import generate
from scratchformers.insight import pictures
from scratchformers.insight.inspect import look_across
from scratchformers.text import pair_characters

DTYPE = torch.float64
EAGER = 1e-5  # transformers writes attention out with its weights rounded to float32
TEXT, OTHER = TEXTS[9], TEXTS[5]


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.fixture
def ours(marian):  # noqa: F811
    return sf.load(marian[2], dtype=DTYPE), sf.load_tokenizer(marian[2])


def test_attention_of_both_halves_and_between_them_is_the_references(marian, ours):  # noqa: F811
    theirs, (model, tokenizer) = marian[0], ours
    theirs.set_attn_implementation("eager")
    source, target = (torch.tensor([ids]) for ids in (tokenizer.encode(TEXT), tokenizer.target.encode(OTHER)))
    keep = torch.ones_like(source, dtype=torch.bool)
    keep[:, -2:] = False
    with torch.no_grad():
        expected = theirs(
            input_ids=source, decoder_input_ids=target, attention_mask=keep.long(), output_attentions=True
        )
        before = model(source, target, source_keep=keep)
        with sf.record(model) as r:
            close(model(source, target, source_keep=keep), before)
    parts = {"encoder": expected.encoder_attentions, "decoder": expected.decoder_attentions}
    assert set(r.attention) == {
        *(f"{part}.blocks.{i}.attention" for part, each in parts.items() for i in range(len(each))),
        *(f"decoder.blocks.{i}.cross" for i in range(3)),
    }
    for part, each in parts.items():
        for i, weights in enumerate(each):
            rows = keep[0] if part == "encoder" else slice(None)
            close(r.attention[f"{part}.blocks.{i}.attention"][:, :, rows], weights[:, :, rows], EAGER)
    for i, weights in enumerate(expected.cross_attentions):
        close(r.attention[f"decoder.blocks.{i}.cross"], weights, EAGER)
        assert weights.shape[2:] == (target.shape[1], source.shape[1])
        assert not weights[..., -2:].any()
    assert next(iter(r.hidden)) == "encoder.blocks.input"
    assert "decoder.blocks.input" in r.hidden


def recorded(model, source, written):
    with torch.no_grad(), sf.record(model) as r:
        model(source, written[:, :-1])
    return r.attention


def test_each_token_of_its_own_translation_has_the_row_that_wrote_it(ours):
    model, tokenizer = ours
    source = torch.tensor([tokenizer.encode(TEXT)])
    written = generate(model, source, max_new_tokens=12)  # the checkpoint's 13, one of which it begins with
    expected, found = recorded(model, source, written), look_across(*ours, TEXT, what="attention").data
    weights = torch.tensor(found["attention"], dtype=torch.float32)
    close(weights, expected["decoder.blocks.2.cross"][0].float(), 1e-6)
    assert (found["layer"], found["heads"]) == ("decoder.blocks.2.cross", [*range(7)])
    assert (
        weights.shape == (7, len(found["target"]), len(found["source"])) == (7, written.shape[1] - 1, source.shape[1])
    )
    names = [tokenizer.tokenizer.id_to_token(id) for id in source[0].tolist()]
    assert found["source"] == [name.replace("▁", " ") for name in names]
    assert found["source"][-1] == "</s>"
    own = [tokenizer.target.tokenizer.id_to_token(id) for id in written[0, 1:].tolist()]
    assert found["target"] == [name.replace("▁", " ") for name in own]
    close(weights.sum(-1), torch.ones(weights.shape[:2]), 1e-5)


def test_a_translation_may_be_given(ours):
    model, tokenizer = ours
    ids = tokenizer.target.encode(OTHER)
    written = torch.tensor([[model.generation.start, *ids]])
    expected = recorded(model, torch.tensor([tokenizer.encode(TEXT)]), written)["decoder.blocks.0.cross"]
    found = look_across(*ours, TEXT, target=OTHER, what="attention", layer=0, head=3).data
    close(torch.tensor(found["attention"]), expected[0, 3:4].float(), 1e-6)
    assert found["heads"] == [3]
    assert len(found["target"]) == len(ids)
    assert found["target"][-1] == "</s>"


def test_a_language_after_the_end_of_a_target_is_none_of_it(mbart):  # noqa: F811
    model, tokenizer = sf.load(mbart[2], dtype=DTYPE), sf.load_tokenizer(mbart[2])
    target = look_across(model, tokenizer, TEXT, target=OTHER, what="attention").data["target"]
    assert target[-1] == "</s>"
    assert target.count("</s>") == 1


def test_bytes_have_their_own_spaces():
    from scratchformers.text import train_pair_bpe

    tokenizer = train_pair_bpe(["ein Hund, der Ärger"] * 9, ["a dog"] * 9, vocab=290, joint=False)
    model = sf.EncoderDecoder(sf.EncoderDecoderConfig(vocab=290, target_vocab=290, length=31, dim=8, depth=1, heads=2))
    model.generation = model.generation.__class__(start=1, end=(2,), pad=0)
    found = look_across(model, tokenizer, "ein Hund", target="a dog", what="attention").data
    assert "".join(found["source"]) == "ein Hund</s>"
    assert "".join(found["target"]) == "a dog</s>"


# --- the picture


def test_the_picture_has_source_and_target_at_its_axes_and_the_mean_first(ours):
    found = look_across(*ours, TEXT, what="attention")
    figure = found.figure()
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["mean of the heads", *(f"head {i}" for i in range(7))]
    weights = np.array(found.data["attention"])
    np.testing.assert_allclose(panels[0].images[0].get_array(), weights.mean(0), atol=1e-6)
    np.testing.assert_allclose(panels[3].images[0].get_array(), weights[2], atol=1e-6)
    labels = [[each.get_text() for each in axes] for axes in (panels[0].get_xticklabels(), panels[0].get_yticklabels())]
    assert labels == [[pictures.visible(each) for each in found.data[side]] for side in ("source", "target")]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("source", "target")
    one = look_across(*ours, TEXT, what="attention", head=4).figure()
    assert [axes.get_title() for axes in one.axes if axes.images] == ["head 4"]


def test_of_long_texts_the_last_tokens_are_drawn(ours):
    model, tokenizer = ours
    long = " ".join(" ".join(TEXTS[1:6]).split()[:-4])
    found = look_across(model, tokenizer, long, target="a", what="attention")
    count = len(tokenizer.encode(long))
    assert 48 < count <= 61
    assert (found.drawn, found.left_out) == (48, count - 48)
    panel = found.figure().axes[0]
    assert panel.images[0].get_array().shape == (len(found.data["target"]), 48)
    labels = [[each.get_text() for each in axes] for axes in (panel.get_xticklabels(), panel.get_yticklabels())]
    assert labels[0] == [pictures.visible(each) for each in found.data["source"][-48:]]
    assert labels[1] == [pictures.visible(each) for each in found.data["target"]]
    assert len(found.data["source"]) == count


# --- the command


def test_inspect_draws_and_says_it(marian, ours, tmp_path, capsys, recwarn):  # noqa: F811
    source = ["--model", str(marian[2])]
    for suffix in ("png", "svg"):
        out = tmp_path / f"a b.{suffix}"
        assert main(["inspect", "a $x$ 猫 b", *source, "--out", str(out), "--text", "$y$ 日本"]) == 0
        assert out.stat().st_size > 5000
    assert not [each for each in recwarn if "glyph" in str(each.message).lower()]
    assert capsys.readouterr().err == ""
    assert main(["inspect", TEXT, *source, "--json", "--layer", "1", "--text", OTHER, "--what", "attention"]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = look_across(*ours, TEXT, target=OTHER, what="attention", layer=1).data
    assert {**said, "attention": None} == {**expected, "attention": None}
    np.testing.assert_allclose(said["attention"], expected["attention"], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "--out", "a.png"], "The text is empty: there is nothing to look at"),
        (["a", "--text", " ", "--out", "a.png"], "The target is empty"),
        (["a", "--text", "b", "--text", "c", "--out", "a.png"], "There are 2 texts: pass one translation"),
        (
            ["a", "--what", "lens", "--out", "a.png"],
            "There is no lens of a model that reads one text and writes another",
        ),
        (["a", "--what", "rollout", "--out", "a.png"], "There is no rollout of a model"),
        (["a", "--layer", "3", "--out", "a.png"], "layers 0 to 2"),
        (["a", "--head", "7", "--out", "a.png"], "heads 0 to 6"),
        (["ab " * 99, "--out", "a.png"], "61"),
        (["a", "--text", "ab " * 99, "--out", "a.png"], "61"),
    ],
)
def test_bad_input(marian, tmp_path, monkeypatch, capsys, arguments, said):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *arguments, "--model", str(marian[2])]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_first_id_is_said():
    tokenizer = pair_characters(["ab"], ["ab"])
    model = sf.EncoderDecoder(sf.EncoderDecoderConfig(vocab=tokenizer.vocab, length=9, dim=8, depth=1, heads=2))
    with pytest.raises(ValueError, match="does not say which id a target begins with"):
        look_across(model, tokenizer, "ab", target="a", what="attention")
