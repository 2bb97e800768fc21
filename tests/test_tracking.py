"""What trackers are told: the numbers of log.jsonl, each step once, whatever happens to the run or to them."""

import json
import math
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import refused
from test_cli import run as program
from test_training import SMALL, TEXT

from scratchformers.checkpoints import files
from scratchformers.training import tracking
from scratchformers.training.log import read
from scratchformers.training.tracking import numbers_of, tracked

STEPS = {**SMALL, "steps": 6, "eval_every": 3, "save_every": 3}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(capsys, *arguments, **changes):
    given = [part for name, value in {**STEPS, **changes}.items() for part in ("--set", f"{name}={value}")]
    return program(capsys, "train", "gpt2", *arguments, *given)


def events(folder):
    """By name what TensorBoard shows: (step, value)."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def logged(folder):
    by_name = {}
    for record in read(folder / "log.jsonl"):
        for name, value in numbers_of(record).items():
            by_name.setdefault(name, []).append((record["step"], value))
    return by_name


def same(shown, wanted):
    """TensorBoard keeps float32."""
    assert shown.keys() == wanted.keys()
    for name, values in wanted.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in values], name
        assert [v for _, v in shown[name]] == pytest.approx([v for _, v in values], rel=1e-6), name


class Fake(types.ModuleType):
    """wandb's functions, and trackio's: what was asked of them."""

    def __init__(self, name, fails=()):
        super().__init__(name)
        self.begun, self.told, self.finished, self.fails = [], [], 0, fails

    def _may(self, name):
        if name in self.fails:
            raise OSError(f"{name}: no route to host\nmore")

    def init(self, **given):
        self._may("init")
        self.begun.append(given)
        return self

    def log(self, numbers, *, step):
        self._may("log")
        self.told.append((step, numbers))

    def finish(self):
        self._may("finish")
        self.finished += 1

    def by_name(self):
        found = {}
        for step, numbers in self.told:
            for name, value in numbers.items():
                found.setdefault(name, []).append((step, value))
        return found


@pytest.fixture
def fake(monkeypatch, request):
    module = Fake(getattr(request, "param", "wandb"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_what_is_a_number_is_told():
    record = {"step": 3, "loss": 2.5, "targets": 7, "grad_norm": None, "best": True, "sample": "text", "x": math.nan}
    assert numbers_of(record) == {"loss": 2.5, "targets": 7}


# --- TensorBoard


def test_tensorboard_shows_the_log(capsys, tmp_path, data):
    out = tmp_path / "runs" / "a"
    assert train(capsys, "--data", data, "--out", out, "--log", "tensorboard")[::2] == (0, "")
    wanted = logged(out)
    assert {"loss", "lr", "grad_norm", "seconds", "valid_loss"} <= wanted.keys()
    assert len(wanted["loss"]) == 6
    same(events(out), wanted)


class Left(Exception):
    pass


def leave(status):
    raise Left


@pytest.fixture
def kill(capsys, monkeypatch):
    """Trains, and leaves at once after this step."""
    from scratchformers.training.loop import Run

    def left(at, *arguments):
        whole = Run.__iter__
        with monkeypatch.context() as patch:
            patch.setattr(Run, "__iter__", lambda self: killed(whole(self), at))
            patch.setattr("os._exit", leave)
            with pytest.raises(Left):
                train(capsys, *arguments)

    return left


def killed(run, at):
    """The run's records up to this step, as if it were killed after it."""
    for record in run:
        yield record
        if record["step"] == at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [2, 5])
def test_a_killed_run_that_goes_on_shows_each_step_once(capsys, tmp_path, data, kill, at):
    """Killed at step 2, before there is a checkpoint, and at step 5, after that of step 3."""
    out = tmp_path / "runs" / "a"
    kill(at, "--data", data, "--out", out, "--log", "tensorboard")
    (older,) = (out / "tensorboard").iterdir()
    with older.open("ab") as file:
        file.write(b"\x18\x00\x00torn")
    code, _, error = train(capsys, "--out", out, "--resume", "--log", "tensorboard")
    assert code == 0, error
    assert len(read(out / "log.jsonl")) == 8
    same(events(out), logged(out))


def test_what_a_run_went_back_from_is_hidden(tmp_path):
    import torch.utils.tensorboard

    (tmp_path / "log.jsonl").touch()
    with tracked({"tensorboard": torch.utils.tensorboard}, tmp_path, 0, pytest.fail) as tell:
        for step, loss in ((1, 3.0), (2, 2.0), (3, 99.0)):
            tell({"step": step, "loss": loss})
        tell({"step": 2, "rolled_back": 1, "from_step": 3, "rose_to": 99.0})
        for step in (2, 3):
            tell({"step": step, "loss": 1.5})
    assert events(tmp_path)["loss"] == [(1, 3.0), (2, 1.5), (3, 1.5)]


def test_what_is_told_is_on_disk_before_the_next_step(tmp_path):
    """A checkpoint follows, after which it is not told again."""
    import torch.utils.tensorboard

    (tmp_path / "log.jsonl").touch()
    with tracked({"tensorboard": torch.utils.tensorboard}, tmp_path, 0, pytest.fail) as tell:
        tell({"step": 1, "loss": 3.0})
        assert events(tmp_path)["loss"] == [(1, 3.0)]


# --- trackio and wandb


@pytest.mark.parametrize("fake", ["wandb", "trackio"], indirect=True)
def test_a_board_is_told_the_log(capsys, tmp_path, data, fake):
    out = tmp_path / "runs" / "a"
    assert train(capsys, "--data", data, "--out", out, "--log", fake.__name__)[::2] == (0, "")
    (begun,) = fake.begun
    assert (begun["project"], begun["name"], begun["resume"]) == ("runs", "a", "never")
    assert begun["config"]["settings"]["steps"] == 6
    assert str(tmp_path) not in json.dumps(begun["config"]), "where files lie is nobody's business"
    assert ("id" in begun) == (fake.__name__ == "wandb")
    assert (fake.by_name(), fake.finished) == (logged(out), 1)


def test_a_board_is_told_no_step_twice(capsys, tmp_path, data, fake, kill):
    out = tmp_path / "runs" / "a"
    kill(5, "--data", data, "--out", out, "--log", "wandb")
    assert fake.finished == 0, "one that is left at once waits for no network"
    assert train(capsys, "--out", out, "--resume", "--log", "wandb")[0] == 0
    first, second = fake.begun
    assert second["id"] == first["id"]
    assert (first["resume"], second["resume"]) == ("never", "allow")
    assert [step for step, _ in fake.by_name()["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in fake.by_name()["valid_loss"]] == [3, 6]


def test_one_that_is_told_of_a_run_late_begins_where_it_is(capsys, tmp_path, data, fake):
    out = tmp_path / "runs" / "a"
    from scratchformers.training.request import Request
    from scratchformers.training.runs import open_run

    run, _ = open_run(Request("gpt2", out, data, given={name: str(value) for name, value in STEPS.items()}))
    for record in run:
        if record["step"] == 3:
            run.stop()
    assert train(capsys, "--out", out, "--resume", "--log", "wandb")[0] == 0
    assert fake.begun[0]["resume"] == "never"
    assert [step for step, _ in fake.by_name()["loss"]] == [4, 5, 6]


# --- what goes wrong


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_ends_no_run(capsys, tmp_path, data, monkeypatch, fails):
    fake, out = Fake("wandb", (fails,)), tmp_path / "runs" / "a"
    monkeypatch.setitem(sys.modules, "wandb", fake)
    code, _, error = train(capsys, "--data", data, "--out", out, "--log", "wandb", "--log", "tensorboard")
    assert (code, error.count("\n")) == (0, 1), error
    assert f"wandb failed ({fails}: no route to host): the run goes on without it" in error
    assert len(read(out / "log.jsonl")) == 8
    same(events(out), logged(out))


def test_a_library_that_is_missing_is_said_before_anything_begins(capsys, tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    arguments = ("train", "gpt2", "--data", data, "--out", tmp_path / "run", "--log", "trackio")
    assert "--log trackio needs trackio, which is not installed: pip install trackio." in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_tracker_there_is_not_is_refused(capsys, tmp_path, data):
    code, _, error = program(capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "run", "--log", "mlflow")
    assert code == 2
    assert "tensorboard" in error


def test_no_library_is_loaded_that_nobody_asked_for(capsys, tmp_path, data, monkeypatch):
    loaded = []
    monkeypatch.setattr(tracking.importlib, "import_module", loaded.append)
    assert train(capsys, "--data", data, "--out", tmp_path / "run")[0] == 0
    assert loaded == []
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_board_whose_file_is_damaged_is_said(tmp_path, fake):
    files.write_json(tmp_path / "config.json", {"recipe": "gpt2"})
    (tmp_path / "wandb.json").write_text("{", encoding="utf-8")
    said = []
    with tracked({"wandb": fake}, tmp_path, 0, said.append) as tell:
        tell({"step": 1, "loss": 2.0})
    assert len(said) == 1
    assert "is not valid JSON" in said[0]
