"""Decoding against transformers: the same text, the same distributions; and what is refused."""

import dataclasses

import pytest
import reference
import torch
from test_gpt2 import padded
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import scratchformers as sf
from scratchformers.generate import filter_logits, penalise


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
        ({"ids": torch.zeros(1, 60, dtype=torch.long)}, "shorten the prompt to 48"),
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


def test_finished_rows_are_never_filled_with_what_the_model_does_not_know(model):
    """A stop id that is none of the model's is simply never met, as 50256 in the config of a small GPT-2."""
    ids = reference.ids(2, 7)
    free = sf.generate(model, ids, max_new_tokens=12, stop=())
    token = int(free[0, 9])
    stopped = sf.generate(model, ids, max_new_tokens=12, stop=(-1, 50256, token))
    assert (stopped[0, 10:] == token).all()
    assert torch.equal(sf.generate(model, ids, max_new_tokens=12, stop=-1), free)


@pytest.mark.unhooked  # the hook would refuse the shape before we do
def test_a_keep_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match="keep has shape"):
        sf.generate(model, reference.ids(1, 7), keep=torch.ones(1, 6, dtype=torch.bool), max_new_tokens=3)


def test_a_text_may_fill_the_model_to_its_last_position(model):
    assert sf.generate(model, reference.ids(1, 7), max_new_tokens=46, stop=()).shape == (1, 53)
    ids, keep = padded([reference.ids(1, n, seed=n)[0] for n in (3, 40)], "right")
    assert sf.generate(model, ids, keep=keep, max_new_tokens=13, stop=()).shape == (2, 53)


# --- streaming, penalties, generators of one's own


def test_streamed_is_generated(model):
    ids = reference.ids(1, 7)
    for arguments in ({"stop": ()}, {"stop": (reference.END,)}, {"stop": (), "slide": True}, {}):
        whole = sf.generate(model, ids, max_new_tokens=40, **arguments)[0, 7:].tolist()
        assert list(sf.stream(model, ids, max_new_tokens=40, **arguments)) == whole
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    settings = {"max_new_tokens": 20, "temperature": 1.1, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2}
    whole = sf.generate(model, ids, generator=draws[0], **settings)[0, 7:].tolist()
    assert list(sf.stream(model, ids, generator=draws[1], **settings)) == whole


def test_between_two_streamed_ids_the_model_is_the_callers(model):
    """A generator that kept `no_grad` open would switch gradients off for whoever iterates it."""
    model.train()
    for _ in sf.stream(model, reference.ids(1, 7), max_new_tokens=3):
        assert torch.is_grad_enabled()
        assert model.training


def test_stream_takes_one_prompt_and_complains_at_once(model):
    with pytest.raises(ValueError, match=r"max_new_tokens is 0"):
        sf.stream(model, reference.ids(1, 7), max_new_tokens=0)
    with pytest.raises(ValueError, match=r"temperature is -1.0"):
        sf.stream(model, reference.ids(1, 7), max_new_tokens=5, temperature=-1.0)


@pytest.mark.unhooked  # the hook would refuse the shape before we do
def test_stream_refuses_a_batch(model):
    with pytest.raises(ValueError, match="There are 2 prompts: stream continues one"):
        sf.stream(model, reference.ids(2, 7), max_new_tokens=5)


def test_the_repetition_penalty_is_the_references(published, model):
    rows = [reference.ids(1, n, seed=n)[0] for n in (3, 8, 11)]
    ids, keep = padded(rows, "left")
    plain = sf.generate(model, ids, keep=keep, max_new_tokens=30, stop=())
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=30, stop=(), repetition_penalty=1.7)
    theirs = reference.greedy(published[0], ids, 30, mask=keep.long(), repetition_penalty=1.7)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)


def test_penalised_scores_are_the_references_of_either_sign():
    logits, texts = torch.randn(3, 97), reference.ids(3, 20)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(texts, logits)
    assert torch.equal(penalise(logits, texts.tolist(), 1.7), theirs)
    assert ((theirs != logits) & (logits < 0)).any()


def test_padding_is_no_repetition(model):
    """The pad columns hold token 0, which no row wrote."""
    rows = [reference.ids(1, n, seed=n)[0] for n in (3, 11)]
    for side in ("left", "right"):
        ids, keep = padded(rows, side)
        ours = sf.generate(model, ids, keep=keep, max_new_tokens=20, stop=(), repetition_penalty=1.7)
        for i, row in enumerate(rows):
            alone = sf.generate(model, row[None], max_new_tokens=20, stop=(), repetition_penalty=1.7)
            assert torch.equal(ours[i, 11:], alone[0, len(row) :])


def test_a_row_with_a_generator_of_its_own_is_the_row_alone(model):
    rows = [reference.ids(1, n, seed=n)[0] for n in (1, 4, 11)]
    ids, keep = padded(rows, "left")
    draws = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=20, temperature=1.0, generator=draws)
    for i, row in enumerate(rows):
        draw = [torch.Generator().manual_seed(i + 3)]
        alone = sf.generate(model, row[None], max_new_tokens=20, temperature=1.0, generator=draw)[0, len(row) :]
        assert torch.equal(ours[i, 11 : 11 + len(alone)], alone)
    with pytest.raises(ValueError, match="There are 2 generators for 3 rows"):
        sf.generate(model, ids, keep=keep, max_new_tokens=5, temperature=1.0, generator=draws[:2])


# --- sliding: a text longer than the model


def slid_by_hand(model, text, new):
    """Written as the rule says it, without a cache: the window grows to the model's length, then falls to its half."""
    text, length, window = list(text), model.config.length, len(text)
    for _ in range(new):
        window = window if window <= length else length // 2
        text.append(int(model(torch.tensor([text[len(text) - window :]]))[0, -1].argmax()))
        window += 1
    return text


@pytest.mark.parametrize("prompt", [7, 52, 53, 54, 80, 200])
def test_a_sliding_text_is_the_rule_written_out(model, prompt):
    ids = reference.ids(1, prompt)
    ours = sf.generate(model, ids, max_new_tokens=90, stop=(), slide=True)[0].tolist()
    assert ours == slid_by_hand(model, ids[0].tolist(), 90)
    assert len(set(ours[prompt:])) >= 6


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_slides_at_its_own_time(model, side):
    rows = [reference.ids(1, n, seed=n)[0] for n in (1, 30, 49, 61)]
    ids, keep = padded(rows, side)
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=80, stop=(), slide=True)
    for i, row in enumerate(rows):
        assert ours[i, 61:].tolist() == slid_by_hand(model, row.tolist(), 80)[len(row) :]


def test_rows_that_ended_do_not_disturb_those_that_slide(model):
    rows = [reference.ids(1, n, seed=n)[0] for n in range(3, 43)]
    ids, keep = padded(rows, "right")
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=120, slide=True)[:, 42:].tolist()
    ended = 0
    for i, row in enumerate(rows):
        plain = slid_by_hand(model, row.tolist(), 120)[len(row) :]
        end = plain.index(reference.END) + 1 if reference.END in plain else len(plain)
        assert ours[i][:end] == plain[:end]
        ended += end < len(plain)
    assert 0 < ended < len(rows), "the test needs both kinds"


def test_a_model_of_one_position_can_slide():
    model = sf.GPT2(sf.GPT2Config(vocab=11, length=1, dim=8, depth=1, heads=2)).eval()
    assert sf.generate(model, torch.tensor([[3]]), max_new_tokens=5, slide=True, stop=()).shape == (1, 6)


# --- what a checkpoint's generation config asks for

RULES = [
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[5], [reference.END], [17, 4]]},
    {"min_length": 25},
    {"min_new_tokens": 12},
    {"forced_eos_token_id": 41},
    {"forced_eos_token_id": [41, 42]},
    {"forced_bos_token_id": 29},
    {"no_repeat_ngram_size": 3, "min_length": 30, "forced_eos_token_id": reference.END, "bad_words_ids": [[7, 8, 9]]},
]


def ruled(model, published, rules):
    from scratchformers.checkpoints.pretrained import Generation

    model.generation = Generation.read({"eos_token_id": reference.END, "pad_token_id": reference.END, **rules})
    return {"eos_token_id": reference.END, "pad_token_id": reference.END, **rules}


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "+".join(rules))
@pytest.mark.parametrize("columns", [1, 5])
def test_the_generation_config_is_honoured_as_the_reference_does(published, model, rules, columns):
    settings, ids = ruled(model, published, rules), reference.ids(48, columns)
    plain = sf.generate(model, ids, max_new_tokens=40)
    theirs = reference.greedy(published[0], ids, 40, **settings)
    assert torch.equal(plain, theirs)
    model.generation = type(model.generation)(end=(reference.END,), pad=reference.END)
    unruled = sf.generate(model, ids, max_new_tokens=40)
    same = plain.shape == unruled.shape and torch.equal(plain, unruled)
    assert same == (columns == 5 and "forced_bos_token_id" in rules), "a rule that changes nothing is not tested"


def test_a_bad_word_longer_than_the_text_forbids_nothing_yet(model, published):
    """A slice that reaches before the beginning would match the end instead."""
    text = sf.generate(model, torch.tensor([[3]]), max_new_tokens=2, stop=())[0].tolist()
    settings = ruled(model, published, {"bad_words_ids": [[9, 3, text[1]], [3, text[1], text[2]]]})
    ours = sf.generate(model, torch.tensor([[3]]), max_new_tokens=20)
    assert ours[0, 1] == text[1]
    assert ours[0, 2] != text[2]
    assert torch.equal(ours, reference.greedy(published[0], torch.tensor([[3]]), 20, **settings))


def test_rules_hold_for_a_padded_row_as_for_the_row_alone(model, published):
    ruled(model, published, {"no_repeat_ngram_size": 1, "min_length": 25, "forced_eos_token_id": 41})
    rows = [reference.ids(1, n, seed=n)[0] for n in (1, 4, 11)]
    for side in ("left", "right"):
        ids, keep = padded(rows, side)
        ours = sf.generate(model, ids, keep=keep, max_new_tokens=25)
        for i, row in enumerate(rows):
            alone = sf.generate(model, row[None], max_new_tokens=25)[0, len(row) :]
            assert torch.equal(ours[i, 11 : 11 + len(alone)], alone)


def test_rules_that_leave_nothing_are_said(model, published):
    ruled(model, published, {"bad_words_ids": [[i] for i in range(97)]})
    with pytest.raises(ValueError, match="forbids every id"):
        sf.generate(model, reference.ids(1, 4), max_new_tokens=3, stop=())


def test_ids_that_the_model_does_not_have(model, published):
    """A pad or end token that was added without making the embedding larger; one that is forced cannot be."""
    ids, plain = reference.ids(64, 3), sf.generate(model, reference.ids(64, 3), max_new_tokens=40)
    ruled(model, published, {"pad_token_id": 97, "eos_token_id": [reference.END, 500], "min_length": 4})
    ours = sf.generate(model, ids, max_new_tokens=40)
    assert torch.equal(torch.where(ours == 97, reference.END, ours), plain)
    assert (ours == 97).any()
    ruled(model, published, {"forced_eos_token_id": 97})
    with pytest.raises(ValueError, match="forces id 97, which the model does not have"):
        sf.generate(model, ids, max_new_tokens=5)


def test_rules_are_read_from_either_file_and_saved(published, tmp_path):
    import json

    theirs, _ = published
    rules = {"no_repeat_ngram_size": 2, "bad_words_ids": [[5], [17, 4]], "forced_eos_token_id": 41, "min_length": 9}
    rules |= {"max_length": 30, "temperature": 0.6}
    for name in ("config.json", "generation_config.json"):
        source = tmp_path / name.partition(".")[0]
        theirs.save_pretrained(source)
        if name == "config.json":
            (source / "generation_config.json").unlink()
        content = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps({**content, **rules}))
        model = sf.load(source)
        said = model.generation
        assert (said.no_repeat_ngram, said.bad_words, said.forced_end) == (2, ((5,), (17, 4)), (41,))
        assert (said.min_length, said.max_length) == (9, 30)
        model.save_pretrained(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
        expected = {key: value for key, value in rules.items() if key != "temperature" or name != "config.json"}
        assert {key: saved.get(key) for key in expected} == expected
        again = sf.load(tmp_path / "saved").generation
        assert dataclasses.replace(again, other={}) == dataclasses.replace(said, other={})
        changed = dataclasses.replace(said, min_length=0, bad_words=((8,),))
        written = json.loads(json.dumps(changed.write()))
        assert (written["min_length"], written["bad_words_ids"], written["max_length"]) == (0, [[8]], 30)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_length", -1),
        ("no_repeat_ngram_size", 2.5),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [["a"]]),
        ("forced_eos_token_id", "x"),
        ("eos_token_id", 2**40),
        ("forced_eos_token_id", -1),
        ("pad_token_id", True),
        ("bad_words_ids", 7.5),
    ],
)
def test_a_generation_config_that_cannot_be_is_refused(field, value):
    from scratchformers.checkpoints.pretrained import Generation

    with pytest.raises(ValueError, match=f"The checkpoint says {field} "):
        Generation.read({field: value})


def test_a_negative_id_means_none():
    """As some converters write it."""
    from scratchformers.checkpoints.pretrained import Generation

    said = Generation.read({"bos_token_id": -1, "eos_token_id": -1, "pad_token_id": -1})
    assert (said.start, said.end, said.pad) == (None, (), None)
