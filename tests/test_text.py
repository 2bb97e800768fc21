"""Tokenisers: ids as a second implementation gives them, round trips, and files that would pad or cut by themselves."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import scratchformers as sf
from scratchformers import load_tokenizer
from scratchformers.text import CHUNK, byte_level_bpe, characters, pieces

FROZEN = Path(__file__).parent / "frozen" / "bpe"
BPE = byte_level_bpe(FROZEN / "vocab.json", FROZEN / "merges.txt")


def test_byte_level_bpe_gives_the_frozen_ids():
    for text, ids in json.loads((FROZEN / "ids.json").read_text(encoding="utf-8")).items():
        assert BPE.encode(text) == ids, text
        assert BPE.decode(ids) == text


def test_the_frozen_ids_are_what_tiktoken_gives():
    from freeze.bpe import TEXTS, encoding, train

    vocab, merges = train()
    assert vocab == json.loads((FROZEN / "vocab.json").read_text(encoding="utf-8"))
    lines = (FROZEN / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert [tuple(line.split(" ")) for line in lines] == merges
    frozen, reference = json.loads((FROZEN / "ids.json").read_text(encoding="utf-8")), encoding(vocab)
    assert frozen == {text: reference.encode(text, allowed_special="all") for text in TEXTS}


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_tiktokens_ids_and_comes_back(text):
    from freeze.bpe import encoding

    reference = encoding(json.loads((FROZEN / "vocab.json").read_text(encoding="utf-8")))
    ids = BPE.encode(text)
    assert ids == reference.encode(text, allowed_special="all")
    assert BPE.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab '.1\n\t é,你\u00a0"), max_size=80), st.integers(1, 9))
def test_a_text_encoded_in_pieces_has_the_same_ids(text, size):
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    assert [i for piece in cut for i in BPE.encode(piece)] == BPE.encode(text)


def test_long_texts_are_encoded_in_pieces():
    text = "word " * (CHUNK // 4)
    parts = list(BPE.encode_long(text))
    assert len(parts) == 2
    assert [i for part in parts for i in part] == BPE.encode(text)


def test_both_kinds_of_file_give_the_same_ids(tmp_path):
    single = tmp_path / "single"
    single.mkdir()
    BPE.tokenizer.save(str(single / "tokenizer.json"))
    for source in (FROZEN, single, single / "tokenizer.json", str(single)):
        tokenizer = sf.load_tokenizer(source)
        assert tokenizer.encode("it's they'll") == BPE.encode("it's they'll")
        assert tokenizer.end == BPE.vocab - 1


def test_a_tokenizer_json_that_pads_or_truncates_by_itself_does_neither(tmp_path):
    other = Tokenizer.from_str(BPE.tokenizer.to_str())
    other.enable_truncation(5)
    other.enable_padding(length=5)
    other.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a") == BPE.encode("a")
    assert tokenizer.encode("a long text " * 9) == BPE.encode("a long text " * 9)


def test_characters_are_the_sorted_ones_of_the_text():
    tokenizer = characters(["hello\r\n", "Ωmega 👍"])
    assert tokenizer.vocab == len(set("hello\r\nΩmega 👍"))
    assert tokenizer.end is None
    for text in ("hello", "Ω👍\r\n", "", "a" * 1000):
        assert len(tokenizer.encode(text)) == len(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\n") == [0]


def test_a_character_tokeniser_is_a_tokenizer_json(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = characters(["hello world"], end=True)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.files["tokenizer.json"])
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    for text in ("hello", "low<|endoftext|>well"):
        assert theirs(text)["input_ids"] == again.encode(text) == tokenizer.encode(text)
        assert again.decode(tokenizer.encode(text)) == text
    assert again.encode("<|endoftext|>") == [again.end] == [tokenizer.vocab - 1]


def test_a_character_that_was_never_seen_is_said_and_not_dropped(tmp_path):
    tokenizer = characters(["hello"])
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.files["tokenizer.json"])
    for each in (tokenizer, load_tokenizer(tmp_path)):
        with pytest.raises(ValueError, match="no id for 'H', 'ß': it knows the 4 characters"):
            each.encode("Hoßllo")


def test_what_is_no_tokeniser_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tokeniser: expected"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokeniser"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ValueError, match="no byte-level BPE"):
        load_tokenizer(tmp_path)


def test_a_checkpoint_keeps_its_tokeniser_through_load_and_save(tmp_path):
    model = sf.GPT2(sf.GPT2Config(vocab=BPE.vocab, length=17, dim=20, depth=1, heads=2))
    model.assets = BPE.files
    model.save_pretrained(tmp_path / "a")
    sf.load(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert load_tokenizer(tmp_path / "b").encode("it's") == BPE.encode("it's")
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "b" / name).read_bytes() == (FROZEN / name).read_bytes()
