"""Everything a run needs to go on as if it had not stopped.

A checkpoint is a folder `step-N`: `state.safetensors` with flat names (`model.<name>`, `optimizer.<parameter>.exp_avg`,
`average.<name>` where weights are averaged, `random.cpu`), `state.json` with the rest, and last `SHA256SUMS`, by which
both are known to be what was written (`sha256sum -c` reads it). It is written under another name and renamed, so that a
folder called step-N is complete. Of a model that lies in parts over many processes each writes its own, a .safetensors
file as torch.distributed.checkpoint has it, under the same names; any number of processes reads either.

What is frozen is in no checkpoint: it is what the run began from.
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scratchformers.checkpoints import files
from scratchformers.training import processes

TENSORS, REST, DIGESTS = "state.safetensors", "state.json", "SHA256SUMS"


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    frozen = _frozen(model)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items() if name not in frozen}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors |= {f"average.{name}": value for name, value in average.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def saving(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rest: dict[str, Any],
    *,
    average: Mapping[str, Tensor],
    writers: Any = None,
) -> Callable[[], None]:
    """What writes `folder/step-N` as things are now. `average` is empty where weights are not averaged. Nothing is
    copied that need not be: until it was called, and came back, weights and optimiser are to stay as they are. Where
    they lie in parts all processes are to call it, each comes back when the checkpoint is complete, and meanwhile they
    speak by `writers`, a group of their own; else the first process writes, and the others have nothing to do."""
    if writers is None and not processes.leads():
        return lambda: None
    return partial(_write, folder, step, _tensors(model, optimizer, average), rest, writers)


def _write(folder: Path, step: int, tensors: dict[str, Tensor], rest: dict[str, Any], writers: Any) -> None:
    temporary, final = folder / f".step-{step}.tmp", folder / f"step-{step}"
    try:
        if processes.leads():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        if writers is not None:
            _write_parts(temporary, tensors, writers)
        elif processes.leads():
            files.write_tensors(temporary / TENSORS, tensors)
        if processes.leads():
            files.write_json(temporary / REST, {"step": step, **rest})
            files.write_bytes(temporary / DIGESTS, _sums(temporary).encode())
            _sync(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
    except OSError:  # on a full disk, half a checkpoint would take the room of what comes
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if processes.leads():
        _sync(folder)
    if writers is not None:
        processes.wait(writers)


def _write_parts(folder: Path, tensors: dict[str, Tensor], writers: Any) -> None:
    """Of each tensor what this process has; of one that all have alike, one process's, and of random states, which all
    have and which differ, the first one's."""
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter, save

    processes.wait(writers)  # for the folder
    for name in tensors:
        if name.startswith("random."):
            dist.broadcast(tensors[name], 0, group=writers)
    try:
        save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            process_group=writers,
        )
    except CheckpointException as error:  # which is no Exception
        raise OSError("; ".join(str(each[0]) for each in error.failures.values())) from None
    for path in _parts(folder):
        _sync(path)
    processes.wait(writers)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _sums(folder: Path) -> str:
    paths = [*_parts(folder), folder / REST]
    return "".join(f"{_digest(path)}  {path.name}\n" for path in paths)


def remove_all_but(folder: Path, kept: Container[int]) -> None:
    """Removes the checkpoints of other steps."""
    for step in steps(folder):
        if step not in kept:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name != "nt":  # a folder cannot be opened there
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def steps(folder: Path) -> list[int]:
    """Of the checkpoints there are, the oldest first."""
    found = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(number) for number in found if number.isdigit())


def newest(
    folder: Path, keys: set[str], *, every: int = 1, damaged: list[str] | None = None
) -> tuple[dict[str, Any], Path] | None:
    """The newest checkpoint that is as it was written and says `keys`, as its JSON and its folder; None if there is
    none. Only those of each so many steps, where `every` is given. What is passed over is said in `damaged`. Of many
    processes the first one reads, and all have what it found."""
    said: list[str] = []
    found = processes.from_first(_newest(folder, keys, every, said) if processes.leads() else None)
    if damaged is not None:
        damaged += said
    return found


def _newest(folder: Path, keys: set[str], every: int, damaged: list[str]) -> tuple[dict[str, Any], Path] | None:
    for step in reversed(steps(folder)):
        path = folder / f"step-{step}"
        if step % every:
            continue
        try:
            return _read(path, keys), path
        except (ValueError, FileNotFoundError) as error:
            damaged.append(f"{path} is damaged, and passed over: {error}")
    return None


def _read(path: Path, keys: set[str]) -> dict[str, Any]:
    """The JSON of one checkpoint. ValueError or FileNotFoundError unless it is whole; those that older versions wrote
    have no digests."""
    if (path / DIGESTS).is_file():
        said, is_now = (path / DIGESTS).read_text(encoding="utf-8", errors="replace"), _sums(path)
        if wrong := {*said.splitlines()} ^ {*is_now.splitlines()}:
            names = sorted({line.partition("  ")[2] for line in wrong})
            raise ValueError(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not what was written.")
    elif not (path / TENSORS).is_file():
        raise FileNotFoundError(f"{TENSORS} is not there.")
    else:
        files.read_tensors(path / TENSORS)
    rest = files.read_json(path / REST)
    if absent := {"step", *keys} - rest.keys():
        raise ValueError(f"{REST} does not say {', '.join(sorted(absent))}.")
    return rest


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, average: Mapping[str, Tensor]) -> None:
    """Puts weights, their average, optimiser and random states back from a checkpoint, by copying: memory mapped from a
    file may be aligned otherwise, and other alignment can mean other rounding."""
    parameters = dict(model.named_parameters())
    one = (folder / TENSORS).is_file() and not any(map(processes.is_parted, parameters.values()))
    tensors = files.read_tensors(folder / TENSORS) if one else _read_parts(folder, model, parameters, average)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    lacking = model.load_state_dict(weights, strict=False)
    if wrong := {*lacking.missing_keys} - _frozen(model) | {*lacking.unexpected_keys}:
        raise ValueError(f"{folder} holds another model: it differs in {', '.join(sorted(wrong))}.")
    for name, parameter in parameters.items():
        prefix = f"optimizer.{name}."
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:  # a frozen parameter has no state
            optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in found.items()}
    for name, value in average.items():
        value.copy_(tensors[f"average.{name}"])
    torch.set_rng_state(tensors["random.cpu"].clone())
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"].clone())


def _read_parts(
    folder: Path, model: nn.Module, parameters: Mapping[str, Tensor], average: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, of those that lie in parts here what this process has, from files cut anyhow."""
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, load

    weights = model.state_dict()
    likes = {f"model.{name}": value for name, value in weights.items()}
    likes |= {f"average.{name}": value for name, value in average.items()}
    tensors: dict[str, Tensor] = {}
    known: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, held in known.items():
        own = name.removeprefix("optimizer.").rpartition(".")[0]
        like = likes.get(name, parameters.get(own))
        if like is not None and like.shape == held.size:
            tensors[name] = torch.zeros_like(like, dtype=held.properties.dtype, requires_grad=False)
        else:
            tensors[name] = torch.zeros(held.size, dtype=held.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*load in a single process")  # which is meant
        try:
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=processes.count() == 1)
        except CheckpointException as error:
            said = "; ".join(str(each[0]) for each in error.failures.values())
            raise ValueError(f"{folder} cannot be read ({said}).") from None
    return tensors
