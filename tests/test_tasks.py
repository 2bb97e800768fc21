"""What `Completer` promises: text in pieces that are whole, stop strings, rows that do not depend on each other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import scratchformers as sf
from scratchformers.tasks import Writing
from scratchformers.text import TextTokenizer, byte_level_bpe, characters

FROZEN = Path(__file__).parent / "frozen" / "bpe"
BPE = byte_level_bpe(FROZEN / "vocab.json", FROZEN / "merges.txt")
END = BPE.end


@pytest.fixture(scope="module")
def completer():
    """Scrambled weights over a byte-level vocabulary: its texts break UTF-8 in every way."""
    torch.manual_seed(0)
    model = sf.GPT2(sf.GPT2Config(vocab=BPE.vocab, length=64, dim=24, depth=2, heads=3, dropout=0.0)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    model.generation = replace(model.generation, end=(END,))
    return sf.Completer(model, BPE)


DRAW = {"max_new_tokens": 50, "temperature": 1.5, "stop": ()}


def pieces_of(stream):
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


# --- pieces of text


def written(ids, stops=(), tokenizer=BPE):
    text = Writing(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.reason:
            return pieces, text
    return [*pieces, text.close("length")], text


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BPE.vocab - 1), max_size=40))
def test_pieces_of_any_ids_are_valid_and_join_to_their_text(ids):
    pieces, text = written(ids)
    assert "".join(pieces) == BPE.decode(ids) == text.text
    for piece in pieces:
        piece.encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_no_piece_of_a_text_holds_half_a_character(text):
    pieces, _ = written(BPE.encode(text.replace("\ufffd", "")))
    assert "".join(pieces) == text.replace("\ufffd", "")
    assert "\ufffd" not in "".join(pieces)


def test_a_character_of_several_ids_comes_at_once_and_no_later():
    ids = BPE.encode("a\N{SLIGHTLY SMILING FACE}b")
    assert len(ids) > 4, "the face must take several ids for this to show anything"
    pieces, _ = written(ids)
    assert [piece for piece in pieces if piece] == ["a", "\N{SLIGHTLY SMILING FACE}", "b"]
    assert pieces[0] == "a", "what is certain is not held back"


def test_pieces_read_what_stands_before_them():
    """A tokeniser that writes a space before every word but the first needs to know which is the first."""
    words = Tokenizer(models.WordLevel({"\u2581the": 0, "\u2581cat": 1, "\u2581sat": 2}))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces, text = written([0, 1, 2, 0, 1], tokenizer=TextTokenizer(words))
    assert pieces == ["the", " cat", " sat", " the", " cat", ""]
    assert text.text == "the cat sat the cat"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab", max_size=30), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_the_first_stop_string(text, stops):
    tokenizer = characters(["ab"])
    pieces, state = written(tokenizer.encode(text) if text else [], stops, tokenizer)
    found = [text[:end] for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if found:  # the earliest to be complete; of those that end there, the longest
        cut = max(len(stop) for stop in stops if found[0].endswith(stop))
        assert "".join(pieces) == state.text == found[0][: len(found[0]) - cut]
        assert state.reason == "stop"
    else:
        assert "".join(pieces) == state.text == text
        assert state.reason == "length"


def test_only_what_may_become_a_stop_string_is_held_back():
    tokenizer = characters(["abcd"])
    pieces, _ = written(tokenizer.encode("abcabd"), ["abd"], tokenizer)
    assert pieces == ["", "", "abc", "", "", ""]


# --- the completer


def test_the_stream_is_the_answer(completer):
    for seed in range(10):
        answer = completer("Hello", seed=seed, **DRAW)
        pieces, value = pieces_of(completer.stream("Hello", seed=seed, **DRAW))
        assert "".join(pieces) == answer.text
        assert value == answer
        assert answer.text == BPE.decode(answer.ids)
        assert all(piece.encode("utf-8") for piece in pieces)


def test_stop_strings_end_a_text_streamed_or_not(completer):
    stopped = 0
    for seed in range(20):
        free = completer("Hello", seed=seed, **DRAW)
        stop = free.text[7:9]
        if len(stop) < 2 or "\ufffd" in stop or END in free.ids:
            continue
        answer = completer("Hello", seed=seed, **{**DRAW, "stop": [stop]})
        pieces, value = pieces_of(completer.stream("Hello", seed=seed, **{**DRAW, "stop": stop}))
        assert value == answer
        assert "".join(pieces) == answer.text == free.text[: free.text.index(stop)]
        assert answer.reason == "stop"
        assert answer.ids == free.ids[: len(answer.ids)], "the ids hold what completed the stop string"
        assert stop in BPE.decode(answer.ids)
        assert stop not in BPE.decode(answer.ids[:-1])
        stopped += 1
    assert stopped > 5


def test_strings_come_beside_the_checkpoints_end_and_ids_instead(completer):
    draw = {**DRAW, "max_new_tokens": 59, "temperature": 3.0}
    prompts = ["Hello"] * 400
    ended = {
        stop: {answer.reason for answer in completer(prompts, seed=0, **{**draw, "stop": stop})}
        for stop in (None, (), ("\x00never",), (BPE.vocab - 2,))
    }
    assert ended[None] == {"end", "length"}
    assert ended[()] == {"length"}
    assert ended["\x00never",] == {"end", "length"}
    free = completer(prompts, seed=0, **draw)
    other = completer(prompts, seed=0, **{**draw, "stop": (BPE.vocab - 2,)})
    assert any(END in a.ids and b.reason == "length" for a, b in zip(free, other) if END in a.ids)


def test_each_prompt_draws_for_itself(completer):
    """Whatever stands beside it, and however often it is asked for."""
    prompts = ["Hello", "a much longer prompt, so that the others are padded", "Hello", "x"]
    together = completer(prompts, seed=7, max_new_tokens=20, temperature=1.0)
    for i, prompt in enumerate(prompts):
        assert completer(prompt, seed=7 + i, max_new_tokens=20, temperature=1.0) == together[i]
    assert together[0] != together[2]
    assert completer(prompts[1:], seed=8, max_new_tokens=20, temperature=1.0) == together[1:]


def test_a_short_prompt_has_its_own_room(completer):
    """64 positions: the long prompt may write little, the short one as much as it could alone."""
    long = "word " * 12
    room = 64 - len(BPE.encode(long))
    assert 0 < room < 40
    together = completer(["a", long, "bc"], stop=())
    assert [len(answer.ids) for answer in together] == [63, room, 64 - len(BPE.encode("bc"))]
    assert together[0] == completer("a", stop=())
    assert together[2] == completer("bc", stop=())


def test_what_the_checkpoint_says_bounds_the_default(completer):
    model = completer.model
    said = model.generation
    try:
        model.generation = replace(said, max_new_tokens=5)
        assert len(completer("a", stop=()).ids) == 5
        assert len(completer("a", stop=(), max_new_tokens=9).ids) == 9
        model.generation = replace(said, max_length=7)
        assert len(completer("a", stop=()).ids) == 6
    finally:
        model.generation = said


def test_a_text_longer_than_the_model_when_it_may_slide(completer):
    answer = completer("a" * 100, stop=(), max_new_tokens=150, slide=True)
    assert len(answer.ids) == 150
    _, value = pieces_of(completer.stream("a" * 100, stop=(), max_new_tokens=150, slide=True))
    assert value == answer
    assert len(completer("a" * 100, stop=(), slide=True).ids) == 64
    with pytest.raises(ValueError, match="or let it slide"):
        completer("a" * 100, stop=(), max_new_tokens=150)


def test_one_bad_prompt_does_not_stop_the_others(completer):
    answers = completer.answer(["Hello", "", "word " * 60, "x"], seed=3, temperature=1.0, max_new_tokens=5)
    assert answers[0] == completer("Hello", seed=3, temperature=1.0, max_new_tokens=5)
    assert "has no tokens" in str(answers[1])
    assert "do not fit a model of 64 positions" in str(answers[2])
    assert answers[3] == completer("x", seed=6, temperature=1.0, max_new_tokens=5)
    assert [str(answer) for answer in completer.answer([""])] == [str(answers[1])]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stop": ""}, "A stop string is empty"),
        ({"stop": ["a", ""]}, "A stop string is empty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 64}, "do not fit a model of 64 positions: ask for at most 59"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_once(completer, arguments, said):
    for ask in (completer, completer.stream, lambda prompt, **settings: completer([prompt], **settings)):
        with pytest.raises(ValueError, match=said):
            ask("Hello", **arguments)


def test_a_digest_knows_a_model_again(completer):
    def again(change=lambda model: None):
        model = sf.GPT2(completer.model.config).double()
        model.load_state_dict(completer.model.state_dict())
        model.generation = completer.model.generation
        change(model)
        return sf.Completer(model, BPE).digest()

    def nudge(model):
        model.norm.bias.data[0] += 1e-6

    def forbid(model):
        model.generation = replace(model.generation, bad_words=((5,),))

    assert again() == completer.digest()
    assert len({again(), again(nudge), again(forbid), again(lambda model: model.float())}) == 4


def test_seeds_count_on_past_their_end(completer):
    draw = {"max_new_tokens": 5, "temperature": 1.0}
    prompts = ["Hello", "x", "Hello"]
    last = completer(prompts, seed=2**63 - 2, **draw)
    assert completer.answer(prompts[1:], first=1, seed=2**63 - 2, **draw) == last[1:]
    assert completer("Hello", seed=0, **draw) == last[2]
