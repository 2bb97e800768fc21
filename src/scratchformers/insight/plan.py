"""What training a model takes: parameters, arithmetic, memory and time, and the micro-batch that fits.

Memory is counted, not guessed: two micro-batches of a step are played through on tensors that have shapes and no
values, and what is made and freed is laid out as on the heap of a run, by heap.py. Arithmetic is counted likewise, and
the bytes that all else is given and makes. Time is an estimate: both, at the speeds at which this machine multiplies
the model's own matrices, and adds.
"""

import contextlib
import dataclasses
import functools
import math
import mmap
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from scratchformers import lora
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.grid import count, height_width
from scratchformers.heads import unit
from scratchformers.insight.heap import after_steps
from scratchformers.linear import linear
from scratchformers.models.bert import BERT
from scratchformers.models.clip import CLIP
from scratchformers.models.encoder_decoder import EncoderDecoder
from scratchformers.models.gpt2 import GPT2
from scratchformers.models.mae import MAE
from scratchformers.models.vit import ViT
from scratchformers.nn import Unembed

AT_WORK = 64 * 2**20  # bytes that torch's libraries and threads take beside tensors once they compute
TIMED, SHAPES, ROWS = 0.3, 3, 4096  # seconds a product is timed for, how many of them, rows at most
ADDED = 2**23  # numbers in each of what is added, to time that
IDLE = "empty", "new_empty", "device"  # operators that move nothing begin so
DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast
MASKED = 0.15  # share of a BERT's tokens that are asked for
WRONG = 0.15  # a plan's peak may be, beside what is measured: benchmarks/plan.py
LIBRARIES = 256 * 2**20  # bytes of Python and of what is imported
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
STATM, LIMITS = Path("/proc/self/statm"), Path("/proc/self/limits")


@dataclass(frozen=True)
class Asked:
    """A step as `train` would take it: `batch` rows, of which `micro_batch` at once."""

    preset: str
    batch: int
    micro_batch: int
    length: int | None = None  # tokens of a row, all of them real; of an encoder-decoder, on both sides
    autocast: str = "off"  # off, bf16, fp16
    device: str = "cpu"
    ema: bool = False  # with a moving average of what learns


@dataclass(frozen=True)
class Plan:
    """Memory in bytes, time in seconds."""

    model: str
    asked: Asked
    parameters: int
    learning: int  # of the parameters
    flops: int  # of a step: a multiplication and an addition are two
    moved: int  # bytes that operators of a step are given and make, but for products
    memory: Mapping[
        str, int
    ]  # weights, gradients, optimizer, average, activations (as the backward begins), holes, peak
    flops_a_second: float  # at which this machine multiplies the model's matrices, forward and backward
    bytes_a_second: float  # that it is given and makes when it adds
    limit: int  # bytes that may be used
    fits: int | None  # rows at once that need no more; None if not even one row fits

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.flops / self.flops_a_second + self.moved / self.bytes_a_second

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"seconds": self.seconds}


@dataclass(frozen=True)
class Part:
    """What a step computes: a loss with its gradient (or without), so many times."""

    loss: Callable[[], Tensor]
    times: float
    learns: bool = True


# --- what each model's training computes, as its task does


def _next_token(model: Any, rows: int, batch: int) -> list[Part]:
    ids = torch.zeros(rows, model.config.length, dtype=torch.long)

    def loss() -> Tensor:
        return F.cross_entropy(model(ids).flatten(0, 1).float(), ids.flatten(), reduction="sum")

    return [Part(loss, batch / rows)]


def _masked(model: Any, rows: int, batch: int) -> list[Part]:
    ids = torch.zeros(rows, model.config.length, dtype=torch.long)
    chosen = torch.zeros(math.ceil(MASKED * ids.numel()), dtype=torch.long)

    def loss() -> Tensor:
        scores = model.head(model.encode(ids).flatten(0, 1)[chosen][None])[0].float()
        return F.cross_entropy(scores, chosen, reduction="sum")

    return [Part(loss, batch / rows)]


def _classes(model: Any, rows: int, batch: int) -> list[Part]:
    images, targets = _pictures(model, rows), torch.zeros(rows, model.config.classes)
    return [Part(lambda: F.cross_entropy(model(images).float(), targets, reduction="sum"), batch / rows)]


def _painting(model: Any, rows: int, batch: int) -> list[Part]:
    images, noise = _pictures(model, rows), torch.zeros(rows, count(model.config.image, model.config.patch))
    return [Part(lambda: model(images, noise=noise).loss * rows, batch / rows)]


def _pairs(model: Any, rows: int, batch: int) -> list[Part]:
    """In micro-batches: the features, the loss of all of them, and the features once more, of one tower at a time."""
    images, ids = _pictures(model, rows), torch.zeros(rows, model.config.length, dtype=torch.long)
    ids[:, -1] = model.config.end or model.config.vocab - 1
    towers = [lambda: unit(model.encode_image(images)), lambda: unit(model.encode_text(ids))]
    if rows == batch:
        return [Part(lambda: _contrast(model, *(tower() for tower in towers)), 1)]

    def features() -> list[Tensor]:
        return [torch.zeros(batch, model.config.dim, requires_grad=True) for _ in towers]

    parts = [
        Part(lambda tower=tower: tower().sum(), batch / rows, learns) for learns in (False, True) for tower in towers
    ]
    return [*parts, Part(lambda: _contrast(model, *features()), 1)]


def _contrast(model: Any, image: Tensor, text: Tensor) -> Tensor:
    scores = model.scale.exp() * image @ text.T, model.scale.exp() * text @ image.T
    share = torch.zeros(len(image), len(text))
    return (F.cross_entropy(scores[0], share) + F.cross_entropy(scores[1], share)) / 2


def _translation(model: Any, rows: int, batch: int) -> list[Part]:
    ids = torch.zeros(rows, model.config.length, dtype=torch.long)

    def loss() -> Tensor:
        scores = model.score(model.decode(ids, model.read(ids)).flatten(0, 1)[None])[0]
        return F.cross_entropy(scores.float(), ids.flatten(), reduction="sum")

    return [Part(loss, batch / rows)]


def _pictures(model: Any, rows: int) -> Tensor:
    return torch.zeros(rows, model.config.channels, *height_width(model.config.image))


MODELS: dict[str, tuple[type[Pretrained], Callable[[Any, int, int], list[Part]]]] = {
    "gpt2": (GPT2, _next_token),
    "bert": (BERT, _masked),
    "vit": (ViT, _classes),
    "mae": (MAE, _painting),
    "clip": (CLIP, _pairs),
    "encoder-decoder": (EncoderDecoder, _translation),
}


# --- counting


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that are made within it and not freed yet: `now`. In `events` each is a number,
    with its bytes as it is made, and negative as it is freed."""

    def __init__(self):
        super().__init__()
        self.now = 0
        self.events: list[tuple[int, int]] = []
        self._known: dict[int, int] = {}  # the number of a storage, by where it lies

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = len(self.events)
            self.events.append((len(self.events), size))
            self.now += size
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.events.append((self._known.pop(key), -size))
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return out


class Full(TorchFunctionMode):
    """Answers for tensors without values: a text is as long as texts are, and all else that is asked of them is
    answered by no: nothing was drawn that has to be drawn again, nothing is real and so to be packed."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__:
            return False
        return self.length - 1 if func is Tensor.__int__ else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _arithmetic(model: Any, asked: Asked) -> Iterator[None]:
    """Of the step's forward; in bf16 on a CPU pictures attend by the written-out kernel, as in training."""
    plain = asked.autocast == "bf16" and asked.device == "cpu" and hasattr(model.config, "image")
    kernel = sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()
    with torch.autocast("cpu", DTYPES[asked.autocast], enabled=asked.autocast != "off"), kernel:
        yield


@dataclass(frozen=True)
class Way:
    """How a model learns: what is done to it first, as adding adapters or checkpointing its blocks, and by what."""

    prepare: Callable[[Any], Any] = lambda model: None
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda model: torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], fused=True
    )


def _memory(name: str, config: Config, asked: Asked, way: Way, rows: int) -> dict[str, int]:
    """Of a step with so many rows at once, what the optimiser keeps and takes included."""
    kind, parts_of = MODELS[name]
    with FakeTensorMode(), Full(getattr(config, "length", 0)):
        model, held = kind(config).train(), 0
        way.prepare(model)
        learning = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        with Alive() as alive:
            for parameter in model.parameters():
                alive.count(parameter)
            weights, ends = alive.now, [len(alive.events)]
            parts = [part for part in parts_of(model, rows, asked.batch) if part.learns]
            others = (alive.now - weights) * (asked.batch - rows) // rows  # inputs of the other micro-batches
            for part in parts * (1 if rows == asked.batch else 2):
                before = alive.now
                with _arithmetic(model, asked):
                    loss = part.loss()
                held = max(held, alive.now - before)
                loss.backward()
                del loss
                ends.append(len(alive.events))
        optimizer = way.optimizer(model)
        optimizer.step()  # the first one makes its averages
        states = [x for state in optimizer.state.values() for x in state.values()]
        with Alive() as updating:
            for tensor in (*states, *(x for p in model.parameters() for x in (p, p.grad) if x is not None)):
                updating.count(tensor)
            known = len(updating.events)
            optimizer.step()
    kept = [(("state", number), x.nbytes) for number, x in enumerate(states)]
    of_parts = [alive.events[begin:end] for begin, end in pairwise(ends)]
    heap = after_steps(alive.events[: ends[0]], of_parts, kept, updating.events[known:])
    optimized, average = sum(size for _, size in kept), learning if asked.ema else 0
    return {
        "weights": weights, "gradients": learning, "optimizer": optimized, "average": average, "activations": held,
        "holes": heap.peak - heap.used, "peak": heap.peak + others + average + AT_WORK,
    }  # fmt: skip


class Moved(TorchDispatchMode):
    """Counts the bytes that operators are given and make, but for products, which do far more than to move them."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(each) if isinstance(x, Tensor)] for each in ((args, kwargs), out))
        there = {x.untyped_storage()._cdata for x in given}
        is_view = not func._schema.is_mutable and all(x.untyped_storage()._cdata in there for x in made)
        if not (is_view or func._overloadpacket in flop_registry or func.__name__.startswith(IDLE)):
            self.bytes += sum(x.nbytes for x in (*given, *made))
        return out


@dataclass(frozen=True)
class Work:
    """Of a step, its update of the weights included."""

    parameters: int
    learning: int
    flops: int
    moved: int
    products: Counter  # how often each, (rows, from, to), stands in it


def _work(name: str, config: Config, asked: Asked, way: Way) -> Work:
    """Arithmetic is counted with attention written out, and with autocast, so that all products are operators of
    torch's; bytes as they are moved."""
    kind, parts_of = MODELS[name]
    products: Counter = Counter()

    def seen(module: Any, given: tuple[Tensor, ...]) -> None:
        weight = module.token.weight if isinstance(module, Unembed) else module.weight
        products[given[0].numel() // weight.shape[1], weight.shape[1], weight.shape[0]] += 1

    def compute(part: Part) -> None:
        with torch.set_grad_enabled(part.learns):
            loss = part.loss()
            if part.learns:
                loss.backward()

    with FakeTensorMode(), Full(getattr(config, "length", 0)):
        model, flops, moved = kind(config).train(), 0.0, 0.0
        way.prepare(model)
        for part in parts_of(model, asked.micro_batch, asked.batch):
            with Moved() as moving, _arithmetic(model, asked):
                compute(part)
            moved += part.times * moving.bytes
        for module in model.modules():
            if isinstance(module, nn.Linear | Unembed):
                module.register_forward_pre_hook(seen)
        for part in parts_of(model, asked.micro_batch, asked.batch):
            counter = FlopCounterMode(display=False)
            with counter, sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
                compute(part)
            flops += part.times * counter.get_total_flops()
        optimizer = way.optimizer(model)
        optimizer.step()  # the first one makes its averages
        with FlopCounterMode(display=False) as counter, Moved() as moving:
            optimizer.step()
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    learning = sum(n for n, learns in sizes if learns)
    flops, moved = flops + counter.get_total_flops(), moved + moving.bytes
    return Work(sum(n for n, _ in sizes), learning, round(flops), round(moved), products)


def measure(products: Mapping[tuple[int, int, int], int], asked: Asked) -> float:
    """FLOP a second of the largest of these products, forward and backward, weighed as they occur; in about a second.
    What is timed is `linear`, as the models call it, with rows cut to what shows the speed."""
    size = lambda product: math.prod(product) * products[product]  # noqa: E731
    done = taken = 0.0
    for product in sorted(products, key=size)[-SHAPES:]:
        rows, inner, outer = min(product[0], ROWS), *product[1:]
        x, weight = (torch.rand(*each, inner, device=asked.device).requires_grad_() for each in ((rows,), (outer,)))
        taken += size(product) / (rows * inner * outer) * _best(x, weight, asked)
        done += 6 * size(product)
    return done / taken


def _best(x: Tensor, weight: Tensor, asked: Asked) -> float:
    """Seconds of the fastest of a few."""

    def multiply() -> None:
        with torch.autocast(x.device.type, DTYPES[asked.autocast], enabled=asked.autocast != "off"):
            y = linear(x, weight)
        torch.autograd.grad(y, (x, weight), y.detach())

    return _fastest(multiply, x.device)


def bandwidth(device: str) -> float:
    """Bytes a second, of two tensors and the third that is their sum."""
    x, y = (torch.rand(ADDED, device=device) for _ in range(2))
    return 3 * x.nbytes / _fastest(lambda: torch.add(x, y), x.device)


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < TIMED:
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def available(device: str) -> int:
    """Bytes that could be had now. ValueError where the machine does not say it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not MEMINFO.is_file():
        raise ValueError("This machine does not say how much memory is free: pass --memory GIB.")
    free = int(MEMINFO.read_text(encoding="utf-8").partition("MemAvailable:")[2].split()[0]) * 1024
    most = CGROUP.read_text(encoding="utf-8").strip() if CGROUP.is_file() else "max"
    return min(free, int(most)) if most.isdecimal() else free


def plan(name: str, asked: Asked, *, memory: float | None = None, way: Way = Way()) -> Plan:
    """The costs of training the model of this name and preset in this way, by AdamW if it says nothing. `memory` in GiB
    is what may be used, by default what is free; what fits leaves the share of it that a plan may be wrong by.
    ValueError for what no step can be."""
    config = _config(name, asked)
    limit = available(asked.device) if memory is None else int(memory * 2**30)
    work = _work(name, config, asked, way)
    memory_of = functools.cache(functools.partial(_memory, name, config, asked, way))
    fits, speeds = _largest(memory_of, asked.batch, limit), (measure(work.products, asked), bandwidth(asked.device))
    counts = work.parameters, work.learning, work.flops, work.moved
    return Plan(name, asked, *counts, memory_of(asked.micro_batch), *speeds, limit, fits or None)


def _largest(memory_of: Callable[[int], Mapping[str, int]], rows: int, limit: int) -> int:
    """So many rows, or the half of them, or of that, as need no more, also if the plan is wrong by what it may be; 0 if
    not even one row does."""
    while rows and memory_of(rows)["peak"] > (1 - WRONG) * limit:
        rows = (rows + 1) // 2 if rows > 1 else 0
    return rows


def fitting(model: Any, asked: Asked, way: Way) -> int:
    """Rows at once, at most `micro_batch` and at least one, with which this model would learn in this way in the memory
    that this process can have. Its adapters, and what of it is frozen, come with it. ValueError for a model that there
    is no plan of, or where the machine does not say."""
    name = next((name for name, (kind, _) in MODELS.items() if type(model) is kind), None)
    if name is None:
        raise ValueError(f"There is no plan of a {type(model).__name__}: expected one of {', '.join(MODELS)}.")
    config = model.config if asked.length is None else dataclasses.replace(model.config, length=asked.length)

    def prepare(made: Any) -> None:
        _learn_as(model, made)
        way.prepare(made)

    memory_of = functools.partial(_memory, name, config, asked, dataclasses.replace(way, prepare=prepare))
    return max(1, _largest(memory_of, asked.micro_batch, _room(asked.device)))


def _learn_as(model: Any, made: Any) -> None:
    """Gives a new model adapters of the sizes that this one has, and freezes what is frozen in it."""
    if own := lora.adapters(model):
        first, linears = next(iter(own.values())), {path.rpartition(".")[2] for path in own}
        lora.add(made, rank=len(first.lora_a), dropout=first.dropout.p, linears=[*linears])
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(learns.get(name, parameter.requires_grad))


def _room(device: str) -> int:
    """Bytes that this process could have in all: what is free, and what it has, but for Python and its libraries."""
    if torch.device(device).type == "cuda":
        return available(device) + torch.cuda.memory_reserved(device)
    free = available(device)
    mapped, held = (int(pages) * mmap.PAGESIZE for pages in STATM.read_text(encoding="utf-8").split()[:2])
    most = LIMITS.read_text(encoding="utf-8").partition("Max address space")[2].split()[0]  # as `ulimit -v` has it
    return (min(free, int(most) - mapped) if most.isdecimal() else free) + held - LIBRARIES


def _config(name: str, asked: Asked) -> Any:
    config: Any = MODELS[name][0].preset(asked.preset)
    if not 1 <= asked.micro_batch <= asked.batch:
        raise ValueError(f"--micro-batch is {asked.micro_batch}: expected 1 to {asked.batch}, the batch.")
    if asked.length is None:
        return config
    if not hasattr(config, "length"):
        raise ValueError(f"--length {asked.length} counts tokens, and {name} reads none: leave it out.")
    return dataclasses.replace(config, length=asked.length)
