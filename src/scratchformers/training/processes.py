"""Many processes that train one model. torchrun starts them; each computes its share of every step, and they agree on
gradients, on what a step is, and on when to stop. The first of them alone prints and writes. Without torchrun there is
one, and nothing here costs anything.

The model is the same in all of them (DistributedDataParallel), or lies in parts over them (fully_shard, "FSDP2").
"""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scratchformers.training.checkpointing import blocks_of
from scratchformers.training.data import generator

PATIENCE = timedelta(hours=2)  # of processes that wait for the first one, which reads the data and evaluates
DRAWN = 9  # tells what is drawn here from what is drawn elsewhere of the same seed


def launched() -> bool:
    """Whether torchrun, or something that sets what it sets, started this process among others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def own_device(asked: str) -> str:
    """Of the devices of a machine each of its processes has one: cuda, or auto where there is CUDA, is this one's from
    now on. ValueError for what processes cannot share."""
    if not launched():
        return asked
    kind = asked.partition(":")[0]
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return "cuda"
    if kind not in ("auto", "cuda", "cpu"):
        raise ValueError(f"--device {asked} is not for many processes: expected cuda or cpu.")
    return "cpu" if kind == "auto" else kind


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Within it the processes that torchrun started can speak to each other."""
    if not launched():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error, where it might wait for what nobody will send


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


def leads() -> bool:
    """Whether this is the first process, which prints and writes."""
    return rank() == 0


def wait(group: Any = None) -> None:
    """Until all processes are here, each in a thread that speaks to the others by this group; without one, the main."""
    total(0, group)


def total(value: float, group: Any = None) -> float:
    """The sum over all processes."""
    if count() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found, group=group)
    return type(value)(found)


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    return bool(total(int(flag)))


def from_first(value: Any) -> Any:
    """What the first process has."""
    if count() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


@contextlib.contextmanager
def first() -> Iterator[None]:
    """What is within is done by the first process, and then by all others: they find what it left on the disk."""
    wait()
    if not leads():
        wait()
    yield
    if leads():
        wait()


def draw_anew(seed: int, step: int) -> None:
    """Before a step: what is random differs between processes, and not between a run that was stopped and one that
    was not. The first one goes on with the state it has, which checkpoints keep."""
    if rank():
        torch.manual_seed(generator(seed, step, rank(), DRAWN).initial_seed())


def share(examples: Sequence[Any], size: int, number: int) -> tuple[list[list[Any]], int]:
    """Of the examples of a step those of process `number`, every so many-th, in parts of `size` (0: in one), as many
    parts as the others have; and how many of the last ones are idle: an example of another's, to be counted as none."""
    most = math.ceil(len(examples) / count())
    own, size = [*examples[number :: count()]], size or most
    parts = [own[i : i + size] for i in range(0, most, size)]
    idle = sum(not part for part in parts)
    return [part or [examples[0]] for part in parts], idle


def local(x: Tensor) -> Tensor:
    """The part of a tensor that this process has; of one that is not parted, all."""
    return x.to_local() if is_parted(x) else x  # pyrefly: ignore (a DTensor)


def is_parted(x: Any) -> bool:
    return hasattr(x, "to_local")


def whole(x: Any) -> Tensor:
    """A tensor that lies in parts, from all processes."""
    return x.full_tensor() if is_parted(x) else x


def parted_like(like: Any, x: Tensor) -> Tensor:
    """Of a tensor that all processes have, the part that this one has of `like`."""
    if not is_parted(like):
        return x
    sizes = [-(-len(x) // count())] * count()
    return x[sum(sizes[: rank()]) :][: len(like.to_local())]


class _Called(nn.Module):
    """A model whose forward is whatever is to be computed with it, since tasks call more of a model than forward."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(self.model, *given)


class Shared:
    """A model that all processes learn. `parts`: its weights, their gradients and the optimiser's state lie over them.

    Parameters of a model in parts are others afterwards: what holds any is to be made after this."""

    def __init__(self, model: nn.Module, *, parts: bool = False):
        self.model, self.parted = model, parts and count() > 1
        self.scalars: list[nn.Parameter] = []  # of a model in parts, what is whole everywhere
        self._call: Any = _Called(model)
        self._synced = True
        self._units: list[Any] = []  # what is gathered at once
        self.writers: Any = None  # by which those who write parts speak to each other, while others compute
        if self.parted:
            self._part()
            self.writers = dist.new_group(backend="gloo", timeout=PATIENCE)
        elif count() > 1:
            # Every step of ours uses every parameter that learns; torch says so where one does not.
            self._call = nn.parallel.DistributedDataParallel(self._call, gradient_as_bucket_view=True)

    def _part(self) -> None:
        """Block by block, and what a source is read by, which is called from outside of its block."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # Nobody changes what a linear returned in place, of which this warns.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        kind = next(self.model.parameters()).device.type
        mesh = init_device_mesh(kind, (count(),))
        self.scalars = [p for p in self.model.parameters() if not p.ndim]
        for block in blocks_of(self.model):
            cross = getattr(block, "cross", None)
            self._units += [block] if cross is None else [cross.kv, block]
        self._units.append(self._call)
        for unit in self._units:
            fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params={*self.scalars})

    def __call__(self, function: Callable[..., Any], *given: Any, last: bool = True) -> Any:
        """`function(model, *given)`. Its gradients are averaged over processes in the backward of the last call of a
        step; where none was the last, by `finish`."""
        self._synced = last
        if last or self.parted or count() == 1:
            return self._call(function, *given)
        with self._call.no_sync():
            return self._call(function, *given)

    def finish(self) -> None:
        """Averages the gradients that are not yet the average of all processes'."""
        left = self.scalars if self.parted or self._synced else self.model.parameters()
        for parameter in left if count() > 1 else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= count()

    def clip(self, limit: float) -> float:
        """The norm of the gradient, as it was before it was scaled down to at most `limit`."""
        if not self.parted:
            return float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        squares = [(is_parted(grad), float(local(grad).double().square().sum())) for grad in grads]
        norm = math.sqrt(total(sum(x for apart, x in squares if apart)) + sum(x for apart, x in squares if not apart))
        for grad in grads:
            local(grad).mul_(min(1.0, limit / (norm + 1e-6)))  # as torch has it
        return norm

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within it every process has all the weights, as plain tensors, and may call and save the model by itself."""
        hooks = [each for module in self._call.modules() if self.parted for each in _hooks(module)]
        before = [*map(dict, hooks)]
        for unit in self._units:
            unit.unshard()
        for each in hooks:
            each.clear()
        try:
            yield
        finally:
            for each, was in zip(hooks, before):
                each.update(was)
            for unit in self._units:
                unit.reshard()


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    """By which a module gathers its parameters, and parts them, where it is called or saved."""
    return [module._forward_pre_hooks, module._forward_hooks, module._state_dict_pre_hooks]
