"""`fill`, `embed`, `classify` and `eval` of models that read, as a person meets them."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cli import refused, run
from test_encoders import MEAN, PROSE, WORDPIECE, classifier, published, sentence_folder

import scratchformers as sf
from scratchformers import evaluation
from scratchformers.evaluation import evaluate_labels, evaluate_masked
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import characters
from scratchformers.training.data import generator
from scratchformers.training.language import Masked
from scratchformers.training.masking import Masking

LINES = ["The value.", "", "a module is imported by name", "größer 👍 it", "  it "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of every kind."""
    path = tmp_path_factory.mktemp("bert models")
    published(path / "masked", "MaskedLM")
    sentence_folder(path / "vectors", pooling=MEAN, steps=("Transformer", "Pooling", "Normalize"), limit=30)
    classifier(path / "labels")
    classifier(path / "words", 5, "TokenClassification")
    torch.manual_seed(0)
    gpt2 = sf.GPT2(sf.GPT2Config(vocab=WORDPIECE.vocab, length=40, dim=16, depth=1, heads=2))
    gpt2.assets = WORDPIECE.files
    gpt2.save_pretrained(path / "gpt2")
    return path


def file_of(path, lines, *, end="\n", before=b""):
    path.write_bytes(before + end.join(lines).encode("utf-8"))
    return path


# --- fill


def test_fill_shows_the_best_for_each_place(capsys, folder):
    filler = sf.MaskFiller.from_pretrained(folder / "masked")
    code, out, error = run(capsys, "fill", "The [MASK] is it.", "--model", folder / "masked", "--top", 3)
    assert (code, error) == (0, "")
    first, *rest = out.splitlines()
    assert first == "The [MASK] is it."
    for line, each in zip(rest, filler("The [MASK] is it.", top=3), strict=True):
        assert line == f"  {each.score:7.2%}  {each.token:16}  {each.text}"
    code, out, error = run(capsys, "fill", "[MASK] is [MASK]", "--model", folder / "masked", "--top", 2)
    assert (code, error) == (0, "")
    assert [line for line in out.splitlines() if "(place" in line] == [
        "[MASK] is [MASK]  (place 1)",
        "[MASK] is [MASK]  (place 2)",
    ]
    assert len(out.splitlines()) == 6
    assert len(run(capsys, "fill", "[MASK]", "--model", folder / "masked")[1].splitlines()) == 6, "five by default"


def test_fill_of_a_file_and_as_json(capsys, folder, tmp_path):
    texts = ["The [MASK] is it.", "[MASK] is [MASK], größer"]
    path = file_of(tmp_path / "a file.txt", texts, end="\r\n", before=b"\xef\xbb\xbf")
    code, out, error = run(capsys, "fill", path, "--model", folder / "masked", "--json", "--top", 2)
    assert (code, error) == (0, "")
    filler, found = sf.MaskFiller.from_pretrained(folder / "masked"), [json.loads(line) for line in out.splitlines()]
    assert [each["text"] for each in found] == texts
    assert [len(each["fills"]) for each in found] == [1, 2], "a list of places, also of one"
    assert found[0]["fills"] == [[vars(fill) for fill in filler(texts[0], top=2)]]
    assert found[1]["fills"] == [[vars(fill) for fill in place] for place in filler(texts[1], top=2)]
    assert "größer" in out


def test_fill_keeps_an_answer_on_its_line(capsys, tmp_path):
    published(tmp_path, "MaskedLM", characters(["a\nb\r"], special=tuple(SPECIAL.values())))
    code, out, _ = run(capsys, "fill", "a\n[MASK]", "--model", tmp_path, "--top", 9)
    assert code == 0
    assert len(out.split("\n")) == 11
    assert "a\\n\\n" in out
    code, out, _ = run(capsys, "fill", "a\n[MASK]", "--model", tmp_path, "--top", 9, "--json")
    assert {"a\n\n", "a\n\r"} < {fill["text"] for fill in json.loads(out)["fills"][0]}


def test_fill_refuses_in_a_sentence(capsys, folder, tmp_path):
    ask = lambda *rest, model="masked": refused(capsys, "fill", *rest, "--model", folder / model)  # noqa: E731
    assert "The text 'no place' has no [MASK]: write it where a word is hidden" in ask("no place")
    assert "top is 0: expected 1 to 300" in ask("[MASK]", "--top", 0)
    assert "tokens and the model takes 53: pass a shorter one, or truncate=True (--truncate)" in ask("[MASK]" * 60)
    assert "has more than the model can read of [MASK]" in ask("[MASK]" * 60, "--truncate")
    assert "no head that says what is hidden" in ask("[MASK]", model="labels")
    assert "no head that says what is hidden" in ask("[MASK]", model="vectors")
    assert "GPT2 writes texts: expected a model that reads them" in ask("[MASK]", model="gpt2")
    assert "does not exist" in ask("[MASK]", model="nowhere")
    assert "no device 'toaster'" in ask("[MASK]", "--device", "toaster")
    assert "holds no texts: write one a line" in ask(file_of(tmp_path / "empty.txt", []))
    (tmp_path / "bad.txt").write_bytes(b"\xff[MASK]\n")
    assert "bad.txt is not UTF-8 (invalid start byte): convert it" in ask(tmp_path / "bad.txt")
    assert "The text '' has no [MASK]" in ask(file_of(tmp_path / "gap.txt", ["", "[MASK]"]))
    code, out, error = run(capsys, "fill", file_of(tmp_path / "b.txt", ["[MASK]", "x"]), "--model", folder / "masked")
    assert (code, error.count("\n"), len(out.splitlines())) == (2, 1, 6), "what was answered before is complete"
    code, out, _ = run(capsys, "fill", "--model", folder / "masked")
    assert (code, out) == (2, "")


# --- embed


def test_embed_writes_a_file(capsys, folder, tmp_path):
    path, out = file_of(tmp_path / "lines.txt", LINES, end="\r\n"), tmp_path / "a folder" / "vectors.npy"
    out.parent.mkdir()
    code, said, error = run(capsys, "embed", path, "--model", folder / "vectors", "--out", out)
    assert (code, said) == (0, "")
    assert f"5 vectors of 39 numbers in {out}." in error
    found = np.load(out)
    encoder = sf.SentenceEncoder.from_pretrained(folder / "vectors")
    np.testing.assert_allclose(found, encoder(LINES), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.dtype == np.float32
    assert run(capsys, "embed", "one text", "--model", folder / "vectors", "--out", out)[0] == 0, "it is replaced"
    assert np.load(out).shape == (1, 39)


def test_embed_as_json(capsys, folder, tmp_path):
    path = file_of(tmp_path / "lines.txt", LINES)
    code, out, error = run(capsys, "embed", path, "--model", folder / "vectors", "--json")
    assert (code, error) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["text"] for each in found] == LINES, "an empty line is a text"
    encoder = sf.SentenceEncoder.from_pretrained(folder / "vectors")
    np.testing.assert_allclose([each["embedding"] for each in found], encoder(LINES), atol=1e-6)
    code, out, _ = run(capsys, "embed", "it", "--model", folder / "vectors", "--json", "--out", tmp_path / "v.npy")
    assert code == 0
    np.testing.assert_allclose(json.loads(out)["embedding"], np.load(tmp_path / "v.npy")[0], atol=1e-6)


def test_embed_as_told(capsys, folder, tmp_path):
    def embed(*flags, model="vectors"):
        code, out, error = run(capsys, "embed", "it is", "--model", folder / model, "--json", *flags)
        assert (code, error) == (0, "")
        return json.loads(out)["embedding"]

    for flags, options in (
        (["--pool", "first"], {"pool": "first"}),
        (["--pool", "pooler", "--normalize", "False"], {"pool": "pooler", "normalize": False}),
        (["--normalize", "False"], {"normalize": False}),
    ):
        wanted = sf.SentenceEncoder.from_pretrained(folder / "vectors", **options)("it is")
        np.testing.assert_allclose(embed(*flags), wanted, atol=1e-6)
    np.testing.assert_allclose(
        embed(model="masked"), sf.SentenceEncoder.from_pretrained(folder / "masked")("it is"), atol=1e-6
    )
    long = "it " * 40
    assert "has 42 tokens and the model takes 30" in refused(
        capsys, "embed", long, "--model", folder / "vectors", "--json"
    )
    code, out, _ = run(capsys, "embed", long, "--model", folder / "vectors", "--json", "--truncate")
    assert code == 0
    assert len(json.loads(out)["embedding"]) == 39


def test_embed_refuses_in_a_sentence(capsys, folder, tmp_path):
    model, out = ("--model", folder / "vectors"), tmp_path / "v.npy"
    ask = lambda *rest: refused(capsys, "embed", *rest)  # noqa: E731
    assert "There is nowhere to put the vectors: pass --out FILE.npy, or --json" in ask("it", *model)
    assert "--out v.txt cannot be written: expected a name that ends in .npy" in ask("it", *model, "--out", "v.txt")
    assert "in a folder there is" in ask("it", *model, "--out", tmp_path / "no" / "v.npy")
    assert "does not exist" in ask("it", "--model", tmp_path / "no", "--out", out)
    assert "holds no texts" in ask(file_of(tmp_path / "empty.txt", []), *model, "--out", out)
    assert "has no pooler" in ask("it", "--model", folder / "masked", "--pool", "pooler", "--json")
    assert "GPT2 writes texts" in ask("it", "--model", folder / "gpt2", "--json")
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\n")
    assert "bad.txt is not UTF-8" in ask(tmp_path / "bad.txt", *model, "--out", out)
    long = file_of(tmp_path / "long.txt", ["it", "it " * 40])
    assert "has 42 tokens and the model takes 30" in ask(long, *model, "--out", out)
    assert not out.exists(), "nothing is half-written"
    texts = file_of(tmp_path / "texts.npy", LINES)
    assert "holds the texts: choose another file" in ask(texts, *model, "--out", texts)
    assert texts.read_bytes() == "\n".join(LINES).encode()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


# --- classify


def test_classify_a_text_a_file_and_pairs(capsys, folder, tmp_path):
    ours = sf.TextClassifier.from_pretrained(folder / "labels")
    code, out, error = run(capsys, "classify", "it is", "--model", folder / "labels", "--top", 2)
    assert (code, error) == (0, "")
    assert out.splitlines() == ["it is", *(f"  {each.score:7.2%}  {each.label}" for each in ours("it is", top=2))]
    path = file_of(tmp_path / "lines.txt", LINES * 20)
    code, out, error = run(capsys, "classify", path, "--model", folder / "labels", "--json")
    assert (code, error) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["text"] for each in found] == LINES * 20
    for each, wanted in zip(found, ours(LINES * 20), strict=True):
        assert [label["label"] for label in each["labels"]] == [label.label for label in wanted]
        assert [label["score"] for label in each["labels"]] == pytest.approx([x.score for x in wanted], abs=1e-5)
    code, out, _ = run(capsys, "classify", "it", "--pair", "The value.", "--model", folder / "labels", "--json")
    assert code == 0
    assert json.loads(out)["labels"][0]["score"] == pytest.approx(ours(("it", "The value."))[0].score, abs=1e-6)
    assert json.loads(out)["labels"][0]["score"] != pytest.approx(ours("it")[0].score, abs=1e-6)


def test_classify_words(capsys, folder):
    ours = sf.TextClassifier.from_pretrained(folder / "words")
    code, out, error = run(capsys, "classify", "it is imported", "--model", folder / "words")
    assert (code, error) == (0, "")
    wanted = [f"  {each.score:7.2%}  {each.label:16}  {each.word}" for each in ours("it is imported")]
    assert out.splitlines() == ["it is imported", *wanted]
    code, out, _ = run(capsys, "classify", "it is imported", "--model", folder / "words", "--json")
    assert json.loads(out) == {"text": "it is imported", "words": [vars(each) for each in ours("it is imported")]}


def test_classify_refuses_in_a_sentence(capsys, folder, tmp_path):
    ask = lambda *rest, model="labels": refused(capsys, "classify", *rest, "--model", folder / model)  # noqa: E731
    assert "This checkpoint has no labels" in ask("it", model="masked")
    assert "This checkpoint has no labels" in ask("it", model="vectors")
    assert "GPT2 writes texts" in ask("it", model="gpt2")
    assert "top is 0: expected at least 1" in ask("it", "--top", 0)
    assert "the model takes 53" in ask("it " * 60)
    assert run(capsys, "classify", "it " * 60, "--model", folder / "labels", "--truncate")[0] == 0
    assert "does not exist" in ask("it", model="nowhere")
    assert "holds no texts" in ask(file_of(tmp_path / "empty.txt", []))
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    assert "bad.txt is not UTF-8" in ask(tmp_path / "bad.txt")
    assert "pass one text, not a pair" in ask("it", "--pair", "is", model="words")


# --- eval


def test_hidden_tokens_are_scored_as_written_out(folder, monkeypatch):
    """Window by window, one at a time, with the same tokens hidden."""
    model, tokenizer = sf.load(folder / "masked", dtype=torch.float64), sf.load_tokenizer(folder / "masked")
    texts = PROSE[:2]
    stream = [*tokenizer.encode(texts[0])[1:-1], tokenizer.role("sep"), *tokenizer.encode(texts[1])[1:-1]]
    before, after = tokenizer.around()
    nats, right, count = 0.0, 0, 0
    for number, start in enumerate(range(0, len(stream), 18)):
        ids = torch.tensor([*before, *stream[start : start + 18], *after])
        seen, chosen = Masking(tokenizer)(ids, generator(0, number, 3))
        with torch.no_grad():
            scores = model(seen[None])[0][chosen]
        nats += float(F.cross_entropy(scores, ids[chosen], reduction="sum"))
        right += int((scores.argmax(-1) == ids[chosen]).sum())
        count += int(chosen.sum())
    monkeypatch.setattr(Masked, "most", 3)  # while training, evaluations are kept short; here all is scored
    for batch in (1, 5, 64):
        found = evaluate_masked(model, tokenizer, texts, length=20, batch=batch)
        assert found.loss == pytest.approx(nats / count, abs=1e-5)
        assert found.perplexity == pytest.approx(math.exp(nats / count), rel=1e-4)
        assert found.accuracy == pytest.approx(right / count)
        assert (found.targets, found.tokens) == (count, len(stream))


def test_eval_of_hidden_tokens(capsys, folder, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(PROSE[0], encoding="utf-8")
    asked = ("eval", "--model", folder / "masked", "--data", data)
    code, out, error = run(capsys, *asked, "--json")
    assert (code, error) == (0, "")
    found = json.loads(out)
    assert found["task"] == "masked", "what the model was trained for"
    wanted = vars(evaluate_masked(sf.load(folder / "masked"), WORDPIECE, [PROSE[0]], batch=8))
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    assert json.loads(run(capsys, *asked, "--json", "--task", "masked")[1]) == found
    code, out, _ = run(capsys, *asked, "--length", 20, "--batch", 3)
    assert code == 0
    assert re.search(r"^accuracy +0\.\d{4}$", out, re.MULTILINE)
    assert re.search(r"^targets +[\d,]+$", out, re.MULTILINE)
    data.write_text("it is it", encoding="utf-8")
    code, out, error = run(capsys, *asked, "--json")
    assert (code, error) == (0, ""), "a short text is one window"
    assert json.loads(out)["tokens"] == len(WORDPIECE.encode("it is it")) - 2


def labelled(path, rows, names="text\tlabel"):
    path.write_text("\n".join([names, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def test_eval_of_labels(capsys, folder, tmp_path):
    ours = sf.TextClassifier.from_pretrained(folder / "labels")
    rows = [(text, ("bad", "good")[i % 3 == 1]) for i, text in enumerate(PROSE[0].split()[:40])]
    data = labelled(tmp_path / "dev.tsv", rows, "sentence\tlabel")
    asked = ("eval", "--model", folder / "labels", "--data", data, "--column", "text=sentence", "--json")
    code, out, error = run(capsys, *asked)
    assert (code, error) == (0, "")
    found = json.loads(out)
    answers = ours([text for text, _ in rows])
    right = sum(each[0].label == label for each, (_, label) in zip(answers, rows))
    nats = [-math.log({one.label: one.score for one in each}[label]) for each, (_, label) in zip(answers, rows)]
    assert found["task"] == "classify"
    assert found["accuracy"] == pytest.approx(right / 40)
    assert found["loss"] == pytest.approx(sum(nats) / 40, abs=1e-4)
    assert found["majority"] == pytest.approx(max(27, 13) / 40)
    assert (found["targets"], found["f1"]) == (40, None)
    assert json.loads(run(capsys, *asked, "--task", "classify", "--batch", 3)[1]) == pytest.approx(found, abs=1e-5)
    code, out, _ = run(capsys, *asked[:-1])
    assert code == 0
    assert "f1" not in out


def test_eval_of_words(capsys, folder, tmp_path):
    ours = sf.TextClassifier.from_pretrained(folder / "words")
    names, words = ours.model.head.labels, PROSE[1].split()[:30]
    content = "".join(f"{word} {names[i % 5]}\n" + "\n" * (i % 7 == 6) for i, word in enumerate(words))
    (tmp_path / "dev.txt").write_text(content, encoding="utf-8")
    asked = ("eval", "--model", folder / "words", "--data", tmp_path / "dev.txt", "--json")
    code, out, error = run(capsys, *asked)
    assert (code, error) == (0, "")
    found, right = json.loads(out), 0
    assert found["task"] == "tokens"
    for start in range(0, 30, 7):
        for i, each in enumerate(ours(" ".join(words[start : start + 7]))):
            right += each.label == names[(start + i) % 5]
    assert found["accuracy"] == pytest.approx(right / 30)
    assert 0 <= found["f1"] <= 1
    assert found["targets"] == 30
    assert json.loads(run(capsys, *asked, "--task", "tokens")[1]) == found


def test_eval_refuses_in_a_sentence(capsys, folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(PROSE[0], encoding="utf-8")
    dev = labelled(tmp_path / "dev.tsv", [("it", "good"), ("is", "bad")])
    ask = lambda model, data, *rest: refused(  # noqa: E731
        capsys, "eval", "--model", folder / model, "--data", data, *rest
    )
    assert "holds a GPT2, which was not made for masked: see --task" in ask("gpt2", text, "--task", "masked")
    assert "holds a BERT, which was not made for text: see --task" in ask("masked", text, "--task", "text")
    assert "holds a BERT, which was not made for lambada" in ask("masked", text, "--task", "lambada")
    assert "holds a BERT, which was not made for tokens" in ask("labels", dev, "--task", "tokens")
    assert "holds a BERT, which was not made for classify" in ask("words", dev, "--task", "classify")
    assert "This model has no labels" in ask("masked", dev, "--task", "classify")
    assert "This model has no head that says what is hidden" in ask("labels", text, "--task", "masked")
    assert "This model has no head that says what is hidden" in ask("vectors", text)
    assert "length is 54: expected 1 to 53, the positions of the model" in ask("masked", text, "--length", 54)
    assert "length is 0: expected 1 to 53" in ask("masked", text, "--length", 0)
    assert "length is 3: expected at least 4" in ask("masked", text, "--length", 3)
    assert "The windows of masked stand side by side: leave --stride out" in ask("masked", text, "--stride", 3)
    assert "leave --stride out" in ask("masked", text, "--stride", 3, "--task", "masked")
    assert "leave them out for classify" in ask("labels", dev, "--length", 9)
    assert "leave them out for tokens" in ask("words", dev, "--stride", 9, "--task", "tokens")
    assert "batch is 0: expected at least 1" in ask("masked", text, "--batch", 0)
    assert "batch is 0: expected at least 1" in ask("labels", dev, "--batch", 0)
    assert "is no file: expected a file .tsv" in ask("labels", tmp_path / "no.tsv")
    assert "text.txt is none of .tsv, .csv and .jsonl" in ask("labels", text)
    other = labelled(tmp_path / "other.tsv", [("it", "good"), ("is", "awful")])
    assert "other.tsv, line 3, has the label 'awful', which is none of bad, so-so, good" in ask("labels", other)
    long = labelled(tmp_path / "long.tsv", [("it " * 60, "good"), ("is", "bad")])
    assert "the model takes 53" in ask("labels", long)
    assert run(capsys, "eval", "--model", folder / "labels", "--data", long, "--truncate")[0] == 0
    text.write_text("it", encoding="utf-8")
    assert "There is nothing to score: a hidden token is told from others" in ask("masked", text)
    text.write_text("你好 你好", encoding="utf-8")
    assert "no token that could be hidden: the tokeniser knows none of it" in ask("masked", text)
    text.write_text("", encoding="utf-8")
    assert "holds no text" in ask("masked", text)
    model = sf.load(folder / "masked")
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    text.write_text(PROSE[0], encoding="utf-8")
    assert "The loss is nan" in refused(capsys, "eval", "--model", tmp_path / "nan", "--data", text)


def test_evaluated_in_python_too(folder, tmp_path):
    dev = labelled(tmp_path / "dev.tsv", [("it", "good"), ("is", "bad")])
    with pytest.raises(ValueError, match="This model has no labels: choose one that was trained with --task"):
        evaluate_labels(sf.load(folder / "masked"), WORDPIECE, dev, columns={})
    with pytest.raises(ValueError, match="they do not belong together"):
        evaluate_labels(sf.load(folder / "labels"), characters(["".join(map(chr, range(40, 400)))]), dev, columns={})
    shown = []
    track = lambda items, total: shown.append(total) or items  # noqa: E731
    evaluate_labels(sf.load(folder / "labels"), WORDPIECE, dev, columns={}, batch=1, track=track)
    evaluate_masked(sf.load(folder / "masked"), WORDPIECE, PROSE[:1], length=20, batch=4, track=track)
    stream = len(WORDPIECE.encode(PROSE[0])) - 2
    assert shown == [2, -(-stream // 72)]
    assert evaluation.BATCH == 8


# --- what a review found


def test_every_line_keeps_its_vector_from_one_chunk_to_the_next(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("scratchformers.tasks.texts.CHUNK_TEXTS", 2)
    lines = [f"the value is {i}" for i in range(5)]
    code, out, _ = run(capsys, "embed", file_of(tmp_path / "a.txt", lines), "--model", folder / "vectors", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, [each["text"] for each in found]) == (0, lines)
    encoder = sf.SentenceEncoder.from_pretrained(folder / "vectors")
    for each in found:
        np.testing.assert_allclose(each["embedding"], encoder(each["text"]), atol=1e-6)


@pytest.mark.parametrize("command", ["fill", "embed", "classify"])
def test_a_file_that_is_not_there_or_is_a_table_is_no_text(capsys, folder, tmp_path, command):
    model = {"fill": "masked", "embed": "vectors", "classify": "labels"}[command]
    more = ["--json", "--model", folder / model]
    assert "missing.txt does not exist" in refused(capsys, command, "missing.txt", *more)
    table = file_of(tmp_path / "a.tsv", ["text\tlabel", "a\tb"])
    assert "is a table" in refused(capsys, command, table, *more)


def test_a_tokeniser_of_another_model_is_noticed(tmp_path):
    """The one it was trained with is known by what it does; of a published model, too few ids are a sign."""
    data = file_of(tmp_path / "a.txt", ["some words that are said again and again"] * 60)
    given = ["--set", "steps=2", "--set", "dim=16", "--set", "length=16", "--set", "batch=2", "--set", "warmup=1"]
    from scratchformers.cli import main

    assert main(["train", "bert", "--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu", *given]) == 0
    model = tmp_path / "run" / "model"
    sf.MaskFiller.from_pretrained(model)
    other = characters([data.read_text(encoding="utf-8").replace("w", "v")], special=tuple(SPECIAL.values()))
    (model / "tokenizer.json").write_bytes(other.files["tokenizer.json"])
    with pytest.raises(ValueError, match="not the one this model was trained with"):
        sf.MaskFiller.from_pretrained(model)
    published(tmp_path / "larger", "MaskedLM", vocab_size=WORDPIECE.vocab + 200)
    with pytest.raises(ValueError, match="they do not belong together"):
        sf.MaskFiller.from_pretrained(tmp_path / "larger")


def test_attention_of_a_model_without_a_head_is_drawn(capsys, folder, tmp_path):
    code, _, _ = run(capsys, "inspect", "the value", "--model", folder / "vectors", "--out", tmp_path / "a.png")
    assert code == 0
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_model_that_reads_cannot_complete(capsys, folder):
    assert "reads texts and writes none" in refused(capsys, "complete", "the", "--model", folder / "masked")


def test_what_was_cut_is_said(capsys, folder, tmp_path):
    path = file_of(tmp_path / "a.txt", ["word " * 90, "short"])
    more = ["--model", folder / "vectors", "--truncate", "--out", tmp_path / "a.npy"]
    assert "1 text was too long, and cut" in run(capsys, "embed", path, *more)[2]
