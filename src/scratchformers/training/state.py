"""Everything a run needs to go on as if it had not stopped.

A checkpoint is a folder `step-N`: `state.safetensors` with flat names (`model.<name>`, `optimizer.<parameter>.exp_avg`,
`average.<name>` where weights are averaged, `random.cpu`), so that processes that hold a part each can write the same
names, and `state.json` with the rest. It is written under another name and renamed, so that a folder called step-N is
complete.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scratchformers.checkpoints import files

KEPT = 2  # checkpoints; the one before the last is there in case the last is damaged


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
    """Writes `folder/step-N` and removes all but the newest two. `average` is empty where weights are not averaged."""
    temporary, final = folder / f".step-{step}.tmp", folder / f"step-{step}"
    for old in (temporary, final):
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir(parents=True)
    files.write_tensors(temporary / "state.safetensors", _tensors(model, optimizer, average))
    files.write_json(temporary / "state.json", {"step": step, **rest})
    os.replace(temporary, final)
    _sync(folder)
    for number in sorted(_steps(folder))[:-KEPT]:
        shutil.rmtree(folder / f"step-{number}", ignore_errors=True)


def _sync(folder: Path) -> None:
    if os.name != "nt":  # a folder cannot be opened there
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _steps(folder: Path) -> Iterator[int]:
    for path in folder.glob("step-*"):
        if path.name.removeprefix("step-").isdigit():
            yield int(path.name.removeprefix("step-"))


def newest(folder: Path, keys: set[str]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The newest checkpoint that can be read and says `keys`, as its JSON and its tensors; None if there is none."""
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"step-{step}"
        try:
            rest = files.read_json(path / "state.json")
            if rest.keys() >= {"step", *keys}:
                return rest, files.read_tensors(path / "state.safetensors")
        except (ValueError, FileNotFoundError):
            continue
    return None


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
