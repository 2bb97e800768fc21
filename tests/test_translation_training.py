"""`train encoder-decoder`: pairs read, put into batches, learnt from, and what comes of it."""

import dataclasses
import io
import itertools
import json
import math
from functools import partial

import encoder_decoder_reference
import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_cli import refused, run
from test_loop import caught
from test_sentence_pieces import ENGLISH, save
from test_verify_encoder_decoder import bart_files
from transformers import BartForConditionalGeneration
from transformers.models.bart.modeling_bart import shift_tokens_right

import scratchformers as sf
from scratchformers import evaluation
from scratchformers.checkpoints.pretrained import Generation
from scratchformers.checkpoints.seq2seq import NORMS
from scratchformers.generate import evaluating
from scratchformers.ragged import Ragged
from scratchformers.text import pair_characters
from scratchformers.training import log, scoring, translation
from scratchformers.training.data import Buckets, bucket_sizes
from scratchformers.training.loop import Run, Settings, evaluate, learning_rate
from scratchformers.training.parallel import parallel_paths, read_parallel
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run
from scratchformers.training.translation import Translation, TranslationSettings, encode_pairs

ONES = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
NUMBERS = [(37 * i * i + 5 * i) % 40000 for i in range(100)]  # of one digit to five
PAIRS = [(" ".join(str(n)), " ".join(ONES[int(digit)] for digit in str(n))) for n in NUMBERS]
SIZES = {"dim": "16", "depth": "1", "heads": "2", "length": "32"}
BART = bart_files()
SMALL = {
    "steps": "6",
    "tokens": "200",
    "warmup": "2",
    "eval_every": "3",
    "save_every": "2",
    "threads": "1",
    "scored": "4",
}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pairs.tsv", "source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in PAIRS))


def request(data, out, *, source=None, tokenizer=None, vocab=None, valid=None, columns=None, **given):
    given = {**SMALL, **({} if source else SIZES), **{name: str(value) for name, value in given.items()}}
    return Request(
        "encoder-decoder", out, data, valid=valid, source=source, tokenizer=tokenizer, vocab=vocab, given=given,
        columns=columns or {},
    )  # fmt: skip


def run_all(*arguments, resume=False, **options):
    opened, notes = open_run(request(*arguments, **options), resume=resume)
    return list(opened), notes


def task_of(*, dropout=0.0, separate=False, pairs=PAIRS, **given):
    """A task in float64 whose rows are of unequal length."""
    tokenizer = pair_characters(*zip(*pairs), joint=not separate)
    torch.manual_seed(0)
    config = sf.EncoderDecoderConfig(
        vocab=tokenizer.vocab, target_vocab=tokenizer.target.vocab if separate else None, length=31, dim=14, depth=2,
        heads=2, hidden=23, decoder_depth=1, dropout=dropout,
    )  # fmt: skip
    model = sf.EncoderDecoder(config).double()
    model.generation = Generation(start=1, end=(2,), pad=0)
    return Translation(model, tokenizer, pairs, pairs[:7], TranslationSettings(**{"scored": 3, **given}))


def same(a, b):
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def logged(path):
    return [{k: v for k, v in record.items() if k not in log.TIMES} for record in log.read(path / "log.jsonl")]


# --- what is read


def test_pairs_are_read_in_every_form(tmp_path):
    pairs = [("Ein Hund.", "A dog."), ("Zwei, „drei“", 'Two, "three"'), ("Vier\u2028fünf", "Four five")]
    table = "".join(f"{a}\t{b}\n" for a, b in pairs)
    rows = [{"source": a, "target": b, "id": 7} for a, b in pairs]
    forms = {
        "named.tsv": "source\ttarget\n" + table,
        "swapped.tsv": "target\tsource\n" + "".join(f"{b}\t{a}\n" for a, b in pairs),
        "plain.tsv": table.replace("\n", "\r\n"),
        "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "pairs.csv": 'source,target\nEin Hund.,A dog.\n"Zwei, „drei“","Two, ""three"""\nVier\u2028fünf,Four five\n',
    }
    for name, content in forms.items():
        assert read_parallel(write(tmp_path / name, content)) == pairs, name
    halves = [write(tmp_path / f"a b.{i}", "\ufeff" + "\n".join(each) + "\n") for i, each in enumerate(zip(*pairs))]
    assert read_parallel(f"{halves[0]},{halves[1]}") == pairs
    named = write(tmp_path / "x.tsv", "de\ten\n" + table)
    assert read_parallel(named, {"source": "de", "target": "en"}) == pairs
    assert read_parallel(named, {"source": "en", "target": "de"}) == [(b, a) for a, b in pairs]
    assert read_parallel(write(tmp_path / "a,b.tsv", table)) == pairs, "a comma may be part of a name"
    assert parallel_paths("a,b,c") == parallel_paths("a,b,c")[:1]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("words.tsv", "Hund\tdog\nKatze\tcat\n", r"words\.tsv, line 2, has no column 'source': it has 'Hund', 'dog'"),
        ("three.tsv", "Ein Hund\tA dog\nEine Katze\tA cat\tCC\n", r"three\.tsv, line 2, has 3 fields"),
        ("empty.tsv", "source\ttarget\nEin Hund\t \n", r"empty\.tsv, line 2, target, is empty: every pair needs"),
        ("void.tsv", "Ein Hund\tA dog\n\tA cat\n", r"void\.tsv, line 2, source, is empty"),
        ("none.tsv", "source\ttarget\n", r"none\.tsv holds no pairs"),
        ("text.txt", "Ein Hund\n", r"text\.txt alone holds no pairs: expected a \.tsv, \.csv or \.jsonl file of pairs"),
        ("number.jsonl", '{"source": 1, "target": "x"}\n', r"line 1, has no text under 'source'"),
    ],
)  # fmt: skip
def test_what_holds_no_pairs_is_refused(tmp_path, name, content, expected):
    with pytest.raises(ValueError, match=expected):
        read_parallel(write(tmp_path / name, content))


def test_files_that_do_not_go_together_are_refused(tmp_path):
    a, b, c = (write(tmp_path / name, text) for name, text in (("a", "x\ny\n"), ("b", "1\n"), ("c", "1\n\n")))
    with pytest.raises(ValueError, match=r"a has 2 lines and .*b 1: expected a line of the one for each"):
        read_parallel(f"{a},{b}")
    with pytest.raises(ValueError, match=r"c, line 2, is empty"):
        read_parallel(f"{a},{c}")
    with pytest.raises(FileNotFoundError, match=r"nowhere is no file: expected a \.tsv"):
        read_parallel(f"{a},{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="two files have none: leave it out"):
        read_parallel(f"{a},{b}", {"source": "de"})
    with pytest.raises(ValueError, match="no column for label: expected source or target"):
        read_parallel(a, {"label": "de"})
    (tmp_path / "latin").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin is not UTF-8 \(byte 2\): convert it"):
        read_parallel(f"{tmp_path / 'latin'},{a}")


# --- batches


LENGTHS = [(7 * i * i + 3) % 41 + 2 for i in range(173)]


def check_buckets(kind):
    sampler = kind(LENGTHS, 120, seed=3)
    epochs = [[sampler.take(1) for _ in range(sampler.rows)] for _ in range(3)]
    flat = [[example for bucket in epoch for example in bucket] for epoch in epochs]
    for i, epoch in enumerate(epochs):
        assert sorted(flat[i]) == [(i, row) for row in range(len(LENGTHS))], "every row once an epoch"
        sizes = [sum(LENGTHS[row] for _, row in bucket) for bucket in epoch]
        assert all(abs(size - sum(LENGTHS) / len(epoch)) <= max(LENGTHS) for size in sizes)
        assert sum(sizes) / len(sizes) <= 120
        spans = sorted((min(LENGTHS[row] for _, row in b), max(LENGTHS[row] for _, row in b)) for b in epoch)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "like lengths together"
        assert spans != [(min(LENGTHS[row] for _, row in b), max(LENGTHS[row] for _, row in b)) for b in epoch]
    assert len({json.dumps(sorted([sorted(row for _, row in b) for b in epoch])) for epoch in epochs}) == 3
    everything = [bucket for epoch in epochs for bucket in epoch]
    other = kind(LENGTHS, 120, seed=4)
    assert [other.take(1) for _ in range(other.rows)] != epochs[0]
    for seen in range(len(everything)):  # what comes follows from the seed and the place alone
        torch.manual_seed(seen)
        again = kind(LENGTHS, 120, seed=3)
        again.restore(json.loads(json.dumps({"epoch": seen // sampler.rows, "seen": seen % sampler.rows})))
        coming = [each for bucket in everything[seen : seen + 2] for each in bucket]
        assert again.peek(2)[: len(coming)] == coming
        assert again.take(1) == everything[seen]


def test_buckets_follow_from_seed_epoch_and_step():
    check_buckets(Buckets)

    class Global(Buckets):
        """Drawn by whatever was drawn before."""

        def _drawn(self):
            buckets = super()._drawn()
            return [buckets[i] for i in torch.randperm(len(buckets)).tolist()]

    class Once(Buckets):
        """Every epoch cut as the first was."""

        def _drawn(self):
            epoch, self.epoch = self.epoch, 0
            buckets = super()._drawn()
            self.epoch = epoch
            return buckets

    class Unsorted(Buckets):
        def _drawn(self):
            order = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(self.epoch))
            return [part.tolist() for part in order.split(self.sizes)]

    class Ordered(Buckets):
        """From the shortest to the longest."""

        def _drawn(self):
            return sorted(super()._drawn(), key=lambda rows: sorted(self.lengths[rows].tolist()))

    for planted in (Global, Once, Unsorted, Ordered):
        with caught():
            check_buckets(planted)


def test_a_row_longer_than_a_bucket_is_alone():
    assert bucket_sizes(torch.tensor([1, 1, 2, 100]), 4) == [3, 1]
    assert bucket_sizes(torch.tensor([3]), 1) == [1]
    assert bucket_sizes(torch.tensor([2] * 10), 4) == [2] * 5


def check_batch(kind):
    task = task_of()
    task.__class__ = kind
    batch = task.batch([(0, row) for row in (0, 57, 99)])
    for i, row in enumerate((0, 57, 99)):
        source, target = task.train[row]
        keep, real = batch["keep"][i], batch["source_keep"][i]
        assert batch["labels"][i][keep].tolist() == target
        assert target[-1] == 2, "the end is to be told"
        assert batch["read"][i][keep].tolist() == [1, *target[:-1]], "each token is told from those before it"
        assert batch["source"][i][real].tolist() == source
        assert task.tokenizer.decode(target[:-1]) == PAIRS[row][1]
    assert task.targets(batch) == sum(len(task.train[row][1]) for row in (0, 57, 99))


def test_the_decoder_reads_what_stands_before():
    check_batch(Translation)

    class Unshifted(Translation):
        def _padded(self, rows):
            batch = super()._padded(rows)
            return {**batch, "read": batch["labels"]}

    with caught():
        check_batch(Unshifted)


# --- the loss


def by_hand(task, rows, smoothing):
    """Each row alone, without padding; the uniform distribution mixed in."""
    total = 0.0
    for source, target in (task.train[row] for row in rows):
        read = torch.tensor([[1, *target[:-1]]])
        log = task.model(torch.tensor([source]), read)[0].log_softmax(-1)
        truth = F.one_hot(torch.tensor(target), log.shape[1]).double()
        total = total - ((1 - smoothing) * truth * log + smoothing / log.shape[1] * log).sum()
    return float(total.detach())


def check_loss(kind):
    for separate in (False, True):
        task = task_of(smoothing=0.2, separate=separate)
        task.__class__ = kind
        rows = [3, 57, 99, 12, 0]
        batch = task.batch([(0, row) for row in rows])
        assert not batch["keep"].all()
        assert float(task.loss(task.model, batch).detach()) == pytest.approx(by_hand(task, rows, 0.2), abs=1e-9)
        with evaluating(task.model):
            found = task.measure(task.model, batch)
        assert found["loss"] == pytest.approx(by_hand(task, rows, 0.0), abs=1e-9), "not in validation"
        assert 0 <= found["accuracy"] <= task.targets(batch)


def test_the_loss_is_that_of_the_rows_alone():
    check_loss(Translation)

    class Padded(Translation):
        """Padding is told too."""

        def _scores(self, model, batch):
            scores = model(batch["source"], batch["read"], source_keep=batch["source_keep"], target_keep=batch["keep"])
            return scores.flatten(0, 1), batch["labels"].flatten()

    class Unmasked(Translation):
        """The source's padding is read."""

        def _scores(self, model, batch):
            return super()._scores(model, {**batch, "source_keep": torch.ones_like(batch["source_keep"])})

    class Smoothed(Translation):
        def measure(self, model, batch):
            return {**super().measure(model, batch), "loss": float(self.loss(model, batch).detach())}

    for planted in (Padded, Unmasked, Smoothed):
        with caught():
            check_loss(planted)


def check_future(causal):
    """A place's scores do not change with what the target has from there on."""
    task = task_of()
    batch = task.batch([(0, row) for row in (99, 0, 57)])
    before, labels = task._scores(task.model, batch)
    changed = batch["read"].clone()
    changed[:, 6:] = (changed[:, 6:] + 5) % 11 + 3
    after, _ = task._scores(task.model, {**batch, "read": changed})
    early = torch.arange(changed.shape[1]).expand_as(changed)[batch["keep"]] < 6
    assert len(labels) == len(early)
    assert float((before - after)[~early].detach().abs().max()) > 1e-3
    assert float((before - after)[early].detach().abs().max()) < 1e-12


def test_nothing_is_seen_of_the_future(monkeypatch):
    check_future(True)
    made = Ragged.__init__
    monkeypatch.setattr(Ragged, "__init__", lambda self, keep, *, causal: made(self, keep, causal=False))
    with caught():
        check_future(False)


def keep(grads, name, parameter):
    grads[name] = parameter.grad.clone()


@pytest.mark.parametrize("size", [8, 5])
def test_a_step_is_the_same_in_parts(tmp_path, size):
    """One of 32 rows, and 4 of 8; with parts of unequal size too."""
    steps = []
    for micro_batch in (0, size):
        task = task_of(smoothing=0.1)
        settings = Settings(steps=1, batch=32, micro_batch=micro_batch, clip=0.0, warmup=0)
        training = Run(task, settings, tmp_path)
        training.step = 1
        grads = {}
        for name, parameter in task.model.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(keep, grads, name))
        steps.append((training._train()["loss"], grads))
    assert steps[0][0] == pytest.approx(steps[1][0], abs=1e-12)
    assert len(steps[0][1]) == len([*task.model.parameters()]), "every parameter gets a gradient"
    for name, grad in steps[0][1].items():
        torch.testing.assert_close(grad, steps[1][1][name], atol=1e-9, rtol=0)
        assert float(grad.abs().max()) > 1e-9 or name.endswith(".kv.bias"), name


def test_one_batch_is_learnt_by_heart():
    task = task_of(pairs=PAIRS[::12], smoothing=0.0, scored=7)
    batch = task.batch([(0, row) for row in range(len(task.train))])
    optimizer = torch.optim.Adam(task.model.parameters(), lr=0.02, betas=(0.9, 0.98))
    task.model.train()
    for _ in range(200):
        loss = task.loss(task.model, batch) / task.targets(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01
    found = evaluate(task, torch.device("cpu"))
    assert found["exact"] == 1.0
    assert found["bleu"] == pytest.approx(100.0)
    assert found["accuracy"] == 1.0
    source, target = task.pairs[0]
    assert task.sample(task.model).startswith(f"{source}\n  {target}\n")


# --- settings


def test_the_rate_falls_with_the_square_root_of_the_steps():
    settings = Settings(steps=100, warmup=16, lr=2.0, schedule="noam")
    assert [learning_rate(step, settings) for step in (1, 8, 16)] == [0.125, 1.0, 2.0]
    assert learning_rate(64, settings) == pytest.approx(1.0)
    assert learning_rate(64, dataclasses.replace(settings, steps=7)) == pytest.approx(1.0), "whenever it ends"
    paper = [256**-0.5 * min(step**-0.5, step * 16**-1.5) for step in range(1, 100)]
    for step, rate in enumerate(paper, 1):
        assert learning_rate(step, settings) / 2.0 == pytest.approx(rate / paper[15])
    assert learning_rate(4, Settings(warmup=0, lr=2.0, schedule="noam")) == 1.0
    for wrong, expected in (({"schedule": "linear"}, "cosine or noam"), ({"schedule": "noam", "lr": -1}, "at least 0")):
        with pytest.raises(ValueError, match=expected):
            Settings(**wrong)
    with pytest.raises(ValueError, match=r"smoothing is 1\.0: expected less than 1"):
        TranslationSettings(smoothing=1.0)


def test_as_many_tokens_a_step_as_asked_for(data, tmp_path):
    records, _ = run_all(data, tmp_path / "run", tokens=400, steps=9)
    task = open_run(request(data, tmp_path / "again", tokens=400))[0].task
    sizes = [len(a) + len(b) for a, b in task.train]
    sampler, count = task.sampler(task.settings)
    for record in (record for record in records if "loss" in record):
        rows = [row for _, row in sampler.take(count)]
        assert record["targets"] == sum(len(task.train[row][1]) for row in rows)
        assert 200 < sum(sizes[row] for row in rows) <= 400 + 4 * max(sizes)
    plain = open_run(request(data, tmp_path / "plain", tokens=0, batch=13))[0]
    assert len(plain.sampler.take(plain.size)) == 13
    with pytest.raises(ValueError, match="batch=13 counts rows, and here tokens=200 does: set tokens=0 too"):
        open_run(request(data, tmp_path / "both", batch=13))


# --- runs


def test_a_run_leaves_what_it_promises(data, tmp_path):
    records, notes = run_all(data, tmp_path / "run")
    out, signature = tmp_path / "run", scoring.judge("BLEU", ["x"], ["x"])[1]
    assert notes == [f"BLEU: {signature}"]
    assert records[0]["bleu_signature"] == signature
    assert records[0]["trivial_loss"] > records[0]["unigram_loss"] > 0
    figures = [record for record in records if "valid_loss" in record]
    assert [record["step"] for record in figures] == [3, 6]
    for record in figures:
        assert {"valid_loss", "valid_accuracy", "valid_bleu", "valid_exact", "sample"} <= record.keys()
        assert math.isfinite(record["valid_bleu"])
        assert record["sample"].count("\n  not: ") <= translation.SHOWN
    said = json.loads((out / "config.json").read_text("utf-8"))
    assert (said["data"]["pairs"], said["valid"]["pairs"]) == (90, 10)
    model, tokenizer = sf.load(out / "model"), sf.load_tokenizer(out / "model")
    assert (model.generation.start, model.generation.end, model.generation.pad) == (1, (2,), 0)
    assert model.config.vocab == tokenizer.vocab
    assert model.config.target_vocab is None
    assert sf.Translator.from_pretrained(out / "model")("1 2 3").text is not None
    assert (out / "loss.png").is_file()


@pytest.mark.parametrize("joint", [True, False])
def test_a_bpe_is_learnt_from_the_pairs_to_train_on(data, tmp_path, joint):
    out = tmp_path / "run"
    opened, _ = open_run(request(data, out, tokenizer="bpe", vocab=280, joint=joint))
    list(opened)
    tokenizer, config = sf.load_tokenizer(out / "model"), sf.load(out / "model").config
    assert tokenizer.digest() == opened.task.tokenizer.digest()
    assert (config.vocab, config.target_vocab) == (tokenizer.vocab, None if joint else tokenizer.target.vocab)
    assert tokenizer.vocab <= 280
    assert (tokenizer.target is tokenizer) == joint
    ((source, target),) = encode_pairs(tokenizer, PAIRS[:1], limit=32, truncate=False)
    assert tokenizer.decode(target) == PAIRS[0][1] + "</s>"
    assert len(target) < len(PAIRS[0][1])
    assert source[-1] == 2
    as_preset = open_run(request(data, tmp_path / "other", tokenizer="bpe"))[0].task.tokenizer
    assert 280 < as_preset.vocab <= 512, "as the preset has it"


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path, stop, monkeypatch):
    """Over the ends of epochs, with dropout, an average and parts; from another folder, too."""
    halves = [write(tmp_path / f"half.{i}", "\n".join(each) + "\n") for i, each in enumerate(zip(*PAIRS))]
    given = {"steps": 9, "tokens": 900, "dropout": 0.2, "ema": 0.9, "micro_batch": 11, "schedule": "noam"}
    monkeypatch.chdir(tmp_path)
    run_all("half.0,half.1", tmp_path / "whole", **given)
    opened, _ = open_run(request("half.0,half.1", tmp_path / "run", **given))
    for record in opened:
        if record["step"] == stop and "loss" in record:
            break
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.manual_seed(stop)
    resumed, _ = open_run(Request("encoder-decoder", tmp_path / "run"), resume=True)
    assert resumed.step == (stop - 1) // 2 * 2, "a record comes before its step is saved"
    list(resumed)
    assert resumed.sampler.epoch > 0
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")
    halves[0].write_text("x\n" * len(PAIRS), "utf-8")
    with pytest.raises(ValueError, match=r"The data is not what the run in .* began with"):
        open_run(Request("encoder-decoder", tmp_path / "run"), resume=True)


def test_what_is_too_long_is_refused_or_cut(data, tmp_path):
    with pytest.raises(ValueError, match=r"has \d+ tokens and the model takes 9: .*--truncate"):
        open_run(request(data, tmp_path / "run", length=9))
    opened, notes = open_run(request(data, tmp_path / "run", length=9, truncate=True))
    assert max(len(ids) for pair in opened.task.train for ids in pair) == 9
    assert {ids[-1] for pair in opened.task.train for ids in pair} == {2}, "an end stands after what is cut, too"
    cut = sum(len(text) > 8 for pair in PAIRS for text in pair)
    assert f"The ends of {cut} texts were left out." in notes
    list(opened)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tokenizer": "wordpiece"}, "--tokenizer wordpiece is not for encoder-decoder: expected bpe"),
        ({"vocab": 99}, "--vocab 99 sizes a BPE made from your pairs: add --tokenizer bpe"),
        ({"target_vocab": 9}, "There is no setting 'target_vocab'"),
        ({"schedule": "linear"}, "schedule is 'linear': expected cosine or noam"),
        ({"joint": "perhaps"}, "joint=perhaps is no true or false"),
        ({"columns": {"source": "de"}}, "line 2, has no column 'de': it has 'source', 'target'"),
    ],
)
def test_what_does_not_fit_is_refused(data, tmp_path, given, expected):
    with pytest.raises(ValueError, match=expected):
        open_run(request(data, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="nothing to train on: pass --data FILE, or --data SOURCE,TARGET"):
        open_run(request(None, tmp_path / "run"))


def test_without_sacrebleu_there_is_no_bleu(data, tmp_path, monkeypatch, capsys):
    run_all(data, tmp_path / "with")
    for module in (translation, evaluation):
        monkeypatch.setattr(module, "can_score", lambda: False)
    records, notes = run_all(data, tmp_path / "run")
    assert notes == [scoring.MISSING]
    assert "valid_exact" in records[-1]
    assert "valid_bleu" not in records[-1]
    assert run_all(data, tmp_path / "none", scored=0)[1] == []
    code, out, error = run(capsys, "eval", "--model", tmp_path / "run" / "model", "--data", data)
    assert (code, error.strip()) == (0, f"scratchformers: {scoring.MISSING}")
    assert "exact" in out
    assert "bleu" not in out


# --- from a checkpoint


def test_tokenisers_that_were_exchanged_are_refused(data, tmp_path):
    """Of equal sizes, so that nothing else could tell."""
    out, sides = tmp_path / "run", ("tokenizer.json", "target_tokenizer.json")
    run_all(data, out, tokenizer="bpe", vocab=264, joint=False, steps=1)
    config, model = sf.load(out / "model").config, out / "model"
    assert config.vocab == config.target_vocab
    sf.Translator.from_pretrained(model)
    first, second = ((model / name).read_bytes() for name in sides)
    for name, content in zip(sides, (second, first)):
        (model / name).write_bytes(content)
    with pytest.raises(ValueError, match="not the one this model was trained with"):
        sf.Translator.from_pretrained(model)


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A small Marian whose two tokenisers spell our numbers, with a vocabulary of its own for each."""
    folder, contents, sizes = tmp_path_factory.mktemp("marian"), {}, []
    for name, texts, vocabulary in zip(("source", "target"), zip(*PAIRS), ("vocab.json", "target_vocab.json")):
        content = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 3), model_writer=content, vocab_size=23 if name == "source" else 30,
            minloglevel=2, hard_vocab_limit=False, model_type="bpe",
        )  # fmt: skip
        processor = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        pieces = ["</s>", "<unk>", *(piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")), "<pad>"]
        contents[f"{name}.spm"] = content.getvalue()
        contents[vocabulary] = json.dumps({piece: i for i, piece in enumerate(pieces)}).encode()
        sizes.append(len(pieces))
    contents["tokenizer_config.json"] = json.dumps({"separate_vocabs": True}).encode()
    torch.manual_seed(0)
    config = sf.EncoderDecoderConfig(
        vocab=sizes[0], target_vocab=sizes[1], length=32, dim=16, depth=1, heads=2, activation="silu",
        scale_embedding=True, **NORMS["marian"],
    )  # fmt: skip
    model = sf.EncoderDecoder(config)
    model.generation, model.assets = Generation(start=sizes[1] - 1, end=(0,), pad=sizes[1] - 1), contents
    model.save_pretrained(folder)
    return folder


def test_a_marian_is_fine_tuned(marian, data, tmp_path):
    records, _ = run_all(data, tmp_path / "run", source=marian, lr=0.01, steps=30, eval_every=30, save_every=30)
    opened, _ = open_run(request(data, tmp_path / "other", source=marian))
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.7 * losses[0]
    task, pad = opened.task, opened.task.model.config.target_vocab - 1
    assert task.batch([(0, 0)])["read"][0, 0] == pad, "a Marian's targets begin with padding"
    assert task.batch([(0, 0)])["labels"][0, -1] == 0
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text("utf-8"))
    assert saved["model_type"] == "marian"
    assert saved["decoder_start_token_id"] == pad
    for name in ("source.spm", "target.spm", "vocab.json", "target_vocab.json"):
        assert (tmp_path / "run" / "model" / name).read_bytes() == (marian / name).read_bytes()
    assert sf.load(tmp_path / "run" / "model").generation.start == pad
    list(open_run(Request("encoder-decoder", tmp_path / "run"), resume=True)[0])
    with pytest.raises(ValueError, match="--tokenizer bpe is not that of"):
        open_run(request(data, tmp_path / "x", source=marian, tokenizer="bpe"))
    with pytest.raises(ValueError, match="dim 16, not 32"):
        open_run(request(data, tmp_path / "x", source=marian, dim=32))


@pytest.mark.parametrize("forced", [None, 0])
def test_a_bart_is_fine_tuned(tmp_path, forced):
    """Targets begin with its end, as transformers' shifting has it, then with <s>, whether decoding forces that or not;
    what is learnt is read back with the rules and files it came with."""
    reference = encoder_decoder_reference.published(
        "bart", vocab_size=len(BART["vocab.json"]), decoder_start_token_id=2, eos_token_id=2, pad_token_id=1,
        bos_token_id=0,
    )  # fmt: skip
    reference.generation_config.update(forced_bos_token_id=forced, forced_eos_token_id=2)
    reference.float().save_pretrained(tmp_path / "bart")
    folder = save(tmp_path / "bart", BART)
    lines = [words for words in map(str.split, ENGLISH) if len(words) > 4][:60]
    pairs = [(" ".join(words[:5]), " ".join(words[2:5])) for words in lines]
    table = write(tmp_path / "pairs.tsv", "source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in pairs))
    given = {"source": folder, "lr": 0.01, "steps": 40, "eval_every": 40, "save_every": 40, "truncate": True}
    opened, _ = open_run(request(table, tmp_path / "run", **given))
    batch, records = opened.task.batch([(0, 0), (0, 1)]), list(opened)
    labels = batch["labels"].masked_fill(~batch["keep"], -100)
    assert batch["read"][batch["keep"]].equal(shift_tokens_right(labels, 1, 2)[batch["keep"]])
    assert batch["labels"][:, 0].tolist() == [0, 0]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.7 * losses[0]
    model = tmp_path / "run" / "model"
    assert (sf.load(model).generation.forced_start, sf.load(model).generation.forced_end) == (forced, (2,))
    assert {name: (model / name).read_bytes() for name in BART} == {name: (folder / name).read_bytes() for name in BART}
    theirs, ours = BartForConditionalGeneration.from_pretrained(model).eval(), sf.load(model)
    with torch.no_grad():
        scores = theirs(input_ids=batch["source"], attention_mask=batch["source_keep"], decoder_input_ids=batch["read"])
        found = ours(batch["source"], batch["read"], source_keep=batch["source_keep"], target_keep=batch["keep"])
    torch.testing.assert_close(found[batch["keep"]], scores.logits[batch["keep"]], rtol=1e-4, atol=1e-4)


def test_texts_of_another_language_are_refused(marian, tmp_path):
    strange = write(tmp_path / "strange.tsv", "source\ttarget\n" + "жжж жжж\tnull eins\n" * 9)
    with pytest.raises(ValueError, match=r"tokens of the sources 100\.00% have no id in this vocabulary: "):
        open_run(request(strange, tmp_path / "run", source=marian))
    some = write(tmp_path / "some.tsv", "source\ttarget\n" + "1 2 3 ж 1 2 3\tnull eins\n" * 9)
    assert any(
        "Of the tokens of the sources" in note for note in open_run(request(some, tmp_path / "r", source=marian))[1]
    )


def test_a_model_of_ours_is_gone_on_with(data, tmp_path):
    run_all(data, tmp_path / "first")
    source = tmp_path / "first" / "model"
    opened, _ = open_run(request(data, tmp_path / "second", source=source, dropout=0.3))
    before, after = sf.load(source).state_dict(), opened.task.model.state_dict()
    assert all(before[name].equal(after[name]) for name in before)
    assert opened.task.model.config.dropout == 0.3
    list(opened)
    gpt2 = sf.GPT2(sf.GPT2Config(vocab=11, length=9, dim=8, depth=1, heads=2))
    gpt2.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="EncoderDecoder reads"):
        open_run(request(data, tmp_path / "third", source=tmp_path / "gpt2"))
    model = sf.load(source)
    model.generation = Generation(end=(2,))
    model.save_pretrained(tmp_path / "startless")
    with pytest.raises(ValueError, match="does not say which id a target begins with"):
        open_run(request(data, tmp_path / "third", source=tmp_path / "startless"))


# --- the command line


def test_train_and_eval_by_the_command_line(capsys, data, tmp_path):
    out, settings = (
        tmp_path / "run",
        [f"--set={k}={v}" for k, v in {**SIZES, **SMALL, "steps": "40", "lr": "0.01"}.items()],
    )
    code, said, error = run(capsys, "train", "encoder-decoder", "--data", data, "--out", out, *settings, "--truncate")
    assert (code, error) == (0, "")
    assert "BLEU: nrefs:1" in said
    assert "Best validation loss" in said
    figures = {}
    for beams in ("1", "3"):
        command = ("eval", "--model", out / "model", "--data", data, "--beams", beams, "--json")
        code, said, error = run(capsys, *command)
        assert (code, error) == (0, "")
        figures[beams] = json.loads(said)
        assert figures[beams]["task"] == "translate"
        assert figures[beams]["sentences"] == len(PAIRS)
        assert figures[beams]["bleu_signature"].startswith("nrefs:1|case:mixed")
        assert figures[beams]["chrf_signature"].startswith("nrefs:1|case:mixed")
    assert figures["1"] != figures["3"]
    translator = sf.Translator.from_pretrained(out / "model")
    answers = [found.text for found in translator([source for source, _ in PAIRS])]
    expected = [scoring.judge(name, answers, [target for _, target in PAIRS])[0] for name in ("BLEU", "CHRF")]
    assert [figures["1"]["bleu"], figures["1"]["chrf"]] == expected
    assert figures["1"]["exact"] == scoring.exact(answers, [target for _, target in PAIRS])
    code, said, _ = run(capsys, "eval", "--model", out / "model", "--data", data, "--task", "translate")
    assert code == 0
    assert "bleu signature" in said
    assert "leave it out for classify" in refused(
        capsys, "eval", "--model", out / "model", "--data", data, "--task", "classify", "--beams", "2"
    )
    assert "which was not made for text" in refused(
        capsys, "eval", "--model", out / "model", "--data", data, "--task", "text"
    )
    swapped = ("--column", "source=target", "--column", "target=source")
    assert "has no id for" in refused(
        capsys, "eval", "--model", out / "model", "--data", write(tmp_path / "x.tsv", "source\ttarget\nЖ Ж\tx\n")
    )
    assert run(capsys, "eval", "--model", out / "model", "--data", data, *swapped)[0] == 0


def test_exact_is_letter_for_letter():
    assert scoring.exact(["a", " b ", "C"], ["a", "b", "c"]) == pytest.approx(2 / 3)
    assert scoring.judge("BLEU", ["a b c d e"], ["a b c d e"])[0] == pytest.approx(100)
    assert scoring.judge("CHRF", ["abc"], ["xyz"])[0] == 0
