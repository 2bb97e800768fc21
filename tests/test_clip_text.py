"""CLIP's tokeniser: OpenAI's ids for whatever text, from whichever file, and what is learnt from texts of one's own."""

import collections
import gzip
import html
import importlib.util
import itertools
import json
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics

import ftfy
import numpy as np
import pytest
import reference  # noqa: F401 (before anything imports open_clip or transformers)
import regex
from freeze import clip_text as frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers

from scratchformers import clip_text
from scratchformers.clip_text import ALPHABET, CLIPTokenizer, clean, clip_bpe, openai_clip_bpe, split, train_clip_bpe
from scratchformers.text import CHUNK

FROZEN = Path(__file__).parent / "frozen" / "clip_text"
PUBLISHED = Path(importlib.util.find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
START, END = 49_406, 49_407
LINES = frozen.lines()
TEXT = [paragraph for text in topics.values() for paragraph in text.split("\n\n")]
CAPTIONS = [
    "a photo of a cat",
    "a photo of a dog, isn't it?",
    "two dogs and 3 cats",
    "ein süßer Käse 😀",
    "猫の写真",
] * 3


@pytest.fixture(scope="module")
def openai():
    return openai_clip_bpe(PUBLISHED)


@pytest.fixture(scope="module")
def theirs():
    return frozen.Simple()


@pytest.fixture(scope="module")
def digests():
    content = (FROZEN / "lines.bin").read_bytes()
    return [content[i : i + frozen.WIDTH] for i in range(0, len(content), frozen.WIDTH)]


@pytest.fixture(scope="module")
def learnt():
    return train_clip_bpe(TEXT, 1500)


def save(folder, files):
    """A folder with these files."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder):
    return clip_bpe(folder / "vocab.json", folder / "merges.txt")


def merges_of(tokenizer):
    lines = tokenizer.files["merges.txt"].decode().splitlines()
    return [tuple(line.split(" ")) for line in lines[1:]]


def strange(tokenizer, digests, step=1, most=1):
    """The first lines, of every `step`, whose ids are not those that were frozen."""
    found = (LINES[i] for i in range(0, len(LINES), step) if frozen.digest(tokenizer.encode(LINES[i])) != digests[i])
    return list(itertools.islice(found, most))


# --- the same ids


def test_texts_have_the_frozen_ids(openai, digests):
    said = json.loads((FROZEN / "ids.json").read_text(encoding="utf-8"))
    for text, ids in said["texts"].items():
        assert openai.encode(text) == ids, text
    assert len(LINES) == len(digests) == 12_000
    assert frozen.written(LINES) == said["lines"], "the lines are other ones than those that were frozen"
    assert strange(openai, digests) == []


def test_the_frozen_ids_are_what_openais_tokeniser_gives(theirs, digests):
    said = json.loads((FROZEN / "ids.json").read_text(encoding="utf-8"))["texts"]
    assert said == {text: theirs(text) for text in frozen.TEXTS}
    for i in range(0, len(LINES), 6):
        assert frozen.digest(theirs(LINES[i])) == digests[i], LINES[i]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from([*frozen.WRITTEN, *frozen.TEXTS])), max_size=5))
def test_any_text_has_openais_ids(openai, theirs, parts):
    text = "".join(parts)
    assert openai.encode(text) == theirs(text)


def test_open_clips_ids_differ_only_where_it_renamed_the_special_tokens(openai):
    """The reference of these tests is open_clip with the names put back; this is open_clip as it is."""
    from open_clip.tokenizer import SimpleTokenizer

    plain = SimpleTokenizer()
    texts = [text for text in LINES[:1500] if not re.search(r"of_text|oftext", html.unescape(text), re.IGNORECASE)]
    assert len(texts) > 1000
    for text in texts:
        assert openai.encode(text) == [START, *plain.encode(text), END]
    assert openai.encode("a<|endoftext|>b") == [START, 320, END, 321, END]
    assert len(plain.encode("a<|endoftext|>b")) > 3


def test_a_batch_is_its_texts_each_alone(openai):
    rows = openai.encode_batch(LINES[:300])
    assert rows == [(openai.encode(text), [0] * len(openai.encode(text))) for text in LINES[:300]]


def test_a_word_without_end_is_spelt(openai, theirs):
    for text in ("a" * 5000, "é!" * 3000, "中" * 2000):
        assert openai.encode(text) == theirs(text)
    assert openai.encode(" ".join("ab" * 40_000 for _ in range(2)))[1:-1].count(START) == 0


def test_ids_do_not_depend_on_which_words_came_before(openai, digests, monkeypatch):
    monkeypatch.setattr(clip_text, "KNOWN", 3)
    monkeypatch.setattr(clip_text, "LONG", 5)
    few = CLIPTokenizer(json.loads(openai.files["vocab.json"]), merges_of(openai))
    assert strange(few, digests, step=20) == []
    assert 0 < len(few._known) <= 3
    assert max(map(len, few._known)) <= 5


# --- the short way for plain ASCII


def repaired(text):
    """What a text that needs no repair is spared."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def test_plain_text_is_what_repair_would_leave_as_it_is():
    """Every pair of plain characters and every line. Of a text that is ASCII, ftfy's steps change entities, escapes of
    terminals and control characters; each begins with a character that is not plain."""
    plain = [chr(c) for c in range(0x110000) if clip_text.PLAIN.fullmatch(chr(c))]
    assert set(map(chr, range(128))) - set(plain) == {"&", *map(chr, [*range(9), 11, *range(14, 32), 127])}
    assert max(plain) < "\x7f"
    pairs = ["".join(pair) for pair in itertools.product(plain, repeat=2)]
    assert len(pairs) == 98**2
    for text in pairs:
        assert clean(text) == repaired(text) == " ".join(text.split()).lower(), text
    lines = [line for line in [*LINES, *TEXT] if clip_text.PLAIN.fullmatch(line)]
    assert len(lines) > 3000
    for text in lines:
        assert clean(text) == repaired(text), text


@settings(max_examples=500, deadline=None)
@given(st.from_regex(clip_text.PLAIN, fullmatch=True))
def test_any_plain_text_is_what_repair_would_leave_as_it_is(text):
    assert clean(text) == repaired(text)


@pytest.mark.unhooked
def test_who_needs_no_repair_does_not_wait_for_ftfy():
    code = f"""
import sys
import scratchformers, scratchformers.clip_text as clip_text
assert not {{"ftfy", "regex"}} & set(sys.modules)
tokenizer = clip_text.openai_clip_bpe(clip_text.Path({str(PUBLISHED)!r}))
assert tokenizer.encode("a Photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
assert "ftfy" not in sys.modules
assert tokenizer.encode("a caf\\u00e9") == [49406, 320, 15304, 49407]
assert {{"ftfy", "regex"}} <= set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what goes wrong elsewhere, planted


def cleaning(*, repair=ftfy.fix_text, times=2, finish=str.lower):
    def mutant(text):
        text = repair(text)
        for _ in range(times):
            text = html.unescape(text)
        return finish(" ".join(text.split()))

    return mutant


def splitting(pattern, flags=regex.IGNORECASE):
    return lambda text: regex.findall(pattern, text, flags)


RULE = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL = r"<\|startoftext\|>|<\|endoftext\|>"


def by_tokenizers(text):
    """The library's own regular expressions, as transformers has them."""
    cut = pre_tokenizers.Split(Regex(f"{SPECIAL}|{RULE}"), "removed", invert=True)
    return [word for word, _ in cut.pre_tokenize_str(text)]


MUTANTS = {
    "no repair": ("clean", cleaning(repair=lambda text: text)),
    "NFC instead of repair": ("clean", cleaning(repair=lambda text: unicodedata.normalize("NFC", text))),
    "entities resolved once": ("clean", cleaning(times=1)),
    "entities resolved three times": ("clean", cleaning(times=3)),
    "capitals kept": ("clean", cleaning(finish=str)),
    "case folded": ("clean", cleaning(finish=str.casefold)),
    "composed at the end": ("clean", cleaning(finish=lambda text: unicodedata.normalize("NFC", text.lower()))),
    "tokenizers' expressions": ("split", by_tokenizers),
    "special tokens are text": ("split", splitting(RULE)),
    "numbers are whole": ("split", splitting(f"{SPECIAL}|{RULE}".replace(r"[\p{N}]|", r"[\p{N}]+|"))),
    "endings of small letters only": ("split", splitting(f"{SPECIAL}|{RULE}", 0)),
    "entities are plain": ("PLAIN", re.compile(r"[\t\n\f\r -~]*")),
    "escapes are plain": ("PLAIN", re.compile(r"[\t\n\f\r\x1b -%'-~]*")),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_another_pipeline_has_other_ids(openai, digests, monkeypatch, what):
    name, mutant = MUTANTS[what]
    monkeypatch.setattr(clip_text, name, mutant)
    assert len(strange(openai, digests, most=5)) == 5, "that many lines show it"


def test_the_pipeline_the_mutants_are_made_of_is_the_right_one(openai, digests, monkeypatch):
    monkeypatch.setattr(clip_text, "clean", cleaning())
    monkeypatch.setattr(clip_text, "split", splitting(f"{SPECIAL}|{RULE}"))
    assert strange(openai, digests, step=6) == []


def test_a_word_whose_end_is_not_marked_has_other_ids(openai, digests):
    other = CLIPTokenizer(json.loads(openai.files["vocab.json"]), merges_of(openai))
    assert strange(other, digests, step=100) == []
    other.tokenizer.model = models.BPE(vocab=json.loads(openai.files["vocab.json"]), merges=merges_of(openai))
    other._known.clear()
    assert len(strange(other, digests, step=100, most=100)) == 100


# --- too long


def check_cut(tokenizer, text, limit):
    whole, cut = tokenizer.encode(text), tokenizer.cut
    ((ids, segments),) = tokenizer.encode_batch([text], limit=limit, truncate=True)
    assert ids == (whole if len(whole) <= limit else [*whole[: limit - 1], tokenizer.end])
    assert segments == [0] * len(ids)
    assert tokenizer.cut - cut == (len(whole) > limit)


def test_a_cut_text_keeps_its_end(openai):
    for text, limit in itertools.product(("", "a", "a photo of a cat", "word " * 100, "é" * 90), (2, 3, 7, 8, 77)):
        check_cut(openai, text, limit)


def test_a_cut_text_is_what_openais_code_makes_of_it(openai):
    from open_clip.tokenizer import SimpleTokenizer

    texts = ["a photo of a cat " * 30, "é" * 90, "short", "12345 " * 20]
    for row, (ids, _) in zip(
        SimpleTokenizer()(texts, 77).tolist(), openai.encode_batch(texts, limit=77, truncate=True)
    ):
        assert ids + [0] * (77 - len(ids)) == row


def test_a_cut_that_loses_the_end_is_noticed(openai, monkeypatch):
    real = CLIPTokenizer._fitted

    def loses(self, ids, limit, truncate):
        return real(self, ids, None, False)[:limit]

    monkeypatch.setattr(CLIPTokenizer, "_fitted", loses)
    with pytest.raises(AssertionError):
        test_a_cut_text_keeps_its_end(openai)


def test_a_long_text_is_refused_unless_it_may_be_cut(openai):
    text = "a photo of a cat " * 20
    with pytest.raises(ValueError, match=r"'a photo of a cat .* has 102 tokens and the model takes 77: .*--truncate"):
        openai.encode_batch(["short", text], limit=77)
    with pytest.raises(ValueError, match="has 102 tokens and the model takes 77"):
        openai.encode_words(text.split(), limit=77)
    assert openai.encode_batch([text], limit=102) == openai.encode_batch([text]), "and one that just fits is not"
    for limit in (1, 0, -1):
        with pytest.raises(ValueError, match=rf"limit is {limit}: the special tokens alone are 2"):
            openai.encode_batch(["a"], limit=limit, truncate=True)


# --- the interface all tokenisers share


def test_what_is_what(openai):
    assert (openai.vocab, openai.end) == (49_408, END)
    assert openai.special == {START, END}
    assert openai.around() == ([START], [END])
    assert openai.encode("") == [START, END]
    assert openai.alphabet is None
    assert openai.role("pad") == END
    assert openai.role("mask") is None
    again = pickle.loads(pickle.dumps(openai))
    assert again.encode("a photo") == openai.encode("a photo")


def test_words_keep_their_places(openai):
    ids, places = openai.encode_words(["A", "rollerblading", "", "cat's", "&amp;"])
    assert ids == openai.encode("a rollerblading cat's &")
    inner = [openai.encode(word)[1:-1] for word in ("A", "rollerblading", "", "cat's", "&amp;")]
    assert [len(row) for row in inner] == [1, 3, 0, 2, 1]
    assert places == [None, *(i for i, row in enumerate(inner) for _ in row), None]
    cut, shorter = openai.encode_words(["A", "rollerblading", "cat"], limit=4, truncate=True)
    assert (cut, shorter) == ([*ids[:3], END], [None, 0, 1, None])


def test_a_long_text_comes_in_pieces(openai):
    text = "two words " * (CHUNK // 8)
    parts = list(openai.encode_long(text))
    assert len(parts) == 2
    assert [id for part in parts for id in part] == openai.encode(text)[1:-1]


def test_what_is_no_text_is_refused(openai):
    for text in ("\ud800", "\ud83d\ude00", "a \udfff"):
        with pytest.raises(ValueError, match="no valid Unicode"):
            openai.encode(text)
        with pytest.raises(ValueError, match="no valid Unicode"):
            openai.encode_batch(["fine", text])
        with pytest.raises(ValueError, match="no valid Unicode"):
            openai.encode_words(["fine", text])
    with pytest.raises(ValueError, match=r"A text is \('a', 'b'\): this tokeniser takes single texts"):
        openai.encode_batch(["fine", ("a", "b")])


def test_ids_are_spelt_as_openai_spells_them(openai, theirs):
    for text in frozen.TEXTS:
        assert openai.decode(openai.encode(text)) == theirs.decode(theirs(text)), text
    draw = np.random.RandomState(0)
    for ids in draw.randint(0, openai.vocab, (500, 9)).tolist():  # most of them no UTF-8
        assert openai.decode(ids) == theirs.decode(ids)
    assert openai.decode(openai.encode("Hello  CAT!")) == "<|startoftext|>hello cat ! <|endoftext|>"
    assert openai.decode([openai.encode("é!")[1]]) == "é "
    assert openai.decode([ALPHABET.index("Ã"), *openai.encode("a")[1:2]]) == "\ufffda "
    assert openai.decode([]) == ""
    for id in (-1, 49_408):
        with pytest.raises(ValueError, match=rf"{id} is no id of this tokeniser: expected 0 to 49407"):
            openai.decode([320, id])


# --- files


def test_every_kind_of_file_gives_the_same_ids(openai, digests, tmp_path):
    folder = save(tmp_path / "saved", openai.files)
    assert sorted(openai.files) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    again = read(folder)
    assert again.files == openai.files
    assert again.digest() == openai.digest()
    assert strange(again, digests, step=20) == []
    ids = json.loads(openai.files["vocab.json"])
    assert [ids[name] for name in ("!", "!</w>", "in", "a</w>", "<|startoftext|>")] == [0, 256, 512, 320, START]


def test_what_lies_beside_a_vocabulary_travels_on(openai, tmp_path):
    said = json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}).encode()
    folder = save(tmp_path / "a", openai.files | {"tokenizer_config.json": said, "special_tokens_map.json": b"{}"})
    content = (folder / "merges.txt").read_bytes()
    (folder / "merges.txt").write_bytes(content.replace(b"\n", b"\r\n"))  # and what Windows does to it changes nothing
    tokenizer = read(folder)
    assert tokenizer.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert tokenizer.digest() == openai.digest()


def test_a_vocabulary_alone_is_given_what_transformers_needs(openai, tmp_path):
    folder = save(tmp_path / "a", {name: openai.files[name] for name in ("vocab.json", "merges.txt")})
    assert read(folder).files == openai.files


@pytest.mark.parametrize("which", ["openai", "learnt"])
def test_transformers_and_open_clip_read_what_we_save(request, tmp_path, which):
    from open_clip.tokenizer import HFTokenizer
    from transformers import AutoTokenizer

    ours = request.getfixturevalue(which)
    folder = save(tmp_path / "a", ours.files)
    said, hub = AutoTokenizer.from_pretrained(folder), HFTokenizer(str(folder), context_length=40)
    assert type(said).__name__ == "CLIPTokenizer"
    for text in ("a photo of a cat", "Two dogs, isn't it? 1905!", "rollerblading <|endoftext|> on ice"):
        ids = ours.encode(text)
        assert said(text)["input_ids"] == ids, text
        assert hub(text)[0].tolist() == ids + [ours.end] * (40 - len(ids)), text


def zipped(text):
    return gzip.compress(text.encode("utf-8"), mtime=0)


BROKEN = {
    "half of it": (PUBLISHED.read_bytes()[:500_000], "is truncated, or no gzip of text"),
    "empty": (b"", "Line 1 of .* is '': expected two pieces"),
    "no gzip": (b"i n\nt h\n", "is truncated, or no gzip of text"),
    "a page": (b"<!DOCTYPE html>", "is truncated, or no gzip of text"),
    "damaged": (PUBLISHED.read_bytes()[:-8] + b"\0" * 8, "is truncated, or no gzip of text"),
    "no text": (gzip.compress(b"\xff\xfe\n" * 9), "is truncated, or no gzip of text"),
    "few merges": (zipped("#version\ni n\nt h\n"), "makes 516 tokens: expected the 49408 of bpe_simple_vocab_16e6"),
    "no pair": (zipped("#version\ni n\nt h e\n"), r"Line 3 of .* is 't h e': expected two pieces"),
    "twice": (zipped("#version\ni n\nt h\ni n\n"), r"Lines 2 and 4 of .* are both 'i n'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_of_openais_is_refused(tmp_path, what):
    content, said = BROKEN[what]
    (tmp_path / "bpe.txt.gz").write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        openai_clip_bpe(tmp_path / "bpe.txt.gz")
    assert "\n" not in str(raised.value)
    assert "bpe.txt.gz" in str(raised.value)


def small(**changes):
    """The files of a small vocabulary; `changes` by name are functions of their text."""
    tokens = [*ALPHABET, "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    texts = {
        "vocab": json.dumps({token: id for id, token in enumerate(tokens)}, ensure_ascii=False),
        "merges": "#version: 0.2\nc a\nca t</w>\n",
    }
    texts |= {name: change(texts[name]) for name, change in changes.items()}
    return {"vocab.json": texts["vocab"].encode("utf-8"), "merges.txt": texts["merges"].encode("utf-8")}


PAIRS = {
    "other merges": ({"merges": lambda text: text + "d o\n"}, "do not belong together: only one of them has 'do'"),
    "fewer merges": ({"merges": lambda text: text[:18]}, "do not belong together: only one of them has 'cat</w>'"),
    "GPT-2's": ({"merges": lambda text: text.replace("</w>", "")}, "only one of them has 'cat', 'cat</w>'"),
    "an unknown piece": (
        {"merges": lambda text: text.replace("c a", "鳥 a")},
        "only one of them has 'ca', '鳥', '鳥a'",
    ),
    "a letter less": ({"vocab": lambda text: text.replace('"!": 0', '"¡¡": 0')}, "only one of them has '!', '¡¡'"),
    "many": (
        {"merges": lambda text: text + "".join(f"x {c}\n" for c in "abcdef")},
        "'xa', 'xb', 'xc', 'xd' and 2 more",
    ),
    "a merge twice": ({"merges": lambda text: text + "c a\n"}, r"Lines 2 and 4 of .*merges.txt are both 'c a'"),
    "a token twice": ({"vocab": lambda text: text.replace('"ca"', '"!"')}, "has the token '!' twice"),
    "an id twice": ({"vocab": lambda text: text.replace('"!": 0', '"!": 1')}, "has the id 1 twice"),
    "an id left out": (
        {"vocab": lambda text: text.replace(": 515}", ": 516}")},
        "expected ids from 0 on, the last two",
    ),
    "no end": ({"vocab": lambda text: text.replace("<|endoftext|>", "</s>")}, "the last two <.startoftext.> and <.end"),
    "the end first": (
        {"vocab": lambda text: text.replace(": 514", ": -1").replace(": 515", ": 514").replace(": -1", ": 515")},
        "is no vocabulary of CLIP",
    ),
    "no numbers": ({"vocab": lambda text: text.replace('"!": 0', '"!": "0"')}, "expected a JSON object of tokens and"),
    "a list": ({"vocab": lambda _: "[1, 2]"}, "expected a JSON object of tokens and their ids"),
    "a number": ({"vocab": lambda _: "7"}, "expected a JSON object of tokens and their ids"),
    "nothing": ({"vocab": lambda _: "{}"}, "is no vocabulary of CLIP"),
    "cut off": ({"vocab": lambda text: text[:900]}, "is not valid JSON"),
    "deep": ({"vocab": lambda _: "[" * 100_000}, "is not valid JSON"),
    "three pieces": ({"merges": lambda text: text + "a b c\n"}, r"Line 4 of .* is 'a b c': expected two pieces"),
    "one piece": ({"merges": lambda text: text + "\nab\n"}, r"Line 4 of .* is '': expected two pieces"),
    "no merges": ({"merges": lambda _: ""}, r"Line 1 of .* is '': expected two pieces"),
}


@pytest.mark.parametrize("what", PAIRS)
def test_files_that_do_not_agree_are_refused(tmp_path, what):
    changes, said = PAIRS[what]
    folder = save(tmp_path / "a", small(**changes))
    with pytest.raises(ValueError, match=said) as raised:
        read(folder)
    assert "\n" not in str(raised.value)


def test_the_files_that_were_broken_are_fine_otherwise(tmp_path):
    assert read(save(tmp_path / "a", small())).encode("cat") == [514, 513, 515]


def test_files_that_are_not_utf8_or_not_there_are_refused(tmp_path):
    folder = save(tmp_path / "a", small() | {"merges.txt": b"#version: 0.2\nc a\n\xff\xfe b\n"})
    with pytest.raises(ValueError, match=r"merges\.txt is not UTF-8 \(byte 18\)"):
        read(folder)
    save(folder, {"vocab.json": b'{"\xff": 0}'})
    with pytest.raises(ValueError, match=r"vocab\.json is not valid JSON"):
        read(folder)
    for name in ("merges.txt", "vocab.json"):
        save(folder, small())
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist: expected vocab.json and merges.txt, or"):
            read(folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        openai_clip_bpe(tmp_path)


# --- one of one's own


def as_theirs(tokenizer, folder):
    """OpenAI's algorithm with this tokeniser's merges."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges_of(tokenizer))]
    folder.mkdir(exist_ok=True)
    (folder / "merges.gz").write_bytes(zipped("\n".join(lines)))
    return frozen.Simple(folder / "merges.gz")


def test_what_was_learnt_spells_as_openais_algorithm_does(learnt, tmp_path):
    other = as_theirs(learnt, tmp_path)
    assert (learnt.vocab, learnt.end, learnt.special) == (1500, 1499, {1498, 1499})
    assert len(other.encoder) == learnt.vocab, "each merge makes a token of its own"
    for text in LINES[::10]:
        assert learnt.encode(text) == other(text), text


def test_what_was_learnt_comes_back_from_its_files(learnt, tmp_path):
    again = read(save(tmp_path / "a", learnt.files))
    assert again.digest() == learnt.digest()
    assert again.files == learnt.files
    assert [again.encode(text) for text in LINES[:200]] == [learnt.encode(text) for text in LINES[:200]]


def test_it_spells_what_it_learnt_from_in_few_pieces(learnt):
    whole = collections.Counter(word for text in TEXT for word in split(clean(text)))
    for word, _ in whole.most_common(100):
        assert len(learnt.encode(word)) == 3, f"{word!r} is frequent, and no single token"


RARE = " ".join(map(chr, [*range(0x3B1, 0x3C9), *range(0x430, 0x450)])) + " ab cd ef gh ij kl mn op"  # all equally rare
CHILD = f"""
from pydoc_data.topics import topics
from scratchformers.clip_text import train_clip_bpe
print(train_clip_bpe([{RARE!r}], 530).digest())
print(train_clip_bpe((part for text in topics.values() for part in text.split("\\n\\n")), 1500).digest())
"""


@pytest.mark.unhooked
def test_the_same_texts_give_the_same_ids(learnt):
    """In another process too, where the library's own order of things is another."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True)
    assert done.stdout.decode().split() == [train_clip_bpe([RARE], 530).digest(), learnt.digest()]
    assert train_clip_bpe(reversed(TEXT), 1500).digest() == learnt.digest(), "and in whichever order they come"


def test_there_are_never_more_ids_than_asked_for_and_fewer_of_little_text():
    for vocab in (514, 515, 520, 700):
        assert train_clip_bpe(TEXT[:40], vocab).vocab == vocab
    few = train_clip_bpe(CAPTIONS, 5000)
    assert 514 < few.vocab < 700
    assert few.end == few.vocab - 1
    assert few.decode(few.encode("Ünknown: 鳥 𝔘")) == "<|startoftext|>ünknown : 鳥 𝔘 <|endoftext|>", "any text is spelt"


def test_special_tokens_written_out_are_not_learnt_from():
    texts = ["<|endoftext|>" * 50 + "a cat", "<|startoftext|> a cat"]
    assert train_clip_bpe(texts, 600).digest() == train_clip_bpe(["a cat", "a cat"], 600).digest()


def test_what_cannot_be_learnt_is_said():
    with pytest.raises(ValueError, match="vocab is 513: expected at least 514"):
        train_clip_bpe(CAPTIONS, 513)
    for texts in ([], ["", " \n", "\x00", "<|endoftext|>"]):
        with pytest.raises(ValueError, match="The texts are empty"):
            train_clip_bpe(texts, 600)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("aab b'1é!"), max_size=30), min_size=1), st.integers(514, 560))
def test_any_texts_make_a_tokeniser_that_comes_back(tmp_path_factory, texts, vocab):
    texts = [*texts, "aaaa"]
    made = train_clip_bpe(texts, vocab)
    assert made.vocab <= vocab
    assert read(save(tmp_path_factory.mktemp("made"), made.files)).digest() == made.digest()
    for text in texts:
        assert made.decode(made.encode(text)[1:-1]) == "".join(f"{word} " for word in split(clean(text)))
