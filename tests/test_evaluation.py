"""What `eval` says a model is worth: against direct sums, against transformers, and against planted mistakes."""

import json
import math
import re
from pathlib import Path

import pytest
import reference
import torch
import torch.nn.functional as F
from test_cli import refused, run
from tokenizers import Tokenizer, models

import scratchformers as sf
from scratchformers import evaluation
from scratchformers.checkpoints.pretrained import Generation
from scratchformers.evaluation import evaluate_hellaswag, evaluate_lambada, evaluate_text, windows
from scratchformers.text import TextTokenizer, byte_level_bpe, characters
from scratchformers.training.documents import read_texts

WORDS = "the old man said that it was a good day to go out and see the ship come in from the grey sea".split()  # noqa: SIM905
TEXTS = [" ".join(WORDS[i % 22] for i in range(n, n * n)) for n in (3, 9, 2, 7)] + ["größer, 你好, 👍 und so weiter"]
FROZEN = Path(__file__).parent / "frozen" / "bpe"
BPE = byte_level_bpe(FROZEN / "vocab.json", FROZEN / "merges.txt")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A scrambled model of transformers in float64 and ours with the same weights, with a real vocabulary."""
    theirs = reference.scrambled(std=0.3, vocab_size=BPE.vocab, bos_token_id=None, eos_token_id=None)
    folder = tmp_path_factory.mktemp("evaluated")
    theirs.save_pretrained(folder)
    for name, content in BPE.files.items():
        (folder / name).write_bytes(content)
    return theirs, sf.load(folder, dtype=torch.float64), folder


def nats(model, ids, begin, end):
    """The summed loss of transformers over targets begin + 1 .. end, read from `begin`: from its logits, because its
    own loss is computed in float32 whatever the model is in, which is why that is compared to 1e-6 only."""
    tokens = torch.tensor(ids[begin : end + 1])[None]
    with torch.no_grad():
        answer = model(tokens, labels=tokens)
    loss = float(F.cross_entropy(answer.logits[0, :-1], tokens[0, 1:]))
    assert float(answer.loss) == pytest.approx(loss, abs=1e-6)
    return loss * (end - begin)


# --- text


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_windows_side_by_side_are_the_plain_loss_of_transformers(pair, batch):
    theirs, ours, _ = pair
    length, total, count, size = 23, 0.0, 0, 0
    for text in TEXTS:
        ids = BPE.encode(text)
        for begin in range(0, len(ids) - 1, length):
            total += nats(theirs, ids, begin, min(begin + length, len(ids) - 1))
        count, size = count + len(ids) - 1, size + len(text.encode()) - len(BPE.tokenizer.id_to_token(ids[0]))
    found = evaluate_text(ours, BPE, TEXTS, length=length, stride=length, batch=batch)
    assert found.loss == pytest.approx(total / count, abs=1e-10)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-10)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / size, abs=1e-10)
    assert (found.tokens, found.bytes, found.documents) == (count, size, len(TEXTS))
    assert (found.length, found.stride) == (length, length)


@pytest.mark.parametrize(("length", "stride"), [(23, 11), (23, 1), (53, 26), (7, 5), (1, 1)])
def test_a_token_is_scored_from_the_window_it_enters(pair, length, stride):
    """Token t is scored by the first window that holds it, summed one by one from transformers' logits."""
    theirs, ours, _ = pair
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor(BPE.encode(text))
        for target in range(1, len(ids)):
            begin = max(0, math.ceil((target - length) / stride) * stride)
            assert target - begin >= min(target, length - stride), "as much context as is promised"
            with torch.no_grad():
                logits = theirs(ids[None, begin:target]).logits[0, -1]
            total, count = total + float(F.cross_entropy(logits, ids[target])), count + 1
    found = evaluate_text(ours, BPE, TEXTS, length=length, stride=stride, batch=4)
    assert found.loss == pytest.approx(total / count, abs=1e-10)


@pytest.mark.parametrize("count", [2, 3, 8, 9, 10, 16, 17, 18, 40])
@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 4), (8, 3), (8, 1), (1, 1)])
def test_every_token_but_the_first_is_scored_once(count, length, stride):
    rows = [*windows(range(count), length, stride)]
    assert [i for row in rows for i in row.ids[-row.scored :]] == [*range(1, count)]
    assert all(len(row.ids) <= length + 1 and row.scored < len(row.ids) for row in rows)
    assert len(rows) == evaluation._count_windows(count, length, stride)


def test_a_start_token_stands_before_each_text_and_all_of_it_is_scored(pair):
    theirs, ours, folder = pair
    model = sf.load(folder, dtype=torch.float64)
    model.generation = Generation(start=BPE.end)
    found = evaluate_text(model, BPE, ["a", *TEXTS])
    total = sum(_by_stride(theirs, [BPE.end, *BPE.encode(text)]) for text in ["a", *TEXTS])
    assert found.tokens == sum(len(BPE.encode(text)) for text in ["a", *TEXTS])
    assert found.bytes == sum(len(text.encode()) for text in ["a", *TEXTS])
    assert found.loss == pytest.approx(total / found.tokens, abs=1e-10)
    assert found.documents == len(TEXTS) + 1
    assert evaluate_text(ours, BPE, ["a", *TEXTS]).documents == len(TEXTS), (
        "without one, nothing leads to a single token"
    )


def test_a_start_token_the_model_has_no_embedding_for_is_none(pair):
    """transformers writes GPT-2's own, 50256, into the config of every model."""
    _, ours, folder = pair
    model = sf.load(folder, dtype=torch.float64)
    model.generation = Generation(start=model.config.vocab)
    assert evaluate_text(model, BPE, TEXTS) == evaluate_text(ours, BPE, TEXTS)


def _by_stride(theirs, ids, length=53, stride=26):
    total, done = 0.0, 1
    for begin in range(0, len(ids) - 1, stride):
        end = min(begin + length + 1, len(ids))
        with torch.no_grad():
            logits = theirs(torch.tensor([ids[begin : end - 1]])).logits[0, done - 1 - begin :]
        total, done = total + float(F.cross_entropy(logits, torch.tensor(ids[done:end]), reduction="sum")), end
        if end == len(ids):
            break
    return total


def test_the_score_of_a_text_does_not_depend_on_the_batch(pair):
    ours = pair[1]
    alone = [evaluate_text(ours, BPE, [text]) for text in TEXTS]
    for batch in (1, 2, 64):
        together = evaluate_text(ours, BPE, TEXTS, batch=batch)
        assert together.tokens == sum(score.tokens for score in alone)
        assert together.loss == pytest.approx(sum(s.loss * s.tokens for s in alone) / together.tokens, abs=1e-12)


def test_places_are_scored_some_at_a_time(pair, monkeypatch):
    whole = evaluate_text(pair[1], BPE, TEXTS)
    monkeypatch.setattr(evaluation, "SCORED", 3)
    monkeypatch.setattr(evaluation, "SORTED", 1)
    assert evaluate_text(pair[1], BPE, TEXTS).loss == pytest.approx(whole.loss, abs=1e-12)


def test_the_model_is_left_as_it_was(pair):
    model = sf.GPT2(sf.GPT2Config(vocab=BPE.vocab, length=17, dim=8, depth=1, heads=2, dropout=0.5)).train()
    assert evaluate_text(model, BPE, TEXTS) == evaluate_text(model, BPE, TEXTS), "dropout does not act"
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bits_per_byte_count_bytes_and_not_characters():
    text = "ñandú 你好 👍"
    for tokenizer in (characters([text]), BPE):
        model = sf.GPT2(sf.GPT2Config(vocab=tokenizer.vocab, length=29, dim=8, depth=1, heads=2))
        found = evaluate_text(model, tokenizer, [text])
        first = tokenizer.size(tokenizer.encode(text)[0])
        assert found.bytes == len(text.encode("utf-8")) - first
        assert found.bits_per_byte == pytest.approx(found.loss * found.tokens / math.log(2) / found.bytes)
    assert characters([text]).size(characters([text]).encode("ñ")[0]) == 2
    assert [BPE.size(i) for i in BPE.encode("👍")] == [1] * len(BPE.encode("👍")), "a token may be part of a character"


# --- LAMBADA


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def lambada(tmp_path):
    texts = [text for text in TEXTS if " " in text] + [" ".join(WORDS[i:] + WORDS[:i]) for i in range(6)]
    return texts, lines(tmp_path / "lambada_test.jsonl", [{"text": text} for text in texts])


def rest_cost(theirs, context, rest):
    """The nats of what follows a context, and whether greedy decoding would write it, from transformers' logits."""
    whole = BPE.encode(context + rest)
    count, ids = len(whole) - len(BPE.encode(context)), torch.tensor(whole[-54:])
    with torch.no_grad():
        logits = theirs(ids[None, :-1]).logits[0, -count:]
    cost = float(F.cross_entropy(logits, ids[-count:], reduction="sum"))
    return cost, bool((logits.argmax(-1) == ids[-count:]).all())


def last_words(theirs, texts):
    """Accuracy and perplexity straight from transformers' logits, one example at a time."""
    split = [text.rsplit(" ", 1) for text in texts]
    costs, sure = zip(*(rest_cost(theirs, context, " " + word) for context, word in split))
    return sum(sure) / len(texts), math.exp(sum(costs) / len(texts))


def test_lambada_is_the_last_word_given_all_before(pair, lambada):
    theirs, ours, _ = pair
    texts, path = lambada
    for batch in (1, 4):
        found = evaluate_lambada(ours, BPE, path, batch=batch)
        accuracy, perplexity = last_words(theirs, texts)
        assert (found.accuracy, found.examples) == (accuracy, len(texts))
        assert found.perplexity == pytest.approx(perplexity, rel=1e-10)


def test_a_word_counts_only_if_all_its_tokens_are_the_greedy_choice(pair, tmp_path):
    """Words written by greedy decoding are right; those with another last character are not."""
    theirs, ours, _ = pair
    prompt = BPE.encode("the old man")
    ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
    rows = [evaluation.Row(ids, 8), evaluation.Row([*ids[:-1], (ids[-1] + 1) % BPE.vocab], 8)]
    assert [sure for _, _, sure in evaluation.score(ours, rows, batch=1)] == [True, False]
    rows = [evaluation.Row([*prompt, (ids[len(prompt)] + 1) % BPE.vocab], 1), evaluation.Row(ids[: len(prompt) + 1], 1)]
    assert [sure for _, _, sure in evaluation.score(ours, rows, batch=1)] == [False, True]


# --- HellaSwag


def hellaswag_rows():
    endings = ["sits down.", "[step] throws  the ball [substeps] away.", "sings.", "goes out to see the ship."]
    return [
        {"activity_label": "Sports", "ctx_a": "A man stands.", "ctx_b": "he", "ctx": "A man stands. he",
         "endings": endings, "label": 1},
        {"activity_label": "Health", "ctx_a": "How to rest [title] Lie down. [step] Breathe", "ctx_b": "",
         "ctx": "x", "endings": endings[::-1], "label": "0"},
        {"ctx": "The old man", "endings": endings[:2], "label": 0},
        *({"activity_label": "Sea", "ctx_a": " ".join(WORDS[:i]), "ctx_b": "the GREY sea", "ctx": "x",
           "endings": endings, "label": i % 4} for i in range(2, 14)),
    ]  # fmt: skip


def test_hellaswag_is_prepared_as_the_harness_does():
    first, second, third = (evaluation.hellaswag_example(row, "line 1") for row in hellaswag_rows()[:3])
    assert first[0] == "Sports: A man stands. He"
    assert first[1][1] == " throws the ball away."
    assert second[0] == "Health: How to rest. Lie down. Breathe"
    assert (first[2], second[2]) == (1, 0)
    assert third[0] == "The old man"


def test_hellaswag_chooses_by_probability_and_by_character(pair, tmp_path):
    theirs, ours, _ = pair
    rows, plain, normalised = hellaswag_rows(), 0, 0
    for row in rows:
        context, endings, label = evaluation.hellaswag_example(row, "")
        costs = [rest_cost(theirs, context, f" {ending}")[0] for ending in endings]
        plain += min(range(len(costs)), key=costs.__getitem__) == label
        normalised += min(range(len(costs)), key=lambda i: costs[i] / len(endings[i])) == label
    path = lines(tmp_path / "hellaswag_val.jsonl", rows)
    for batch in (1, 8):
        found = evaluate_hellaswag(ours, BPE, path, batch=batch)
        assert found == evaluation.HellaSwagScore(plain / len(rows), normalised / len(rows), len(rows))
    assert plain != normalised, "else one could stand for the other"


def test_endings_are_normalised_by_characters_and_not_by_bytes(pair, tmp_path, monkeypatch):
    """6 nats for 4 characters, 8 bytes, against 5 for 4 of each; the answers come in another order than the rows."""
    monkeypatch.setattr(evaluation, "score", lambda model, rows, *, batch: iter([(1, 5.0, True), (0, 6.0, False)]))
    path = lines(tmp_path / "a.jsonl", [{"ctx": "a", "endings": ["éééé", "abcd"], "label": 1}])
    assert evaluate_hellaswag(pair[1], BPE, path).accuracy_normalised == 1


def test_context_and_ending_are_encoded_together(pair):
    """A tokeniser that joins across the space between them."""
    joins = Tokenizer(models.BPE(vocab={"a": 0, " ": 1, "b": 2, "a ": 3}, merges=[("a", " ")]))
    row = evaluation._continuation(pair[1], TextTokenizer(joins), "a", " b", "line 1")
    assert (row.ids, row.scored) == ([3, 2], 1)


def test_spaces_before_the_ending_belong_to_it(pair, tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"text": "the old  man"}])
    cost, _ = rest_cost(pair[0], "the old", "  man")
    assert evaluate_lambada(pair[1], BPE, path).perplexity == pytest.approx(math.exp(cost), rel=1e-10)


# --- planted mistakes: each must move the figures, or the tests above would prove nothing


def _text(pair):
    return evaluate_text(pair[1], BPE, TEXTS, length=23, stride=11)


def target_off_by_one(patch):
    compare = evaluation._compare
    patch.setattr(evaluation, "_compare", lambda model, states, targets: compare(model, states, targets.roll(1)))


def overlap_counted_twice(patch):
    rows = evaluation.windows
    patch.setattr(evaluation, "windows", lambda *a: (evaluation.Row(row.ids, len(row.ids) - 1) for row in rows(*a)))


def context_thrown_away(patch):
    rows = evaluation.windows
    patch.setattr(
        evaluation, "windows", lambda *a: (evaluation.Row(row.ids[-row.scored - 1 :], row.scored) for row in rows(*a))
    )


def characters_for_bytes(patch):
    patch.setattr(BPE, "size", lambda id: -sum(len(t.encode()) - len(t) for t in TEXTS) + 1)


def padding_seen(patch):
    encode = sf.GPT2.encode
    patch.setattr(sf.GPT2, "encode", lambda self, ids, keep=None: encode(self, ids.roll(1, 0), keep=keep))


@pytest.mark.parametrize(
    "plant", [target_off_by_one, overlap_counted_twice, context_thrown_away, characters_for_bytes, padding_seen]
)
def test_a_planted_mistake_moves_the_score_of_a_text(pair, plant):
    right = _text(pair)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        wrong = _text(pair)
    assert abs(wrong.loss - right.loss) + abs(wrong.bits_per_byte - right.bits_per_byte) > 1e-4


def not_normalised(patch):
    endings = {evaluation.clean(ending) for row in hellaswag_rows() for ending in row["endings"]}
    patch.setattr(evaluation, "len", lambda x: 1 if isinstance(x, str) and x in endings else len(x), raising=False)


def ctx_b_as_it_stands(patch):
    real = evaluation.string
    patch.setattr(evaluation, "string", lambda row, name, where: _Plain(real(row, name, where)))


class _Plain(str):
    def capitalize(self):
        return self


def activity_forgotten(patch):
    real = evaluation.hellaswag_example
    forget = lambda row, where: real({k: v for k, v in row.items() if k != "activity_label"}, where)  # noqa: E731
    patch.setattr(evaluation, "hellaswag_example", forget)


def brackets_left(patch):
    patch.setattr(evaluation, "clean", str.strip)


@pytest.mark.parametrize("plant", [not_normalised, ctx_b_as_it_stands, activity_forgotten, brackets_left])
def test_a_planted_mistake_moves_hellaswag(pair, tmp_path, plant):
    """In what is read or in the figures: of a dozen examples, chance can hide a change from the latter."""
    path, read = lines(tmp_path / "h.jsonl", hellaswag_rows()), evaluation.hellaswag_example
    right = evaluate_hellaswag(pair[1], BPE, path), [read(row, "") for row in hellaswag_rows()]
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        wrong = evaluate_hellaswag(pair[1], BPE, path), [evaluation.hellaswag_example(r, "") for r in hellaswag_rows()]
    assert wrong != right


# --- the command, and what it refuses


def test_eval_prints_figures_or_one_object(capsys, pair, tmp_path, lambada):
    folder, data = pair[2], tmp_path / "text.txt"
    data.write_text(TEXTS[1], encoding="utf-8")
    arguments = ("eval", "--model", folder, "--data", data, "--length", 20, "--device", "cpu")
    code, out, error = run(capsys, *arguments, "--json")
    assert (code, error) == (0, "")
    found, answer = json.loads(out), evaluate_text(sf.load(folder), BPE, [TEXTS[1]], length=20)
    assert found == {"task": "text", "model": str(folder), "data": str(data), **vars(answer)}
    assert (found["length"], found["stride"]) == (20, 10)
    code, out, error = run(capsys, *arguments)
    assert (code, error) == (0, "")
    assert re.search(rf"^loss +{answer.loss:.4f}$", out, re.MULTILINE)
    assert re.search(r"^stride +10$", out, re.MULTILINE)
    for task, path in (("lambada", lambada[1]), ("hellaswag", lines(tmp_path / "h.jsonl", hellaswag_rows()))):
        code, out, error = run(capsys, "eval", "--model", folder, "--data", path, "--task", task, "--json")
        assert (code, error) == (0, "")
        assert json.loads(out)["task"] == task
        assert 0 <= json.loads(out)["accuracy"] <= 1


def test_a_folder_and_json_lines_are_scored_document_by_document(pair, tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    lines(tmp_path / "b.jsonl", [{"text": text} for text in TEXTS[1:]])
    assert evaluate_text(pair[1], BPE, read_texts(tmp_path)) == evaluate_text(pair[1], BPE, TEXTS)


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("text", "a", "a text of one token follows from nothing"),
        ("text", "", "holds no text"),
        ("lambada", "", "holds no example"),
        ("lambada", '{"text": "a b"}\n{"text": ', "line 2, is no JSON"),
        ("lambada", "[1]", "line 1, holds a list: expected an object"),
        ("lambada", '{"txt": "a b"}', "line 1, has no text under 'text': its names are 'txt'"),
        ("lambada", '\n{"text": "word"}', "line 2, does not end in a space and a word"),
        ("lambada", '{"text": "two words "}', "line 1, does not end in a space and a word"),
        ("lambada", '{"text": "a \\ud800"}', "line 1, is no valid Unicode"),
        ("lambada", json.dumps({"text": "a " + "x9" * 60}), "tokens to predict: expected some, and at most the 53"),
        ("hellaswag", "", "holds no example"),
        ("hellaswag", '{"ctx": "a", "label": 0}', "line 1, has no `endings`"),
        ("hellaswag", '{"ctx": "a", "label": 0, "endings": ["a", "[x]"]}', "line 1, has no `endings`, or an empty one"),
        ("hellaswag", '{"ctx": "a", "label": 0, "endings": ["a", 3]}', "line 1, has no text under 'ending'"),
        ("hellaswag", '{"ctx": "a", "label": 2, "endings": ["a", "b"]}', "has the label 2: expected 0 to 1"),
        ("hellaswag", '{"ctx": "a", "label": -1, "endings": ["a", "b"]}', "has the label -1"),
        ("hellaswag", '{"ctx": "a", "label": "", "endings": ["a", "b"]}', "has the label : expected"),
        ("hellaswag", '{"ctx": "a", "endings": ["a", "b"]}', "has the label None"),
        ("hellaswag", '{"label": 0, "endings": ["a", "b"]}', "has no text under 'ctx'"),
        ("hellaswag", '{"ctx": " ", "label": 0, "endings": ["a", "b"]}', "has nothing to read"),
    ],
)
def test_eval_refuses_bad_files_in_a_sentence(capsys, pair, tmp_path, task, content, said):
    (tmp_path / "data.txt").write_text(content, encoding="utf-8")
    assert said in refused(capsys, "eval", "--model", pair[2], "--data", tmp_path / "data.txt", "--task", task)


def test_eval_refuses_in_a_sentence(capsys, pair, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(TEXTS[1], encoding="utf-8")
    ok = ("eval", "--model", pair[2], "--data", data)
    assert "length is 54: expected 1 to 53" in refused(capsys, *ok, "--length", 54)
    assert "length is 0" in refused(capsys, *ok, "--length", 0)
    assert "stride is 11: expected 1 to 10" in refused(capsys, *ok, "--length", 10, "--stride", 11)
    assert "stride is 0" in refused(capsys, *ok, "--stride", 0)
    assert "batch is 0" in refused(capsys, *ok, "--batch", 0)
    assert "leave them out for lambada" in refused(capsys, *ok, "--task", "lambada", "--stride", 3)
    assert "does not exist" in refused(capsys, "eval", "--model", tmp_path / "no", "--data", data)
    assert "does not exist" in refused(capsys, "eval", "--model", pair[2], "--data", tmp_path / "no")
    assert "cannot be read" in refused(capsys, *ok[:-1], tmp_path / "no", "--task", "lambada")
    model = sf.load(pair[2])
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    assert "The loss is nan" in refused(capsys, "eval", "--model", tmp_path / "nan", "--data", data)
    (tmp_path / "small").mkdir()
    small = sf.GPT2(sf.GPT2Config(vocab=5, length=40, dim=16, depth=1, heads=2))
    small.assets = BPE.files
    small.save_pretrained(tmp_path / "small")
    sentence = f"The tokeniser has {BPE.vocab} ids and the model 5: they do not belong together."
    assert sentence in refused(capsys, "eval", "--model", tmp_path / "small", "--data", data)
