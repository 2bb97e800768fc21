"""The loop: what it promises about data, losses, state and files. Killed processes are in test_resume.py."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import scratchformers as sf
from scratchformers.text import characters
from scratchformers.training import log, state
from scratchformers.training.data import Sampler, Windows, to_stream
from scratchformers.training.documents import read_texts
from scratchformers.training.language import NextToken
from scratchformers.training.loop import Run, Settings, Task, evaluate, learning_rate, make_optimizer
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(12) for j in range(12))
SMALL = {"steps": "6", "batch": "4", "length": "16", "dim": "16", "depth": "1", "heads": "2", "eval_every": "3"}
SMALL |= {"save_every": "2", "warmup": "2", "threads": "1"}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def request(data, out, **given):
    return Request("gpt2", out, data, given={**SMALL, **{name: str(value) for name, value in given.items()}})


def run_all(data, out, *, resume=False, **given):
    run, notes = open_run(request(data, out, **given), resume=resume)
    return list(run), notes


def losses(out):
    return [(r["step"], r["loss"]) for r in log.read(out / "log.jsonl") if "loss" in r]


# --- data


def test_every_row_once_an_epoch_and_the_order_changes():
    sampler = Sampler(11, seed=0)
    epochs = [sampler.take(11) for _ in range(3)]
    for i, epoch in enumerate(epochs):
        assert sorted(epoch) == [(i, row) for row in range(11)]
    assert [row for _, row in epochs[0]] != [row for _, row in epochs[1]]
    assert Sampler(11, seed=1).take(11) != epochs[0]


def test_a_restored_sampler_goes_on_at_any_point():
    sampler = Sampler(7, seed=3)
    everything = sampler.take(30)
    for seen in range(30):
        first = Sampler(7, seed=3)
        assert first.take(seen) == everything[:seen]
        second = Sampler(7, seed=3)
        second.restore(json.loads(json.dumps(first.state())))
        assert second.take(30 - seen) == everything[seen:]


@pytest.mark.parametrize("count", [9, 10, 16, 17, 18, 100])
def test_windows_stay_inside_and_targets_are_the_next_tokens(count):
    windows = Windows(torch.arange(count, dtype=torch.int32), 8, seed=0)
    seen = set()
    for epoch in range(200):
        for row in range(windows.rows):
            window = windows[epoch, row]
            assert window.shape == (9,)
            assert torch.equal(window[1:], window[:-1] + 1)
            seen |= {*window.tolist()}
    assert seen == set(range(count)), "over the epochs every token is learnt from"


def test_texts_of_a_folder_are_joined_by_an_end_token(tmp_path):
    for name, text in (("b.txt", "two"), ("a.txt", "one"), ("empty.txt", ""), ("c.md", "no")):
        (tmp_path / name).write_text(text)
    texts = read_texts(tmp_path)
    assert list(texts) == list(texts) == ["one", "two"]
    tokenizer = characters(texts, end=True)
    assert tokenizer.decode(to_stream(texts, tokenizer).tolist()) == "one<|endoftext|>two"
    assert to_stream(["one"], characters(["one"])).tolist() == [2, 1, 0]


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo".encode())
    assert list(read_texts(tmp_path / "a.txt")) == ["one\ntwo"]


# --- one step


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    settings = Settings(steps=110, warmup=10, lr=1.0, lr_end=0.1)
    rates = [learning_rate(step, settings) for step in range(1, 111)]
    assert rates[:10] == [i / 10 for i in range(1, 11)]
    assert rates[59] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert learning_rate(1, Settings(warmup=0)) > 0


def test_only_matrices_decay():
    model = sf.GPT2(sf.GPT2Config(vocab=11, length=5, dim=8, depth=1, heads=2))
    decayed, not_decayed = make_optimizer(model, Settings()).param_groups
    assert decayed["weight_decay"] > 0
    assert not_decayed["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in not_decayed["params"])
    assert len(decayed["params"]) + len(not_decayed["params"]) == len(list(model.parameters()))


def test_the_optimiser_is_fused_on_every_device_that_is_picked():
    from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

    assert {"cpu", "cuda", "mps"} <= set(_get_fused_kernels_supported_devices())
    model = sf.GPT2(sf.GPT2Config(vocab=11, length=5, dim=8, depth=1, heads=2))
    assert make_optimizer(model, Settings()).defaults["fused"]
    assert Settings().autocast == "off"


class Ragged(Task):
    """Rows of unequal length, so that averaging the means of micro-batches would be wrong."""

    rows, trivial, unit = 5, 1.0, "token"

    def __init__(self):
        torch.manual_seed(0)
        self.model = sf.GPT2(sf.GPT2Config(vocab=11, length=9, dim=8, depth=1, heads=2, dropout=0.0)).double()
        self.data = [torch.randint(11, (length + 1,)) for length in (1, 9, 2, 7, 3)]

    def batch(self, examples):
        rows = [self.data[row] for _, row in examples]
        length = max(map(len, rows))
        padded = torch.stack([F.pad(row, (0, length - len(row)), value=-100) for row in rows])
        return {"ids": padded[:, :-1].clamp(min=0), "targets": padded[:, 1:], "keep": padded[:, :-1] >= 0}

    def targets(self, batch):
        return int((batch["targets"] >= 0).sum())

    def loss(self, model, batch):
        logits = model(batch["ids"], keep=batch["keep"]).flatten(0, 1)
        return F.cross_entropy(logits, batch["targets"].flatten(), ignore_index=-100, reduction="sum")

    def valid(self):
        return iter([])

    def sample(self, model):
        return ""


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_accumulation_divides_by_all_targets_of_the_step(tmp_path, micro_batch):
    """The mean of the means differs: shown, and that the loop gives the one whole batch gives."""
    settings = Settings(steps=1, batch=5, clip=0.0, lr=1e-3, warmup=0)
    steps = []
    for size in (0, micro_batch):
        task = Ragged()
        run = Run(task, dataclasses.replace(settings, micro_batch=size), tmp_path)
        run.step = 1
        record = run._train()
        steps.append((record["loss"], record["grad_norm"], [p.detach().clone() for p in task.model.parameters()]))
    assert steps[0][0] == pytest.approx(steps[1][0], abs=1e-12)
    assert steps[0][1] == pytest.approx(steps[1][1], abs=1e-9)
    for a, b in zip(steps[0][2], steps[1][2]):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    task = Ragged()
    parts = [task.batch([(0, row)]) for row in range(5)]
    means = [float(task.loss(task.model, part).detach()) / task.targets(part) for part in parts]
    assert abs(sum(means) / 5 - steps[0][0]) > 1e-3


def test_the_gradient_is_clipped(tmp_path):
    updates = []
    for clip in (0.0, 1e-9):
        task = Ragged()
        run = Run(task, Settings(steps=1, batch=5, clip=clip, lr=1e-3, warmup=0, weight_decay=0.0), tmp_path)
        run.step, before = 1, task.model.token.weight.detach().clone()
        assert run._train()["grad_norm"] > 1e-3, "the norm before clipping is logged"
        updates.append(float((task.model.token.weight - before).detach().abs().mean()))
    assert updates[1] < 0.5 * updates[0]


def test_a_loss_that_is_no_number_stops_with_a_sentence(data, tmp_path):
    run, _ = open_run(request(data, tmp_path / "run"))
    with torch.no_grad():
        run.task.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"loss is nan .* at step 1: try a lower lr"):
        list(run)


def test_validation_counts_each_target_once(tmp_path):
    torch.manual_seed(0)
    tokenizer = characters(["abcdefgh"])
    model = sf.GPT2(sf.GPT2Config(vocab=8, length=8, dim=8, depth=1, heads=2, dropout=0.5)).double()
    stream = torch.randint(8, (8 * 5 + 4,), dtype=torch.int32)
    task = NextToken(model, tokenizer, stream, stream, Settings(batch=3))
    assert sum(task.targets(batch) for batch in task.valid()) == len(stream) - 1
    model.eval()
    total = 0.0
    for start in range(0, len(stream) - 1, 8):
        window = stream[start : start + 9].long()
        total += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum").detach())
    model.train()
    assert evaluate(task, torch.device("cpu"))["loss"] == pytest.approx(total / (len(stream) - 1), abs=1e-6)
    assert model.training


# --- a run


def test_a_run_leaves_what_it_promises(data, tmp_path):
    out = tmp_path / "run"
    records, notes = run_all(data, out)
    assert notes == []
    assert {path.name for path in out.iterdir()} == {"config.json", "log.jsonl", "loss.png", "checkpoints", "model"}
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-4", "step-6"], "the newest two"
    assert log.read(out / "log.jsonl") == records
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "valid_loss" in r] == [3, 6]
    assert records[0]["trivial_loss"] == pytest.approx(math.log(len(set(TEXT))))
    assert records[0]["loss"] == pytest.approx(records[0]["trivial_loss"], abs=0.1)
    facts = json.loads((out / "config.json").read_text())
    assert facts["settings"]["steps"] == 6
    assert facts["settings"]["threads"] == 1
    assert facts["tokenizer"]["vocab"] == len(set(TEXT))
    assert facts["data"]["tokens"] == len(TEXT) * 9 // 10
    completion = sf.Completer.from_pretrained(out / "model")("1 times", max_new_tokens=5)
    assert len(completion.text) == len(completion.ids) == 5
    assert completion.reason == "length"


def test_the_saved_model_is_the_best_by_validation(data, tmp_path, monkeypatch):
    """Three evaluations, the second of them the best: its weights are the ones kept."""
    from scratchformers.training import loop

    given, weights = iter([3.0, 1.0, 2.0]), []

    def fake(task, device, *, autocast):
        weights.append(task.model.token.weight.detach().clone())
        return {"loss": next(given)}

    monkeypatch.setattr(loop, "evaluate", fake)
    records, _ = run_all(data, tmp_path / "run", eval_every=2)
    assert [r["best"] for r in records if "valid_loss" in r] == [True, True, False]
    assert torch.equal(sf.load(tmp_path / "run" / "model").token.weight, weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_checkpoint_names_its_tensors_flatly(data, tmp_path):
    run_all(data, tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "checkpoints" / "step-6" / "state.safetensors")
    names = {name.partition(".")[0] for name in tensors}
    assert names == {"model", "optimizer", "random"}
    parameter = "blocks.0.attention.kv.weight"
    for key in (f"model.{parameter}", f"optimizer.{parameter}.exp_avg", f"optimizer.{parameter}.exp_avg_sq"):
        assert tensors[key].shape == (32, 16)
    assert tensors[f"optimizer.{parameter}.step"] == 6
    rest = json.loads((tmp_path / "run" / "checkpoints" / "step-6" / "state.json").read_text())
    assert rest["step"] == 6
    assert rest["data"].keys() == {"epoch", "seen"}
    assert rest["schedule"]["lr"] > 0


@pytest.mark.parametrize("stop", range(1, 6))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path, stop, dropout):
    whole = run_all(data, tmp_path / "whole", dropout=dropout)[0]
    run, _ = open_run(request(data, tmp_path / "cut", dropout=dropout))
    for record in run:
        if record["step"] > stop:
            break
    torch.manual_seed(99)  # what another process would have done to the global generator
    _, notes = run_all(data, tmp_path / "cut", resume=True, dropout=dropout)
    assert notes == ([f"Resuming at step {stop // 2 * 2} of 6."] if stop > 1 else notes)
    assert stop > 1 or "no complete checkpoint: starting anew" in notes[0]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    wanted = [(r["step"], r["valid_loss"]) for r in whole if "valid_loss" in r]
    assert [
        (r["step"], r["valid_loss"]) for r in log.read(tmp_path / "cut" / "log.jsonl") if "valid_loss" in r
    ] == wanted
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_damaged_newest_checkpoint_is_passed_over(data, tmp_path):
    run_all(data, tmp_path / "whole")
    run, _ = open_run(request(data, tmp_path / "cut"))
    for record in run:
        if record["step"] == 5:
            break
    file = tmp_path / "cut" / "checkpoints" / "step-4" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    _, notes = run_all(data, tmp_path / "cut", resume=True)
    assert notes[-1] == "Resuming at step 2 of 6."
    assert "step-4 is damaged, and passed over" in notes[0]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_resuming_a_finished_run_says_so_and_changes_nothing(data, tmp_path):
    run_all(data, tmp_path / "run")
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    run, notes = open_run(request(data, tmp_path / "run"), resume=True)
    assert run.finished
    assert "is finished (6 steps)" in notes[0]
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def test_what_a_killed_process_left_half_written_is_removed(data, tmp_path):
    run, _ = open_run(request(data, tmp_path / "run"))
    for record in run:
        if record["step"] == 4:
            break
    half = tmp_path / "run" / "checkpoints" / ".step-5.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    (tmp_path / "run" / "model" / ".model.safetensors.abc.tmp").write_bytes(b"half")
    run_all(data, tmp_path / "run", resume=True)
    assert not [*(tmp_path / "run").rglob("*.tmp")]


def test_resuming_where_nothing_was_begun_begins_and_says_so(data, tmp_path):
    records, notes = run_all(data, tmp_path / "new", resume=True)
    assert "no complete checkpoint: starting anew" in notes[0]
    assert records[-1]["step"] == 6


def test_resuming_needs_only_the_folder(data, tmp_path):
    run, _ = open_run(request(data, tmp_path / "run"))
    for record in run:
        if record["step"] == 4:
            break
    run, _ = open_run(Request("gpt2", tmp_path / "run"), resume=True)
    list(run)
    run_all(data, tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_log_is_cut_to_the_checkpoint_and_a_torn_line_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo', encoding="utf-8")
    assert [r["step"] for r in log.read(path)] == [1, 2, 3]
    opened = log.Log(path, after=2)
    opened.write({"step": 3, "text": "größer\u2028"})
    opened.close()
    assert log.read(path) == [{"step": 1}, {"step": 2}, {"step": 3, "text": "größer\u2028"}]


def test_a_half_written_checkpoint_is_not_seen(data, tmp_path):
    run_all(data, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".step-8.tmp").mkdir()
    (folder / "step-9x").mkdir()
    found = state.newest(folder, {"best"})
    assert found is not None
    assert found[0]["step"] == 6


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_autocast_trains_over_float32_weights(data, tmp_path, autocast):
    records, _ = run_all(data, tmp_path / "run", autocast=autocast, steps=3)
    assert all(math.isfinite(r["loss"]) for r in records if "loss" in r)
    tensors = load_file(tmp_path / "run" / "checkpoints" / "step-3" / "state.safetensors")
    assert all(v.dtype == torch.float32 for name, v in tensors.items() if name.startswith(("model.", "optimizer.")))


# --- what is refused, before anything is written


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stepz": 3}, "no setting 'stepz': expected one of autocast, batch"),
        ({"vocab": 3}, "no setting 'vocab'"),
        ({"steps": "many"}, "steps=many is no whole number"),
        ({"lr": "fast"}, "lr=fast is no number"),
        ({"steps": 0}, "steps is 0: expected at least 1"),
        ({"lr": -1}, "lr is -1.0"),
        ({"lr": "nan"}, "lr is nan"),
        ({"beta2": 1}, "beta2 is 1.0"),
        ({"autocast": "int8"}, "autocast is 'int8': expected off, bf16 or fp16"),
        ({"heads": 5}, "5 heads do not divide a width of 16"),
        ({"dim": 0}, "dim is 0"),
        ({"dropout": 1}, "dropout is 1.0"),
        ({"length": 5000}, "one window takes 5000"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_nothing_is_written(data, tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        open_run(request(data, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no text"),
        (b"abc \xff def", "not UTF-8 .byte 4 is 0xff.: convert it"),
        (b"\xff\xfea\x00", "not UTF-8"),
        (b"short", "The text to train on has 4 tokens and one window takes 16"),
        (b"a" * 17, "one window takes 16"),
    ],
)
def test_texts_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, content, said):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        open_run(request(tmp_path / "text.txt", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_run(request(tmp_path / "nowhere.txt", tmp_path / "run"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="holds no text"):
        open_run(request(tmp_path / "folder", tmp_path / "run"))
    with pytest.raises(ValueError, match="pass --data"):
        open_run(Request("gpt2", tmp_path / "run"))


def test_an_out_that_holds_something_else_is_left_alone(data, tmp_path):
    out = tmp_path / "run"
    run_all(data, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match="holds another run: choose another --out, pass --resume to go on with it, or delete it"
    ):
        open_run(request(data, out))
    with pytest.raises(ValueError, match="has steps 6, not 7"):
        open_run(request(data, out, steps=7), resume=True)
    with pytest.raises(ValueError, match="has preset tiny, not mini"):
        open_run(dataclasses.replace(request(data, out), preset="mini"), resume=True)
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "more")
    with pytest.raises(ValueError, match="The data is not what the run in"):
        open_run(request(other, out), resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        open_run(request(data, tmp_path / "mine"))
    with pytest.raises(ValueError, match="is a file"):
        open_run(request(data, data))


# --- the arithmetic of a step


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_steps_are_adamw_by_hand_under_the_schedule(tmp_path, clip):
    """Loshchilov and Hutter 2019, algorithm 2, written out: betas, decay, bias correction, clipping, learning rate."""
    settings = Settings(
        steps=3, batch=5, lr=0.01, lr_end=0.2, warmup=2, weight_decay=0.3, beta1=0.8, beta2=0.9, clip=clip
    )
    task, twin = Ragged(), Ragged()
    run = Run(task, settings, tmp_path)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in twin.model.named_parameters()}
    sampler = Sampler(5, seed=0)
    for step in (1, 2, 3):
        run.step = step
        assert run._train()["lr"] == learning_rate(step, settings)
        batch = twin.batch(sampler.take(5))
        twin.model.zero_grad()
        (twin.loss(twin.model, batch) / twin.targets(batch)).backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in twin.model.parameters()))
        scale = min(1.0, clip / (float(norm) + 1e-6)) if clip else 1.0
        rate = learning_rate(step, settings)
        with torch.no_grad():
            for name, p in twin.model.named_parameters():
                first, second = moments[name]
                first.mul_(0.8).add_(0.2 * scale * p.grad)
                second.mul_(0.9).add_(0.1 * (scale * p.grad) ** 2)
                p.mul_(1 - rate * (0.3 if p.ndim == 2 else 0.0))
                p.sub_(rate * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8))
    for a, b in zip(task.model.parameters(), twin.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_defaults_are_the_ones_stated():
    settings = Settings()
    assert (settings.lr_end, settings.weight_decay, settings.clip, settings.beta1, settings.beta2) == (
        0.1,
        0.1,
        1.0,
        0.9,
        0.99,
    )


def test_autocast_computes_in_the_other_type(data, tmp_path):
    run, _ = open_run(request(data, tmp_path / "run", autocast="bf16"))
    seen = []
    run.task.model.blocks[0].mlp.up.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    next(iter(run))
    assert seen == [torch.bfloat16]


def test_fp16_is_resumed_with_its_scale(data, tmp_path):
    run_all(data, tmp_path / "whole", autocast="fp16")
    run, _ = open_run(request(data, tmp_path / "cut", autocast="fp16"))
    for record in run:
        if record["step"] == 5:
            break
    saved = json.loads((tmp_path / "cut" / "checkpoints" / "step-4" / "state.json").read_text(encoding="utf-8"))
    assert saved["scaler"]["scale"] > 1
    again, _ = open_run(request(data, tmp_path / "cut", autocast="fp16"), resume=True)
    assert again.scaler.state_dict() == saved["scaler"]
    list(again)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_the_sample_continues_held_out_text_by_the_same_draw(data, tmp_path):
    run, _ = open_run(request(data, tmp_path / "run"))
    task = run.task
    before = torch.get_rng_state()
    first = task.sample(task.model)
    assert first == task.sample(task.model)
    assert torch.equal(torch.get_rng_state(), before), "training draws on as if nobody had looked"
    assert first.startswith(TEXT[len(TEXT) * 9 // 10 :][:4])


def test_validation_of_a_long_text_is_spread_evenly(monkeypatch):
    monkeypatch.setattr(NextToken, "most", 4)
    model = sf.GPT2(sf.GPT2Config(vocab=1000, length=10, dim=8, depth=1, heads=2))
    stream = torch.arange(401, dtype=torch.int32)
    task = NextToken(model, characters(["a"]), stream, stream, Settings(batch=3))
    assert [int(row[0]) for batch in task.valid() for row in batch["ids"]] == [0, 100, 200, 300]
