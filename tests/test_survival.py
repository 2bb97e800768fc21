"""Every model killed at chosen moments, stopped by signals, with full disks and read-only folders: real processes,
forked by benchmarks/survival.py's nursery; and the faults a run survives by itself."""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import survival
import torch
from test_cli import run as program
from test_training import SMALL, TEXT, Ragged, data, losses, request, run_all  # noqa: F401 (a fixture)

import scratchformers as sf
from scratchformers.checkpoints import files
from scratchformers.text import train_bpe
from scratchformers.training import faults, log, loop, state
from scratchformers.training.loop import Run, Settings
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

# --- processes


@pytest.fixture(scope="module")
def whole(nursery, paths, tmp_path_factory):
    """The folder of a run of each model that nothing happened to."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / name
            status, said = nursery.run(command(name, paths, made[name]))
            assert status == 0, said
        return made[name]

    return of


def command(name, paths, out, **changed):
    return survival.command(name, paths[survival.RUNS[name][0]], out, **changed)


def wait_for(condition, child):
    end = time.monotonic() + 120
    while not condition():
        assert not child.ended(), child.wait()
        assert time.monotonic() < end
        time.sleep(0.001)


def steps(out):
    path = out / "log.jsonl"
    return path.read_text("utf-8").count('"loss"') if path.is_file() else 0


def check_survives(nursery, paths, out, whole, name):
    """Killed before its first checkpoint, while one is written, and late; then to its end."""
    saving = out / "checkpoints"
    for reached in (
        lambda: steps(out) >= 3,
        lambda: any(saving.glob(".step-*")) or steps(out) >= 12,
        lambda: steps(out) >= 17,
    ):
        child = nursery.start(command(name, paths, out))
        wait_for(reached, child)
        time.sleep(random.random() * 0.01)
        child.send(signal.SIGKILL)
        assert child.wait()[0] == -signal.SIGKILL
    status, said = nursery.run(command(name, paths, out))
    assert status == 0, said
    assert "Resuming at step" in said
    assert survival.lost(whole, out) == []
    assert survival.same(whole, out)


@pytest.mark.unhooked
@pytest.mark.parametrize("name", survival.RUNS)
def test_killed_and_resumed_is_the_uninterrupted_run(nursery, paths, whole, tmp_path, name):
    check_survives(nursery, paths, tmp_path / "run", whole(name), name)


@pytest.mark.unhooked
@pytest.mark.parametrize(("name", "number"), [("vit", signal.SIGINT), ("encoder-decoder", signal.SIGTERM)])
def test_a_signal_saves_and_leaves_and_nothing_is_lost(nursery, paths, whole, tmp_path, name, number):
    out = tmp_path / "run"
    child = nursery.start(command(name, paths, out))
    wait_for(lambda: steps(out) >= 6, child)
    child.send(number)
    status, said = child.wait()
    done = steps(out)
    assert status == 128 + number
    assert "saving after this step" in said
    assert f"Stopped at step {done} of {survival.STEPS}, and saved: `scratchformers train {name}" in said
    assert (out / "checkpoints" / f"step-{done}").is_dir()
    status, said = nursery.run(command(name, paths, out))
    assert (status, f"Resuming at step {done} of" in said) == (0, True)
    assert survival.same(whole(name), out)


@pytest.mark.unhooked
def test_a_second_signal_leaves_at_once(nursery, paths, tmp_path):
    """Within a step that takes long."""
    out = tmp_path / "run"
    child = nursery.start(command("gpt2", paths, out, batch=13000, autocast="off"))
    wait_for((out / "log.jsonl").is_file, child)
    child.send(signal.SIGINT)
    wait_for(lambda: "once more" in child.said.read_text("utf-8"), child)
    child.send(signal.SIGINT)
    status, said = child.wait()
    assert status == 130
    assert "left without saving" in said
    assert "goes on from the last checkpoint" in said
    assert steps(out) == 0
    assert not (out / "checkpoints").exists()


@pytest.mark.unhooked
def test_a_file_that_may_grow_no_more_ends_in_a_sentence_and_the_run_goes_on(nursery, paths, whole, tmp_path):
    """A limit of the system on the size of files, which refuses to write as a full disk does."""
    out, limited = tmp_path / "run", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    status, said = nursery.run(command("gpt2", paths, out), first=limited)
    assert status == 2, said
    assert f"scratchformers: {out} takes no more (" in said
    assert "make room or let it be written to, and --resume goes on from the beginning." in said
    assert "Traceback" not in said
    assert not [*out.rglob("*.tmp")], "what was half written took the room of what comes"
    assert nursery.run(command("gpt2", paths, out))[0] == 0
    assert survival.same(whole("gpt2"), out)


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes, held by a process in a namespace of its own, which needs no root; None where the
    system lets nobody have one, and where it is not Linux."""
    words = 'mount -t tmpfs -o size="$1" none "$0" && echo mounted && exec cat'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", words, folder, str(size)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    try:
        holder = subprocess.Popen(words, text=True, encoding="utf-8", **pipes)
    except FileNotFoundError:
        yield None
        return
    with holder:  # until its stdin is closed, and with it the file system is gone
        yield Path(f"/proc/{holder.pid}/root{folder}") if holder.stdout.readline() else None


def room(paths):
    """The bytes they take of such a file system, in whole pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(-(-path.stat().st_size // page) * page for path in paths)


LIMITED = """
import resource
from scratchformers.training import state
saving = state.saving
def limited(folder, step, *rest, **more):
    if step > 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    return saving(folder, step, *rest, **more)
state.saving = limited
"""  # a child's: from its second checkpoint on files may not grow, which is refused as a full disk refuses


@pytest.mark.unhooked
@pytest.mark.parametrize("how", ["a file system", "a limit"])
def test_a_disk_with_room_for_one_checkpoint_keeps_it_and_the_run_goes_on(nursery, paths, whole, tmp_path, how):
    """A real file system that is nearly full, where the system lets one have it; else files that may not grow."""
    made = whole("gpt2")
    one, besides = room(made.glob("checkpoints/step-20/*")), room([*made.glob("model/*"), *made.glob("*.*")])
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 2**23) as disk:
        real = disk is not None and how == "a file system"
        out, others = (disk if real else tmp_path) / "run", (disk if real else tmp_path) / "others"
        others.write_bytes(bytes(2**23 - besides - one * 3 // 2 if real else 1))
        status, said = nursery.run(command("gpt2", paths, out), first="" if real else LIMITED)
        assert status == 2, said
        assert f"scratchformers: {out} takes no more (" in said
        assert ("No space left on device" in said) == real
        assert "make room or let it be written to, and --resume goes on from step 5." in said
        assert "Traceback" not in said
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-5"]
        assert not [*out.rglob("*.tmp")], "what was half written took the room of what comes"
        others.unlink()
        status, said = nursery.run(command("gpt2", paths, out))
        assert (status, "Resuming at step 5 of" in said) == (0, True), said
        assert survival.same(made, out)


@pytest.mark.unhooked
def test_a_folder_that_is_read_only_is_said_before_anything_is_read(nursery, paths):
    anyone = "import os; os.geteuid() or os.setuid(65534)"  # root writes everywhere
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        status, said = nursery.run(command("gpt2", paths, Path(folder) / "new" / "run"), first=anyone)
        os.chmod(folder, 0o755)
    assert status == 2, said
    assert f"{folder} is read-only: choose another --out, or let it be written to." in said


# --- what is kept


def interrupted(out, text, step, **given):
    """A run that was dropped when it had logged this step."""
    opened, _ = open_run(request(text, out, **given))
    for record in opened:
        if record["step"] == step:
            break
    return opened


def test_so_many_checkpoints_are_kept_and_that_of_the_best(data, tmp_path, monkeypatch):  # noqa: F811
    given = iter([3.0, 1.0, 2.0, 2.5, 1.5, 4.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"loss": next(given)})
    run_all(data, tmp_path / "run", steps=6, eval_every=1, save_every=1, keep=3, keep_best="true")
    assert state.steps(tmp_path / "run" / "checkpoints") == [2, 4, 5, 6]


def test_the_best_is_saved_when_it_is_found_and_known_after_a_stop(data, tmp_path, monkeypatch):  # noqa: F811
    given = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"loss": next(given)})
    asked = {"steps": 10, "eval_every": 2, "save_every": 3, "keep": 1, "keep_best": "true"}
    interrupted(tmp_path / "run", data, 7, **asked)
    assert state.steps(tmp_path / "run" / "checkpoints") == [4, 6]
    run_all(data, tmp_path / "run", resume=True, **asked)
    assert state.steps(tmp_path / "run" / "checkpoints") == [4, 10]


def test_how_it_is_kept_may_change_and_what_it_learns_may_not(data, tmp_path):  # noqa: F811
    run_all(data, tmp_path / "whole")
    interrupted(tmp_path / "cut", data, 3)
    opened, notes = open_run(request(data, tmp_path / "cut", keep=5, micro_batch=2), resume=True)
    assert notes == ["Resuming at step 2 of 6.", "micro_batch is 2, not 0: losses may differ in the last digits."]
    list(opened)
    assert state.steps(tmp_path / "cut" / "checkpoints") == [2, 4, 6]
    facts = files.read_json(tmp_path / "cut" / "config.json")
    assert facts["settings"]["micro_batch"] == 2
    assert facts["before"] == [{"step": 2, "settings": {"keep": 2, "micro_batch": 0}}]
    for (_, a), (_, b) in zip(losses(tmp_path / "cut"), losses(tmp_path / "whole")):
        assert a == pytest.approx(b, rel=1e-5)
    with pytest.raises(ValueError, match="has lr"):
        open_run(request(data, tmp_path / "cut", lr=0.5), resume=True)


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_run_that_is_told_to_stop_saves_where_it_is(data, tmp_path, stop):  # noqa: F811
    run_all(data, tmp_path / "whole", dropout=0.3)
    opened, _ = open_run(request(data, tmp_path / "cut", dropout=0.3))
    for record in opened:
        if record["step"] == stop:
            opened.stop()
    assert opened.step == stop
    assert state.steps(tmp_path / "cut" / "checkpoints")[-1] == stop
    _, notes = run_all(data, tmp_path / "cut", resume=True, dropout=0.3)
    assert notes == [f"Resuming at step {stop} of 6."]
    assert survival.logged(tmp_path / "cut") == survival.logged(tmp_path / "whole")


# --- damage


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


def check_damage(text, place, harm):
    """Whatever is done to the newest checkpoint, the one before is used, and said so."""
    interrupted(place, text, 5)
    newest = place / "checkpoints" / "step-4"
    harm(newest)
    _, notes = run_all(text, place, resume=True)
    assert notes[0].startswith(f"{newest} is damaged, and passed over: ")
    assert notes[1:] == ["Resuming at step 2 of 6."]


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        *((file, "a bit") for file in (state.TENSORS, state.REST, state.DIGESTS)),
        *((state.TENSORS, "the end"), (state.TENSORS, "the file"), (state.REST, "all"), (state.DIGESTS, "all")),
    ],
)
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used(data, tmp_path, file, harm):  # noqa: F811
    def done(newest):
        path = newest / file
        if harm == "a bit":
            flipped(path, random.randrange(10**6))
        elif harm == "the file":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-3] if harm == "the end" else b"")

    run_all(data, tmp_path / "whole")
    check_damage(data, tmp_path / "cut", done)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_flipped_bit_would_not_be_found_without_the_digest(data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(state, "_digest", lambda path: "the same")
    with pytest.raises(AssertionError):
        check_damage(data, tmp_path / "cut", lambda newest: flipped(newest / state.TENSORS, -8))


def test_a_checkpoint_of_before_there_were_digests_is_used(data, tmp_path):  # noqa: F811
    run_all(data, tmp_path / "whole")
    interrupted(tmp_path / "cut", data, 5)
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        (path / state.DIGESTS).unlink()
        rest = files.read_json(path / state.REST)
        files.write_json(path / state.REST, {key: rest[key] for key in ("step", *loop.STATE)})
    assert run_all(data, tmp_path / "cut", resume=True)[1] == ["Resuming at step 4 of 6."]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_where_all_are_damaged_each_is_said(data, tmp_path):  # noqa: F811
    interrupted(tmp_path / "run", data, 5)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        flipped(path / state.TENSORS, 1000)
    notes = open_run(request(data, tmp_path / "run"), resume=True)[1]
    assert ["passed over" in note for note in notes] == [True, True, False]
    assert "no complete checkpoint: starting anew" in notes[2]


def test_a_damaged_later_checkpoint_is_gone_after_the_next_one(data, tmp_path):  # noqa: F811
    interrupted(tmp_path / "run", data, 5)
    flipped(tmp_path / "run" / "checkpoints" / "step-4" / state.TENSORS, 1000)
    opened, _ = open_run(request(data, tmp_path / "run"), resume=True)
    for record in opened:
        if record["step"] == 3:
            opened.stop()
    assert state.steps(tmp_path / "run" / "checkpoints") == [2, 3]


@pytest.mark.parametrize("where", ["the log", "a checkpoint", "the model", "the picture"])
def test_a_disk_that_is_full_later_says_from_where_it_goes_on(data, tmp_path, monkeypatch, where):  # noqa: F811
    run_all(data, tmp_path / "whole")
    opened, _ = open_run(request(data, tmp_path / "cut"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    places = {
        "the log": (log.Log, "write"), "a checkpoint": (state.files, "write_tensors"),
        "the model": (type(opened.task.model), "save_pretrained"), "the picture": (loop, "draw"),
    }  # fmt: skip
    records = iter(opened)
    while next(records)["step"] < 3:
        pass
    with monkeypatch.context() as patch:
        patch.setattr(*places[where], full)
        with pytest.raises(OSError, match=r"No space left.*goes on from step 2\.$"):
            list(records)
    run_all(data, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


# --- data that changed


def test_changed_data_is_refused_unless_told_and_then_an_epoch_of_it_begins(capsys, data, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    interrupted(out, data, 5)
    data.write_text(TEXT[::-1], encoding="utf-8")
    with pytest.raises(ValueError, match=r"The data is not what the run in .*, or pass --changed-data to go on"):
        open_run(Request("gpt2", out), resume=True)
    before = (out / "config.json").read_bytes()
    opened, notes = open_run(Request("gpt2", out), resume=True, changed_data=True)
    assert notes[0] == "The data and valid changed since the run began: an epoch of what is there now begins."
    assert (opened.step, opened.sampler.state()) == (4, {"epoch": 1, "seen": 0})
    assert (out / "config.json").read_bytes() != before
    again, notes = open_run(Request("gpt2", out), resume=True)  # as if killed: what was told is known
    assert notes == ["Resuming at step 4 of 6."]
    assert again.sampler.state() == {"epoch": 1, "seen": 0}
    change = files.read_json(out / "config.json")["before"]
    assert [each.keys() for each in change] == [{"step", "data", "valid"}]
    assert change[0]["data"]["sha256"] == json.loads(before)["data"]["sha256"]
    arguments = ("train", "gpt2", "--out", out, "--resume", "--changed-data")
    data.write_text(TEXT[::-1] + "1", encoding="utf-8")
    assert program(capsys, *arguments)[0] == 0
    assert losses(out)[-1][0] == 6


def test_changed_data_of_other_characters_is_refused_all_the_same(data, tmp_path):  # noqa: F811
    interrupted(tmp_path / "run", data, 5)
    data.write_text(TEXT + "§", encoding="utf-8")
    with pytest.raises(ValueError, match=r"The tokenizer is not what .* with the same, which is that of .*model\.$"):
        open_run(Request("gpt2", tmp_path / "run"), resume=True, changed_data=True)


@pytest.mark.parametrize("names", [["dark", "grey", "light"], ["dark", "grey", "white"], ["a", "b", "c", "d"]])
def test_changed_pictures_must_have_the_same_classes(tmp_path, names):
    import numpy as np

    def write(seed, names):
        images = np.random.default_rng(seed).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
        labels = np.arange(40) % len(names)
        np.savez(tmp_path / "pictures.npz", images=images, labels=labels, names=np.array(names))

    sizes = {"image": "8", "patch": "4", "dim": "16", "depth": "1", "heads": "2"}
    given = {key: value for key, value in SMALL.items() if key != "length"} | sizes
    write(0, ["dark", "grey", "light"])
    for record in open_run(Request("vit", tmp_path / "run", tmp_path / "pictures.npz", given=given))[0]:
        if record["step"] == 5:
            break
    write(1, names)
    expected = contextlib.nullcontext() if names[-1] == "light" else pytest.raises(ValueError, match="needs other")
    with expected:
        list(open_run(Request("vit", tmp_path / "run"), resume=True, changed_data=True)[0])


# --- numbers that are none


class Bad(Ragged):
    """Row 3 spoils the loss, or only its gradient."""

    def __init__(self, what="loss", rows=(3,)):
        super().__init__()
        self.what, self.bad = what, rows

    def batch(self, examples):
        return {**super().batch(examples), "bad": torch.tensor(sum(row in self.bad for _, row in examples))}

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        if not batch["bad"]:
            return loss
        return loss * math.inf if self.what == "loss" else loss + (model.norm.weight.sum() * 0).abs().sqrt()

    def valid(self):
        return iter([{**super().batch([(0, 1)]), "bad": torch.tensor(0)}])


HOW = Settings(steps=12, batch=1, warmup=0, save_every=4, eval_every=6, lr=0.01, ema=0.9)


def weights(run):
    return {name: value.clone() for name, value in run.task.model.state_dict().items()}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_without_a_number_is_skipped_counted_and_its_batch_written(tmp_path, what):
    run, seen = Run(Bad(what), HOW, tmp_path), []
    before = weights(run)
    average = {name: value.clone() for name, value in run.average.values.items()}
    for record in run:
        after = weights(run)
        same = all(torch.equal(after[name], before[name]) for name in after)
        if "skipped" in record:
            seen.append(record["step"])
            assert same
            assert all(torch.equal(value, average[name]) for name, value in run.average.values.items())
            assert record["skipped"] == 1
            assert "loss" not in record
            assert record["why"].startswith("the loss is inf" if what == "loss" else "the loss is ")
            said = files.read_json(tmp_path / record["batch"])
            assert [row for _, row in said["examples"]] == [3]
            tensors = files.read_tensors((tmp_path / record["batch"]).with_suffix(".safetensors"))
            assert torch.equal(tensors["0.ids"], run.task.data[3][None, :-1])
        elif "loss" in record:
            assert not same
        before, average = after, {name: value.clone() for name, value in run.average.values.items()}
    assert len(seen) == 2 + (seen[-1] > 10), "once an epoch of five steps"
    assert "Infinity" not in (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert all(torch.isfinite(value).all() for value in weights(run).values())


@pytest.mark.parametrize("stop", [3, 5, 6, 9, 11])
def test_a_run_that_skips_is_resumed_as_it_would_have_gone_on(tmp_path, stop):
    bad = {"rows": (3, 1), "what": "gradient"}
    list(Run(Bad(**bad), HOW, tmp_path / "whole"))
    for record in Run(Bad(**bad), HOW, tmp_path / "cut"):
        if record["step"] == stop:
            break
    list(Run(Bad(**bad), HOW, tmp_path / "cut", resume=True))
    assert survival.same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("limit", [0, 2, 4])
def test_after_so_many_in_a_row_the_run_stops_with_a_sentence(tmp_path, limit):
    run = Run(Bad(rows=range(5)), dataclasses.replace(HOW, nan_limit=limit), tmp_path)
    before = f", as in the {limit} steps before" if limit else ""
    with pytest.raises(
        ValueError, match=rf"The loss is inf .* at step {limit + 1}{before}: try a lower lr; what it read"
    ):
        list(run)
    assert len([*(tmp_path / "faults").glob("*.json")]) == limit + 1


def test_the_count_is_of_steps_in_a_row_across_a_stop(tmp_path):
    settings = dataclasses.replace(HOW, nan_limit=5, save_every=1)
    for record in Run(Bad(rows=range(5)), settings, tmp_path):
        if record["step"] == 5:
            break
    run = Run(Bad(rows=range(5)), settings, tmp_path, resume=True)
    with pytest.raises(ValueError, match="as in the 5 steps before"):
        list(run)
    assert run.step == 6


def test_weights_that_are_no_numbers_stop_at_once(tmp_path):
    run = Run(Ragged(), HOW, tmp_path)
    with torch.no_grad():
        run.task.model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="at step 1: try a lower lr, for the weights are no numbers either; what"):
        list(run)


def test_fp16_overflows_are_no_faults_until_its_scale_is_gone(tmp_path):
    task = Bad("gradient", rows=range(5))
    task.model.float()
    run = Run(task, dataclasses.replace(HOW, autocast="fp16", steps=40, nan_limit=3), tmp_path)
    with pytest.raises(ValueError, match="as in the 3 steps before"):
        list(run)
    assert run.step == 17 + 4, "65536 halved 17 times is below 1"


def test_a_batch_too_large_to_write_down_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "WHOLE", 10)
    list(Run(Bad(), HOW, tmp_path))
    assert {path.suffix for path in (tmp_path / "faults").iterdir()} == {".json"}


def test_a_skipped_step_is_shown(capsys, data, tmp_path, monkeypatch):  # noqa: F811
    learn, calls = loop.Task.learn, iter([1.0, math.nan])
    monkeypatch.setattr(loop.Task, "learn", lambda *given: learn(*given) * next(calls, 1.0))
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    code, said, _ = program(capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "run", *settings)
    assert code == 0
    assert "step 2: skipped, for the loss is nan" in " ".join(said.split())
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 3, 4, 5, 6]


# --- a loss that rises


class Rising(Ragged):
    """What is read at some examples costs a hundred more."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def batch(self, examples):
        return {**super().batch(examples), "more": torch.tensor(100.0 * any(map(self.bad, examples)))}

    def loss(self, model, batch):
        return super().loss(model, batch) * (1 + batch["more"])

    def valid(self):
        return iter([{**super().batch([(0, 1)]), "more": torch.tensor(0.0)}])


STEEP = Settings(steps=60, batch=1, warmup=0, save_every=10, eval_every=60, lr=0.003, spike=20, ema=0.9)
ONE = (7, 2)  # an example that is read between steps 36 and 40


def rising(out, bad=lambda example: example == ONE, resume=False, **changed):
    return Run(Rising(bad), dataclasses.replace(STEEP, **changed), out, resume=resume)


def test_a_spike_goes_back_to_the_checkpoint_and_past_the_data(tmp_path):
    records = list(rising(tmp_path / "run"))
    (back,) = [record for record in records if "rolled_back" in record]
    assert (back["step"], back["rolled_back"]) == (31, 1)
    assert 36 <= back["from_step"] <= 40
    assert back["rose_to"] > 50
    assert [step for step, _ in losses(tmp_path / "run")] == [*range(1, 61)], "each step is in the log once"
    twin = rising(tmp_path / "twin", spike=0.0)
    for record in twin:
        if record["step"] == 30:
            twin.stop()
    twin = rising(tmp_path / "twin", spike=0.0, resume=True)
    twin.sampler.take(back["from_step"] - 30)
    list(twin)
    assert losses(tmp_path / "run") == losses(tmp_path / "twin")
    assert [max(loss for _, loss in losses(tmp_path / name)) < 50 for name in ("run", "twin")] == [True, True]


def test_without_it_a_spike_is_learnt_from(tmp_path):
    records = list(rising(tmp_path / "run", spike=0.0))
    assert not [record for record in records if "rolled_back" in record]
    assert max(loss for _, loss in losses(tmp_path / "run")) > 50


@pytest.mark.parametrize("stop", [29, 31, 34, 41])
@pytest.mark.parametrize("how", ["dropped", "stopped"])
def test_a_run_that_goes_back_is_resumed_as_it_would_have_gone_on(tmp_path, stop, how):
    list(rising(tmp_path / "whole"))
    run = rising(tmp_path / "cut")
    for record in run:
        if record["step"] == stop and how == "stopped":
            run.stop()
        elif record["step"] == stop:
            break
    list(rising(tmp_path / "cut", resume=True))
    assert survival.same(tmp_path / "whole", tmp_path / "cut")


def test_where_going_back_does_not_help_the_run_stops_with_a_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"The loss rose to \S+ at step \d+, after 3 roll-backs to one checkpoint: try"
    ):
        list(rising(tmp_path, lambda example: example[0] >= 7))
    assert len([*(tmp_path / "checkpoints").iterdir()]) > 0


def test_where_there_is_no_checkpoint_the_run_goes_on(tmp_path):
    assert not [record for record in rising(tmp_path, save_every=60) if "rolled_back" in record]
    assert [step for step, _ in losses(tmp_path)] == [*range(1, 61)]


# --- memory


@pytest.mark.parametrize("given", [{}, {"micro_batch": 3}])
def test_too_little_memory_is_a_sentence_that_proposes_a_micro_batch(capsys, data, tmp_path, monkeypatch, given):  # noqa: F811
    def none(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    settings = [part for name, value in {**SMALL, **given}.items() for part in ("--set", f"{name}={value}")]
    arguments = ("train", "gpt2", "--data", data, "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Task, "learn", none)
        code, _, error = program(capsys, *arguments, *settings)
    rows = given.get("micro_batch", 4)
    assert code == 2
    assert f"not enough memory for {rows} rows at once: --set micro_batch=2, also with --resume" in error
    assert "\n" not in error.strip()
    assert program(capsys, *arguments, "--resume", "--set", "micro_batch=2")[0] == 0


IN_LITTLE = """
import resource, sys
from pathlib import Path

import torch._dynamo
from scratchformers.cli import main
from scratchformers.insight import plan
from scratchformers.training import runs

torch.set_num_threads(1)
torch.ones(1, requires_grad=True).sum().backward()  # starts its thread
size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize() + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.unhooked
@pytest.mark.parametrize("started", [False, True])
def test_a_run_in_little_memory_learns_with_what_it_proposes(tmp_path, started):
    """Of so much address space, as `ulimit -v` gives it; nothing is pretended. What is asked for in vain are the scores
    of a large vocabulary, 130 MB of them at a time: enough is left for the little that a sentence needs."""
    draw, text, sizes = random.Random(0), tmp_path / "text.txt", {"length": 128, "dim": 32, "depth": 2, "heads": 2}
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(6000)]
    text.write_text(" ".join(draw.choices(words, k=30000)), encoding="utf-8")
    given = ["steps=2", "batch=64", "threads=1"]
    if started:
        tokenizer = train_bpe([text.read_text(encoding="utf-8")], 4000)
        model = sf.GPT2(sf.GPT2Config(vocab=tokenizer.vocab, **sizes))
        model.assets = tokenizer.files
        model.save_pretrained(tmp_path / "source")
        more = ["--from", tmp_path / "source"]
    else:
        more, given = ["--tokenizer", "bpe", "--vocab", "4000"], given + [f"{name}={n}" for name, n in sizes.items()]
    command = [sys.executable, "-c", IN_LITTLE, "train", "gpt2", "--data", text, "--out", tmp_path / "run"]
    asked = [*more, *(part for each in given for part in ("--set", each))]
    # one arena of glibc's: a thread of its own takes 64 MiB more of addresses, not of memory
    environment, rows = dict(os.environ, MALLOC_ARENA_MAX="1"), [64]
    for _ in range(3):
        ended = subprocess.run([*command, *asked], capture_output=True, text=True, env=environment, check=False)
        if ended.returncode == 0:
            break
        said = re.search(rf"memory for {rows[-1]} rows at once: --set micro_batch=(\d+), .* the plan", ended.stderr)
        assert ended.returncode == 2, ended.stderr
        assert said, ended.stderr
        rows.append(int(said[1]))
        asked = ["--resume", "--set", f"micro_batch={said[1]}"]
    assert ended.returncode == 0, f"{rows} did not fit: {ended.stderr}"
    assert len(rows) > 1, "it was too little"
    assert losses(tmp_path / "run")[-1][0] == 2


def test_a_single_row_that_is_too_much_asks_for_less_of_it():
    assert not faults.is_of_memory(RuntimeError("a storage that was allocated elsewhere")), "another error stays itself"
    assert faults.is_of_memory(RuntimeError("could not create a primitive")), "oneDNN's"
    assert faults.is_of_memory(RuntimeError("can't start new thread")), "Python's"
    assert not faults.is_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))
    assert "for a single row: choose a smaller length" in faults.less_memory(1)


def test_another_error_is_not_taken_for_it(capsys, data, tmp_path, monkeypatch):  # noqa: F811
    def wrong(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop.Task, "learn", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        program(capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "run", "--set", "length=8")


# --- bugs, planted


@pytest.mark.parametrize("planted", ["the place in the data", "the skips", "the losses before"])
def test_a_run_that_forgets_when_it_is_resumed_is_noticed(tmp_path, monkeypatch, planted):
    """What a stop could lose, taken out piece by piece."""
    restore = Run._restore
    forget = {
        "the place in the data": lambda run: run.sampler.restore({"epoch": 0, "seen": 0}),
        "the skips": lambda run: setattr(run, "skipped", 0),
        "the losses before": lambda run: setattr(run, "_look_back", lambda log: None),
    }[planted]

    def forgetting(run, *given):
        restore(run, *given)
        forget(run)

    monkeypatch.setattr(Run, "_restore", forgetting)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_forgotten(planted, tmp_path)


def check_forgotten(planted, place):
    if planted == "the skips":
        test_the_count_is_of_steps_in_a_row_across_a_stop(place)
    else:
        test_a_run_that_goes_back_is_resumed_as_it_would_have_gone_on(place, 34, "stopped")
