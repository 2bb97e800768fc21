"""What `--data` takes, how it is packed, and which text trains, is held out, or makes a vocabulary."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import TEXT, request

import scratchformers as sf
from scratchformers import text as text_module
from scratchformers.text import END, characters, pieces, train_bpe
from scratchformers.training import documents
from scratchformers.training.data import Windows, to_stream
from scratchformers.training.documents import Documents, digest, read_texts
from scratchformers.training.request import VOCAB, Request
from scratchformers.training.runs import open_run


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_each_line_of_json_and_each_file_of_a_folder_is_a_document(tmp_path):
    lines(tmp_path / "b.jsonl", [{"text": "two\nlines", "id": 3}, {"text": ""}, {"text": "größer\u2028"}])
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "b.jsonl").read_bytes() + b"\n  \n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("one\n\ntext", encoding="utf-8")
    lines(tmp_path / ".hidden.jsonl", [{"text": "no"}])
    (tmp_path / "c.json").write_text("{}")
    found = read_texts(tmp_path)
    assert list(found) == ["two\nlines", "größer\u2028", "one\n\ntext"]
    assert list(found) == list(found), "they can be gone through again"
    assert len([*found]) > 1
    assert list(read_texts(tmp_path / "b.jsonl")) == ["two\nlines", "größer\u2028"]
    assert len([*read_texts(tmp_path / "below" / "a.txt")]) == 1


def test_a_document_is_read_when_its_turn_comes(tmp_path):
    """So that a long file is never in memory: what stands after the document is not looked at before."""
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "one"}\nbroken\n', encoding="utf-8")
    texts = iter(read_texts(path))
    assert next(texts) == "one"
    with pytest.raises(ValueError, match=r"long.jsonl, line 2, is no JSON .*: expected one object a line"):
        next(texts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"txt": "a"}\n', "line 2, has no text under 'text': its names are 'txt'"),
        (b'{"text": 3}\n', "line 1, has no text under 'text'"),
        (b"{}\n", "its names are none"),
        (b'"a"\n', "line 1, holds a str: expected an object"),
        (b'{"text": "\xff"}\n', "line 1, is no JSON .*in UTF-8"),
        (b'{"text": "a"}\n' + b"[" * 100_000, "line 2, is no JSON"),
        (b'{"text": "\\ud800"}\n', "line 1, is no valid Unicode"),
        (b'{"text": ""}\n', "holds no text"),
        (b"", "holds no text"),
    ],
)
def test_json_lines_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, content, said):
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        open_run(request(tmp_path / "data.jsonl", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_documents_are_packed_with_the_end_token_between_them():
    texts = ["one", "two", "three"]
    tokenizer = characters(texts, end=True)
    stream = to_stream(texts, tokenizer)
    assert stream.dtype == torch.int32
    assert tokenizer.decode(stream.tolist()) == f"one{END}two{END}three"
    window = Windows(stream, len(stream) - 1, seed=0)[0, 0]
    assert tokenizer.decode(window[:-1].tolist()) == f"one{END}two{END}thre", "a window runs across them, unpadded"
    assert len(to_stream([], tokenizer)) == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="abé👍", min_size=1, max_size=6), max_size=5), st.integers(0, 30))
def test_two_parts_are_the_whole(texts, cut):
    whole, size = Documents(lambda: iter(texts)), sum(map(len, texts))
    first, second = list(whole.part(0, cut)), list(whole.part(cut, size))
    assert "".join(first) == "".join(texts)[:cut]
    assert "".join(second) == "".join(texts)[cut:]
    assert all(first + second)
    assert first == texts[: len(first)] or first[:-1] == texts[: len(first) - 1], "only the last may be cut"
    assert len(second) == 0 or second[1:] == texts[len(texts) - len(second) + 1 :]


def test_the_last_tenth_is_held_out(tmp_path):
    path = lines(tmp_path / "data.jsonl", [{"text": "a" * 60}, {"text": "b" * 33}, {"text": "c" * 7}])
    task = open_run(request(path, tmp_path / "run"))[0].task
    assert task.tokenizer.decode(task.train.stream.tolist()) == f"{'a' * 60}{END}{'b' * 30}"
    assert task.tokenizer.decode(task.held_out.tolist()) == f"bbb{END}{'c' * 7}"


def test_a_digest_knows_where_one_text_ends():
    assert digest(["a", "b"]) == digest(iter(["a", "b"])) != digest(["ab"])


# --- data sets of the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder as the `datasets` library takes one, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "a data set"
    folder.mkdir()
    lines(folder / "train.jsonl", [{"text": TEXT[:900], "title": "x"}, {"text": "", "title": "y"}, {"text": "2 times"}])
    lines(folder / "test.jsonl", [{"text": "3 times 3 is 9.", "title": "z"}])
    return folder


def test_a_data_set_is_read_by_split_and_column(hub):
    assert list(read_texts(f"hf:{hub}")) == [TEXT[:900], "2 times"]
    assert list(read_texts(f"hf:{hub},split=test")) == ["3 times 3 is 9."]
    assert list(read_texts(f"hf:{hub},column=title,split=test,config=default")) == ["z"]


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (",split=dev", "cannot be read .*dev.*: check the name, the split and the network"),
        (",config=x", "cannot be read .*'x' not found"),
        (",column=body", "has no text in a column 'body': add ,column=... with one of text, title"),
        (",colum=text", "names no data set: expected hf:NAME"),
        (",split", "names no data set"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_said(hub, rest, said):
    with pytest.raises(ValueError, match=said) as refused:
        read_texts(f"hf:{hub}{rest}")
    assert "\n" not in str(refused.value)


def test_the_only_column_of_text_is_taken_and_of_several_one_is_asked_for(hub):
    lines(hub / "train.jsonl", [{"body": "one", "n": 3}])
    lines(hub / "test.jsonl", [{"body": "two", "n": 3}])
    assert list(read_texts(f"hf:{hub}")) == ["one"]
    for file in ("train", "test"):
        lines(hub / f"{file}.jsonl", [{"body": "one", "title": "two"}])
    with pytest.raises(
        ValueError, match=r"does not say which column is the text: add ,column=\.\.\. with one of body, ti"
    ):
        read_texts(f"hf:{hub}")


def test_a_hub_out_of_reach_and_a_library_that_is_missing_are_said(monkeypatch):
    def unreachable(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub\nor cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"hf:a/b cannot be read \(Dataset 'a/b' doesn't exist on the Hub or cannot"):
        read_texts("hf:a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the library `datasets`: pip install datasets"):
        read_texts("hf:a/b")


def test_a_run_on_a_data_set_is_resumed_from_another_folder(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(hub.parent)
    run, _ = open_run(request(f"hf:{hub.name}", tmp_path / "run"))
    next(iter(run))
    monkeypatch.chdir(tmp_path.parent)
    again, notes = open_run(Request("gpt2", tmp_path / "run"), resume=True)
    assert torch.equal(again.task.train.stream, run.task.train.stream)
    assert "starting anew" in notes[0]
    lines(hub / "train.jsonl", [{"text": TEXT[:800], "title": "x"}])
    with pytest.raises(ValueError, match="The data is not what the run in"):
        open_run(Request("gpt2", tmp_path / "run"), resume=True)


# --- a vocabulary of one's own


def bpe(data, out, vocab=300, **given):
    return Request(**{**vars(request(data, out, **given)), "tokenizer": "bpe", "vocab": vocab})


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_bpe_is_the_same_for_the_same_text_in_any_process():
    code = "import sys; from scratchformers.text import train_bpe\n"
    code += "print(train_bpe([sys.argv[1]], 290).digest(), end='')"
    found = {train_bpe([TEXT], 290).digest(), train_bpe(iter([TEXT]), 290).digest()}
    for threads in ("1", "4"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", code, TEXT]
        found.add(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(found) == 1


def test_a_bpe_is_learnt_from_little_at_a_time(monkeypatch):
    """The library holds 256 of the pieces it is given."""
    seen = []
    whole = train_bpe([TEXT], 290)
    monkeypatch.setattr(text_module, "pieces", lambda *how: (seen.append(each) or each for each in pieces(*how)))
    monkeypatch.setattr(text_module, "SHORT", 20)
    assert train_bpe([TEXT], 290).digest() == whole.digest()
    assert "".join(seen) == TEXT
    assert max(map(len, seen)) < 30


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back_from_a_bpe_of_another(text):
    assert SMALL_BPE.decode(SMALL_BPE.encode(text)) == text
    assert max(SMALL_BPE.encode(text), default=0) < SMALL_BPE.vocab


SMALL_BPE = train_bpe([TEXT], 290)


def test_a_bpe_has_the_bytes_the_pairs_and_last_the_end():
    assert SMALL_BPE.vocab == 290
    assert SMALL_BPE.end == 289
    assert SMALL_BPE.encode(END) == [289]
    assert len(SMALL_BPE.encode(TEXT)) < len(TEXT) / 2
    assert train_bpe([TEXT], 257).encode("é") != train_bpe([TEXT], 257).encode("e")
    assert len(train_bpe([TEXT], 257).encode("é")) == 2
    apart = train_bpe([f"one two{END}three one"] * 9, 400)
    assert not [token for token in apart.tokenizer.get_vocab() if "end" in token and token != END], "it is no text"


def test_a_bpe_sees_no_text_that_is_held_out(data, tmp_path):
    other = tmp_path / "valid.txt"
    other.write_text("zebra " * 500, encoding="utf-8")
    data.write_text(TEXT + "zebra " * (len(TEXT) // 60), encoding="utf-8")
    cut = len(data.read_text(encoding="utf-8")) * 9 // 10
    task = open_run(bpe(data, tmp_path / "run"))[0].task
    assert task.tokenizer.digest() == train_bpe([data.read_text(encoding="utf-8")[:cut]], 300).digest()
    data.write_text(TEXT, encoding="utf-8")
    asked = Request(**{**vars(bpe(data, tmp_path / "other")), "valid": other})
    assert open_run(asked)[0].task.tokenizer.digest() == train_bpe([TEXT], 300).digest()


def test_a_model_is_saved_with_its_bpe_and_transformers_reads_both(data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, notes = open_run(bpe(data, tmp_path / "run", steps=2))
    list(run)
    assert notes == []
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ours = sf.load_tokenizer(tmp_path / "run" / "model")
    for text in ("3 times 4", "größer 👍\n\n  x", f"a{END}b"):
        assert theirs(text)["input_ids"] == ours.encode(text) == run.task.tokenizer.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config.vocab_size == 300
    assert sf.Completer.from_pretrained(tmp_path / "run" / "model")("3 times", max_new_tokens=3).ids


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one_and_says_so(data, tmp_path):
    run, notes = open_run(bpe(data, tmp_path / "run", vocab=None))
    assert 257 < run.task.tokenizer.vocab < VOCAB == 8000
    assert notes == [f"The text gave a vocabulary of {run.task.tokenizer.vocab} ids, and no more."]
    assert run.task.model.config.vocab == run.task.tokenizer.vocab


def test_a_run_with_a_bpe_is_resumed_with_the_same(data, tmp_path):
    run, _ = open_run(bpe(data, tmp_path / "run"))
    for record in run:
        if record["step"] == 4:
            break
    again, notes = open_run(Request("gpt2", tmp_path / "run"), resume=True)
    assert again.task.tokenizer.digest() == run.task.tokenizer.digest()
    assert notes == ["Resuming at step 2 of 6."], "the checkpoint of step 4 comes after its record"
    with pytest.raises(ValueError, match="has vocab 300, not 290"):
        open_run(bpe(data, tmp_path / "run", vocab=290), resume=True)
    facts = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    facts["tokenizer"]["sha256"] = "another"
    (tmp_path / "run" / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ValueError, match="The tokenizer is not what the run in"):
        open_run(Request("gpt2", tmp_path / "run"), resume=True)


def test_a_vocabulary_that_cannot_be_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="vocab is 256: expected at least 257"):
        open_run(bpe(data, tmp_path / "run", vocab=256))
    with pytest.raises(ValueError, match="--vocab 300 sizes a BPE made from your text: add --tokenizer bpe"):
        open_run(Request(**{**vars(request(data, tmp_path / "run")), "vocab": 300}))
    assert not (tmp_path / "run").exists()


def test_the_start_token_is_one_the_model_has_seen(data, tmp_path):
    """Of a single text the end token never follows anything: to begin with it would be to begin with noise."""
    alone = open_run(bpe(data, tmp_path / "a"))[0].task
    assert (alone.model.generation.start, alone.model.generation.end) == (None, (299,))
    path = lines(tmp_path / "two.jsonl", [{"text": TEXT[:400]}, {"text": TEXT[400:]}])
    assert open_run(request(path, tmp_path / "b"))[0].task.model.generation.start is not None


def test_only_ids_stay_in_memory(tmp_path, monkeypatch):
    """No two texts are alive at once while a run is made ready."""
    alive = []

    class Text(str):
        def __new__(cls, value):
            alive.append(value[:5])
            return super().__new__(cls, value)

        def __del__(self):
            alive.remove(self[:5])

    most = 0

    def counted(row, name, where):
        nonlocal most
        most = max(most, len(alive))
        return Text(row[name])

    monkeypatch.setattr(documents, "string", counted)
    path = lines(tmp_path / "data.jsonl", [{"text": f"{i:5} {TEXT[:80]}"} for i in range(40)])
    open_run(request(path, tmp_path / "run"))
    assert most <= 2, "the one in hand, and the one being read"
