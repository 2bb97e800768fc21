"""`train bert`: from text, hidden tokens told. What is packed, what is counted, what a checkpoint brings and keeps."""

import json
import math
import re
from collections import Counter

import bert_reference
import datasets
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_cli import refused, run
from test_documents import lines
from test_training import TEXT, losses
from transformers import BertForMaskedLM, BertForPreTraining

import scratchformers as sf
from scratchformers.checkpoints.pretrained import fingerprint
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import characters, train_bpe, train_wordpiece
from scratchformers.training import language, log
from scratchformers.training.data import generator
from scratchformers.training.language import Masked, MaskedSettings
from scratchformers.training.loop import Run, Settings, evaluate
from scratchformers.training.recipes import FINETUNE
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

SIZES = {"length": "18", "dim": "16", "depth": "1", "heads": "2"}
SMALL = {"steps": "6", "batch": "4", "eval_every": "3", "save_every": "2", "warmup": "2", "threads": "1"}
ROLES = tuple(SPECIAL.values())


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def request(data, out, *, source=None, preset=None, tokenizer=None, vocab=None, valid=None, **given):
    sizes = SIZES if source is None else {}
    given = {**SMALL, **sizes, **{name: str(value) for name, value in given.items()}}
    return Request(
        "bert", out, data, valid=valid, source=source, preset=preset, tokenizer=tokenizer, vocab=vocab, given=given
    )


def open_task(*arguments, **options):
    return open_run(request(*arguments, **options))[0].task


# --- what is read


def test_a_run_on_characters_leaves_what_it_promises(data, tmp_path):
    opened, notes = open_run(request(data, tmp_path / "run"))
    records = list(opened)
    assert notes == []
    out, vocab = tmp_path / "run", len(set(TEXT)) + 5
    assert {path.name for path in out.iterdir()} == {"config.json", "log.jsonl", "loss.png", "checkpoints", "model"}
    assert log.read(out / "log.jsonl") == records
    facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (facts["recipe"], facts["task"], facts["preset"]) == ("bert", None, "tiny")
    assert facts["tokenizer"]["vocab"] == facts["model"]["vocab"] == vocab
    assert facts["data"]["tokens"] == len(TEXT) * 9 // 10
    assert facts["settings"]["masked"] == 0.15
    assert records[0]["trivial_loss"] == math.log(vocab)
    assert records[0]["loss"] == pytest.approx(math.log(vocab), abs=0.2)
    assert records[0]["targets"] == 4 * round(0.15 * 16)
    config = json.loads((out / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertForMaskedLM"]
    assert config["pad_token_id"] == 0
    model, tokenizer = sf.load(out / "model"), sf.load_tokenizer(out / "model")
    assert (model.config.vocab, model.config.length, model.config.segments) == (vocab, 18, 2)
    assert [tokenizer.tokenizer.id_to_token(i) for i in range(5)] == [*ROLES]
    assert tokenizer.decode(tokenizer.encode("3 times")) == "[CLS]3 times[SEP]"


def test_a_window_stands_between_cls_and_sep_and_nothing_is_padded(data, tmp_path):
    task = open_task(data, tmp_path / "run")
    batch = task.batch([(0, row) for row in range(9)])
    assert batch.keys() == {"ids", "chosen", "labels"}, "nothing says what is padding, for nothing is"
    for ids, labels, chosen in zip(*(batch[name] for name in ("ids", "labels", "chosen"))):
        assert len(ids) == 18
        assert (ids[0], ids[-1]) == (task.tokenizer.role("cls"), task.tokenizer.role("sep"))
        assert not chosen[[0, -1]].any()
        assert task.tokenizer.decode(labels[1:-1].tolist()) in TEXT
    lengths = {batch["ids"].shape[1] for batch in task.valid()}
    assert lengths == {18, 2 + len(task.held_out) % 16}, "the last window is what is left"


TEXTS = ["abcab" * 8, "cba" * 9, "bb", "acb" * 20]


def test_documents_are_packed_with_sep_between_them(tmp_path):
    path = lines(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS])
    task = open_task(path, tmp_path / "run")
    whole = task.tokenizer.decode([*task.train.stream.tolist(), *task.held_out.tolist()])
    assert whole == "[SEP]".join(TEXTS)
    sep = task.tokenizer.role("sep")
    across = [task.batch([(0, row)]) for row in range(task.rows)]
    inner = [batch for batch in across if sep in batch["labels"][0, 1:-1]]
    assert inner, "a window runs across the end of a text"
    for batch in inner * 20:
        assert not batch["chosen"][batch["labels"] == sep].any(), "which is never hidden"


@pytest.mark.parametrize("cased", [False, True])
def test_a_wordpiece_is_learnt_from_the_text_trained_on(data, tmp_path, cased):
    text = TEXT.replace("times", "Times") + "Zebra " * (len(TEXT) // 50)
    data.write_text(text, encoding="utf-8")
    opened, notes = open_run(request(data, tmp_path / "run", tokenizer="wordpiece", vocab=110, cased=cased))
    task, cut = opened.task, len(text) * 9 // 10
    assert len(notes) == (task.tokenizer.vocab < 110)
    assert task.tokenizer.digest() == train_wordpiece([text[:cut]], 110, lower=not cased).digest()
    assert (task.tokenizer.encode("Times") == task.tokenizer.encode("times")) is not cased
    list(opened)
    assert sf.load_tokenizer(tmp_path / "run" / "model").digest() == task.tokenizer.digest()
    filler = sf.MaskFiller.from_pretrained(tmp_path / "run" / "model")
    assert len(filler("3 [MASK] 4 is 12.", top=3)) == 3
    facts = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert facts["settings"]["cased"] is cased


def test_simple_has_neither_cls_nor_sep_nor_segments(tmp_path):
    path = lines(tmp_path / "data.jsonl", [{"text": TEXT[:900]}, {"text": TEXT[900:]}])
    opened, _ = open_run(request(path, tmp_path / "run", preset="simple"))
    task = opened.task
    assert task.tokenizer.special == {task.tokenizer.role(name) for name in ("pad", "unknown", "mask")}
    assert task.tokenizer.around() == ([], [])
    assert task.tokenizer.decode(task.train.stream.tolist()) == TEXT[: len(TEXT) * 9 // 10], "side by side"
    batch = task.batch([(0, 0)])
    assert task.tokenizer.decode(batch["labels"][0].tolist()) in TEXT
    assert batch["ids"].shape == (1, 18)
    assert task.model.config.segments == 1
    list(opened)
    again, notes = open_run(Request("bert", tmp_path / "run"), resume=True)
    assert "is finished" in notes[0]
    assert again.task.tokenizer.digest() == task.tokenizer.digest()
    assert sf.load(tmp_path / "run" / "model").config.segments == 1
    assert sf.MaskFiller.from_pretrained(tmp_path / "run" / "model")("3 ti[MASK]es")[0].token not in SPECIAL
    words = open_task(path, tmp_path / "words", preset="simple", tokenizer="wordpiece", vocab=103)
    assert words.tokenizer.special == {words.tokenizer.role(name) for name in ("pad", "unknown", "mask")}


def test_a_tokeniser_may_be_given(data, tmp_path):
    learnt = train_wordpiece([TEXT], 120)
    (tmp_path / "vocabulary").mkdir()
    for name, content in learnt.files.items():
        (tmp_path / "vocabulary" / name).write_bytes(content)
    task = open_task(data, tmp_path / "run", tokenizer=str(tmp_path / "vocabulary"))
    assert task.tokenizer.digest() == learnt.digest()
    assert task.model.config.vocab == learnt.vocab
    (tmp_path / "bpe.json").write_bytes(train_bpe([TEXT], 280).files["tokenizer.json"])
    with pytest.raises(ValueError, match=r"The tokeniser has no \[MASK\]"):
        open_task(data, tmp_path / "other", tokenizer=str(tmp_path / "bpe.json"))
    assert not (tmp_path / "other").exists()


def test_a_data_set_of_the_hub_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "a data set"
    folder.mkdir()
    lines(folder / "train.jsonl", [{"text": TEXT[:900]}, {"text": TEXT[900:1800]}])
    task = open_task(f"hf:{folder}", tmp_path / "run")
    whole = [*task.train.stream.tolist(), *task.held_out.tolist()]
    assert task.tokenizer.decode(whole) == f"{TEXT[:900]}[SEP]{TEXT[900:1800]}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokenizer": "bpe"}, "--tokenizer bpe is not for bert: expected wordpiece"),
        ({"tokenizer": "bpe", "vocab": 300}, "add --tokenizer wordpiece"),
        ({"vocab": 300}, "--vocab 300 sizes a WordPiece made from your text: add --tokenizer wordpiece"),
        ({"tokenizer": "wordpiece", "vocab": 104}, "vocab is 104: expected at least 105"),
        ({"preset": "mini ", "tokenizer": None}, "bert has no preset 'mini '"),
        ({"masked": 0}, "masked is 0.0: expected a share of the tokens, 0 < masked < 1"),
        ({"masked": 1}, "masked is 1.0: expected a share of the tokens"),
        ({"masked": "nan"}, "masked is nan"),
        ({"whole_words": "perhaps"}, "whole_words=perhaps is no true or false"),
        ({"length": 3}, "length is 3: expected at least 4"),
        ({"length": 5000}, "The text to train on has .* tokens and one window takes"),
        ({"heads": 3}, "3 heads do not divide a width of 16"),
        ({"truncate": "true"}, "There is no setting 'truncate'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(data, tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        open_run(request(data, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_gpt2_is_not_made_of_wordpieces(data, tmp_path):
    with pytest.raises(ValueError, match="--tokenizer wordpiece is not for gpt2: expected bpe"):
        open_run(Request("gpt2", tmp_path / "run", data, tokenizer="wordpiece"))


def test_whole_words_with_bytes_for_a_vocabulary_are_refused(data, tmp_path):
    from tokenizers import AddedToken

    from scratchformers.text import TextTokenizer

    tokenizer = train_bpe([TEXT], 280).tokenizer
    tokenizer.add_special_tokens([AddedToken("[MASK]", normalized=False)])
    path = tmp_path / "tokenizer.json"
    path.write_bytes(TextTokenizer(tokenizer).files["tokenizer.json"])
    assert open_task(data, tmp_path / "run", tokenizer=str(path)).masking.mask == 280
    with pytest.raises(ValueError, match="whole_words needs to know where words begin"):
        open_run(request(data, tmp_path / "other", tokenizer=str(path), whole_words="true"))


def test_a_text_too_short_is_said(tmp_path):
    data = tmp_path / "text.txt"
    for content, said in (
        ("abcdefgh", "The text to train on has 7 tokens and one window takes 16: give more text"),
        ("a" * 9, "one window takes 16"),
    ):
        data.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            open_run(request(data, tmp_path / "run"))
    data.write_text(TEXT, encoding="utf-8")
    (tmp_path / "valid.txt").write_text("3", encoding="utf-8")
    with pytest.raises(ValueError, match="The validation text has 1 tokens, too few"):
        open_run(request(data, tmp_path / "run", valid=tmp_path / "valid.txt"))


def test_a_validation_text_of_unknown_words_is_said(data, tmp_path):
    """Else its loss would be a mean over nothing."""
    (tmp_path / "valid.txt").write_text("你好 你好 你好", encoding="utf-8")
    with pytest.raises(ValueError, match="The validation text has no token that could be hidden"):
        open_run(request(data, tmp_path / "run", valid=tmp_path / "valid.txt", tokenizer="wordpiece", vocab=105))


def test_columns_are_for_labelled_texts(data, tmp_path):
    asked = Request(**{**vars(request(data, tmp_path / "run")), "columns": {"text": "body"}})
    with pytest.raises(ValueError, match="--column names a column of labelled texts"):
        open_run(asked)


# --- what is counted


def made(*, batch=4, seed=0, dtype=torch.float64, **settings):
    """A task on scrambled weights, so that no score is like another."""
    tokenizer = characters([TEXT], special=ROLES)
    torch.manual_seed(seed)
    config = sf.BERTConfig(vocab=tokenizer.vocab, length=18, dim=16, depth=2, heads=2, dropout=0.0)
    model = sf.BERT(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    streams = [torch.tensor(tokenizer.encode(text)[1:-1], dtype=torch.int32) for text in (TEXT[:1700], TEXT[1700:])]
    return Masked(model, tokenizer, *streams, MaskedSettings(batch=batch, **settings))


def written_out(model, batch):
    """The loss as one reads it elsewhere: all logits, and -100 for what is not asked for."""
    logits = model(batch["ids"])
    targets = torch.where(batch["chosen"], batch["labels"], -100)
    # float32, as the task computes it whatever the model is in
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")


def loss_is_the_written_out_one(task):
    batch = task.batch([(0, row) for row in range(5)])
    assert task.targets(batch) == int(batch["chosen"].sum()) == 5 * round(0.15 * 16)
    found, wanted = [], []
    for gradients, loss in ((found, task.loss(task.model, batch)), (wanted, written_out(task.model, batch))):
        task.model.zero_grad()
        loss.backward()
        gradients += [loss.detach(), *(p.grad.clone() for p in task.model.parameters() if p.grad is not None)]
    assert len(found) == len(wanted) == 1 + len(list(task.model.parameters()))
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_loss_counts_chosen_tokens_and_no_others():
    loss_is_the_written_out_one(made())


def all_tokens_asked_for(patch):
    real = Masked._masked
    patch.setattr(Masked, "_masked", lambda *a: {**(b := real(*a)), "chosen": torch.ones_like(b["chosen"])})


def labels_cloned_after_masking(patch):
    patch.setattr(Masked, "_scores", lambda self, model, b: _scores(model, b, b["ids"]))


def off_by_one(patch):
    patch.setattr(Masked, "_scores", lambda self, model, b: _scores(model, b, b["labels"].roll(-1, 1)))


def hidden_tokens_shown(patch):
    patch.setattr(Masked, "_scores", lambda self, model, b: _scores(model, {**b, "ids": b["labels"]}, b["labels"]))


def _scores(model, batch, labels):
    return model(batch["ids"])[batch["chosen"]].float(), labels[batch["chosen"]]


@pytest.mark.parametrize("plant", [all_tokens_asked_for, labels_cloned_after_masking, off_by_one, hidden_tokens_shown])
def test_a_planted_mistake_is_caught(plant):
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            loss_is_the_written_out_one(made())


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("whole_words", [False, True])
def test_micro_batches_are_the_whole_batch(tmp_path, micro_batch, whole_words):
    """With whole words the rows have unequally many targets, so that the mean of means would be another."""
    steps = []
    for size in (0, micro_batch):
        task = made(whole_words=whole_words, masked=0.3)
        settings = Settings(steps=1, batch=5, micro_batch=size, clip=0.0, lr=1e-3, warmup=0)
        step = Run(task, settings, tmp_path)
        step.step = 1
        record = step._train()
        steps.append((record, [parameter.detach().clone() for parameter in task.model.parameters()]))
    (a, before), (b, after) = steps
    assert a["targets"] == b["targets"]
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    for ours, theirs in zip(before, after):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_every_parameter_of_a_new_model_gets_a_gradient(data, tmp_path):
    opened, _ = open_run(request(data, tmp_path / "run", depth=2))
    task = opened.task
    task.loss(task.model, task.batch([(0, row) for row in range(30)])).backward()
    for name, parameter in task.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert not task.model.segment.weight.grad[1].any(), "of text alone only the first segment is learnt"
    assert (task.model.position.weight.grad.abs().sum(-1) > 0).all()


def test_what_counting_would_give_is_in_the_first_record(data, tmp_path):
    opened, _ = open_run(request(data, tmp_path / "run"))
    first, *rest = opened
    assert not any("unigram_loss" in record or "trivial_loss" in record for record in rest)
    cut = len(TEXT) * 9 // 10
    seen, held_out, letters = Counter(TEXT[:cut]), Counter(TEXT[cut:]), set(TEXT)
    total = sum(seen[letter] + 1 for letter in letters)
    cost = sum(held_out[letter] * -math.log((seen[letter] + 1) / total) for letter in letters)
    assert first["unigram_loss"] == pytest.approx(cost / len(TEXT[cut:]), abs=1e-9)
    common = max(letters, key=lambda letter: seen[letter])
    assert first["unigram_accuracy"] == pytest.approx(held_out[common] / len(TEXT[cut:]), abs=1e-9)
    assert first["trivial_loss"] == pytest.approx(math.log(len(letters) + 5))
    assert 0 < first["unigram_accuracy"] < 1
    assert first["unigram_loss"] < first["trivial_loss"]


def test_who_has_counted_has_counted_the_text_trained_on(tmp_path):
    (tmp_path / "text.txt").write_text("aaab" * 50, encoding="utf-8")
    (tmp_path / "valid.txt").write_text("abbb" * 5, encoding="utf-8")
    first = next(iter(open_run(request(tmp_path / "text.txt", tmp_path / "run", valid=tmp_path / "valid.txt"))[0]))
    assert first["unigram_accuracy"] == 0.25
    assert first["unigram_loss"] == pytest.approx(-0.25 * math.log(151 / 202) - 0.75 * math.log(51 / 202))


def test_special_tokens_do_not_count_as_text(tmp_path):
    """[SEP] between documents is never asked for, so it is no part of what counting would give."""
    path = lines(tmp_path / "data.jsonl", [{"text": "ab"} for _ in range(200)])
    first = next(iter(open_run(request(path, tmp_path / "run"))[0]))
    assert first["unigram_accuracy"] == pytest.approx(0.5, abs=0.02)
    assert first["unigram_loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_accuracy_and_loss_of_an_evaluation_are_sums_over_all_held_out_windows():
    task, right, total, count = made(batch=3, masked=0.7), 0, 0.0, 0
    with torch.no_grad():
        task.model.head.bias[task.tokenizer.encode(" ")[1]] += 3  # so that it is right now and then
    windows = [task.held_out[i : i + 16].long() for i in range(0, len(task.held_out), 16)]
    assert len(windows[-1]) != len(windows[0])
    task.model.eval()
    for number, window in enumerate(windows):
        before, after = (torch.tensor(ids) for ids in task.tokenizer.around())
        whole = torch.cat([before, window, after])
        seen, chosen = task.masking(whole, generator(0, number, 3))
        with torch.no_grad():
            scores = task.model(seen[None])[0][chosen]
        right += int((scores.argmax(-1) == whole[chosen]).sum())
        total += float(F.cross_entropy(scores, whole[chosen], reduction="sum"))
        count += int(chosen.sum())
    found = evaluate(task, torch.device("cpu"))
    assert found["accuracy"] == pytest.approx(right / count, abs=1e-12)
    assert found["loss"] == pytest.approx(total / count, abs=1e-5)
    assert 0 < found["accuracy"] < 1


def test_of_a_long_held_out_text_windows_are_taken_evenly(monkeypatch):
    task = made(batch=3)
    every = torch.cat([batch["labels"] for batch in task.valid() if batch["labels"].shape[1] == 18])
    monkeypatch.setattr(Masked, "most", 4)
    some = torch.cat([batch["labels"] for batch in task.valid()])
    places = [int((every == window).all(1).nonzero()[0, 0]) for window in some]
    count = len(every) + (len(task.held_out) % 16 > 0)
    assert places == [i * count // 4 for i in range(4)]


def test_evaluations_hide_the_same_tokens_and_no_dropout_acts(data, tmp_path):
    opened, _ = open_run(request(data, tmp_path / "run", lr=0, dropout=0.4, eval_every=1))
    found = [record for record in opened if "valid_loss" in record]
    assert len(found) == 6
    assert len({(record["valid_loss"], record["valid_accuracy"], record["sample"]) for record in found}) == 1
    trained = log.read(tmp_path / "run" / "log.jsonl")
    assert len({record["loss"] for record in trained if "loss" in record}) == 6
    assert opened.task.model.training


def test_a_sample_shows_what_was_hidden_and_what_it_says(data, tmp_path):
    task = open_task(data, tmp_path / "run", masked=0.3)
    shown = task.sample(task.model)
    asked = re.findall(r"\[(\[?\w+\]?|.)(?:, not (.))?\]", shown, re.DOTALL)
    assert len(asked) == round(0.3 * 16)
    original = re.sub(r"\[(\[?\w+\]?|.)(?:, not (.))?\]", lambda m: m[2] or m[1], shown, flags=re.DOTALL)
    assert original == task.tokenizer.decode(task.held_out[:16].tolist())
    assert task.sample(task.model) == shown


def test_it_learns_what_counting_cannot_tell(tmp_path):
    """Of runs of a, b and c each letter is a third; who looks at what stands beside knows nearly all."""
    (tmp_path / "text.txt").write_text("".join(letter * 60 for letter in "abcacbbaccba" * 2), encoding="utf-8")
    asked = request(tmp_path / "text.txt", tmp_path / "run", steps=120, lr=1e-2, dropout=0, eval_every=60, batch=8)
    records = list(open_run(asked)[0])
    last = [record for record in records if "valid_loss" in record][-1]
    assert records[0]["unigram_loss"] == pytest.approx(math.log(3), abs=0.1)
    assert last["valid_loss"] < 0.5
    assert last["valid_accuracy"] > 0.85
    best = sf.MaskFiller.from_pretrained(tmp_path / "run" / "model")("cccccc[MASK]ccccc")[0]
    assert (best.token, best.text) == ("c", "c" * 12)
    assert best.score > 0.8


# --- resuming


def cut_and_whole(tmp_path, asked, stop):
    """The folders of a run and of one that was interrupted after `stop` steps and resumed."""
    list(open_run(asked(tmp_path / "whole"))[0])
    opened = open_run(asked(tmp_path / "cut"))[0]
    for record in opened:
        if record["step"] > stop:
            break
    assert opened.step == stop + 1
    torch.manual_seed(99)  # what another process would have done to the global generator
    again, notes = open_run(Request(asked(tmp_path).recipe, tmp_path / "cut"), resume=True)
    assert stop == 1 or notes[-1] == f"Resuming at step {stop // 2 * 2} of 6."
    list(again)
    return tmp_path / "whole", tmp_path / "cut"


def assert_equal_runs(whole, cut):
    assert losses(cut) == losses(whole)
    evaluations = [
        [{k: v for k, v in record.items() if k not in log.TIMES} for record in log.read(folder / "log.jsonl")]
        for folder in (whole, cut)
    ]
    assert evaluations[0] == evaluations[1]
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("config.json", "tokenizer.json"):
        assert (whole / "model" / name).read_bytes() == (cut / "model" / name).read_bytes()


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
@pytest.mark.parametrize("given", [{"dropout": 0.3}, {"dropout": 0, "whole_words": "true", "tokenizer": "wordpiece"}])
def test_resumed_is_uninterrupted(data, tmp_path, stop, given):
    given = {**given, "vocab": 110} if "tokenizer" in given else given
    assert_equal_runs(*cut_and_whole(tmp_path, lambda out: request(data, out, **given), stop))


def test_a_run_is_not_resumed_as_another_task(data, tmp_path):
    next(iter(open_run(request(data, tmp_path / "run"))[0]))
    with pytest.raises(ValueError, match=r"has .*task None, not classify"):
        open_run(Request("bert", tmp_path / "run", task="classify"), resume=True)
    with pytest.raises(ValueError, match=r"has masked 0\.15, not 0\.3"):
        open_run(Request("bert", tmp_path / "run", given={"masked": "0.3"}), resume=True)
    with pytest.raises(ValueError, match="has whole_words False, not True"):
        open_run(Request("bert", tmp_path / "run", given={"whole_words": "true"}), resume=True)


# --- from a checkpoint


def published(kind, folder, **changes):
    """A scrambled checkpoint of transformers with a tokeniser of fewer ids than it has embeddings."""
    theirs = bert_reference.scrambled(kind, std=0.1, hidden_dropout_prob=0.0, **changes).float()
    theirs.save_pretrained(folder)
    for name, content in characters([TEXT], special=ROLES).files.items():
        (folder / name).write_bytes(content)
    return theirs


@pytest.mark.parametrize("kind", ["MaskedLM", "PreTraining"])
def test_it_starts_at_the_loss_of_its_source(data, tmp_path, kind):
    theirs = published(kind, tmp_path / "source")
    opened, notes = open_run(request(data, tmp_path / "run", source=tmp_path / "source"))
    assert notes == []
    assert fingerprint(opened.task.model) == fingerprint(sf.load(tmp_path / "source"))
    batch = opened.task.batch(opened.sampler.take(4))
    opened.sampler.restore({"epoch": 0, "seen": 0})
    with torch.no_grad():
        answer = theirs(batch["ids"])
    logits = answer.logits if kind == "MaskedLM" else answer.prediction_logits
    wanted = float(F.cross_entropy(logits[batch["chosen"]], batch["labels"][batch["chosen"]]))
    record = next(iter(opened))
    assert record["loss"] == pytest.approx(wanted, abs=1e-5)
    assert record["trivial_loss"] == math.log(97)
    assert abs(wanted - math.log(97)) > 0.05, "else nobody could tell"
    facts = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert facts["source"]["sha256"] == fingerprint(sf.load(tmp_path / "source"))
    assert facts["preset"] == FINETUNE


def test_what_else_its_source_has_survives(data, tmp_path):
    """A pooler and the next-sentence head have nothing to learn from text alone, and are kept to the last bit."""
    published("PreTraining", tmp_path / "source")
    list(open_run(request(data, tmp_path / "run", source=tmp_path / "source"))[0])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "run/model"))
    kept = {name for name in before if "pooler" in name or "seq_relationship" in name}
    assert len(kept) == 4
    assert kept < after.keys()
    for name in after:
        assert torch.equal(before[name], after[name]) is (name in kept), name
    BertForPreTraining.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize("kind", ["Model", "NextSentencePrediction", "SequenceClassification", "TokenClassification"])
def test_a_source_without_the_head_is_refused_in_a_sentence(capsys, data, tmp_path, kind):
    published(kind, tmp_path / "source")
    arguments = ("train", "bert", "--data", data, "--out", tmp_path / "run", "--from", tmp_path / "source")
    assert "has no head that says what is hidden: choose a checkpoint that has one" in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_how_to_pool_is_not_said_of_what_learnt_otherwise(data, tmp_path):
    published("MaskedLM", tmp_path / "source")
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (tmp_path / "source" / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (tmp_path / "source" / "1_Pooling").mkdir()
    (tmp_path / "source" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    list(open_run(request(data, tmp_path / "run", source=tmp_path / "source"))[0])
    assert not (tmp_path / "run" / "model" / "modules.json").exists()
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_from_a_source_is_uninterrupted(data, tmp_path, stop):
    published("PreTraining", tmp_path / "source")
    asked = lambda out: request(data, out, source=tmp_path / "source", dropout=0.2, length=11)  # noqa: E731
    assert_equal_runs(*cut_and_whole(tmp_path, asked, stop))


# --- what is saved


@pytest.mark.parametrize("tokenizer", [None, "wordpiece"])
def test_the_saved_model_loads_in_transformers_with_equal_logits(data, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    asked = request(data, tmp_path / "run", tokenizer=tokenizer, vocab=tokenizer and 110, lr=0.03)
    list(open_run(asked)[0])
    ours, theirs = sf.load(tmp_path / "run" / "model"), BertForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    ids = torch.randint(5, ours.config.vocab, (3, 17), generator=generator(0))
    with torch.no_grad():
        wanted = theirs.eval()(ids).logits
        torch.testing.assert_close(ours(ids), wanted, atol=1e-5, rtol=1e-5)
        keep = torch.arange(17) < torch.tensor([[17], [3], [9]])
        wanted = theirs(ids, attention_mask=keep.long()).logits
    torch.testing.assert_close(ours(ids, keep=keep)[keep], wanted[keep], atol=1e-5, rtol=1e-5)
    reader = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    text = "3 times [MASK] is 12"
    assert reader(text)["input_ids"] == sf.load_tokenizer(tmp_path / "run" / "model").encode(text)
    assert reader.mask_token == "[MASK]"
    assert reader.pad_token_id == 0


def test_train_in_the_program(capsys, data, tmp_path):
    settings = [part for name, value in {**SMALL, **SIZES}.items() for part in ("--set", f"{name}={value}")]
    code, said, error = run(
        capsys, "train", "bert", "--data", data, "--out", tmp_path / "run", *settings, "--set", "whole_words=true"
    )
    assert (code, error) == (0, "")
    assert "knowing nothing costs" in said
    assert "knowing frequencies alone" in said
    assert "unigram accuracy" in said
    assert "validation loss" in said
    assert ", accuracy 0." in said
    assert "Best validation loss" in said
    code, said, _ = run(capsys, "fill", "3 ti[MASK]es 4", "--model", tmp_path / "run" / "model")
    assert code == 0
    assert len(said.splitlines()) == 6


def test_the_program_refuses_in_a_sentence(capsys, data, tmp_path):
    arguments = ("train", "bert", "--data", data, "--out", tmp_path / "run")
    assert "bert has no task 'sentiment': expected classify or tokens" in refused(
        capsys, *arguments, "--task", "sentiment"
    )
    assert "gpt2 has no task 'classify': leave --task out" in refused(
        capsys, "train", "gpt2", *arguments[2:], "--task", "classify"
    )
    assert "--column names a column" in refused(capsys, *arguments, "--column", "text=body")
    assert "write --column key=value" in refused(capsys, *arguments, "--column", "text")
    assert "--truncate is for labelled texts" in refused(capsys, *arguments, "--truncate")
    assert "There is no setting 'vocab'" in refused(capsys, *arguments, "--set", "vocab=100")
    assert not (tmp_path / "run").exists()
    assert language.SIMPLE in run(capsys, "train", "--help")[1]
