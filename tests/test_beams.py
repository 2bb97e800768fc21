"""The decoding of encoder-decoders, greedy and by beams, against transformers: the same ids, the same scores; what a
row's result may not depend on; and what is refused."""

import dataclasses
import itertools
import json

import encoder_decoder_reference as reference
import pytest
import reference as gpt2
import torch
import transformers.generation.utils
from test_gpt2 import padded

import scratchformers as sf
from scratchformers.checkpoints.pretrained import Generation

END, PAD, START = reference.END, reference.PAD, reference.START
KINDS = ("bart", "marian, two vocabularies")
BASE = {"no_repeat_ngram_size": 2}  # else small models repeat themselves
RULES = [
    BASE,
    {**BASE, "min_length": 6, "bad_words_ids": [[7], [53, 29], [PAD]], "forced_eos_token_id": END},
    {"no_repeat_ngram_size": 1, "forced_bos_token_id": 5, "min_new_tokens": 3, "forced_eos_token_id": END},
]
ROOM = 17


class Double:
    """torch, whose single precision is double: transformers searches in single precision, whatever the model's is."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def _double(monkeypatch):
    monkeypatch.setattr(transformers.generation.utils, "torch", Double())


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """transformers' model and ours. Its texts end now and then, and several continuations are about as probable."""
    theirs = reference.scramble(reference.published(request.param), std=0.15)
    theirs.final_logits_bias[0, END] += 1.0
    with torch.no_grad():
        for parameter in theirs.model.decoder.layers[-1].final_layer_norm.parameters():
            parameter.mul_(0.5)
    folder = tmp_path_factory.mktemp("published")
    theirs.save_pretrained(folder)
    return theirs, sf.load(folder, dtype=torch.float64)


@pytest.fixture
def model(both):
    ours = both[1]
    follow(both, BASE)
    yield ours
    ours.generation = Generation.read(both[0].generation_config.to_dict(), ours.first_id)


def follow(both, rules):
    theirs, ours = both
    ours.generation = Generation.read({**theirs.generation_config.to_dict(), **rules}, ours.first_id)


def sources(rows):
    return reference.ids(rows, 13, seed=1), reference.ragged(rows, 13, seed=3)


def ask(theirs, ids, keep, **settings):
    settings = {"max_new_tokens": ROOM, "do_sample": False, "num_beams": 1, **settings}
    said = theirs.generate(
        ids, attention_mask=keep.long(), return_dict_in_generate=True, output_scores=True, **settings
    )
    return said.sequences, getattr(said, "sequences_scores", None)


def check_varied(ids, least=12):
    """Texts that are all alike, or never end before the limit, would prove nothing."""
    new = [tuple(row) for row in ids[:, 1:].tolist()]
    assert len(set(itertools.chain(*new))) >= least
    assert len(set(new)) >= len(new) // 8
    ends = [row.index(END) if END in row else None for row in new]
    assert len(set(ends)) >= 4


# --- greedy


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "+".join(rules))
def test_greedy_texts_are_the_references(both, model, rules):
    ids, keep = sources(200)
    follow(both, rules)
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=ROOM)
    assert torch.equal(ours, ask(both[0], ids, keep, **rules)[0])
    check_varied(ours)
    assert (ours[:, 0] == START).all()


def test_the_repetition_penalty_is_the_references(both, model):
    ids, keep = sources(40)
    ours = sf.generate(model, ids, keep=keep, max_new_tokens=ROOM, repetition_penalty=1.3)
    assert torch.equal(ours, ask(both[0], ids, keep, **BASE, repetition_penalty=1.3)[0])
    searched, scores = sf.beam_search(
        model, ids, keep=keep, beams=4, nbest=4, max_new_tokens=ROOM, repetition_penalty=1.3
    )
    theirs, expected = ask(both[0], ids, keep, **BASE, repetition_penalty=1.3, num_beams=4, num_return_sequences=4)
    assert torch.equal(searched.flatten(0, 1), theirs)
    torch.testing.assert_close(scores.flatten(), expected, atol=1e-10, rtol=0)
    assert not torch.equal(ours, sf.generate(model, ids, keep=keep, max_new_tokens=ROOM))


def test_every_steps_scores_are_the_references(both, model):
    ids, keep = sources(20)
    with torch.no_grad():
        text, _, step = model.start(ids, keep)
        cache, new = model.new_cache(len(ids)), text
        for _ in range(ROOM):
            scores = step(new, None, cache)
            expected = both[0](input_ids=ids, attention_mask=keep.long(), decoder_input_ids=text).logits[:, -1]
            torch.testing.assert_close(scores, expected, atol=1e-10, rtol=0)
            new = scores.topk(1 + text.shape[1]).indices[:, -1:]
            text = torch.cat([text, new], dim=1)
    assert len(text.unique()) >= 20


def test_streamed_is_generated_and_drawn_rows_are_rows_alone(model):
    ids, keep = sources(12)
    whole = sf.generate(model, ids, keep=keep, max_new_tokens=ROOM)
    for i in range(3):
        alone = {"keep": keep[i : i + 1], "max_new_tokens": ROOM}
        streamed = list(sf.stream(model, ids[i : i + 1], **alone))
        assert streamed == whole[i, 1 : 1 + len(streamed)].tolist()
    settings = {"max_new_tokens": ROOM, "temperature": 1.5, "top_k": 20}
    draws = [torch.Generator().manual_seed(i) for i in range(12)]
    drawn = sf.generate(model, ids, keep=keep, generator=draws, **settings)
    lengths = set()
    for i in range(12):
        draw = torch.Generator().manual_seed(i)
        alone = sf.generate(model, ids[i : i + 1], keep=keep[i : i + 1], generator=draw, **settings)[0]
        assert torch.equal(drawn[i, : len(alone)], alone)
        assert (drawn[i, len(alone) :] == PAD).all()
        lengths.add(len(alone))
    assert len(lengths) >= 4, "rows that end together show nothing"


def computed(model, monkeypatch, decode):
    """How many rows each step computed while `decode` ran."""
    rows, step = [], model.step
    monkeypatch.setattr(model, "step", lambda ids, *rest: rows.append(len(ids)) or step(ids, *rest))
    decode()
    monkeypatch.undo()
    return rows


def test_rows_that_ended_are_computed_no_more(model, monkeypatch):
    ids, keep = sources(40)
    settings = {"keep": keep, "max_new_tokens": ROOM}
    greedy = computed(model, monkeypatch, lambda: sf.generate(model, ids, **settings))
    assert greedy == sorted(greedy, reverse=True)
    assert greedy[-1] < 30 < greedy[0] == 40
    searched = computed(model, monkeypatch, lambda: sf.beam_search(model, ids, beams=4, **settings))
    assert searched[0] == 40, "the beams part after the first step"
    assert searched[1:] == sorted(searched[1:], reverse=True)
    assert searched[-1] < 120 <= searched[1] <= 160
    assert all(rows % 4 == 0 for rows in searched[1:])
    together = {**settings, "temperature": 0.1, "generator": torch.Generator().manual_seed(1)}
    assert set(computed(model, monkeypatch, lambda: sf.generate(model, ids, **together))) == {40}, "one draws for all"


# --- beams

GRID = list(itertools.product((True, False, "never"), (0.0, 1.0, 2.0, -1.0)))


def check_search(both, ids, keep, rules, **settings):
    """n-best texts and scores are the references'."""
    follow(both, rules)
    theirs, expected = ask(both[0], ids, keep, num_beams=4, num_return_sequences=3, **rules, **settings)
    given = {name: settings[name] for name in ("early_stopping", "length_penalty") if name in settings}
    ours, scores = sf.beam_search(both[1], ids, keep=keep, beams=4, nbest=3, max_new_tokens=ROOM, **given)
    assert torch.equal(ours.flatten(0, 1), theirs)
    torch.testing.assert_close(scores.flatten(), expected, atol=1e-10, rtol=0)
    assert (scores.diff(dim=1) <= 0).all()
    return ours


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "+".join(rules))
@pytest.mark.parametrize(("early", "penalty"), GRID)
def test_searches_are_the_references(both, model, early, penalty, rules):
    check_search(both, *sources(24), rules, early_stopping=early, length_penalty=penalty)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "+".join(rules))
def test_many_searches_are_the_references(both, model, rules):
    ids, keep = sources(200)
    ours = check_search(both, ids, keep, rules)
    check_varied(ours[:, 0])
    best = sf.beam_search(model, ids, keep=keep, beams=4, max_new_tokens=ROOM)
    assert torch.equal(best, ours[:, 0, : best.shape[1]])
    assert (ours[:, 0, best.shape[1] :] == PAD).all()


def test_what_is_asked_of_a_search_matters_to_these_texts(model):
    """A grid whose points all give one answer would prove nothing."""
    ids, keep = sources(60)
    settings = {"keep": keep, "max_new_tokens": ROOM}

    def found(early=False, penalty=1.0, beams=4):
        given = {**settings, "early_stopping": early, "length_penalty": penalty, "beams": beams}
        return sf.beam_search(model, ids, nbest=3, **given)[0].tolist()

    answers = [found(early, penalty=2.0) for early in (True, False, "never")]
    answers += [found(), found(penalty=0.0), found(beams=3)]
    assert all(a != b for a, b in itertools.combinations(answers, 2))
    greedy = sf.generate(model, ids, **settings)
    assert torch.equal(sf.beam_search(model, ids, beams=1, **settings, length_penalty=0.0), greedy)


def test_several_ids_may_end_a_text(both, model):
    ids, keep = sources(40)
    ends = [END, 3, 17, 29]
    ours, scores = sf.beam_search(model, ids, keep=keep, beams=4, nbest=4, max_new_tokens=ROOM, stop=ends)
    theirs, expected = ask(
        both[0], ids, keep, num_beams=4, num_return_sequences=4, eos_token_id=ends, pad_token_id=PAD, **BASE
    )
    assert torch.equal(ours.flatten(0, 1), theirs)
    torch.testing.assert_close(scores.flatten(), expected, atol=1e-10, rtol=0)


def scripted(model, monkeypatch, *steps):
    """The model's probabilities are these at each step, whatever was written, the last for ever."""
    left = itertools.chain(steps, itertools.repeat(steps[-1]))

    def step(ids, *_):
        chances = torch.full((len(ids), model.config.target_vocab or model.config.vocab), 1e-9)
        for token, chance in next(left).items():
            chances[:, token] = chance
        return chances.double().log()

    monkeypatch.setattr(model, "step", step)
    model.generation = dataclasses.replace(model.generation, no_repeat_ngram=0)


def written(texts):
    return [text[1 : text.index(END) + 1] for text in texts.tolist()]


def test_a_negative_penalty_favours_short_texts_also_in_what_is_expected(model, monkeypatch):
    """After two steps two texts are found; what a third may give is not judged by the longest that fits."""
    scripted(model, monkeypatch, {7: 0.82, END: 0.18}, {8: 0.86, END: 0.13}, {END: 0.99, 9: 0.01})
    settings = {"beams": 2, "nbest": 2, "max_new_tokens": ROOM, "early_stopping": "never", "length_penalty": -1.0}
    texts, _ = sf.beam_search(model, reference.ids(1, 3), **settings)
    assert written(texts[0]) == [[7, 8, END], [END]]


def test_as_many_go_on_as_there_are_beams_however_many_ids_end_a_text(model, monkeypatch):
    ends = {END: 0.3, 3: 0.25, 17: 0.2, 29: 0.15}
    scripted(model, monkeypatch, {**ends, 7: 0.06, 8: 0.03}, {END: 1.0})
    texts, _ = sf.beam_search(
        model, reference.ids(1, 3), beams=2, nbest=2, max_new_tokens=3, stop=list(ends), length_penalty=4.0,
        early_stopping="never",
    )  # fmt: skip
    assert written(texts[0]) == [[7, END], [8, END]]


@pytest.mark.parametrize("early", [True, False, "never"])
def test_a_text_does_not_depend_on_its_batch(model, early):
    ids, keep = sources(32)
    settings = {"beams": 4, "nbest": 4, "max_new_tokens": ROOM, "early_stopping": early, "length_penalty": 0.6}
    ours, scores = sf.beam_search(model, ids, keep=keep, **settings)
    widths = set()
    for i in range(32):
        row = ids[i][keep[i]][None]  # without its padding
        alone, alone_scores = sf.beam_search(model, row, **settings)
        widths.add(width := alone.shape[-1])
        assert torch.equal(alone[0], ours[i, :, :width])
        assert (ours[i, :, width:] == PAD).all()
        torch.testing.assert_close(alone_scores[0], scores[i], atol=1e-10, rtol=0)
    assert len(widths) >= 4, "rows that end together show nothing"


def test_scores_are_the_texts_own(model):
    """Log probabilities of the ids written, the end among them and the start not, / their number ** penalty."""
    ids, keep = sources(8)
    model.generation = dataclasses.replace(model.generation, no_repeat_ngram=0)
    texts, scores = sf.beam_search(model, ids, keep=keep, beams=3, nbest=2, max_new_tokens=ROOM, length_penalty=0.7)
    for row, n in itertools.product(range(8), range(2)):
        text = texts[row, n].tolist()
        text = text[: text.index(END) + 1] if END in text else text
        said = model(ids[row : row + 1], torch.tensor([text]), source_keep=keep[row : row + 1])[0].log_softmax(-1)
        total = sum(float(said[i, token].detach()) for i, token in enumerate(text[1:]))
        assert float(scores[row, n]) == pytest.approx(total / (len(text) - 1) ** 0.7, abs=1e-10)


def test_texts_of_one_score_are_still_different_texts(model):
    """Of a model that prefers nothing, all texts of one length have one score."""
    blank = sf.EncoderDecoder(model.config).double().eval()
    blank.generation = dataclasses.replace(model.generation, no_repeat_ngram=0, end=())
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    ids, keep = sources(5)
    texts, scores = sf.beam_search(blank, ids, keep=keep, beams=6, nbest=6, max_new_tokens=3)
    assert len({tuple(text) for text in texts[0].tolist()}) == 6
    assert (texts == texts[:1]).all()
    assert torch.allclose(scores, -torch.tensor(float(model.config.target_vocab or model.config.vocab)).double().log())


def test_fewer_texts_than_beams(both, model):
    """All that may be written is one text: what else was asked for is none, of a score that says so."""
    follow(both, {"forced_eos_token_id": END})
    ids, keep = sources(3)
    texts, scores = sf.beam_search(model, ids, keep=keep, beams=4, nbest=4, max_new_tokens=1)
    assert texts[:, 0].tolist() == [[START, END]] * 3
    assert (texts[:, 1:, 1:] == PAD).all()
    assert (scores[:, 0] == 0).all()
    assert scores[:, 1:].isneginf().all()


def test_all_ids_may_be_beams(model):
    """As many beams as ids: fewer continuations than are looked for."""
    vocab = model.config.target_vocab or model.config.vocab
    ids, keep = sources(2)
    texts, scores = sf.beam_search(model, ids, keep=keep, beams=vocab, nbest=vocab, max_new_tokens=2, stop=())
    assert scores.isfinite().all()
    assert all(len({tuple(text) for text in row}) == vocab for row in texts.tolist())


def test_the_checkpoint_says_how_to_search(both, model, tmp_path):
    ids, keep = sources(30)
    said = {**BASE, "num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"}
    follow(both, said)
    by_default = sf.beam_search(model, ids, keep=keep, beams=3, max_new_tokens=ROOM)
    rules = model.generation
    assert (rules.beams, rules.length_penalty, rules.early_stopping) == (3, 2.0, "never")
    follow(both, BASE)
    given = {"length_penalty": 2.0, "early_stopping": "never"}
    assert torch.equal(sf.beam_search(model, ids, keep=keep, beams=3, max_new_tokens=ROOM, **given), by_default)
    plain = sf.beam_search(model, ids, keep=keep, beams=3, max_new_tokens=ROOM)
    assert plain.tolist() != by_default.tolist()
    model.generation = dataclasses.replace(model.generation, beams=5, early_stopping=True)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert (saved["num_beams"], saved["early_stopping"], saved["length_penalty"]) == (5, True, None)
    assert sf.load(tmp_path).generation.beams == 5


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_beams", 0, "a whole number from 1"),
        ("num_beams", 2.5, "a whole number from 1"),
        ("length_penalty", "long", "a number"),
        ("length_penalty", True, "a number"),
        ("length_penalty", float("nan"), "a number"),
        ("early_stopping", "always", 'true, false or "never"'),
        ("early_stopping", 1, 'true, false or "never"'),
    ],
)
def test_a_generation_config_that_cannot_be_is_refused(field, value, expected):
    with pytest.raises(ValueError, match=f"The checkpoint says {field} .*: expected {expected}"):
        Generation.read({field: value})


# --- a model without a source


def test_beams_of_prompts_are_the_references(published):
    theirs, folder = published
    ours = sf.load(folder, dtype=torch.float64)
    ours.generation = dataclasses.replace(ours.generation, no_repeat_ngram=3)
    ids, keep = padded([gpt2.ids(1, n, seed=n)[0] for n in range(1, 25)], "left")
    settings = {"num_beams": 4, "num_return_sequences": 4, "pad_token_id": gpt2.END, "no_repeat_ngram_size": 3}
    texts, expected = ask(theirs, ids, keep, **settings, eos_token_id=gpt2.END)
    searched, scores = sf.beam_search(ours, ids, keep=keep, beams=4, nbest=4, max_new_tokens=ROOM)
    assert torch.equal(searched.flatten(0, 1), texts)
    torch.testing.assert_close(scores.flatten(), expected, atol=1e-10, rtol=0)
    right, right_keep = padded([gpt2.ids(1, n, seed=n)[0] for n in range(1, 25)], "right")
    other, _ = sf.beam_search(ours, right, keep=right_keep, beams=4, nbest=4, max_new_tokens=ROOM)
    assert torch.equal(other[:, :, 24:], searched[:, :, 24:])


# --- what cannot be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beams": 0}, "beams is 0: expected at least 1"),
        ({"beams": 102}, "beams is 102: expected at most "),
        ({"nbest": 5}, "nbest is 5: expected 1 to 4"),
        ({"nbest": 0}, "nbest is 0: expected 1 to 4"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 31}, "31 new do not fit a model of 31 positions: ask for at most 30 new tokens.$"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": 1e9}, "length_penalty is 1000000000.0: expected a number from -100 to 100"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"ids": torch.full((1, 7), 97)}, "this model knows 0 to 96"),
        ({"ids": torch.zeros(1, 32, dtype=torch.long)}, "model of 31 positions"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(model, changes, said, monkeypatch):
    monkeypatch.setattr(model, "step", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr(model.encoder, "forward", lambda *_, **__: pytest.fail("work was done"))
    ids = changes.get("ids", reference.ids(1, 7))
    settings = {"beams": 4, "max_new_tokens": 5} | {name: changes[name] for name in changes if name != "ids"}
    with pytest.raises(ValueError, match=said):
        sf.beam_search(model, ids, **settings)


def test_a_target_longer_than_the_model_is_said_before_the_source_is_read(model, monkeypatch):
    monkeypatch.setattr(model.encoder, "forward", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="31 new do not fit a model of 31 positions: ask for at most 30"):
        sf.generate(model, reference.ids(1, 7), max_new_tokens=31)


def test_scores_that_are_not_numbers_and_rules_that_leave_nothing(both, model):
    ids, keep = sources(3)
    vocab = model.config.target_vocab or model.config.vocab
    follow(both, {"bad_words_ids": [[i] for i in range(vocab) if i != END], "min_length": 5})
    for decode in (sf.generate, lambda *a, **k: sf.beam_search(*a, beams=2, **k)):
        with pytest.raises(ValueError, match="forbids every id that could come next"):
            decode(model, ids, keep=keep, max_new_tokens=8)
    broken = sf.EncoderDecoder(model.config).eval()
    broken.generation = model.generation = dataclasses.replace(model.generation, bad_words=(), min_length=0)
    with torch.no_grad():
        broken.decoder.blocks[0].mlp.up.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="scores are not numbers"):
        sf.beam_search(broken, ids, beams=2, max_new_tokens=8)


def test_dropout_is_off_and_the_mode_comes_back(model):
    ids, _ = sources(3)
    model.train()
    texts = [sf.beam_search(model, ids, beams=3, max_new_tokens=9).tolist() for _ in range(2)]
    assert texts[0] == texts[1]
    assert model.training
    model.eval()
