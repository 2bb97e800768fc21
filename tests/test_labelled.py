"""`train bert --task classify` and `--task tokens`: files of labels read, learnt, saved, and read by transformers."""

import csv
import json
import shutil

import bert_reference
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_bert_training import ROLES, SIZES, SMALL, assert_equal_runs, cut_and_whole
from test_cli import refused, run
from transformers import AutoTokenizer, BertForSequenceClassification, BertForTokenClassification

import scratchformers as sf
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.text import characters, train_wordpiece
from scratchformers.training import labelled, log, loop
from scratchformers.training.data import generator
from scratchformers.training.labelled import (
    IGNORED,
    Example,
    Labelled,
    held_out,
    label_names,
    read_labelled,
    read_words,
)
from scratchformers.training.labelled import spans as marked
from scratchformers.training.loop import evaluate
from scratchformers.training.recipes import FINETUNE
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

GOOD, BAD = ("a fine film", "what a joy", "so very good", "fine and good"), ("a dull film", "what a bore", "so bad")
TEXTS = [(f"{text}, {i}", label) for i in range(5) for label, texts in (("up", GOOD), ("down", BAD)) for text in texts]
WORDS = "John/B-PER Smith/I-PER lives/O in/O New/B-LOC York/I-LOC ./O".split()  # noqa: SIM905
LENGTHS = (7, 3, 5, 4, 6, 2, 1, 7, 5, 3)


def tsv(path, rows, names=("text", "label")):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in (names, *rows)), encoding="utf-8")
    return path


def conll(path, sentences):
    written = ("".join(f"{word.replace('/', ' ')}\n" for word in sentence) for sentence in sentences)
    path.write_text("\n".join(written), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    return tsv(tmp_path / "train.tsv", TEXTS)


@pytest.fixture
def words(tmp_path):
    """Sentences of several lengths, that begin anywhere."""
    return conll(tmp_path / "train.txt", [WORDS[i % 3 : i % 3 + n] + WORDS[-1:] for i, n in enumerate(LENGTHS * 3)])


def request(data, out, *, task="classify", source=None, columns=None, tokenizer=None, vocab=None, valid=None, **given):
    sizes = {} if source else {**SIZES, "length": "40"}
    given = {**SMALL, **sizes, **{name: str(value) for name, value in given.items()}}
    return Request(
        "bert", out, data, valid, source=source, tokenizer=tokenizer, vocab=vocab, task=task, columns=columns or {},
        given=given,
    )  # fmt: skip


def open_task(*arguments, **options):
    return open_run(request(*arguments, **options))[0].task


# --- files


ROWS = [('He said "no", then left', "up"), ("größer, 你好 👍\u2028x", "down"), ("'", "up"), ('"quoted"', "down")]


def written(folder, form, rows, names=("text", "label")):
    path = folder / f"data.{form.partition(' ')[0]}"
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row)), ensure_ascii=False) for row in rows]
        content = "\n".join(lines) + "\n"
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([names, *rows])
        content = path.read_text(encoding="utf-8")
    else:
        content = "\n".join("\t".join(row) for row in (names, *rows)) + "\n"
    content = content.replace("\n", "\r\n") if "CRLF" in form else content
    content = content.rstrip("\r\n") if "torn" in form else content
    path.write_bytes(b"\xef\xbb\xbf" * ("BOM" in form) + content.encode())
    return path


@pytest.mark.parametrize(
    "form", [f"{end}{how}" for end in ("tsv", "csv", "jsonl") for how in ("", " BOM", " CRLF", " torn")]
)
def test_every_form_of_file_gives_the_same_examples(tmp_path, form):
    """Of a TSV quotes are part of the text."""
    assert read_labelled(written(tmp_path, form, ROWS), {}) == [Example(*row) for row in ROWS]


def test_fields_of_a_csv_may_hold_commas_quotes_and_breaks(tmp_path):
    rows = [('one, "two"\nthree', "up"), ("a,b", "do,wn"), ("", "up")]
    found = read_labelled(written(tmp_path, "csv", rows), {})
    assert found == [Example(*row) for row in rows]
    assert [example.where[1] for example in found] == [3, 4, 5], "the last line of each"


def test_an_empty_line_is_no_example(tmp_path):
    for name, content in (("a.tsv", "text\tlabel\n\na\tup\n\n"), ("a.jsonl", '\n{"text": "a", "label": "up"}\n\n')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read_labelled(tmp_path / name, {}) == [Example("a", "up")]


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_columns_may_have_other_names_and_any_order(tmp_path, form):
    names, rows = ("n", "gold", "b", "a"), [("1", "up", "second", "first"), ("2", "down", "x", "y")]
    path = written(tmp_path, form, rows, names)
    assert read_labelled(path, {"text": "a", "label": "gold"}) == [Example("first", "up"), Example("y", "down")]
    paired = read_labelled(path, {"text": "a", "label": "gold", "pair": "b"})
    assert paired == [Example(("first", "second"), "up"), Example(("y", "x"), "down")]


def test_a_column_called_pair_is_the_second_text(tmp_path):
    path = tsv(tmp_path / "a.tsv", [("one", "two", "up"), ("three", "", "down")], ("text", "pair", "label"))
    assert read_labelled(path, {}) == [Example(("one", "two"), "up"), Example(("three", ""), "down")]
    rows = [{"text": "a", "pair": "b", "label": 1}, {"text": "c", "pair": None, "label": 0}, {"text": "d", "label": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_labelled(tmp_path / "a.jsonl", {}) == [Example(("a", "b"), "1"), Example("c", "0"), Example("d", "1")]


def test_numbers_are_ordered_by_size_and_names_by_the_alphabet():
    order = lambda *labels: label_names([Example("", label) for label in labels])  # noqa: E731
    assert order("10", "9", "2", "9") == ["2", "9", "10"]
    assert order("1", "-1", "0") == ["-1", "0", "1"]
    assert order("b", "10", "9", "a") == ["10", "9", "a", "b"]
    assert order("01", "1") == order("1", "01") == ["01", "1"]
    assert label_names([Example(["x", "y"], ["O", "B-PER"]), Example(["z"], ["I-PER"])]) == ["B-PER", "I-PER", "O"]


def test_the_tenth_held_out_is_drawn_once_for_all():
    examples = [Example(str(i), "up" if i < 30 else "down") for i in range(50)]  # sorted by their labels
    train, valid = held_out(examples)
    assert (len(train), len(valid)) == (45, 5)
    assert sorted([*train, *valid], key=lambda each: int(each.text)) == examples
    assert {each.label for each in valid} == {"up", "down"}
    assert held_out(examples) == (train, valid)
    assert [int(each.text) for each in train] == sorted(int(each.text) for each in train)
    assert [len(part) for part in held_out(examples[:2])] == [1, 1]
    assert held_out([*examples, Example("50", "up")])[1] != valid


def test_a_label_that_occurs_once_may_be_held_out(tmp_path):
    """It is among the labels, wherever the draw put it."""
    for place in range(20):
        rows = [("a b", "up"), ("b", "down")] * 10
        rows.insert(place, ("c", "rare"))
        task = open_task(tsv(tmp_path / f"{place}.tsv", rows), tmp_path / f"run{place}")
        assert task.model.head.labels == ("down", "rare", "up")


REFUSED = [
    ("a.tsv", "text\tlabel\na\tup\nb\n", "a.tsv, line 3, has fewer fields than the first line names, which are 'text'"),
    ("a.tsv", "text\tlabel\na\tup\nb\tc\tdown\n", "a.tsv, line 3, has more fields than the first line names"),
    ("a.csv", "text,label\na,up\nHello, world,down\n", "a.csv, line 3, has more fields"),
    ("a.tsv", "text\tlabel\na\tup\nb\t\n", "a.tsv, line 3, has no label: every example needs one"),
    ("a.jsonl", '{"text": "a", "label": "up"}\n{"text": "b"}\n', "a.jsonl, line 2, has no column 'label': it has"),
    ("a.jsonl", '{"text": "a", "label": null}\n', "a.jsonl, line 1, has no label"),
    ("a.jsonl", '{"text": "a", "label": ""}\n', "a.jsonl, line 1, has no label"),
    ("a.jsonl", '{"text": "a", "label": 0.5}\n', "a.jsonl, line 1, has the label 0.5: expected a name"),
    ("a.jsonl", '{"text": "a", "label": true}\n', "a.jsonl, line 1, has the label True"),
    ("a.jsonl", '{"text": "a", "label": ["x"]}\n', "a.jsonl, line 1, has the label ['x']"),
    ("a.jsonl", '{"text": ["a"], "label": 1}\n', "a.jsonl, line 1, has no text under 'text'"),
    ("a.jsonl", '{"text": "a", "pair": 3, "label": 1}\n', "a.jsonl, line 1, has no text under 'pair'"),
    ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "a.jsonl, line 1, is no valid Unicode"),
    ("a.jsonl", '{"text": "a", "label": "\\ud800"}\n', "a.jsonl, line 1, is no valid Unicode"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "a.jsonl, line 2, is no JSON"),
    ("a.jsonl", "[1]\n", "a.jsonl, line 1, holds a list: expected an object"),
    ("a.tsv", "text\tlabel\na\tup\nb\tup\n", "Every example has the label 'up': there is nothing to tell apart"),
    ("a.tsv", "sentence\tlabel\na\tup\n", "a.tsv, line 2, has no column 'text': it has 'sentence', 'label'. Say"),
    ("a.tsv", "a fine film\tup\na bad film\tdown\n", "has no column 'text': it has 'a fine film', 'up'"),
    ("a.tsv", "", "a.tsv holds no examples: expected a line with the names of the columns, then one for each"),
    ("a.tsv", "text\tlabel\n", "a.tsv holds no examples"),
    ("a.jsonl", "", "a.jsonl holds no examples"),
    ("a.tsv", b"text\tlabel\n\xff\tup\n", "a.tsv is not UTF-8 (invalid start byte): convert it"),
    ("a.jsonl", b'{"text": "\xff", "label": 1}\n', "a.jsonl, line 1, is no JSON"),
    ("a.txt", "text\tlabel\na\tup\n", "a.txt is none of .tsv, .csv and .jsonl: give it the name of what it is"),
    ("a.tsv", "text\tlabel\na\rb\tup\n", "fewer fields"),
    ("a.csv", 'text,label\n"a,up\nb,down\n', "a.csv, line 3, has fewer fields"),
    ("a.tsv", "text\tlabel\na\tup\n", "Every example has the label 'up'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), REFUSED)
def test_a_file_that_cannot_be_is_refused_in_a_sentence(capsys, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ("train", "bert", "--task", "classify", "--out", tmp_path / "run", "--data", tmp_path / name)
    assert said in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_asked_for_is_refused_in_a_sentence(capsys, data, tmp_path):
    arguments = ("train", "bert", "--task", "classify", "--out", tmp_path / "run", "--data")
    assert "no.tsv is no file: expected a file .tsv, .csv or .jsonl" in refused(capsys, *arguments, tmp_path / "no.tsv")
    assert "is no file" in refused(capsys, *arguments, tmp_path)
    assert "is no file" in refused(capsys, *arguments, data, "--valid", tmp_path / "no.tsv")
    assert "pass --data FILE" in refused(capsys, *arguments[:-1])
    assert "There is no column for title: expected text" in refused(capsys, *arguments, data, "--column", "title=x")
    assert "has no column 'b'" in refused(capsys, *arguments, data, "--column", "pair=b")
    assert "--tokenizer bpe is not for bert: expected wordpiece" in refused(
        capsys, *arguments, data, "--tokenizer", "bpe"
    )
    assert "add --tokenizer wordpiece" in refused(capsys, *arguments, data, "--vocab", 200)
    assert "no preset 'simple'" in refused(capsys, *arguments, data, "--preset", "simple")
    assert "There is no setting 'masked'" in refused(capsys, *arguments, data, "--set", "masked=0.2")
    one = tsv(tmp_path / "one.tsv", TEXTS[:1])
    assert "there is nothing to tell apart" in refused(capsys, *arguments, one)
    valid = tsv(tmp_path / "valid.tsv", [*TEXTS[:3], ("x", "sideways")])
    sentence = "valid.tsv, line 5, has the label 'sideways', which is none of down, up"
    assert sentence in refused(capsys, *arguments, data, "--valid", valid)
    pairs = tsv(tmp_path / "pairs.tsv", [("a", "b", "up"), ("c", "d", "down")], ("text", "pair", "label"))
    said = refused(capsys, *arguments, pairs, "--set", "segments=1", "--set", "dim=16", "--set", "heads=2")
    assert "A pair has two segments and the model 1" in said
    assert not (tmp_path / "run").exists()


# --- what the model is given


def test_a_pair_has_segments_0_and_1(tmp_path):
    path = tsv(tmp_path / "a.tsv", [("ab", "cde", "up"), ("b", "", "down")] * 9, ("text", "pair", "label"))
    task = open_task(path, tmp_path / "run")
    batch = task._padded([row for row in task.train if len(row[0]) == 8][:1])
    assert task.tokenizer.decode(batch["ids"][0].tolist()) == "[CLS]ab[SEP]cde[SEP]"
    assert batch["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    batch = task._padded([row for row in task.train if len(row[0]) == 4][:1])
    assert task.tokenizer.decode(batch["ids"][0].tolist()) == "[CLS]b[SEP][SEP]"
    assert batch["segments"].tolist() == [[0, 0, 0, 1]]


def test_single_texts_have_segment_0_and_rows_are_padded_to_the_longest(data, tmp_path):
    task = open_task(data, tmp_path / "run", valid=data)
    batch = task.batch([(0, row) for row in (0, 4, 5)])
    texts = [f"[CLS]{TEXTS[row][0]}[SEP]" for row in (0, 4, 5)]
    lengths = [len(task.tokenizer.encode(text[5:-5])) for text in texts]
    assert batch["ids"].shape == batch["keep"].shape == batch["segments"].shape == (3, max(lengths))
    assert batch["keep"].sum(1).tolist() == lengths
    assert not batch["segments"].any()
    for ids, keep, text in zip(batch["ids"], batch["keep"], texts):
        assert task.tokenizer.decode(ids[keep].tolist()) == text
    assert [task.model.head.labels[i] for i in batch["targets"]] == [TEXTS[row][1] for row in (0, 4, 5)]


def test_a_text_that_is_too_long_is_said_or_cut(capsys, tmp_path):
    rows = [*TEXTS, ("long " * 20, "up"), ("x" * 90, "down")]
    path = tsv(tmp_path / "a.tsv", rows)
    with pytest.raises(ValueError, match=r"The text 'long .* has 102 tokens and the model takes 40: .*--truncate"):
        open_task(path, tmp_path / "run")
    task = open_task(path, tmp_path / "run", truncate="true", valid=path)
    assert {len(ids) for ids, _, _ in task.train if len(ids) >= 40} == {40}
    cut = next(ids for ids, _, _ in task.train if len(ids) == 40)
    assert task.tokenizer.decode(cut) == "[CLS]" + ("long " * 20)[:38] + "[SEP]"
    arguments = ("train", "bert", "--task", "classify", "--data", path, "--out", tmp_path / "program")
    settings = [part for key, value in {**SMALL, **SIZES}.items() for part in ("--set", f"{key}={value}")]
    assert "pass a shorter one, or truncate=True (--truncate)" in refused(capsys, *arguments, *settings)
    assert run(capsys, *arguments, *settings, "--truncate")[0] == 0


def scrambled(task):
    """In float64, so that no row is like another and nothing hides."""
    task.model.double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw).double() * 0.3)
    return task


def rows_are_alone(task, count=9):
    """The loss of a ragged batch and its gradient are the sums over its rows, each alone."""
    task.model.eval()
    examples, found, wanted = [(0, row) for row in range(count)], [], []
    assert len({len(task.train[row][0]) for row in range(count)}) > 2
    for gradients, batches in ((found, [examples]), (wanted, [[each] for each in examples])):
        task.model.zero_grad()
        losses = [task.loss(task.model, task.batch(some)) for some in batches]
        sum(losses).backward()
        gradients += [sum(losses).detach(), *(p.grad.clone() for p in task.model.parameters() if p.grad is not None)]
    for ours, theirs in zip(found, wanted):
        # scores become float32 before the loss is taken
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        whole = task.model(**{k: v for k, v in task.batch(examples).items() if k != "targets"})
        for row, each in zip(whole, examples):
            batch = task.batch([each])
            alone = task.model(**{k: v for k, v in batch.items() if k != "targets"})[0]
            torch.testing.assert_close(row[: len(alone)] if task.unit == "word" else row, alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["classify", "tokens"])
def test_padding_does_not_change_the_loss(data, words, tmp_path, kind):
    path = data if kind == "classify" else words
    rows_are_alone(scrambled(open_task(path, tmp_path / "run", task=kind, valid=path)))


@pytest.mark.parametrize("kind", ["classify", "tokens"])
def test_padding_costs_nothing(data, words, tmp_path, kind):
    path = data if kind == "classify" else words
    task, seen = open_task(path, tmp_path / "run", task=kind, valid=path), []
    task.model.blocks[0].mlp.up.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    batch = task.batch([(0, row) for row in range(9)])
    task.loss(task.model.train(), batch)
    assert seen == [int(batch["keep"].sum())]
    assert seen[0] < batch["keep"].numel()


def padding_is_seen(patch):
    patch.setattr(Labelled, "_scores", lambda self, model, b: model(b["ids"], segments=b["segments"]).float())


def mean_over_padding(patch):
    def scores(self, model, batch):
        states = model.encode(batch["ids"], segments=batch["segments"], keep=batch["keep"])
        return model.head.out(states.mean(1)).float()

    patch.setattr(Labelled, "_scores", scores)


def padding_has_labels(patch):
    real = labelled.Tagged._target
    patch.setattr(labelled.Tagged, "_target", lambda *a: real(*a).clamp(min=0))


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("classify", padding_is_seen),
        ("classify", mean_over_padding),
        ("tokens", padding_is_seen),
        ("tokens", padding_has_labels),
    ],
)
def test_planted_padding_is_caught(data, words, tmp_path, kind, plant):
    path = data if kind == "classify" else words
    task = scrambled(open_task(path, tmp_path / "run", task=kind, valid=path))
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, RuntimeError)):
            rows_are_alone(task)


def off_by_one(patch):
    real = Labelled._number
    patch.setattr(Labelled, "_number", lambda self, *a: (real(self, *a) + 1) % len(self.numbers))


def other_column(patch):
    patch.setitem(labelled.COLUMNS, "pair", "text")


def segments_forgotten(patch):
    real = labelled.padded
    patch.setattr(labelled, "padded", lambda rows: {**(b := real(rows)), "segments": b["segments"] * 0})


@pytest.mark.parametrize(
    ("plant", "test"),
    [
        (off_by_one, "single_texts_have_segment_0_and_rows_are_padded_to_the_longest"),
        (other_column, "a_pair_has_segments_0_and_1"),
        (segments_forgotten, "a_pair_has_segments_0_and_1"),
    ],
)
def test_a_planted_mistake_is_caught(data, tmp_path, plant, test):
    given = {"single": (data, tmp_path)}.get(test.partition("_")[0], (tmp_path,))
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, IndexError)):
            globals()[f"test_{test}"](*given)


# --- what it begins with


def test_a_new_model_is_of_the_preset(data, tmp_path):
    asked = Request("bert", tmp_path / "run", data, task="classify", given={"threads": "1"})
    task, settings = (opened := open_run(asked)[0]).task, opened.settings
    assert (task.model.config.dim, task.model.config.depth, task.model.config.length) == (128, 2, 128)
    assert settings.lr == 1e-3
    assert task.model.head.labels == ("down", "up")
    assert [task.tokenizer.tokenizer.id_to_token(i) for i in range(5)] == [*ROLES]
    assert task.model.head.out.weight.shape == (2, 128)


@pytest.mark.parametrize("cased", [False, True])
def test_a_wordpiece_is_learnt_from_the_texts_trained_on(data, tmp_path, cased):
    valid = tsv(tmp_path / "valid.tsv", [("Zebra zebra", "up"), ("so good", "down")])
    asked = request(data, tmp_path / "run", tokenizer="wordpiece", vocab=105, valid=valid, cased=cased)
    task = open_run(asked)[0].task
    learnt = train_wordpiece([text for text, _ in TEXTS], 105, lower=not cased)
    assert task.tokenizer.digest() == learnt.digest()
    assert task.model.config.vocab == learnt.vocab


def published(folder, kind="Model", text=None, **changes):
    """A scrambled checkpoint with a tokeniser of fewer ids than it has embeddings."""
    theirs = bert_reference.scrambled(kind, std=0.1, hidden_dropout_prob=0.0, **changes).float()
    theirs.save_pretrained(folder)
    text = text or " ".join([text for text, _ in TEXTS] + [word.partition("/")[0] for word in WORDS])
    for name, content in characters([text], special=ROLES).files.items():
        (folder / name).write_bytes(content)
    return theirs


@pytest.mark.parametrize("kind", ["Model", "bare", "MaskedLM", "PreTraining", "SequenceClassification"])
@pytest.mark.parametrize("task", ["classify", "tokens"])
def test_any_source_brings_its_body_and_the_head_is_new(data, words, tmp_path, kind, task):
    bare = {"body": {"add_pooling_layer": False}} if kind == "bare" else {}
    theirs = published(tmp_path / "source", "Model" if kind == "bare" else kind, **bare)
    path = data if task == "classify" else words
    opened, notes = open_run(request(path, tmp_path / "run", source=tmp_path / "source", task=task))
    assert notes == []
    model, source = opened.task.model, sf.load(tmp_path / "source")
    assert model.head.labels == (("down", "up") if task == "classify" else ("B-LOC", "B-PER", "I-LOC", "I-PER", "O"))
    ours, before = model.state_dict(), source.state_dict()
    for name in before:
        if not name.startswith(("head", "next_sentence", "pooler")):
            assert torch.equal(ours[name], before[name]), name
    has_pooler = getattr(theirs, "bert", theirs).pooler is not None
    if task == "tokens":
        assert model.pooler is None
    elif has_pooler:
        assert torch.equal(model.pooler.weight, source.pooler.weight)
    else:
        assert float(model.pooler.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.head.out.weight.detach().std()) == pytest.approx(0.02, rel=0.4)
    assert model.next_sentence is None
    facts = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert facts["preset"] == FINETUNE
    assert facts["source"]["sha256"] == fingerprint(source), "and not of the head that was drawn for it"
    list(opened)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not any(name.startswith("cls.") for name in saved)
    assert any("pooler" in name for name in saved) is (task == "classify")


def test_every_parameter_gets_a_gradient(tmp_path):
    rows = [(f"{text} " * 2, text, label) for text, label in TEXTS]
    path = tsv(tmp_path / "a.tsv", rows, ("text", "pair", "label"))
    task = open_task(path, tmp_path / "run", length=60, depth=2, dropout=0, truncate="true")
    task.loss(task.model, task.batch([(0, row) for row in range(task.rows)])).backward()
    for name, parameter in task.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pool", ["pooler", "mean"])
def test_a_head_of_ones_own_is_one_line(tmp_path, pool):
    published(tmp_path / "source")
    model, tokenizer = sf.load(tmp_path / "source"), sf.load_tokenizer(tmp_path / "source")
    model.head = sf.Classify(model.config.dim, ["no", "yes"], pool=model.pool if pool == "pooler" else sf.mean)
    batch = labelled.padded(tokenizer.encode_batch(["a fine film", "so bad", "what a bore"]))
    targets, optimizer = torch.tensor([1, 0, 0]), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(model(**batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    found = sf.TextClassifier(model.eval(), tokenizer)(["a fine film", "so bad"], top=1)
    assert [each[0].label for each in found] == ["yes", "no"]


@pytest.mark.parametrize("order", [{0: "down", 1: "up"}, {0: "up", 1: "down"}])
def test_a_source_that_has_these_labels_goes_on_with_its_head(data, tmp_path, order):
    """In its own order, whatever the alphabet's is."""
    label2id = {label: i for i, label in order.items()}
    published(tmp_path / "source", "SequenceClassification", num_labels=2, id2label=order, label2id=label2id)
    opened, notes = open_run(request(data, tmp_path / "run", source=tmp_path / "source", valid=data))
    assert notes == ["The checkpoint's own head has these labels: training goes on with it."]
    source = sf.load(tmp_path / "source")
    assert opened.task.model.head.labels == source.head.labels == tuple(order.values())
    assert fingerprint(opened.task.model) == fingerprint(source)
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "source").eval()
    batch = opened.task.batch([(0, row) for row in range(6)])
    wanted = torch.tensor([label2id[TEXTS[row][1]] for row in range(6)])
    with torch.no_grad():
        logits = theirs(batch["ids"], attention_mask=batch["keep"].long()).logits
        loss = float(opened.task.loss(opened.task.model.eval(), batch))
    assert loss == pytest.approx(float(F.cross_entropy(logits, wanted, reduction="sum")), abs=1e-4)
    list(opened)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {str(i): label for i, label in order.items()}


def test_a_source_with_other_labels_gets_a_new_head(data, tmp_path):
    published(tmp_path / "source", "SequenceClassification")  # LABEL_0 to LABEL_2
    opened, notes = open_run(request(data, tmp_path / "run", source=tmp_path / "source"))
    assert notes == []
    assert opened.task.model.head.labels == ("down", "up")
    assert opened.task.model.head.out.weight.shape[0] == 2
    list(opened)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "down", "1": "up"}
    assert config["label2id"] == {"down": 0, "up": 1}


def test_what_a_source_said_of_its_own_labels_is_not_said_of_new_ones(data, tmp_path):
    """A checkpoint of several labels at once, trained on one label each: its shares would not sum to 1."""
    published(tmp_path / "source", "SequenceClassification", problem_type="multi_label_classification")
    list(open_run(request(data, tmp_path / "run", source=tmp_path / "source"))[0])
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert not config.get("problem_type")
    found = sf.TextClassifier.from_pretrained(tmp_path / "run" / "model")("a fine film")
    assert sum(each.score for each in found) == pytest.approx(1)


@pytest.mark.parametrize("task", ["classify", "tokens"])
def test_how_a_source_pools_is_not_said_of_what_has_a_head(data, words, tmp_path, task):
    published(tmp_path / "source")
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (tmp_path / "source" / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (tmp_path / "source" / "1_Pooling").mkdir()
    (tmp_path / "source" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    path = data if task == "classify" else words
    list(open_run(request(path, tmp_path / "run", source=tmp_path / "source", task=task))[0])
    assert {each.name for each in (tmp_path / "run" / "model").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


def test_a_tokeniser_that_does_not_belong_is_refused(data, tmp_path):
    published(tmp_path / "source", text="".join(map(chr, range(32, 232))))
    with pytest.raises(ValueError, match=r"The tokeniser has 205 ids and the model 97: they do not belong together"):
        open_run(request(data, tmp_path / "run", source=tmp_path / "source"))
    assert not (tmp_path / "run").exists()


# --- what is measured, and which model is kept


def test_accuracy_and_the_majority_are_reported(data, tmp_path):
    rows = [("a", "up"), ("b", "up"), ("c", "down"), ("d", "up"), ("e", "down")]
    valid = tsv(tmp_path / "valid.tsv", rows)
    opened, _ = open_run(request(data, tmp_path / "run", valid=valid))
    first, *rest = opened
    assert first["trivial_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert first["majority_accuracy"] == 0.6
    task = opened.task
    last = [record for record in rest if "valid_loss" in record][-1]
    batch = labelled.padded(task.tokenizer.encode_batch([text for text, _ in rows]))
    with torch.no_grad():
        scores = task.model.eval()(**batch)
    targets = torch.tensor([task.model.head.labels.index(label) for _, label in rows])
    assert last["valid_accuracy"] == pytest.approx(float((scores.argmax(-1) == targets).float().mean()))
    assert last["valid_loss"] == pytest.approx(float(F.cross_entropy(scores, targets)), abs=1e-5)
    assert last["sample"].count("\n") == 4
    assert all(text in last["sample"] for text, _ in rows)


@pytest.mark.parametrize(("task", "name"), [("classify", "accuracy"), ("tokens", "f1")])
def test_the_model_that_is_kept_is_the_best_by_accuracy_or_f1(data, words, tmp_path, monkeypatch, task, name):
    given, weights = iter([0.5, 0.9, 0.9, 0.7, 0.8, 0.6]), []

    def fake(task, device, *, autocast):
        weights.append(task.model.token.weight.detach().clone())
        return {"loss": 1.0 / len(weights), "accuracy": 0.1, name: next(given)}

    monkeypatch.setattr(loop, "evaluate", fake)
    path = data if task == "classify" else words
    opened, _ = open_run(request(path, tmp_path / "run", task=task, eval_every=1))
    best = [record["best"] for record in opened if "valid_loss" in record]
    assert best == [True, True, False, False, False, False]
    assert torch.equal(sf.load(tmp_path / "run" / "model").token.weight, weights[1])
    assert opened.achieved == f"{name} 0.9000"


def test_it_learns(data, tmp_path):
    asked = request(data, tmp_path / "run", steps=60, eval_every=60, lr=1e-2, dropout=0, batch=8, valid=data)
    last = [record for record in open_run(asked)[0] if "valid_loss" in record][-1]
    assert last["valid_accuracy"] == 1.0
    classify = sf.TextClassifier.from_pretrained(tmp_path / "run" / "model")
    found = classify([text for text, _ in TEXTS], top=1)
    assert [each[0].label for each in found] == [label for _, label in TEXTS]
    assert min(each[0].score for each in found) > 0.5


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("task", ["classify", "tokens"])
@pytest.mark.parametrize("begun", ["anew", "from a source"])
def test_resumed_is_uninterrupted(data, words, tmp_path, stop, task, begun):
    source = None
    if begun == "from a source":
        published(source := tmp_path / "source", "MaskedLM")
    path = data if task == "classify" else words
    asked = lambda out: request(path, out, task=task, source=source, dropout=0.2)  # noqa: E731
    assert_equal_runs(*cut_and_whole(tmp_path, asked, stop))


def test_columns_and_truncation_are_remembered(tmp_path):
    rows = [(f"{text} " * 5, label) for text, label in TEXTS]
    path = tsv(tmp_path / "a.tsv", rows, ("sentence", "gold"))
    columns = {"text": "sentence", "label": "gold"}
    asked = lambda out: request(path, out, columns=columns, truncate="true", length=20)  # noqa: E731
    assert_equal_runs(*cut_and_whole(tmp_path, asked, 3))
    other = Request("bert", tmp_path / "cut", columns={"text": "gold"})
    with pytest.raises(ValueError, match="has columns"):
        open_run(other, resume=True)
    tsv(path, [("x", "up"), ("y", "down")] * 20, ("sentence", "gold"))
    with pytest.raises(ValueError, match="The data is not what the run in"):
        open_run(Request("bert", tmp_path / "cut"), resume=True)


# --- what is saved


@pytest.mark.parametrize("begun", ["characters", "wordpiece", "source"])
@pytest.mark.parametrize("paired", [False, True])
def test_the_saved_model_gives_the_same_shares_in_transformers(data, tmp_path, begun, paired):
    rows = [(text, text[::-1], label) for text, label in TEXTS] if paired else TEXTS
    path = tsv(tmp_path / "a.tsv", rows, ("text", "pair", "label") if paired else ("text", "label"))
    source = None
    if begun == "source":
        published(source := tmp_path / "source")
    made = {"tokenizer": "wordpiece", "vocab": 120} if begun == "wordpiece" else {}
    list(open_run(request(path, tmp_path / "run", source=source, lr=0.02, length=50, **made))[0])
    folder = tmp_path / "run" / "model"
    model, draw = sf.load(folder), generator(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # few steps leave it saying the same of everything
            drawn = torch.randn(parameter.shape, generator=draw) * 0.5
            parameter.copy_(drawn + ("norm.weight" in name))
    model.save_pretrained(folder)
    theirs = BertForSequenceClassification.from_pretrained(folder).eval()
    reader = AutoTokenizer.from_pretrained(folder)
    assert theirs.config.id2label == {0: "down", 1: "up"}
    ours, compared = sf.TextClassifier.from_pretrained(folder), []
    for row in rows[:8]:
        text = tuple(row[:2]) if paired else row[0]
        given = reader(*text, return_tensors="pt") if paired else reader(text, return_tensors="pt")
        with torch.no_grad():
            wanted = theirs(**given).logits.softmax(-1)[0]
        found = {each.label: each.score for each in ours(text)}
        assert found == pytest.approx({"down": float(wanted[0]), "up": float(wanted[1])}, abs=1e-5)
        compared.append(found["up"])
    assert len({round(score, 4) for score in compared}) > 3, "else anything would pass"


# --- words


def test_conll_files_are_read(tmp_path):
    content = (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n"
        "Peter\tB-PER\nNew York\tB-LOC\n-DOCSTART-\tO\nlast  O\n  \nwide\u00a0word O\nend I-PER"
    )
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    wanted = [
        (["EU", "rejects"], ["B-ORG", "O"]),
        (["Peter", "New York"], ["B-PER", "B-LOC"]),
        (["last"], ["O"]),
        (["wide\u00a0word", "end"], ["O", "I-PER"]),
    ]
    assert [(example.text, example.label) for example in read_words(tmp_path / "a.txt")] == wanted
    (tmp_path / "b.txt").write_bytes(content.replace("\n", "\r\n").encode())
    assert read_words(tmp_path / "b.txt") == read_words(tmp_path / "a.txt")
    assert [example.where[1] for example in read_words(tmp_path / "a.txt")] == [3, 7, 10, 12]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("EU B-ORG\nrejects\n", "a.txt, line 2, has no label: expected a word, and its label in the last column"),
        ("EU\tB-ORG\nrejects\t\n", "a.txt, line 2, has no label"),
        ("EU\tB-ORG\n\tO\n", "a.txt, line 2, has no label"),
        ("", "a.txt holds no sentences: expected a word a line, its label in the last column"),
        ("\n\n-DOCSTART- O\n\n", "a.txt holds no sentences"),
        (b"\xff O\n", "a.txt is not UTF-8 (invalid start byte): convert it"),
        ("a O\nb O\n\nc O\n", "Every example has the label 'O'"),
        ("a O\nb B-X\n", "There is one example"),
    ],
)
def test_a_file_of_words_that_cannot_be_is_refused_in_a_sentence(capsys, tmp_path, content, said):
    (tmp_path / "a.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ("train", "bert", "--task", "tokens", "--out", tmp_path / "run", "--data", tmp_path / "a.txt")
    assert said in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_asked_of_words_is_refused_in_a_sentence(capsys, words, tmp_path):
    arguments = ("train", "bert", "--task", "tokens", "--out", tmp_path / "run", "--data")
    assert "of a word and its label a line" in refused(capsys, *arguments, tmp_path / "no.txt")
    assert "--column names a column" in refused(capsys, *arguments, words, "--column", "text=x")
    valid = conll(tmp_path / "valid.txt", [WORDS, ["A/O", "B/B-MISC"]])
    sentence = "valid.txt, line 10, has the label 'B-MISC', which is none of B-LOC, B-PER, I-LOC, I-PER, O"
    assert sentence in refused(capsys, *arguments, words, "--valid", valid)


SPANS = {
    "O O": [],
    "B-PER": [(0, 1, "PER")],
    "B-PER I-PER O": [(0, 2, "PER")],
    "B-PER B-PER": [(0, 1, "PER"), (1, 2, "PER")],  # side by side
    "B-PER I-PER B-PER I-PER": [(0, 2, "PER"), (2, 4, "PER")],
    "I-PER I-PER": [(0, 2, "PER")],  # IO
    "O I-PER O I-PER": [(1, 2, "PER"), (3, 4, "PER")],
    "B-PER I-LOC": [(0, 1, "PER"), (1, 2, "LOC")],  # I- after another kind begins one
    "I-PER I-LOC I-LOC": [(0, 1, "PER"), (1, 3, "LOC")],
    "I-PER B-PER": [(0, 1, "PER"), (1, 2, "PER")],
    "O B-LOC": [(1, 2, "LOC")],
    "NOUN NOUN VERB O": [(0, 2, "NOUN"), (2, 3, "VERB")],  # without a scheme
    "B-A-B I-A-B": [(0, 2, "A-B")],
    "": [],
}


@pytest.mark.parametrize("labels", SPANS)
def test_names_are_read_off_their_labels(labels):
    assert [*marked(labels.split())] == SPANS[labels]


def test_names_are_those_of_seqeval_by_another_reading():
    """Against a rule a word at a time: a name begins at B-, or at I- where the word before has another kind or none."""
    import itertools

    for labels in itertools.product(["O", "B-X", "I-X", "B-Y", "I-Y"], repeat=5):
        kinds = [label[2:] for label in labels]
        begins = [
            label[0] == "B" or (label[0] == "I" and (i == 0 or kinds[i - 1] != kinds[i]))
            for i, label in enumerate(labels)
        ]
        wanted = []
        for i, kind in enumerate(kinds):
            if begins[i]:
                end = next((j for j in range(i + 1, 5) if begins[j] or kinds[j] != kind), 5)
                wanted.append((i, end, kind))
        assert [*marked(labels)] == wanted, labels


F1 = [
    # truth, what is said, F1, accuracy
    (["B-PER I-PER O"], ["B-PER I-PER O"], 1.0, 1.0),
    (["B-PER I-PER O"], ["B-PER O O"], 0.0, 2 / 3),  # half a name is none
    (["B-PER I-PER O"], ["B-LOC I-LOC O"], 0.0, 1 / 3),
    (["B-PER O B-PER"], ["B-PER O O"], 2 / 3, 2 / 3),
    (["B-PER B-PER"], ["B-PER I-PER"], 0.0, 1 / 2),
    (["I-PER I-PER O"], ["B-PER I-PER O"], 1.0, 2 / 3),  # the same name, marked otherwise
    (["O O"], ["O O"], 1.0, 1.0),
    (["O O"], ["B-PER O"], 0.0, 1 / 2),
    (["B-PER O", "B-LOC O O"], ["B-PER O", "B-PER O O"], 1 / 2, 4 / 5),  # over all sentences
]


@pytest.mark.parametrize(("truth", "said", "f1", "accuracy"), F1)
def test_f1_counts_whole_names(tmp_path, truth, said, f1, accuracy):
    """Of a model that is made to say just that: a letter for each word, and the letter's row of scores."""
    names = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    sentences = [[f"{chr(97 + 10 * i + j)}/{label}" for j, label in enumerate(s.split())] for i, s in enumerate(truth)]
    train = conll(tmp_path / "train.txt", [*sentences, *([f"z/{name}"] for name in names)])
    task = open_task(train, tmp_path / "run", task="tokens", valid=conll(tmp_path / "valid.txt", sentences))
    answers = {
        task.tokenizer.encode(chr(97 + 10 * i + j))[1]: names.index(label)
        for i, sentence in enumerate(said)
        for j, label in enumerate(sentence.split())
    }

    def scores(_, batch):
        found = torch.zeros(*batch["ids"].shape, len(names))
        for place in (batch["targets"] != IGNORED).nonzero():
            found[(*place, answers[int(batch["ids"][tuple(place)])])] = 5.0
        return found

    task._scores = scores
    found = evaluate(task, torch.device("cpu"))
    assert found["f1"] == pytest.approx(f1)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert set(found) == {"loss", "accuracy", "f1"}


def label_on_the_first_piece(task):
    rows = [task.train[i] for i in range(4)]
    batch = task._padded(rows)
    tokens = [[task.tokenizer.tokenizer.id_to_token(i) for i in ids] for ids, _, _ in rows]
    for row, pieces, example in zip(batch["targets"], tokens, read_words(task.path)):
        asked = [pieces[i] for i in (row[: len(pieces)] != IGNORED).nonzero()[:, 0]]
        labels = [task.model.head.labels[i] for i in row[row != IGNORED]]
        assert labels == example.label, "as many as there are words, in their order"
        assert not any(piece.startswith("##") or piece in ROLES for piece in asked)
        assert [piece[0] for piece in asked] == [word[0].lower() for word in example.text]
        assert (row[len(pieces) :] == IGNORED).all()
    assert task.targets(batch) == sum(len(example.text) for example in read_words(task.path)[:4])


@pytest.mark.parametrize("tokenizer", ["wordpiece", None])
def test_a_label_is_learnt_at_the_first_piece_of_its_word(words, tmp_path, tokenizer):
    text = "".join(dict.fromkeys("".join(word.partition("/")[0] for word in WORDS).lower()))
    learnt = train_wordpiece([" ".join([text, text[::-1], *text])], 105)
    (tmp_path / "tokenizer.json").write_bytes(learnt.files["tokenizer.json"])
    given = str(tmp_path / "tokenizer.json") if tokenizer else None
    if tokenizer is None:
        words.write_text(words.read_text(encoding="utf-8").lower().replace("b-", "B-").replace("i-", "I-"))
    task = open_task(words, tmp_path / "run", task="tokens", tokenizer=given, valid=words, length=50)
    task.path = words
    assert max(len(ids) for ids, _, _ in task.train) > 16, "words are in pieces"
    label_on_the_first_piece(task)


def label_on_every_piece(patch):
    def tagged(self, example):
        ids, words = self.tokenizer.encode_words(example.text)
        return ids, [0] * len(ids), [IGNORED if w is None else self.numbers[example.label[w]] for w in words]

    patch.setattr(labelled.Tagged, "_tagged", tagged)


def label_of_the_next_word(patch):
    real = labelled.Tagged._tagged

    def tagged(self, example):
        return real(self, Example(example.text, example.label[1:] + example.label[:1]))

    patch.setattr(labelled.Tagged, "_tagged", tagged)


def special_tokens_have_labels(patch):
    real = labelled.Tagged._tagged

    def tagged(self, example):
        ids, segments, tags = real(self, example)
        return ids, segments, [tags[1], *tags[1:]]

    patch.setattr(labelled.Tagged, "_tagged", tagged)


@pytest.mark.parametrize("plant", [label_on_every_piece, label_of_the_next_word, special_tokens_have_labels])
def test_planted_labels_are_caught(words, tmp_path, plant):
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            test_a_label_is_learnt_at_the_first_piece_of_its_word(words, tmp_path, "wordpiece")


def test_a_sentence_that_is_too_long_is_said_or_cut(words, tmp_path):
    with pytest.raises(ValueError, match=r"The text 'John Smith .* has 27 tokens and the model takes 20: .*--truncate"):
        open_task(words, tmp_path / "run", task="tokens", valid=words, length=20)
    task = open_task(words, tmp_path / "run", task="tokens", valid=words, length=20, truncate="true")
    ids, segments, tags = task.train[0]
    assert len(ids) == len(segments) == len(tags) == 20
    assert task.tokenizer.decode(ids) == "[CLS]JohnSmithlivesinNe[SEP]"
    assert [task.model.head.labels[i] for i in tags if i != IGNORED] == ["B-PER", "I-PER", "O", "O", "B-LOC"]


@pytest.mark.parametrize("tokenizer", [None, "wordpiece"])
def test_it_learns_words_and_the_saved_model_labels_them(words, tmp_path, tokenizer):
    made = {"tokenizer": "wordpiece", "vocab": 105} if tokenizer else {}
    asked = request(
        words, tmp_path / "run", task="tokens", steps=80, eval_every=80, lr=1e-2, dropout=0, valid=words, **made
    )
    last = [record for record in open_run(asked)[0] if "valid_loss" in record][-1]
    assert (last["valid_accuracy"], last["valid_f1"]) == (1.0, 1.0)
    assert "[B-PER]" in last["sample"]
    folder = tmp_path / "run" / "model"
    ours, examples = sf.TextClassifier.from_pretrained(folder), read_words(words)
    for example, found in zip(examples, ours([" ".join(example.text) for example in examples])):
        assert [each.word for each in found] == example.text
        assert [each.label for each in found] == example.label, "as in training, where words come one by one"
    theirs, reader = BertForTokenClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert theirs.config.id2label == dict(enumerate(ours.model.head.labels))
    for example in examples[:5]:
        given = reader(example.text, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            shares = theirs(**given).logits[0].softmax(-1)
        places = [given.word_ids().index(i) for i in range(len(example.text))]
        for place, each in zip(places, ours(" ".join(example.text))):
            assert each.score == pytest.approx(float(shares[place].max()), abs=1e-6)
            assert each.label == theirs.config.id2label[int(shares[place].argmax())]


def test_the_program_trains_both(capsys, data, words, tmp_path):
    settings = [part for key, value in {**SMALL, **SIZES}.items() for part in ("--set", f"{key}={value}")]
    for task, path, best in (("classify", data, "accuracy"), ("tokens", words, "f1")):
        out = tmp_path / f"run {task}"
        code, said, error = run(
            capsys, "train", "bert", "--task", task, "--data", path, "--out", out, *settings, "--set", "length=40"
        )
        assert (code, error) == (0, "")
        assert "majority accuracy" in said
        assert f"Best validation {best} " in said
        assert run(capsys, "train", "bert", "--out", out, "--resume")[:2][0] == 0
        assert log.read(out / "log.jsonl")[-1][f"valid_{best}"] is not None
    shutil.rmtree(tmp_path / "run classify")
