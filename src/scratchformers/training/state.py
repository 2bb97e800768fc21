"""Everything a run needs to go on as if it had not stopped.

A checkpoint is a folder `step-N`: `state.safetensors` with flat names (`model.<name>`, `optimizer.<parameter>.exp_avg`,
`average.<name>` where weights are averaged, `random.cpu`), so that processes that hold a part each can write the same
names, `state.json` with the rest, and last `SHA256SUMS`, by which both are known to be what was written (`sha256sum -c`
reads it). It is written under another name and renamed, so that a folder called step-N is complete.
"""

import hashlib
import os
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scratchformers.checkpoints import files

TENSORS, REST, DIGESTS = "state.safetensors", "state.json", "SHA256SUMS"


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors |= {f"average.{name}": value for name, value in average.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rest: dict[str, Any],
    *,
    average: Mapping[str, Tensor],
) -> None:
    """Writes `folder/step-N`. `average` is empty where weights are not averaged."""
    temporary, final = folder / f".step-{step}.tmp", folder / f"step-{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        files.write_tensors(temporary / TENSORS, _tensors(model, optimizer, average))
        files.write_json(temporary / REST, {"step": step, **rest})
        sums = "".join(f"{_digest(temporary / name)}  {name}\n" for name in (TENSORS, REST))
        files.write_bytes(temporary / DIGESTS, sums.encode())
        _sync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    except OSError:  # on a full disk, half a checkpoint would take the room of what comes
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder)


def remove_all_but(folder: Path, kept: Container[int]) -> None:
    """Removes the checkpoints of other steps."""
    for step in steps(folder):
        if step not in kept:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    if os.name != "nt":  # a folder cannot be opened there
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def steps(folder: Path) -> list[int]:
    """Of the checkpoints there are, the oldest first."""
    found = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(number) for number in found if number.isdigit())


def newest(
    folder: Path, keys: set[str], *, every: int = 1, damaged: list[str] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The newest checkpoint that is as it was written and says `keys`, as its JSON and its tensors; None if there is
    none. Only those of each so many steps, where `every` is given. What is passed over is said in `damaged`."""
    for step in reversed(steps(folder)):
        path = folder / f"step-{step}"
        if step % every:
            continue
        try:
            return _read(path, keys)
        except (ValueError, FileNotFoundError) as error:
            if damaged is not None:
                damaged.append(f"{path} is damaged, and passed over: {error}")
    return None


def _read(path: Path, keys: set[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One checkpoint. ValueError or FileNotFoundError unless it is whole; those that older versions wrote have no
    digests."""
    if (path / DIGESTS).is_file():
        said = (path / DIGESTS).read_bytes()
        for name in (TENSORS, REST):
            if f"{_digest(path / name)}  {name}\n".encode() not in said:
                raise ValueError(f"{name} is not what was written.")
    rest = files.read_json(path / REST)
    if absent := {"step", *keys} - rest.keys():
        raise ValueError(f"{REST} does not say {', '.join(sorted(absent))}.")
    return rest, files.read_tensors(path / TENSORS)


def restore(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, *, average: Mapping[str, Tensor]
) -> None:
    """Puts weights, their average, optimiser and random states back, by copying: memory mapped from a file may be
    aligned otherwise, and other alignment can mean other rounding."""
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:  # a frozen parameter has no state
            optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in found.items()}
    for name, value in average.items():
        value.copy_(tensors[f"average.{name}"])
    torch.set_rng_state(tensors["random.cpu"].clone())
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"].clone())
