"""What goes wrong within a run: losses that are no numbers or far off, full disks, too little memory."""

import contextlib
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from scratchformers.checkpoints import files
from scratchformers.training import processes

WHOLE = 2**26  # bytes of a batch that is written down with its tensors; of a larger one only the rows
RECENT, LEAST = 50, 20  # losses from which the next one should not be far; with fewer there is nothing to say
UNSAID = "could not create a primitive", "can't start new thread"  # of oneDNN and Python, where memory is what lacks
ROLLBACKS = 3  # to the same checkpoint


def is_finite(model: nn.Module) -> bool:
    """Whether all weights are numbers: otherwise no other batch will help."""
    return all(bool(torch.isfinite(processes.local(parameter)).all()) for parameter in model.parameters())


def write_down(
    folder: Path, step: int, examples: Sequence[tuple[int, int]], batches: Sequence[dict[str, Tensor]], why: str
) -> Path:
    """The batch of a step that was skipped, to be looked at: folder/step-N.json says its examples as (epoch, row) and
    what was wrong, and step-N.safetensors beside it holds what the model read, `<micro-batch>.<name>`."""
    path = folder / f"step-{step}.json"
    files.write_json(path, {"step": step, "why": why, "examples": [[*example] for example in examples]})
    tensors = {f"{i}.{name}": value.contiguous() for i, batch in enumerate(batches) for name, value in batch.items()}
    if sum(value.nbytes for value in tensors.values()) <= WHOLE:
        files.write_tensors(path.with_suffix(".safetensors"), tensors)
    return path


def is_far(loss: float, recent: Sequence[float], limit: float) -> bool:
    """Whether the loss is more than `limit` standard deviations above the mean of the recent ones; never for 0."""
    if not limit or len(recent) < LEAST:
        return False
    return loss > statistics.fmean(recent) + limit * statistics.pstdev(recent)


@contextlib.contextmanager
def writing(folder: Path, saved: int) -> Iterator[None]:
    """What cannot be written within it is an OSError that says how to go on: from the checkpoint of step `saved`."""
    try:
        yield
    except OSError as error:
        place = f"from step {saved}" if saved else "from the beginning"
        how = f"make room or let it be written to, and --resume goes on {place}"
        raise OSError(f"{folder} takes no more ({error}): {how}.") from error


def check_writable(folder: Path) -> None:
    """PermissionError unless files can be made in the folder, which need not be there yet: said before anything is
    computed for it."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(f"{place} is read-only: choose another --out, or let it be written to.")


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, as each library has it."""
    said = str(error).lower().strip()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in said or "out of memory" in said or said in UNSAID)
    )


def less_memory(rows: int, fitting: int | None = None) -> str:
    """What to do where so many rows at once are too many: of what a plan says is `fitting`, or of half as many."""
    if rows < 2:
        return "There is not enough memory for a single row: choose a smaller length (--set length=...) or model."
    half = math.ceil(rows / 2)
    fewer, why = (half, "takes about half") if fitting is None else (min(half, fitting), "is what the plan says fits")
    how = f"--set micro_batch={fewer}, also with --resume, {why}, for the same result"
    return f"There is not enough memory for {rows} rows at once: {how}; or choose a smaller length or model."
