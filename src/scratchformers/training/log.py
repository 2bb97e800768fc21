"""log.jsonl, one JSON object a line, and the picture drawn of it."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from scratchformers.checkpoints.files import write_atomically

Record = dict[str, Any]
TIMES = ("seconds", "waited")  # in which two runs that do the same differ


class Log:
    """Appends whole lines. Opened at a step, it forgets what was logged after it, and a line that was torn. One that is
    not `kept`, of another process than the first, writes nothing."""

    def __init__(self, path: Path, *, after: int = 0, kept: bool = True):
        self.path, self._kept = path, kept
        self._open(after)

    def _open(self, after: int) -> None:
        path = self.path
        if not self._kept:
            self._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            return
        records = [record for record in read(path) if record["step"] <= after] if after else []
        text = "".join(map(_line, records))
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", newline="\n"))
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Record) -> None:
        self._file.write(_line(record))
        self._file.flush()

    def sync(self) -> None:
        """On disk, before a checkpoint says that these steps are done."""
        if self._kept:
            os.fsync(self._file.fileno())

    def cut(self, after: int) -> None:
        """Forgets what was logged after a step."""
        self.close()
        self._open(after)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take was said when it was written
            self._file.close()


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read(path: Path) -> list[Record]:
    """The records of a log; what follows a torn line, if anything, is not believed."""
    records = []
    content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in content.split("\n")[:-1]:  # not splitlines, which also splits at characters JSON leaves as they are
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def draw(path: Path, picture: Path, *, trivial: float | None = None, unit: str = "", title: str = "") -> None:
    """The loss of every step, its running mean, the validation losses, and the loss of knowing nothing."""
    import matplotlib.figure

    records = read(path)
    steps = [record for record in records if "loss" in record]
    valid = [record for record in records if record.get("valid_loss") is not None]
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    x, loss = [record["step"] for record in steps], [record["loss"] for record in steps]
    axes.plot(x, loss, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(x, _running_mean(loss, max(1, len(loss) // 50)), color="tab:blue", label="training, running mean")
    axes.plot(
        [record["step"] for record in valid], [record["valid_loss"] for record in valid],
        color="tab:red", marker="o", markersize=4, label="validation",
    )  # fmt: skip
    if trivial is not None:
        axes.axhline(trivial, color="grey", linestyle=":", label=f"knowing nothing: {trivial:.2f}")
    axes.set(xlabel="step", ylabel=f"loss (nats per {unit})" if unit else "loss", title=title)
    axes.legend()
    write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=120))


def _running_mean(values: list[float], width: int) -> list[float]:
    return [math.fsum(values[max(0, i - width + 1) : i + 1]) / min(width, i + 1) for i in range(len(values))]
