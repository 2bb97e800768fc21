"""Long texts: read, tokenised and packed piece by piece, what comes of it being what it is of a text in memory."""

import dataclasses
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_documents import lines
from test_text import BPE
from test_training import SMALL, TEXT, losses, request

from scratchformers import text as text_module
from scratchformers.cli import main
from scratchformers.text import BERT, END, TextTokenizer, characters, pieces, train_wordpiece
from scratchformers.training import data as data_module
from scratchformers.training import documents, language, packing
from scratchformers.training.data import Order, Sampler, blocks, counts, encoded, generator, to_stream
from scratchformers.training.documents import Documents, digest, survey
from scratchformers.training.runs import open_run

MARKS = "ab'É1.\n\r\t \u00a0\u2028\x1c\x85\u0301\u0327é你👍\ud7ff\U0010ffff"
WORDS = ["don't", "  ", "\r\n", "e\u0301", END, "[MASK]", "[SEP]", " \n", ".\x1c", "naïve", "\ufeff"]
TEXTS = st.lists(st.sampled_from([*MARKS, *WORDS]), max_size=60).map("".join)
ALL = "".join(dict.fromkeys("".join([*MARKS, *WORDS])))


def whole_pieces(text, size):
    """How a text in memory was cut before there were parts."""
    start = 0
    while start < len(text):
        stop = start + size
        while stop < len(text) and not (text[stop].isspace() and not text[stop - 1].isspace()):
            stop += 1
        yield text[start:stop]
        start = stop


def in_pieces(text, size):
    return [text[i : i + size] for i in range(0, len(text), size)]


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.integers(1, 9), st.integers(1, 9))
def test_a_text_that_comes_in_parts_is_cut_as_if_it_were_whole(text, size, part):
    assert [*pieces(in_pieces(text, part), size)] == [*pieces(text, size)] == [*whole_pieces(text, size)]


TOKENIZERS = {
    "characters": characters([ALL]),
    "characters with an end": characters([ALL], end=True),
    "characters with special tokens": characters([ALL], special=tuple(BERT.values())),
    "bpe": BPE,
    "wordpiece": train_wordpiece([*topics.values()][:9], 500),
    "cased wordpiece": train_wordpiece([*topics.values()][:9], 500, lower=False),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=400, deadline=None)
@given(TEXTS, st.integers(1, 30), st.integers(1, 9))
@example("a " * 9, 5, 1)
def test_pieces_have_the_ids_of_the_text_cut_as_it_was_before(name, text, chunk, bit):
    """However small what a core encodes at once is."""
    tokenizer, cut = TOKENIZERS[name], [*whole_pieces(text, chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "BIT", bit)
        found = tokenizer.encode_pieces(cut)
    assert all(ids.dtype == np.int32 for ids in found)
    assert [ids.tolist() for ids in found] == [
        tokenizer.tokenizer.encode(piece, add_special_tokens=False).ids for piece in cut
    ]


def test_the_quick_ways_are_taken_where_they_are_right_and_no_others():
    assert TOKENIZERS["characters with an end"]._places is not None
    for name in ("bpe", "wordpiece"):
        assert TOKENIZERS[name]._divides
        assert TOKENIZERS[name]._places is None
    small = json.loads(TOKENIZERS["characters"].tokenizer.to_str()) | {"normalizer": {"type": "Lowercase"}}
    lower = TextTokenizer(type(BPE.tokenizer).from_str(json.dumps(small)))
    assert lower._places is None
    assert lower.encode_pieces(["A"])[0].tolist() == lower.encode("A"), "which makes letters small"
    spaced = json.loads(BPE.tokenizer.to_str())
    spaced["pre_tokenizer"]["add_prefix_space"] = True
    spaced = TextTokenizer(type(BPE.tokenizer).from_str(json.dumps(spaced)))
    assert not spaced._divides
    assert spaced.encode_pieces(["a\nb " * 9000])[0].tolist() == spaced.encode("a\nb " * 9000)


@pytest.mark.parametrize("strange", ["ß", "\ud800", "\U0010fffe"])
def test_what_has_no_id_is_said_of_pieces_too(strange):
    with pytest.raises(ValueError, match=r"no id for|no valid Unicode"):
        TOKENIZERS["characters"].encode_pieces([f"a{strange}"])
    if strange == "\ud800":
        with pytest.raises(ValueError, match="no valid Unicode"):
            BPE.encode_pieces(["a", strange])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(TEXTS.map(str.encode), st.binary(max_size=3)), max_size=4).map(b"".join), st.integers(1, 7))
@example(b"\xef\xbb\xbfa\r\n\r\xff", 2)
@example("👍👍".encode()[:-1], 1)
@example(b"\xef\xbb\xbf", 1)
def test_a_file_read_in_pieces_is_the_file(tmp_path_factory, content, size):
    path = tmp_path_factory.getbasetemp() / "read.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "READ", size)
        try:
            expected = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            with pytest.raises(UnicodeDecodeError) as found:
                content.decode("utf-8")
            place = found.value.start
            with pytest.raises(ValueError, match=rf"is not UTF-8 \(byte {place} is {content[place]:#04x}\): convert"):
                [*documents._files(path)]
            return
        assert [*documents._files(path)] == ([expected] if expected else [])
        assert all(len(text) <= size for _, text in documents._files(path).pieces())


def test_the_byte_that_is_wrong_is_found_far_into_a_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é\r\n".encode() * 300_000 + b"\xff" + b"a" * 99)
    with pytest.raises(ValueError, match=r"byte 1200000 is 0xff"):
        survey(documents._files(path).pieces())


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS.filter(bool), max_size=4), st.integers(1, 7), st.integers(0, 99))
def test_what_is_said_of_documents_in_pieces_is_what_is_said_of_them_whole(texts, size, cut):
    cut_up = Documents(lambda: (in_pieces(text, size) for text in texts))
    found = survey(cut_up.pieces())
    assert [*cut_up] == texts
    assert (len(texts) > 1) == (found.documents > 1)
    assert found.size == sum(map(len, texts))
    assert found.first == len([*texts, ""][0])
    assert found.bytes == len("".join(texts).encode())
    each = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    assert found.sha256 == digest(texts) == hashlib.sha256(each).hexdigest(), "by which older runs know their data"
    for whole, part in zip((Documents(lambda: iter(texts)).part(0, cut), cut_up.part(cut, 999)), (0, 1)):
        assert [*whole] == [*(cut_up.part(0, cut), Documents(lambda: iter(texts)).part(cut, 999))[part]]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS.filter(bool), max_size=4), st.integers(1, 7), st.integers(1, 20), st.sampled_from([*TOKENIZERS]))
def test_the_stream_is_that_of_each_text_in_pieces(texts, part, chunk, name):
    tokenizer, expected = TOKENIZERS[name], []
    for i, text in enumerate(texts):
        expected += [tokenizer.end] if i and tokenizer.end is not None else []
        for piece in whole_pieces(text, chunk):
            expected += tokenizer.tokenizer.encode(piece, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "CHUNK", chunk)
        found = to_stream(Documents(lambda: (in_pieces(text, part) for text in texts)), tokenizer)
    assert found.tolist() == expected
    assert found.dtype == torch.int32


# --- packing


def make_long(monkeypatch):
    """Everything is long, and noted often."""
    monkeypatch.setattr(packing, "SMALL", 100)
    monkeypatch.setattr(packing, "EVERY", 600)
    monkeypatch.setattr(packing, "TOLD", 1)
    monkeypatch.setattr(data_module, "CHUNK", 50)
    monkeypatch.setattr(language, "CHUNK", 50)
    monkeypatch.setattr(documents, "READ", 30)


@pytest.fixture
def tiny(monkeypatch):
    make_long(monkeypatch)


class Wide(TextTokenizer):
    vocab = (1 << 16) + 1


def pack(path, tokenizer, texts=(TEXT, "after it"), watch=lambda what, done, size: None, **given):
    read = Documents(lambda: (in_pieces(text, 30) for text in texts))
    return packing.pack(read, tokenizer, path, **{"text": digest(texts), "watch": watch, "size": 1, **given})


@pytest.mark.parametrize("kind", [TextTokenizer, Wide])
def test_packed_ids_are_those_in_memory_mapped_from_a_file(tiny, tmp_path, kind):
    tokenizer = kind(characters([TEXT, "after it"], end=True).tokenizer)
    stream, said = pack(tmp_path / "new" / "a.ids", tokenizer)
    assert stream.dtype == (torch.int32 if kind is Wide else torch.uint16)
    expected = to_stream([TEXT, "after it"], tokenizer)
    assert torch.equal(stream.int(), expected)
    assert said == digest([TEXT, "after it"])
    assert (tmp_path / "new" / "a.ids").stat().st_size == len(expected) * (4 if kind is Wide else 2)
    assert torch.equal(counts(stream, tokenizer.vocab), torch.bincount(expected, minlength=tokenizer.vocab))
    if os.path.exists("/proc/self/maps"):  # Linux says so
        assert str(tmp_path / "new" / "a.ids") in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_what_is_there_is_not_made_again_and_what_is_of_another_text_is(tiny, tmp_path, monkeypatch):
    tokenizer, made = characters([TEXT, "after it"]), []
    monkeypatch.setattr(packing, "encoded", lambda *given: made.append(1) or encoded(*given))
    first, said = pack(tmp_path / "a.ids", tokenizer)
    first, times = first.clone(), len(made)
    assert times > 10
    again = pack(tmp_path / "a.ids", tokenizer)
    assert len(made) == times
    assert torch.equal(again[0].int(), first.int())
    assert again[1] == said
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-2]), lambda path: path.unlink()):
        damage(tmp_path / "a.ids")
        assert torch.equal(pack(tmp_path / "a.ids", tokenizer)[0].int(), first.int())
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    assert torch.equal(pack(tmp_path / "a.ids", tokenizer)[0].int(), first.int())
    assert len(made) == times * 4
    other = pack(tmp_path / "a.ids", tokenizer, (TEXT[::-1],))[0]
    assert torch.equal(other.int(), to_stream([TEXT[::-1]], tokenizer))
    monkeypatch.setattr(packing, "encoded", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack(tmp_path / "a.ids", tokenizer)
    monkeypatch.setattr(packing, "encoded", encoded)
    assert torch.equal(pack(tmp_path / "a.ids", tokenizer, (TEXT[::-1],))[0].int(), other.int()), "it was written over"
    monkeypatch.setattr(packing, "encoded", lambda *given: made.append(1) or encoded(*given))
    backwards = characters([TEXT, "after it"], end=True)
    assert len(pack(tmp_path / "a.ids", backwards, (TEXT[::-1],))[0]) == len(TEXT)
    assert len(made) > times * 5


def test_where_it_was_stopped_it_goes_on_and_comes_out_the_same(tiny, tmp_path, monkeypatch):
    """Stopped at every block, with more of the file written than the journal knows."""
    tokenizer = characters([TEXT, "after it"], end=True)
    whole = pack(tmp_path / "whole.ids", tokenizer)[0]
    total, done = len([*blocks(Documents(lambda: iter([TEXT, "after it"])).pieces())]), []

    def stops(block, own):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(1)
        return encoded(block, own)

    monkeypatch.setattr(packing, "encoded", stops)
    for stop in range(total):
        path = tmp_path / f"{stop}.ids"
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            pack(path, tokenizer)
        before, done[:] = len(done), []
        monkeypatch.setattr(packing, "encoded", lambda block, own: done.append(1) or encoded(block, own))
        assert torch.equal(pack(path, tokenizer)[0].int(), whole.int())
        assert path.read_bytes() == (tmp_path / "whole.ids").read_bytes()
        assert (tmp_path / f"{stop}.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
        assert len(done) <= total - before + 6, "what was noted is not made again"
        monkeypatch.setattr(packing, "encoded", stops)


KILLED = """
import sys, time
from scratchformers.training import data, documents, packing
from scratchformers.training.runs import open_run
from scratchformers.training.request import Request
packing.SMALL, packing.EVERY, data.CHUNK, documents.READ = 100, 600, 50, 30
real = packing.encoded
def slow(*given):
    time.sleep(0.01)
    return real(*given)
packing.encoded = slow
print("ready", flush=True)
open_run(Request("gpt2", *map(packing.Path, sys.argv[1:3]), given=eval(sys.argv[3])))
"""


@pytest.mark.unhooked
def test_a_killed_preparation_goes_on_by_the_same_command(tmp_path, monkeypatch):
    data, out = tmp_path / "text.txt", tmp_path / "run"
    data.write_text(TEXT * 4, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, out, data, repr({**SMALL})], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    journal = out / "tokens" / "train.json"
    while not journal.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in out.iterdir()] == ["tokens"]
    assert 0 < json.loads(journal.read_text(encoding="utf-8"))["blocks"] < 250, "of about 400"
    make_long(monkeypatch)
    found = open_run(request(data, out))[0].task
    other = open_run(request(data, tmp_path / "other"))[0].task
    assert torch.equal(found.train.stream.int(), other.train.stream.int())
    for name in ("train.ids", "train.json", "valid.ids", "valid.json"):
        assert (out / "tokens" / name).read_bytes() == (tmp_path / "other" / "tokens" / name).read_bytes()


def test_a_full_disk_is_a_sentence(tiny, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.files, "write_json", full)
    with pytest.raises(OSError, match=r"takes no more tokens \(No space left on device\): make room .* goes on"):
        pack(tmp_path / "a.ids", characters([TEXT, "after it"]))


def test_it_is_told_how_far_it_is(tiny, tmp_path):
    told = []
    texts = ("é" * 100, "b" * 100)
    pack(tmp_path / "a.ids", characters(texts), texts, watch=lambda *said: told.append(said), size=300)
    assert {(what, size) for what, _, size in told} == {("Tokens", 300)}
    done = [count for _, count, _ in told]
    assert done == sorted(done)
    assert done[-1] == 300
    assert len(done) == 8, "pieces of 30 characters"


# --- runs


@pytest.mark.parametrize("given", [{}, {"tokenizer": "bpe", "vocab": 300}])
@pytest.mark.parametrize("form", ["txt", "jsonl", "valid"])
def test_a_run_on_a_long_text_is_that_on_the_same_in_memory(tmp_path, monkeypatch, form, given):
    data, text = tmp_path / "text.txt", TEXT + "".join(f"{i} é 你👍.\r\n" for i in range(99))
    data.write_text(text, encoding="utf-8", newline="")
    given = {**given, **({"valid": data} if form == "valid" else {})}
    if form == "jsonl":
        data = lines(tmp_path / "text.jsonl", [{"text": line} for line in text.splitlines()])
    asked = dataclasses.replace(request(data, tmp_path / "memory"), **given)
    expected = open_run(asked)[0]
    assert [*expected]
    make_long(monkeypatch)
    run = open_run(dataclasses.replace(asked, out=tmp_path / "packed"))[0]
    assert {path.name for path in (tmp_path / "packed" / "tokens").iterdir()} == {
        f"{part}.{kind}" for part in ("train", "valid") for kind in ("ids", "json")
    }
    for at in (run, expected):
        assert at.task.train.stream.dtype == (torch.uint16 if at is run else torch.int32)
    assert torch.equal(run.task.train.stream.int(), expected.task.train.stream)
    assert torch.equal(run.task.held_out.int(), expected.task.held_out)
    assert (run.task.tokenizer.end is not None) == (form == "jsonl" or "tokenizer" in given), "one text has no end"
    assert len([*itertools.islice(run, 5)]) == 5  # and it is stopped before it is saved again
    again = open_run(dataclasses.replace(asked, out=tmp_path / "packed"), resume=True)[0]
    assert again.step == 2
    assert [*again]
    assert losses(tmp_path / "packed") == losses(tmp_path / "memory")
    facts = [json.loads((tmp_path / out / "config.json").read_text(encoding="utf-8")) for out in ("packed", "memory")]
    for name in ("data", "valid", "tokenizer", "model"):
        assert facts[0][name] == facts[1][name]


def test_hidden_tokens_of_a_long_text_are_those_in_memory(tmp_path, monkeypatch):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    given = {**SMALL, "hidden": "16"}
    asked = dataclasses.replace(request(data, tmp_path / "memory"), recipe="bert", given=given)
    expected = [*open_run(asked)[0]]
    monkeypatch.setattr(packing, "SMALL", 100)
    found = [*open_run(dataclasses.replace(asked, out=tmp_path / "packed"))[0]]
    assert losses(tmp_path / "packed") == losses(tmp_path / "memory")
    assert found[0]["unigram_loss"] == expected[0]["unigram_loss"]


def test_a_vocabulary_is_learnt_from_a_sample_of_a_long_text(tiny, tmp_path, monkeypatch):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(language, "SAMPLE", 600)
    asked = dataclasses.replace(request(data, tmp_path / "run"), tokenizer="bpe", vocab=300)
    run, notes = open_run(asked)
    cut = TEXT[: len(TEXT) * 9 // 10]
    every = -(-len(cut) // 600)
    assert notes[0] == (f"The vocabulary was learnt from a sample: of {len(cut):,} characters every {every}th million.")
    sample = [*pieces(cut, 50)][::every]
    assert 400 < sum(map(len, sample)) < 800
    assert run.task.tokenizer.digest() == text_module.train_bpe(sample, 300).digest()
    monkeypatch.setattr(language, "SAMPLE", 10_000)
    assert len(open_run(dataclasses.replace(asked, out=tmp_path / "all"))[1]) < len(notes)


def test_windows_are_read_ahead_and_are_the_same(tmp_path, monkeypatch):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    where: list[str] = []
    real = data_module.Windows.__getitem__

    def noted(self, example):
        where.append(threading.current_thread().name)
        return real(self, example)

    monkeypatch.setattr(data_module.Windows, "__getitem__", noted)
    ahead = open_run(request(data, tmp_path / "ahead", micro_batch=3))[0]
    assert [*ahead]
    assert where[:4] == ["MainThread"] * 4, "of the first step nothing was known before"
    assert len(where) == 24
    assert all(name.startswith("tokens") for name in where[4:])
    monkeypatch.setattr(language.OnWindows, "expect", lambda self, examples: None)
    assert [*open_run(request(data, tmp_path / "not", micro_batch=3))[0]]
    assert where[24:] == ["MainThread"] * 24
    assert losses(tmp_path / "ahead") == losses(tmp_path / "not")


def test_the_program_shows_nothing_of_it_where_there_is_no_terminal(tiny, tmp_path, capsys):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    given = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    assert main(["train", "gpt2", "--data", str(data), "--out", str(tmp_path / "run"), *given]) == 0
    said = capsys.readouterr()
    assert "Tokens" not in said.err
    assert "Best validation" in said.out


# --- orders


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(0, 9))
def test_an_order_that_is_computed_has_every_row_once(rows, seed):
    order = Order(rows, generator(seed))
    found = [order[i][0] for i in range(rows)]
    assert sorted(found) == [*range(rows)]
    assert found == [Order(rows, generator(seed))[i][0] for i in range(rows)]
    if rows > 99:
        assert sum(a == b for a, b in zip(found, [Order(rows, generator(seed + 1))[i][0] for i in range(rows)])) < 20
        assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(found)) < rows / 8


def test_many_rows_take_no_memory_for_their_order_and_few_have_the_order_they_had(monkeypatch):
    rows = torch.randperm(97, generator=generator(3, 0, 0)).tolist()
    assert Sampler(97, seed=3).take(97) == [(0, row) for row in rows], "as in older runs"
    sampler = Sampler(10**12, seed=3)
    assert len({*sampler.take(99)}) == 99
    monkeypatch.setattr(data_module, "MANY", 9)
    sampler = Sampler(11, seed=3)
    everything = sampler.take(30)
    assert sorted(everything[:11]) == [(0, row) for row in range(11)]
    assert [row for _, row in everything[:11]] != [row for _, row in everything[11:22]]
    for seen in range(30):
        again = Sampler(11, seed=3)
        assert again.take(seen) == everything[:seen]
        other = Sampler(11, seed=3)
        other.restore(again.state())
        assert other.peek(30 - seen) == other.take(30 - seen) == everything[seen:]


# --- memory

MEASURED = """
import sys, threading, time
from pathlib import Path
from scratchformers.training import data, packing
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run
packing.SMALL, data.MANY = 1 << 22, 99
def anonymous():
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) // 1024
def peak(data):
    highest, done = [anonymous()], []
    def sample():
        while not done:
            highest[0] = max(highest[0], anonymous())
            time.sleep(0.002)
    thread = threading.Thread(target=sample)
    thread.start()
    run = open_run(Request("gpt2", Path(data).with_suffix(""), Path(data), given=eval(sys.argv[1])))[0]
    next(iter(run))
    done.append(1)
    thread.join()
    return highest[0]
before = anonymous()
print(*[peak(data) - before for data in sys.argv[2:]])
"""


@pytest.mark.unhooked
def test_ten_times_the_text_takes_no_more_memory(tmp_path):
    """Where a system does not say what is anonymous (only Linux does), the run itself is looked at."""
    written, text = [], "".join([*topics.values()])
    for times in (40, 400):
        path = tmp_path / f"{times}.txt"
        with path.open("w", encoding="utf-8") as file:
            for i in range(times):
                file.write(f"{i} {text[i * 1000 :]} {text[: i * 1000]}\n")
        written.append(path)
    if not os.path.exists("/proc/self/status"):
        assert open_run(request(written[0], tmp_path / "run"))[0].task.train.stream.dtype == torch.uint16
        return
    sizes = [path.stat().st_size for path in written]
    assert sizes[0] > 18e6
    assert sizes[1] > 9 * sizes[0]
    settings = repr({**SMALL, "length": "64"})
    command = [sys.executable, "-c", MEASURED, settings, *map(str, written)]
    small, large = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert small < 150, "MB"
    assert large < small + 40
