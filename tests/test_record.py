"""`record` shows what the model does, and changes none of it; `inspect` draws it."""

import json

import numpy as np
import pytest
import reference
import torch

import scratchformers as sf
from scratchformers import nn as bricks
from scratchformers.cli import main
from scratchformers.insight import pictures


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def keeps():
    """Nothing padded, padded left, padded right."""
    left, right = torch.ones(2, 11, dtype=torch.bool), torch.ones(2, 11, dtype=torch.bool)
    left[1, :4] = right[1, -3:] = False
    return [None, left, right]


def test_attention_and_states_are_the_references(published, model):
    theirs, _ = published
    theirs.set_attn_implementation("eager")
    ids = reference.ids(2, 11)
    expected = theirs(ids, output_attentions=True, output_hidden_states=True)
    theirs.set_attn_implementation("sdpa")
    with sf.record(model) as r:
        model(ids)
    assert list(r.attention) == [f"blocks.{i}.attention" for i in range(model.config.depth)]
    for i, weights in enumerate(expected.attentions):
        close(r.attention[i], weights)
        assert r.attention[i] is r.attention[f"blocks.{i}.attention"]
    assert list(r.hidden) == ["blocks.input", *(f"blocks.{i}" for i in range(model.config.depth)), "norm"]
    ours = [r.hidden[i] for i in range(model.config.depth)] + [r.hidden[-1]]  # theirs norms the last, and drops it bare
    for mine, state in zip(ours, expected.hidden_states, strict=True):
        close(mine, state)


def test_with_padding_attention_is_the_references(published, model):
    theirs, _ = published
    theirs.set_attn_implementation("eager")
    ids, (_, left, right) = reference.ids(2, 11), keeps()
    for keep in (left, right):
        position = (keep.cumsum(-1) - 1).clamp(min=0)
        expected = theirs(ids, attention_mask=keep.long(), position_ids=position, output_attentions=True).attentions
        with sf.record(model) as r:
            model(ids, keep=keep)
        for mine, weights in zip(r.attention.values(), expected, strict=True):
            real = keep[:, None, :, None].expand_as(mine)
            close(mine[real], weights[real])
    theirs.set_attn_implementation("sdpa")


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_recorded_is_fused(published, dtype, atol):
    model = sf.load(published[1], dtype=dtype)
    ids = reference.ids(2, 11)
    for keep in keeps():
        with sf.record(model) as r:
            recorded = model(ids, keep=keep)
        scale = float(recorded.detach().abs().max())
        close(recorded, model(ids, keep=keep), atol=atol * max(1.0, scale))
        for weights in r.attention.values():
            assert not weights.triu(1).any(), "nothing looks ahead"
            real = torch.ones(2, 11, dtype=torch.bool) if keep is None else keep
            sums = weights.sum(-1).transpose(1, 2)[real]
            close(sums, torch.ones_like(sums), atol=1e-6)
            assert not weights.movedim(-1, 1)[~real].any(), "nobody looks at padding"


def test_written_out_attention_is_the_bricks_own():
    """Of any mask, also where a query may attend to nothing."""
    from scratchformers.insight.record import _attend

    q, k, v = torch.randn(3, 2, 3, 7, 5, dtype=torch.float64).unbind()
    mask = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[1, :, 2] = False
    for each in (None, bricks.CAUSAL, mask):
        found = {}
        close(_attend(found, "here", q, k, v, each), bricks.attend(q, k, v, each), atol=1e-12)
        assert found["here"].shape == (2, 3, 7, 7)
    assert not found["here"][1, :, 2].any()


def test_the_last_call_is_kept_and_a_step_of_decoding_is_one(model):
    ids = reference.ids(2, 9)
    for room in (None, 12):
        cache = model.new_cache(2, length=room)
        with sf.record(model) as whole:
            model(ids)
        with sf.record(model) as r:
            model(ids[:, :8], cache=cache)
            model(ids[:, 8:], cache=cache)
        assert r.attention[0].shape[2] == 1
        close(r.attention[2][:, :, 0, :9], whole.attention[2][:, :, 8])
        close(r.hidden[-1][:, 0], whole.hidden[-1][:, 8])


def test_afterwards_the_model_is_as_it_was(model):
    ids, keep = reference.ids(2, 11), keeps()[1]
    before = model(ids, keep=keep)
    with pytest.raises(ValueError, match="do not fit a model of 53"), sf.record(model):
        model(reference.ids(1, 54))
    assert all(each.attend is bricks.attend for each in model.modules() if isinstance(each, bricks.Attention))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(ids, keep=keep), before)


def test_gradients_flow_through_what_is_recorded(model):
    with sf.record(model) as r:
        model(reference.ids(1, 5))
    r.attention[0].square().sum().backward()
    assert model.blocks[0].attention.q.weight.grad.abs().sum() > 0
    assert model.blocks[1].attention.q.weight.grad is None


def test_dropout_acts_on_recorded_attention_too():
    model = sf.GPT2(sf.GPT2Config(vocab=31, length=17, dim=20, depth=2, heads=2, dropout=0.5)).train()
    with sf.record(model) as r:
        torch.manual_seed(0)
        first = model(torch.arange(9)[None])
        again = model(torch.arange(9)[None])
    assert not torch.equal(first, again)
    close(r.attention[0].sum(-1), torch.ones(1, 2, 9), atol=1e-6)


def test_what_cannot_be_recorded_is_said(model):
    with (
        sf.record(model),
        pytest.raises(ValueError, match=r"blocks.0.attention attends in a way of its own"),
        sf.record(model),
    ):
        pass
    with pytest.raises(ValueError, match="Linear has no Attention"), sf.record(torch.nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="is compiled"), sf.record(torch.compile(model)):
        pass
    with sf.record(model) as r:
        pass
    with pytest.raises(IndexError, match="the model was not called"):
        _ = r.attention[0]
    with sf.record(model) as r:
        model(reference.ids(1, 5))
    with pytest.raises(KeyError, match=r"'blocks\.9' is not recorded; there is"):
        _ = r.hidden["blocks.9"]
    with pytest.raises(IndexError):
        _ = r.hidden[99]


# --- pictures


def test_the_lens_ends_with_the_models_own_answer(model):
    ids = reference.ids(1, 9)
    with torch.no_grad(), sf.record(model) as r:
        logits = model(ids)
    names, best, probability = pictures.logit_lens(model, r)
    assert names == ["blocks.input", *(f"blocks.{i}" for i in range(model.config.depth))]
    assert best.shape == probability.shape == (len(names), 9)
    assert best[-1].tolist() == logits[0].argmax(-1).tolist()
    np.testing.assert_allclose(probability[-1], logits[0].softmax(-1).amax(-1), atol=1e-6)
    first = model.unembed(model.norm(model.token(ids) + model.position(torch.arange(9))))[0]
    assert best[0].tolist() == first.argmax(-1).tolist()
    with pytest.raises(ValueError, match="no logit lens"):
        pictures.logit_lens(torch.nn.Linear(2, 2), r)


def test_labels_can_be_read():
    assert pictures.visible(" a\n\tb") == "·a↵⇥b"
    assert pictures.visible("日") == "U+65E5"
    assert pictures.visible("\x00") == "U+0"
    assert len(pictures.visible("x" * 99)) == 14


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with a tokeniser of bytes."""
    from scratchformers.text import train_bpe

    folder = tmp_path_factory.mktemp("source")
    tokenizer = train_bpe(["To be, or not to be: that is the question. " * 9], vocab=280)
    torch.manual_seed(0)
    model = sf.GPT2(sf.GPT2Config(vocab=tokenizer.vocab, length=64, dim=24, depth=3, heads=4))
    model.assets = dict(tokenizer.files)
    model.save_pretrained(folder)
    return str(folder)


TEXT = "To be, or $not$ to_be^2,\n\t日本 🙂 \x01"


@pytest.mark.parametrize("what", [[], ["--layer", "-1"], ["--layer", "1", "--head", "3"], ["--what", "lens"]])
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_of_any_text_without_a_warning(source, tmp_path, what, suffix, recwarn, capsys):
    out = tmp_path / f"a b.{suffix}"
    assert main(["inspect", TEXT, "--model", source, "--out", str(out), *what]) == 0
    assert out.stat().st_size > 2000
    assert not [each for each in recwarn if "glyph" in str(each.message).lower()]
    assert (what == ["--what", "lens"]) == ("shows the last 24 tokens" in capsys.readouterr().err)


def test_the_figures_as_json(source, capsys):
    assert main(["inspect", "To be", "--model", source, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    weights = np.array(said["attention"]["blocks.2.attention"])
    assert weights.shape == (4, len(said["tokens"]), len(said["tokens"]))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert main(["inspect", "To be", "--model", source, "--json", "--what", "lens"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["top"]) == len(said["layers"]) == 4
    assert "".join(said["tokens"]) == "To be"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "--out", "a.png"], "no tokens"),
        (["x"], "nowhere to draw"),
        (["x", "--out", "a.gif"], "must end in .png, .svg or .pdf"),
        (["x", "--out", "missing/a.png"], "does not exist"),
        (["x", "--out", "a.png", "--layer", "3"], "layers 0 to 2"),
        (["x", "--out", "a.png", "--layer", "0", "--head", "4"], "heads 0 to 3"),
        (["x", "--out", "a.png", "--head", "1"], "say which by --layer"),
        (["x", "--out", "a.png", "--what", "lens", "--layer", "1"], "leave --layer out"),
        (["x" * 65, "--out", "a.png"], "do not fit a model of 64 positions"),
    ],
)
def test_bad_input(source, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *arguments, "--model", source]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
