"""A run's numbers where people look at them: TensorBoard, trackio, Weights & Biases. log.jsonl is written in any case.

A tracker is told the records of a run as they come, beside the loop, which knows none of them. What it cannot do, for
want of a network or of room, is said once, and the run goes on without it.
"""

import contextlib
import importlib
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchformers.checkpoints import files
from scratchformers.training.log import Record, read

MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}  # by what is asked for
SHOWN = (
    "recipe",
    "task",
    "preset",
    "settings",
    "model",
    "parameters",
    "device",
    "versions",
)  # of config.json: no paths


class Tracker(ABC):
    @abstractmethod
    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def cut(self, step: int) -> None:
        """What was told after this step is about to be told again."""
        return

    @abstractmethod
    def close(self) -> None: ...


class TensorBoard(Tracker):
    """Events in RUN/tensorboard. A file that begins at a step hides what older ones have from there on."""

    def __init__(self, module: Any, folder: Path, step: int):
        self._make, self._folder = module.SummaryWriter, folder / "tensorboard"
        self._open(step)

    def _open(self, step: int) -> None:
        self._writer = self._make(str(self._folder), purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # what a checkpoint is about to hold is not told again

    def cut(self, step: int) -> None:
        self._writer.close()
        self._open(step)

    def close(self) -> None:
        self._writer.close()


class Board(Tracker):
    """trackio and wandb, which has the same functions: the project is the folder that the run's lies in, the run's name
    that of its own. Neither takes a number back, so that of a step that is done again nothing is told. That a run is
    known there, RUN/NAME.json says, with its id."""

    def __init__(self, module: Any, folder: Path, step: int):
        folder, known = folder.absolute(), folder.absolute() / f"{module.__name__}.json"
        begun = known.is_file()
        self._told = _last(read(folder / "log.jsonl")) if begun else {}
        found = files.read_json(known) if begun else {"id": uuid.uuid4().hex[:8]}
        more = {"id": found["id"], "dir": str(folder)} if module.__name__ == "wandb" else {}
        facts = files.read_json(folder / "config.json")
        self._run = module.init(
            project=folder.parent.name or "scratchformers",
            name=folder.name,
            config={name: facts[name] for name in SHOWN if name in facts},
            resume="allow" if begun else "never",
            **more,
        )
        files.write_json(known, found)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if new := {name: value for name, value in numbers.items() if step > self._told.get(name, 0)}:
            self._run.log(new, step=step)
            self._told |= dict.fromkeys(new, step)

    def close(self) -> None:
        self._run.finish()


def _last(records: Sequence[Record]) -> dict[str, int]:
    """By a figure's name the last step it was logged at."""
    return {name: record["step"] for record in records for name in numbers_of(record)}


def numbers_of(record: Record) -> dict[str, float]:
    """What is a number in a record, but for its step."""
    return {
        name: value
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def check(names: Sequence[str]) -> dict[str, Any]:
    """The libraries of these trackers. ValueError, saying what to install, where one is missing."""
    found = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = importlib.import_module(MODULES[name])
        except ImportError:
            raise ValueError(f"--log {name} needs {name}, which is not installed: pip install {name}.") from None
    return found


@contextlib.contextmanager
def tracked(
    modules: Mapping[str, Any], folder: Path, step: int, say: Callable[[str], None]
) -> Iterator[Callable[[Record], None]]:
    """What tells every record of the run in `folder`, which goes on after `step`, to these trackers. One that fails is
    said once and told no more."""
    going: dict[str, Tracker] = {}

    @contextlib.contextmanager
    def guarded(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever kinds another's library has
            going.pop(name, None)
            why = f"{error}".strip().partition("\n")[0] or type(error).__name__
            say(f"{name} failed ({why}): the run goes on without it; all is in {folder / 'log.jsonl'}.")

    def tell(record: Record) -> None:
        for name, tracker in [*going.items()]:
            with guarded(name):
                if "rolled_back" in record:
                    tracker.cut(record["step"] - 1)
                tracker.write(record["step"], numbers_of(record))

    for name, module in modules.items():
        with guarded(name):
            going[name] = (TensorBoard if name == "tensorboard" else Board)(module, folder, step)
    try:
        yield tell
    except KeyboardInterrupt:  # which leaves at once: closing may wait for a network
        going.clear()
        raise
    finally:
        for name, tracker in [*going.items()]:
            with guarded(name):
                tracker.close()
