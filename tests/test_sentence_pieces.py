"""SentencePiece's tokenisers, Marian's and mBART's, BART's, and pairs learnt from texts: the ids and texts of
transformers, from whichever files."""

import io
import itertools
import json
import pickle
import random
from pydoc_data.topics import topics

import pytest
import reference  # noqa: F401 (before anything imports transformers)
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, BartTokenizer, MarianTokenizer, MBart50Tokenizer, MBartTokenizer
from transformers.convert_slow_tokenizer import MBart50Converter, MBartConverter

from scratchformers.models import load_tokenizer
from scratchformers.sentence_pieces import LANGUAGES, LATER, SentencePieces, marian, mbart
from scratchformers.text import END, TARGET, bart_bpe, pair_characters, read_tokenizer, train_bpe, train_pair_bpe

ENGLISH = [line for text in topics.values() for line in text.split("\n") if line.strip()][:3000]
SWAPPED = dict(zip("abcdefghijklmnopqrstuvwxyz", "äbčdéfǧhîjķlмнôpqřšťůvwxÿž"))
OTHER = ["".join(SWAPPED.get(letter, letter) for letter in line[::-1]) for line in ENGLISH]  # of other pieces
ODD = ["</s>", "<unk>", "<pad>", "<mask>", "<s>", ">>fra<<", ">>xx<<", ">>", "<<", "de_DE", "ro_RO", "▁", "  ", "\n"]
ODD += ["ﬁ", "①", "\u3000", "\xa0", "\u200b", "é", "e\u0301", "猫", "😀", "\x00", "Ⅷ", "＜/s＞", "ｱ", "½", "\u00ad"]
LONG = max(ENGLISH[:60], key=len)
WORDS = [word for line in ENGLISH[:60] + OTHER[:60] for word in line.split()]
TEXTS = st.lists(st.sampled_from([*ODD, *WORDS, " ", " "]) | st.text(max_size=3), max_size=12).map("".join)
# Where no normaliser has anything to do, and no two ways to cut a row of one sign are worth the same but for rounding.
PLAIN = st.lists(
    st.sampled_from([word for word in WORDS if not any(4 * sign in word for sign in word)]), max_size=12
).map(" ".join)


def learn(texts, vocab, **given):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=content, vocab_size=vocab, minloglevel=2, **given
    )
    return content.getvalue()


def pieces_of(content):
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    return [processor.id_to_piece(id) for id in range(processor.get_piece_size())]


def save(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


@pytest.fixture(scope="module")
def cutters():
    return learn(ENGLISH, 311, character_coverage=0.999), learn(OTHER, 463, model_type="bpe", byte_fallback=True)


def numbered(pieces, seed, codes=()):
    """A vocabulary as Marian writes one: in another order than the pieces', some of which it lacks; padding last."""
    drawn = random.Random(seed)
    kept = [piece for piece in dict.fromkeys(pieces) if piece not in ("<s>", "</s>", "<unk>") and drawn.random() < 0.97]
    drawn.shuffle(kept)
    return {piece: id for id, piece in enumerate(["</s>", "<unk>", *codes, *kept, "<pad>"])}


@pytest.fixture(scope="module")
def folders(cutters, tmp_path_factory):
    """Marian's, with one vocabulary and with two."""
    source, target = map(pieces_of, cutters)
    both = {"source.spm": cutters[0], "target.spm": cutters[1]}
    place = tmp_path_factory.mktemp("marian")
    one = save(place / "one", both | {"vocab.json": numbered([*source, *target], 1, [">>fra<<", ">>deu<<"])})
    separate = {"tokenizer_config.json": {"separate_vocabs": True}}
    vocabularies = {"vocab.json": numbered(source, 2, [">>fra<<"]), "target_vocab.json": numbered(target, 3)}
    return {"one": one, "two": save(place / "two", both | vocabularies | separate)}


def read_marian(folder):
    return marian(*(folder / name for name in ("source.spm", "target.spm", "vocab.json")))


def theirs_of(folder):
    return MarianTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("which", ["one", "two"])
def test_marian_has_the_ids_and_texts_of_transformers(folders, which):
    """Of any text, what is unknown among it, codes and special tokens written out; and of any ids of the target."""
    ours, theirs = read_marian(folders[which]), theirs_of(folders[which])
    theirs.normalize = None  # that it is never called is why we have none
    pads = {ours.role("pad"), ours.target.role("pad")}

    @settings(max_examples=600, deadline=None, derandomize=True, database=None)
    @given(TEXTS, st.lists(st.integers(0, ours.target.vocab - 1), max_size=12))
    def check(text, ids):
        assert ours.encode(text) == theirs(text)["input_ids"]
        if which == "two":  # transformers takes padding in a target for the source's
            text, ids = text.replace("<pad>", ""), [id for id in ids if id not in pads]
        assert ours.target.encode(text) == theirs(text_target=text)["input_ids"]
        said = theirs.decode(ids, clean_up_tokenization_spaces=False, use_source_tokenizer=False)
        assert ours.decode(ids) == ours.target.decode(ids) == said

    check()
    for text in (">>fra<< a >>deu<< b", ">>\n<< a", " >>fra<< a", "a</s>>>fra<< b", ">><<", ">>fra <<a"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    long = " ".join(WORDS)
    assert ours.encode(long) == theirs(long)["input_ids"]
    assert len(ours.encode(long)) > theirs.model_max_length
    assert ours.encode("")[-1:] == [ours.end] == [theirs.eos_token_id]
    assert ours.encode(">>fra<< the value")[0] == theirs.convert_tokens_to_ids(">>fra<<")
    assert (ours.role("pad"), ours.role("unknown")) == (theirs.pad_token_id, theirs.unk_token_id)
    assert ours.special == {theirs.pad_token_id, theirs.unk_token_id, theirs.eos_token_id}


def test_marian_counts_what_it_cannot_spell(folders):
    ours = read_marian(folders["one"])
    known = next(line for line in ENGLISH if not ours.unknown(ours.encode(line)))
    assert ours.unknown(ours.encode(f"{known} 猫 {known} 犬")) == 2
    assert ours.unknown(ours.encode(known)) == 0


def test_marian_cuts_only_when_asked(folders):
    ours = read_marian(folders["one"])
    ids = ours.encode(LONG)
    assert ours.encode_batch([LONG, ""]) == [(ids, [0] * len(ids)), ([ours.end], [0])]
    assert ours.encode_batch([LONG], limit=7, truncate=True) == [([*ids[:6], ours.end], [0] * 7)]
    assert ours.cut == 1
    words = LONG.split()[:3]
    found, places = ours.encode_words(words)
    assert found == [*itertools.chain(*(ours.encode(word)[:-1] for word in words)), ours.end]
    assert [sum(place == i for place in places) for i in range(3)] == [len(ours.encode(word)) - 1 for word in words]
    assert places[-1] is None
    assert ours.around() == ([], [ours.end])
    for call, expected in [
        (lambda: ours.encode_batch([LONG], limit=7), "has .* tokens and the model takes 7"),
        (lambda: ours.encode_batch([("a", "b")]), "single texts"),
        (lambda: ours.encode_batch(["a"], limit=0, truncate=True), "limit is 0"),
        (lambda: ours.encode("\ud800"), "no valid Unicode"),
        (lambda: ours.decode([ours.target.vocab]), "is no id of this tokeniser"),
    ]:
        with pytest.raises(ValueError, match=expected):
            call()


@pytest.mark.parametrize("which", ["one", "two"])
def test_marian_is_saved_whole(folders, which, tmp_path):
    ours = read_marian(folders[which])
    again = load_tokenizer(save(tmp_path / "again", ours.files))
    assert isinstance(again, SentencePieces)
    assert again.digest() == ours.digest()
    assert again.target.digest() == ours.target.digest() != ours.digest()
    sent = pickle.loads(pickle.dumps(ours))  # as to a process that reads data
    assert sent.encode(LONG) == ours.encode(LONG)
    assert sent.decode(ours.target.encode(LONG)) == ours.decode(ours.target.encode(LONG))
    assert set(ours.files) == {path.name for path in folders[which].iterdir()}


def test_a_missing_file_is_named(folders, tmp_path):
    contents = {path.name: path.read_bytes() for path in folders["two"].iterdir()}
    for name in ("source.spm", "target.spm", "vocab.json", "target_vocab.json"):
        rest = {other: content for other, content in contents.items() if other != name}
        folder = save(tmp_path / name, {**rest, "config.json": {"model_type": "marian"}})
        with pytest.raises(FileNotFoundError, match=rf"holds no {name.replace('.', '[.]')}:"):
            load_tokenizer(folder)


def test_files_that_do_not_belong_together_are_refused(folders, tmp_path):
    contents = {path.name: path.read_bytes() for path in folders["two"].iterdir()}
    swapped = {"source.spm": contents["target.spm"], "target.spm": contents["source.spm"]}
    with pytest.raises(ValueError, match="exchanged: swap them back"):
        read_marian(save(tmp_path / "swapped", contents | swapped))
    with pytest.raises(ValueError, match=r"pieces of .*target.spm only .*% have an id"):
        read_marian(save(tmp_path / "twice", contents | {"target.spm": contents["source.spm"]}))
    one = {path.name: path.read_bytes() for path in folders["one"].iterdir()}
    alike = read_marian(save(tmp_path / "alike", one | swapped))  # one vocabulary has the pieces of both
    renamed = save(tmp_path / "renamed", one | {"vocab.json": one["vocab.json"].replace(b">>fra<<", b">>ita<<")})
    assert len({each.digest() for each in (alike, read_marian(folders["one"]), read_marian(renamed))}) == 3


@pytest.mark.parametrize("name", ["source.spm", "target.spm"])
def test_a_corrupt_file_is_refused(folders, name, tmp_path):
    contents = {path.name: path.read_bytes() for path in folders["one"].iterdir()}
    whole, drawn = contents[name], random.Random(5)
    for content in (b"", b"junk", whole[: len(whole) // 2], whole[:-1], bytes(99)):
        with pytest.raises(ValueError, match=f"{name} is truncated or no model of SentencePiece .* fetch it again"):
            read_marian(save(tmp_path, contents | {name: content}))
    for _ in range(200):  # whatever is wrong within, it is a sentence or a tokeniser
        damaged = bytearray(whole)
        for _ in range(drawn.choice([1, 5, 50])):
            damaged[drawn.randrange(len(damaged))] = drawn.randrange(256)
        try:
            read_marian(save(tmp_path, contents | {name: bytes(damaged)})).encode("the value")
        except ValueError as error:
            assert name in str(error) and "\n" not in str(error)  # noqa: PT017, PT018


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        ([1], "no vocabulary: expected a JSON object"),
        ({"<unk>": 0, "</s>": 0}, "each id once"),
        ({"<unk>": 0, "</s>": "1"}, "pieces and their ids"),
        ({"<unk>": 0, "</s>": -1}, "pieces and their ids"),
        ({"</s>": 0}, "has no <unk>"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(folders, tmp_path, content, expected):
    contents = {path.name: path.read_bytes() for path in folders["one"].iterdir()}
    with pytest.raises(ValueError, match=rf"vocab.json .*{expected}"):
        read_marian(save(tmp_path, contents | {"vocab.json": content}))


@pytest.fixture(scope="module")
def plain():
    """Of mBART's kind, nothing normalised."""
    return learn([*ENGLISH, *OTHER], 401, normalization_rule_name="identity")


KINDS = {
    "MBartTokenizer": (MBartTokenizer, MBartConverter),
    "MBart50Tokenizer": (MBart50Tokenizer, MBart50Converter),
}


def theirs_mbart(content, kind, source="de_DE", target="ro_RO"):
    """As transformers converts the file."""
    made, converter = KINDS[kind]
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    scored = [(piece, processor.get_score(id)) for id, piece in enumerate(pieces_of(content))]
    return made(vocab=converter.convert_from_spm(vocab=scored)["vocab"], src_lang=source, tgt_lang=target)


@pytest.mark.parametrize("kind", KINDS)
def test_mbart_has_the_ids_and_texts_of_transformers(plain, kind, tmp_path):
    languages = {"tokenizer_class": kind, "src_lang": "de_DE", "tgt_lang": "ro_RO"}
    save(tmp_path, {"sentencepiece.bpe.model": plain, "tokenizer_config.json": languages})
    ours, theirs = mbart(tmp_path / "sentencepiece.bpe.model"), theirs_mbart(plain, kind)
    marks = [" <mask>", "<mask>", "de_DE", "</s>", "ro_RO", "<pad>"]
    if kind == "MBartTokenizer":  # the other has a piece for white space alone, where SentencePiece has none
        marks += [" <mask> ", " de_DE ", "   "]

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(
        st.lists(PLAIN | st.sampled_from(marks), max_size=5).map("".join),
        st.lists(st.integers(0, ours.vocab - 1), max_size=12),
    )
    def check(text, ids):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.target.encode(text) == theirs(text_target=text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)

    check()
    assert ours.vocab == len(theirs)
    german, romanian, end = theirs.convert_tokens_to_ids(["de_DE", "ro_RO", "</s>"])
    first = kind == "MBart50Tokenizer"
    assert ours.around() == (([german], [end]) if first else ([], [end, german]))
    assert ours.target.around() == (([romanian], [end]) if first else ([], [end, romanian]))
    assert ours.encode_words(["a", "b"])[1].count(None) == 2
    assert ours.special == {theirs.convert_tokens_to_ids(name) for name in theirs.all_special_tokens}


def test_mbart_spells_what_its_file_normalises(cutters, tmp_path):
    """Ids are those of SentencePiece moved by one, which transformers' fast tokeniser leaves where a text needs to be
    normalised: it forgets the table of the file."""
    ours = mbart(save(tmp_path, {"sentencepiece.bpe.model": cutters[0]}) / "sentencepiece.bpe.model")
    processor = sentencepiece.SentencePieceProcessor(model_proto=cutters[0])

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(TEXTS.filter(lambda text: not any(mark in text for mark in [*LANGUAGES.split(), "<", "▁"])))
    def check(text):
        found = [id + 1 if id else 3 for id in processor.encode(text)]
        assert ours.encode(text) == [*found, 2, ours.tokenizer.token_to_id("en_XX")]

    check()
    assert ours.tokenizer.token_to_id("ar_AR") == processor.get_piece_size() + 1
    assert ours.target.around() == ours.around()


@pytest.mark.parametrize("kind", KINDS)
def test_mbart_takes_its_tokenizer_json_first(plain, kind, tmp_path):
    theirs = theirs_mbart(plain, kind)
    theirs.save_pretrained(str(tmp_path))
    ours = load_tokenizer(save(tmp_path, {"sentencepiece.bpe.model": plain, "config.json": {"model_type": "mbart"}}))
    for line in [*ENGLISH[:20], "a <mask> b"]:
        assert ours.encode(line) == theirs(line)["input_ids"]
        assert ours.target.encode(line) == theirs(text_target=line)["input_ids"]
        assert ours.decode(ours.encode(line)) == theirs.decode(theirs(line)["input_ids"])
    said = tmp_path / "tokenizer_config.json"
    said.write_text(json.dumps({"tokenizer_class": kind}))  # then the file's own language
    assert (
        load_tokenizer(tmp_path).encode("a") == load_tokenizer(tmp_path).target.encode("a") == theirs("a")["input_ids"]
    )
    said.write_text(json.dumps({"tokenizer_class": kind, "tgt_lang": "ro_RO"}))
    assert load_tokenizer(tmp_path).encode("a") == theirs("a")["input_ids"]
    assert load_tokenizer(tmp_path).target.encode("a") == theirs(text_target="a")["input_ids"]
    said.write_text(json.dumps({"tokenizer_class": kind, "src_lang": "ro_RO"}))  # and so the target's
    assert load_tokenizer(tmp_path).encode("a") == load_tokenizer(tmp_path).target.encode("a")
    assert load_tokenizer(tmp_path).encode("a") == theirs(text_target="a")["input_ids"]
    said.write_text(json.dumps({"tokenizer_class": kind, "src_lang": "xx"}))
    with pytest.raises(ValueError, match="names the language 'xx': expected one of ar_AR"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="names the language 'xx': expected one of ar_AR"):
        load_tokenizer(tmp_path)


def test_mbarts_languages_are_published():
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as first
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as later

    assert LANGUAGES.split() == first
    assert f"{LANGUAGES} {LATER}".split() == later


def test_a_file_of_another_order_is_not_mbarts(tmp_path):
    content = learn(ENGLISH, 300, unk_id=2, bos_id=0, eos_id=1)
    with pytest.raises(ValueError, match="begins with the pieces"):
        mbart(save(tmp_path, {"sentencepiece.bpe.model": content}) / "sentencepiece.bpe.model")


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    """vocab.json and merges.txt in BART's order: special tokens around the pieces."""
    model = json.loads(train_bpe(ENGLISH, 400).tokenizer.to_str())["model"]
    pieces = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda each: each[1]) if piece != END]
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"]
    merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])
    contents = {"vocab.json": {piece: id for id, piece in enumerate(names)}, "merges.txt": merges.encode()}
    return save(tmp_path_factory.mktemp("bart"), contents)


@pytest.mark.parametrize("prefix", [False, True])
def test_bart_has_the_ids_and_texts_of_transformers(bart, prefix, tmp_path):
    contents = {path.name: path.read_bytes() for path in bart.iterdir()}
    save(tmp_path, contents | {"tokenizer_config.json": {"add_prefix_space": prefix}})
    ours = bart_bpe(tmp_path / "vocab.json", tmp_path / "merges.txt")
    mask = AddedToken("<mask>", lstrip=True)  # as the published files say it
    theirs = BartTokenizer.from_pretrained(str(tmp_path), mask_token=mask)
    theirs.save_pretrained(str(tmp_path / "whole"))
    whole = read_tokenizer(tmp_path / "whole" / "tokenizer.json")

    @settings(max_examples=600, deadline=None, derandomize=True, database=None)
    @given(TEXTS, st.lists(st.integers(0, ours.vocab - 1), max_size=12))
    def check(text, ids):
        expected = theirs(text)["input_ids"]
        assert ours.encode(text) == whole.encode(text) == expected
        assert ours.decode(ids) == whole.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)

    check()
    assert ours.encode("a  <mask> b")[2:3] == [ours.role("mask")]
    assert ours.around() == ([0], [2])
    assert (ours.end, ours.role("pad"), ours.role("unknown"), ours.vocab) == (2, 1, 3, len(theirs))
    assert ours.target is ours
    assert ours.encode_batch([("a", "b")])[0][0] == theirs("a", "b")["input_ids"]
    assert ours.files == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_barts_files_are_read_for_bart(bart, tmp_path):
    contents = {path.name: path.read_bytes() for path in bart.iterdir()}
    folder = save(tmp_path / "bart", contents | {"config.json": {"model_type": "bart"}})
    assert load_tokenizer(folder).encode("") == [0, 2]
    lacking = {**contents, "vocab.json": contents["vocab.json"].replace(b"<mask>", b"<musk>")}
    with pytest.raises(ValueError, match="no vocabulary of BART: it has no <mask>"):
        bart_bpe(*(save(tmp_path / "lacking", lacking) / name for name in ("vocab.json", "merges.txt")))


MAKE = {"bpe": lambda *texts, **given: train_pair_bpe(*texts, vocab=350, **given), "characters": pair_characters}


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_pair_learnt_is_saved_and_read_again(make, joint, tmp_path):
    sources, targets = ENGLISH[:200], OTHER[:200]
    ours = make(sources, [f"{line}</s>" for line in targets], joint=joint)
    for kind in ("bart", "marian", "mbart"):  # whichever layout the model is saved in
        folder = save(tmp_path, {"config.json": {"model_type": kind}} | ours.files)
        assert load_tokenizer(folder).digest() == ours.digest()
    (tmp_path / "config.json").unlink()
    again = load_tokenizer(tmp_path)
    assert make(iter(sources), iter(targets), joint=joint).digest() == ours.digest() == again.digest()
    assert (TARGET in ours.files) == (ours.target is not ours) == (again.target is not again) == (not joint)
    for each in (ours, again):
        for side, lines in ((each, sources), (each.target, targets)):
            assert [side.role(name) for name in ("pad", "cls", "sep")] == [0, 1, 2]
            assert side.end == 2
            assert side.special == {0, 1, 2}
            assert side.around() == ([], [2])
            for line in lines:
                assert side.encode(line)[-1] == 2
                assert side.decode(each.target.encode(line)) == f"{line}</s>" if side is each.target else True
        assert each.decode(each.target.encode(targets[0])[:-1]) == targets[0]
        assert ours.encode(sources[0]) == each.encode(sources[0])
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs(sources[0])["input_ids"] == ours.encode(sources[0])
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)


def test_a_pair_is_learnt_jointly_or_each_by_itself():
    joint, separate = (train_pair_bpe(ENGLISH[:500], OTHER[:500], vocab=350, joint=each) for each in (True, False))
    assert joint.vocab == separate.vocab == separate.target.vocab == 350
    alone = train_bpe(ENGLISH[:500], 350, special=("<pad>", "<s>", "</s>"))
    assert separate.tokenizer.to_str() == alone.tokenizer.to_str()
    line, other = ENGLISH[7], OTHER[7]
    assert len(separate.encode(line)) < len(joint.encode(line)) < len(separate.target.encode(line))
    assert len(separate.target.encode(other)) < len(joint.encode(other)) < len(separate.encode(other))
    assert separate.digest() != alone.digest()
    assert joint.decode(joint.encode("猫 😀")) == "猫 😀</s>"
    with pytest.raises(ValueError, match="expected at least 259, the bytes and the special tokens"):
        train_pair_bpe(["a"], ["b"], vocab=258)
    with pytest.raises(ValueError, match="has no id for 'z'"):
        pair_characters(["abc"], ["xyz"], joint=False).encode("az")


def test_a_targets_tokenizer_json_that_is_none_is_refused(tmp_path):
    ours = pair_characters(["abc"], ["xyz"], joint=False)
    with pytest.raises(ValueError, match=f"{TARGET} is no tokeniser"):
        load_tokenizer(save(tmp_path, ours.files | {TARGET: b"{}"}))


def test_another_models_vocabulary_is_no_mbarts(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mbart"}', encoding="utf-8")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(
        FileNotFoundError, match=r"holds no sentencepiece\.bpe\.model: an mBART's tokeniser is made of it"
    ):
        load_tokenizer(tmp_path)
