"""Decoding against transformers: the same text, the same distributions; and what is refused."""

import pytest
import reference
import torch
from test_gpt2 import padded
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import scratchformers as sf
from scratchformers.generate import filter_logits


def test_greedy_text_is_the_references(published, model):
    ids = reference.ids(4, 7)
    ours = sf.generate(model, ids, max_new_tokens=30, stop=())
    assert torch.equal(ours, reference.greedy(published[0], ids, 30))
    for row in ours:
        assert len(set(row[7:].tolist())) >= 6, "a text of one token for ever would prove nothing"
    logits = published[0](ours).logits
    torch.testing.assert_close(model(ours), logits, atol=1e-10, rtol=0)


def test_every_steps_logits_are_the_references(published, model):
    text, cache = reference.ids(2, 5), model.new_cache(2)
    new = text
    for _ in range(30):
        logits = model.step(new, None, cache)
        torch.testing.assert_close(logits, published[0](text).logits[:, -1], atol=1e-10, rtol=0)
        new = logits.argmax(-1)[:, None]
        text = torch.cat([text, new], dim=1)
    assert all(len(set(row.tolist())) >= 6 for row in text[:, 5:])


def test_left_padded_text_is_the_references(published, model):
    ids, keep = padded([reference.ids(1, n, seed=n)[0] for n in (1, 4, 11)], "left")
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=30, stop=())
    assert torch.equal(ours, reference.greedy(published[0], ids, 30, mask=keep.long()))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_prompt_is_continued_as_it_would_be_alone(model, side):
    rows = [reference.ids(1, n, seed=n)[0] for n in (1, 4, 11)]
    ids, keep = padded(rows, side)
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=20, stop=())
    assert torch.equal(ours[:, :11], ids), "the prompt columns stay as they were given"
    for i, row in enumerate(rows):
        alone = sf.generate(model, row[None], max_new_tokens=20, stop=())
        assert torch.equal(ours[i, 11:], alone[0, len(row) :])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, None, None), (1.3, 5, None), (0.9, None, 0.8), (2.0, 40, 0.6)],
)
def test_filtered_probabilities_are_the_references_at_each_step(model, temperature, top_k, top_p):
    ids = reference.ids(3, 7)
    text = sf.generate(model, ids, max_new_tokens=12, stop=())
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    for t in range(7, 19):
        logits = model(text[:, :t])[:, -1]
        theirs = logits
        for warper in warpers:
            theirs = warper(text[:, :t], theirs)
        ours = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-12, rtol=0)
        assert (ours.softmax(-1) > 0).any(-1).all()


def test_top_k_larger_than_the_vocabulary_and_top_p_of_one_filter_nothing(model):
    logits = torch.randn(2, 97)
    same = filter_logits(logits, temperature=1.0, top_k=500, top_p=1.0).softmax(-1)
    torch.testing.assert_close(same, logits.softmax(-1))
    assert filter_logits(logits, temperature=1.0, top_p=1e-9).isfinite().sum() == 2


def test_drawing_follows_the_distribution(model):
    """Shares of 4,000 draws of the first token against its probability: within 5 standard deviations."""
    ids = reference.ids(1, 5).expand(4000, -1)
    draw = torch.Generator().manual_seed(3)
    drawn = sf.generate(model, ids, max_new_tokens=1, temperature=1.5, top_k=4, stop=(), generator=draw)[:, -1]
    expected = filter_logits(model(ids[:1])[:, -1], temperature=1.5, top_k=4).softmax(-1)[0]
    shares = torch.bincount(drawn, minlength=97) / 4000
    assert ((shares - expected).abs() <= 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-12).all()


def test_a_seed_repeats_a_text_and_another_gives_another(model):
    ids = reference.ids(2, 5)

    def text(seed):
        draw = torch.Generator().manual_seed(seed)
        return sf.generate(model, ids, max_new_tokens=20, temperature=1.0, stop=(), generator=draw)

    assert torch.equal(text(1), text(1))
    assert not torch.equal(text(1), text(2))
    torch.manual_seed(0)
    a = sf.generate(model, ids, max_new_tokens=9, temperature=1.0)
    torch.manual_seed(0)
    assert torch.equal(a, sf.generate(model, ids, max_new_tokens=9, temperature=1.0)), (
        "without one, torch's own is used"
    )


def test_a_row_ends_at_its_stop_id_and_is_filled(model):
    ids = reference.ids(4, 7)
    free = sf.generate(model, ids, max_new_tokens=30, stop=())
    stop = int(free[0, 7 + 3])
    ours = sf.generate(model, ids, max_new_tokens=30, stop=[stop])
    for row, plain in zip(ours[:, 7:].tolist(), free[:, 7:].tolist()):
        end = plain.index(stop) + 1 if stop in plain else len(row)
        assert row[:end] == plain[: min(end, len(row))]
        assert set(row[end:]) <= {stop}
    assert sf.generate(model, ids[:1], max_new_tokens=30, stop=[stop]).shape[1] <= 7 + 4


def test_the_checkpoints_own_end_is_honoured(published, model):
    assert model.generation.end == (reference.END,)
    ids = reference.ids(64, 3)
    theirs = reference.greedy(published[0], ids, 40, eos_token_id=reference.END, pad_token_id=reference.END)
    ours = sf.generate(model, ids, max_new_tokens=40)
    assert torch.equal(ours, theirs)
    assert (ours[:, 3:] == reference.END).any(), "no row ended: the test shows nothing"


def test_finished_rows_are_filled_with_the_pad_id_where_there_is_one(model):
    from dataclasses import replace

    ids = reference.ids(64, 3)
    model.generation = replace(model.generation, pad=88)
    out = sf.generate(model, ids, max_new_tokens=40)[:, 3:].tolist()
    ended = [row for row in out if reference.END in row[:-1]]
    assert ended
    assert all(set(row[row.index(reference.END) + 1 :]) == {88} for row in ended)


def test_a_tiny_temperature_overflows_nothing(model):
    ids = reference.ids(2, 5)
    greedy = sf.generate(model.float(), ids, max_new_tokens=9, stop=())
    assert torch.equal(sf.generate(model, ids, max_new_tokens=9, stop=(), temperature=1e-40), greedy)


def test_room_is_counted_on_what_the_model_starts_with(model):
    """An encoder-decoder starts from one token, however long its source."""
    model.start = lambda ids, keep: (ids[:, :1], None, model.step)
    assert sf.generate(model, reference.ids(2, 50), max_new_tokens=20, stop=()).shape == (2, 21)


def test_dropout_is_off_while_sampling_and_the_mode_comes_back():
    model = sf.GPT2(sf.GPT2Config(vocab=31, length=40, dim=20, depth=2, heads=2, dropout=0.5)).train()
    ids = torch.randint(31, (1, 5))
    assert torch.equal(sf.generate(model, ids, max_new_tokens=20), sf.generate(model, ids, max_new_tokens=20))
    assert model.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        (
            {"max_new_tokens": 47},
            "7 prompt tokens and 47 new do not fit a model of 53 positions: ask for at most 46",
        ),
        ({"ids": torch.zeros(1, 60, dtype=torch.long)}, "shorten the prompt to 52"),
        ({"ids": torch.zeros(2, 0, dtype=torch.long)}, "no tokens"),
        ({"ids": torch.full((1, 7), 97)}, "this model knows 0 to 96"),
        ({"ids": torch.full((1, 7), -1)}, "this model knows 0 to 96"),
        ({"keep": torch.zeros(1, 7, dtype=torch.bool)}, "no tokens"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(model, changes, said, monkeypatch):
    monkeypatch.setattr(model, "step", lambda *_: pytest.fail("work was done"))
    ids = changes.pop("ids", reference.ids(1, 7))
    with pytest.raises(ValueError, match=said):
        sf.generate(model, ids, **{"max_new_tokens": 5, **changes})


@pytest.mark.unhooked  # the hook would refuse the shape before we do
def test_a_keep_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match="keep has shape"):
        sf.generate(model, reference.ids(1, 7), keep=torch.ones(1, 6, dtype=torch.bool), max_new_tokens=3)


def test_a_text_may_fill_the_model_to_its_last_position(model):
    assert sf.generate(model, reference.ids(1, 7), max_new_tokens=46, stop=()).shape == (1, 53)
    ids, keep = padded([reference.ids(1, n, seed=n)[0] for n in (3, 40)], "right")
    assert sf.generate(model, ids, keep=keep, max_new_tokens=13, stop=()).shape == (2, 53)
