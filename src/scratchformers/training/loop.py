"""The loop: it knows no model, only a task that gives batches and says what they cost."""

import contextlib
import math
import re
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scratchformers import lora
from scratchformers.checkpoints.files import write_atomically
from scratchformers.generate import evaluating
from scratchformers.training import faults, processes, state
from scratchformers.training.checkpointing import checkpoint_blocks
from scratchformers.training.compiling import Compiled
from scratchformers.training.data import Sampler
from scratchformers.training.log import Log, Record, draw, read
from scratchformers.training.muon import Muon, matrices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Tensor]
STATE = {"best", "data", "scaler", "schedule"}  # of a run, beside its tensors and its step
ENCODER, HEAD = "encoder", "head."  # all but the head, as a part that may be frozen; how the head's parameters begin
BLOCK = re.compile(r"blocks\.(\d+)\.")  # how a block's parameters begin


@dataclass(frozen=True)
class Settings:
    """What every recipe shares. A setting is given as `--set name=value`."""

    steps: int = 2000
    batch: int = 16  # rows a step
    length: int = 0  # of a row, in tokens; 0 means all positions of the model. From scratch, its positions as well
    micro_batch: int = 0  # rows at once, for less memory and the same result; 0 means batch
    lr: float = 1e-3  # the highest, after `warmup` steps; then, by the cosine, down to lr * lr_end
    lr_end: float = 0.1
    schedule: str = "cosine"  # or noam, which falls with the square root of the steps
    warmup: int = 100
    weight_decay: float = 0.1  # of matrices only
    optimizer: str = "adamw"  # or muon: by it the matrices within blocks, by AdamW the rest, at one rate
    layer_decay: float = 1.0  # each block learns at this share of the rate of the next one; 1: all at the same
    ema: float = 0.0  # share of the weights' average that a step keeps (0.999); it is evaluated and saved. 0: none
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0  # largest norm of the gradient; 0 means no limit
    seed: int = 0
    eval_every: int = 200
    save_every: int = 200
    keep: int = 2  # checkpoints; the one before the last is there in case the last is damaged
    keep_best: bool = False  # a checkpoint of the best evaluation as well, whenever it was
    nan_limit: int = 10  # steps in a row that may be skipped for a loss or gradient that is no number
    spike: float = 0.0  # standard deviations the loss may rise above its recent mean before a roll-back; 0: any
    autocast: str = "off"  # off, bf16, fp16
    checkpointing: bool = False  # blocks compute their activations twice, and hold a part of them: less memory
    compile: bool = False  # by torch.compile, for learning
    shard: bool = False  # over many processes: each holds a part of weights, gradients and the optimiser's state
    threads: int = 0  # 0 means every core, at most 8
    workers: int = 0  # threads that read and decode examples; 0: as many as `threads`

    def __post_init__(self):
        least = {"steps": 1, "batch": 1, "eval_every": 1, "save_every": 1, "keep": 1}
        for name, value in vars(self).items():
            if not isinstance(value, str) and not least.get(name, 0) <= value < math.inf:
                raise ValueError(f"{name} is {value}: expected at least {least.get(name, 0)}.")
        for name, limit in (("seed", 2**63), ("threads", 257), ("workers", 257)):
            if getattr(self, name) >= limit:
                raise ValueError(f"{name} is {getattr(self, name)}: expected less than {limit}.")
        if self.autocast not in ("off", "bf16", "fp16"):
            raise ValueError(f"autocast is {self.autocast!r}: expected off, bf16 or fp16.")
        if self.schedule not in ("cosine", "noam"):
            raise ValueError(f"schedule is {self.schedule!r}: expected cosine or noam.")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer is {self.optimizer!r}: expected adamw or muon.")
        for name in ("beta1", "beta2", "ema"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected less than 1.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}: expected more than 0, and at most 1.")


@dataclass(frozen=True)
class Arithmetic:
    """Where a step computes, and how exactly."""

    device: torch.device
    autocast: str
    scaler: torch.amp.GradScaler
    shared: processes.Shared
    idle: int = 0  # of the batches of a step, the last ones, which only keep step with those of other processes

    def put(self, batch: Batch) -> Batch:
        return _to(batch, self.device)

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        return _autocast(self.device, self.autocast)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()


class Task(ABC):
    """What a recipe makes of the user's data."""

    model: Any
    rows: int  # examples in an epoch
    trivial: float  # the loss of knowing nothing
    unit: str  # what a target is: a token, a picture
    baselines: Mapping[str, float] = {}  # what knowing a little would give, by the figure's name
    notes: Mapping[str, str] = {}  # what is logged once, of how figures are made
    best: str = "loss"  # the figure by which the best model is chosen; of an accuracy or f1 the highest
    head: tuple[str, ...] = (HEAD,)  # how the names of the parameters begin that a probe learns

    def sampler(self, settings: Settings) -> tuple[Sampler, int]:
        """What says which examples are next, and how many a step takes, as it counts."""
        return Sampler(self.rows, seed=settings.seed), settings.batch

    @abstractmethod
    def batch(self, examples: list[tuple[int, int]]) -> Batch:
        """The examples (epoch, row) of one micro-batch."""

    def expect(self, examples: list[tuple[int, int]]) -> None:
        """The examples of the next step, told before this one is computed, for what is slow to read."""
        return

    @abstractmethod
    def targets(self, batch: Batch) -> int:
        """How many targets the loss of this batch sums over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed over the targets, so that micro-batches of unequal length weigh what they hold."""

    def learn(self, batches: Sequence[Batch], arithmetic: Arithmetic) -> float:
        """The mean loss over all targets of a step, of all processes, whose gradient is added to the parameters'. Each
        of the batches is computed by itself."""
        own, loss = len(batches) - arithmetic.idle, 0.0
        targets = processes.total(sum(map(self.targets, batches[:own])))
        for i, batch in enumerate(batches, 1):
            with arithmetic.cast():
                part = arithmetic.shared(self.loss, arithmetic.put(batch), last=i == len(batches))
                # Gradients are averaged over processes, and should be summed.
                part = part * (processes.count() if i <= own else 0) / targets
            arithmetic.backward(part)
            loss += float(part.detach())
        return processes.total(loss) / processes.count()

    def stepped(self) -> Mapping[str, float]:
        """After a step: brings back what must stay within bounds, and says what there is to log of it."""
        return {}

    @abstractmethod
    def valid(self) -> Iterator[Batch]: ...

    @abstractmethod
    def sample(self, model: Any) -> str:
        """Something to look at."""

    def draw(self, model: Any) -> "Figure | None":
        """A picture to look at, if there is one."""
        return None

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Of a validation batch the loss, and what else there is to count, summed over the targets."""
        return {"loss": float(self.loss(model, batch))}

    def figures(self, sums: Mapping[str, float], targets: int) -> dict[str, float]:
        """What sums over all validation batches come to."""
        return {name: value / targets for name, value in sums.items()}


def learning_rate(step: int, settings: Settings) -> float:
    """At `step`, counted from 1: linear warm-up, then a cosine (Loshchilov and Hutter 2017, without restarts), or the
    inverse square root of the step, which has no end (Vaswani et al. 2017, equation 3, `lr` being its peak)."""
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    if settings.schedule == "noam":
        return settings.lr * math.sqrt(max(1, settings.warmup) / step)
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (settings.lr_end + (1 - settings.lr_end) * 0.5 * (1 + math.cos(math.pi * done)))


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """By what the learning rate of each parameter is multiplied (Clark et al. 2020, in the numbering of BEiT and MAE):
    decay**(n + 1 - layer), where layer is 0 for what stands before the n blocks, i + 1 for block i, and n + 1 for what
    follows them, the head last. ValueError for a model whose blocks are not in `blocks`."""
    names = [name for name, _ in model.named_parameters()]
    blocks = [None if (found := BLOCK.match(name)) is None else int(found[1]) for name in names]
    depth = 1 + max((block for block in blocks if block is not None), default=-1)
    if decay != 1 and not depth:
        raise ValueError(f"layer_decay is {decay}: expected 1 for a {type(model).__name__}, which has no `blocks`.")
    last, passed, factors = depth + 1, False, {}
    for name, block in zip(names, blocks):
        passed = passed or block is not None
        outer = last if passed or name.startswith(HEAD) else 0
        factors[name] = decay ** (last - (outer if block is None else block + 1))
    return factors


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW, or Muon with it; weights that multiply decay, biases and norms do not. The rate of a group is the
    schedule's times its `factor`. ValueError where no matrix that Muon is for learns."""
    factors, groups = layer_factors(model, settings.layer_decay), []
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts = matrices(model) if settings.optimizer == "muon" else {}
    for factor, part in sorted({(factors[name], parts.get(name, 0)) for name, _ in learning}):
        some = [p for name, p in learning if (factors[name], parts.get(name, 0)) == (factor, part)]
        same = {"factor": factor, "parts": part}
        groups += [
            {"params": [p for p in some if p.ndim >= 2], "weight_decay": settings.weight_decay, **same},
            {"params": [p for p in some if p.ndim == 1], "weight_decay": 0.0, **same},
        ]
        if scalars := [p for p in some if not p.ndim]:  # which lie in no parts where others do
            groups.append({"params": scalars, "weight_decay": 0.0, **same})
    if settings.optimizer == "muon" and not any(group["parts"] for group in groups):
        raise ValueError("optimizer is muon, and no matrix within a block learns whole: leave it out, for adamw.")
    kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
    return kind(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True)


def freeze(model: nn.Module, parts: Sequence[str], *, head: tuple[str, ...] = (HEAD,)) -> list[str]:
    """Parameters of these parts learn no more; says how many do. A part is the beginning of a parameter's name, up to a
    dot, or `encoder`, where nothing begins so: all but the head. ValueError, naming the parts there are, for a part
    that there is not, and if nothing were left to learn."""
    if not parts:
        return []
    names = [name for name, _ in model.named_parameters()]
    frozen = set()
    for part in parts:
        found = [name for name in names if f"{name}.".startswith(f"{part}.")]
        if part == ENCODER and not found:
            found = [name for name in names if not name.startswith(head)]
        if not found:
            known = _parts([*(ENCODER for name in names if name.startswith(head)), *names])
            raise ValueError(f"--freeze {part!r} names nothing in this {type(model).__name__}: expected {known}.")
        frozen.update(found)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in frozen}
    if not learning:
        raise ValueError(f"--freeze {' '.join(parts)} leaves nothing to learn: leave out some of {_parts(names)}.")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return [share_that_learns(model)]


def share_that_learns(model: nn.Module) -> str:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return f"{sum(n for n, learns in counts if learns):,} of {sum(n for n, _ in counts):,} parameters learn."


def _parts(names: Iterable[str]) -> str:
    found = ((name, BLOCK.match(name)) for name in names)
    return ", ".join(dict.fromkeys(name.partition(".")[0] if block is None else block[0][:-1] for name, block in found))


def at_rest(model: nn.Module) -> list[nn.Module]:
    """The modules that stay in evaluation mode (no dropout) while the others learn, so that what is kept is used as it
    was learnt: those whose parameters are all frozen, and where only the head learns, everything else."""
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if all(name.startswith(HEAD) for name in learning):
        return [module for path, module in model.named_modules() if not f"{path}.".startswith(HEAD)]
    frozen = []
    for module in model.modules():
        own = [parameter.requires_grad for parameter in module.parameters()]
        frozen += [*module.modules()] if own and not any(own) else []
    return frozen


class Average:
    """An exponential moving average of what moves in a model: its floating-point state, but for frozen parameters.
    A step keeps `decay` of it, less at first (as much as of 10 + step values 1 + step are); 0 for no average at all."""

    def __init__(self, model: nn.Module, decay: float):
        state = model.state_dict(keep_vars=True) if decay else {}
        self.decay = decay
        self._weights: dict[str, Tensor] = {
            name: value
            for name, value in state.items()
            if value.is_floating_point() and (value.requires_grad or not isinstance(value, nn.Parameter))
        }
        self.values = {name: value.detach().clone() for name, value in self._weights.items()}

    def update(self, step: int) -> None:
        """After the optimiser's step `step`, counted from 1."""
        if self.values:
            weights = [value.detach() for value in self._weights.values()]
            torch._foreach_lerp_([*self.values.values()], weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the average for its weights. Memory is exchanged, nothing is copied, but for weights
        that lie in parts, which are gathered from where they are."""
        parted = {name for name, value in self.values.items() if processes.is_parted(value)}
        plain = {name: value.data for name, value in self._weights.items()}
        plain |= {name: plain[name].clone() for name in parted}
        try:
            self._put(self.values, parted)
            yield
        finally:
            self._put(plain, parted)

    def _put(self, values: Mapping[str, Tensor], parted: set[str]) -> None:
        for name in self.values:
            if name in parted:
                self._weights[name].data.copy_(values[name])
            else:
                self._weights[name].data = values[name]


@torch.no_grad()
def evaluate(task: Task, device: torch.device, *, autocast: str = "off") -> dict[str, float]:
    """The mean loss over the validation targets, and the task's other figures."""
    sums, count = defaultdict(float), 0
    with evaluating(task.model):
        for batch in task.valid():
            with _autocast(device, autocast):
                found = task.measure(task.model, _to(batch, device))
            for name, value in found.items():
                sums[name] += value
            count += task.targets(batch)
    return task.figures(sums, count)


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}


def _autocast(device: torch.device, name: str) -> torch.autocast:
    dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return torch.autocast(device.type, dtype, enabled=name != "off")


class Run:
    """One training run in `folder`. Iterating it trains and yields the record of each step as it is logged.

    With `settings.ema` it is the average of the weights that is evaluated, looked at and saved as the run's model;
    training goes on with the weights themselves.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        folder: Path,
        *,
        resume: bool = False,
        title: str = "",
        base: str | None = None,
    ):
        self.task, self.settings, self.folder, self.title = task, settings, folder, title
        self.base = base  # what adapters belong to
        self.device = next(task.model.parameters()).device
        self.shared = processes.Shared(task.model, parts=settings.shard)
        self.optimizer = make_optimizer(task.model, settings)
        self.average, self.at_rest = Average(task.model, settings.ema), at_rest(task.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.autocast == "fp16")
        if self.scaler.is_enabled() and self.shared.scalars:  # torch's scaler takes no mixture of both
            raise ValueError(
                f"A {type(task.model).__name__} has numbers that cannot be parted, and fp16 scales all alike: choose "
                "--set autocast=bf16, or leave out --set shard=true."
            )
        self.sampler, self.size = task.sampler(settings)
        if settings.checkpointing:
            checkpoint_blocks(task.model)
        self.compiled = Compiled(task.model) if settings.compile else None
        self.at_once = 0  # rows that the last step computed at once
        self.stopping, self.asked_to_stop = False, False  # as all processes know, and as this one was told
        self.leaving = False
        self.step, self.saved, self.best_at = 0, 0, 0  # steps: the last one, that of the last and the best checkpoint
        self.best = math.inf  # the best figure so far; an accuracy is turned round, so that less is better
        self.skipped, self.rolled = 0, 0  # steps in a row; times in a row that the run went back to one checkpoint
        self.recent: deque[float] = deque(maxlen=faults.RECENT)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None] | None] = (0, None)  # the step of the checkpoint that is being written
        self.damaged: list[str] = []  # checkpoints that were passed over, in sentences
        found = state.newest(self.checkpoints, STATE, damaged=self.damaged) if resume else None
        if found is not None:
            self._restore(*found)

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.steps

    @property
    def achieved(self) -> str:
        """The best figure so far, by name."""
        value = self.best if self.task.best == "loss" else 1 - self.best
        return f"{self.task.best} {value:.4f}"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def stop(self) -> None:
        """The run saves and ends after the step it is at, and after its evaluation where one is due, so that going on
        with it gives what it would have given. May be called from a signal's handler."""
        self.asked_to_stop = True

    def leave(self) -> None:
        """From now on nothing is waited for: the process is about to end."""
        self.leaving = True

    def begin_epoch(self) -> None:
        """Where the data is no longer what it was, and the place in it says nothing."""
        if self.step:
            self.sampler.restore({"epoch": self.sampler.state()["epoch"] + 1, "seen": 0})
            self._save()
            self._settle()

    def _restore(self, rest: dict[str, Any], checkpoint: Path) -> None:
        state.restore(checkpoint, self.task.model, self.optimizer, average=self.average.values)
        self.step, self.best = rest["step"], math.inf if rest["best"] is None else rest["best"]
        self.saved = self.step
        self.best_at, self.skipped, self.rolled = (rest.get(name, 0) for name in ("best_at", "skipped", "rolled"))
        self.sampler.restore(rest["data"])
        self.scaler.load_state_dict(rest["scaler"])

    def _save(self) -> None:
        """Where it went back to this often is forgotten when the next checkpoint that is due is there, not when the run
        was stopped between: so that one which was stopped goes back as often as one which was not."""
        due = self.step % self.settings.save_every == 0
        self.rolled = 0 if due else self.rolled
        rest = {
            "best": self.best if math.isfinite(self.best) else None,
            "best_at": self.best_at,
            "skipped": self.skipped,
            "rolled": self.rolled,
            "data": self.sampler.state(),
            "scaler": self.scaler.state_dict(),
            "schedule": {"lr": learning_rate(self.step, self.settings)},
        }
        model, average = self.task.model, self.average.values
        more = {"average": average, "writers": self.shared.writers}
        write = state.saving(self.checkpoints, self.step, model, self.optimizer, rest, **more)
        self._writing = self.step, self._writer.submit(write)

    def _settle(self) -> None:
        """Until the checkpoint that is being written is there."""
        step, written = self._writing
        if written is None:
            return
        try:
            with faults.writing(self.folder, self.saved):
                written.result()
        finally:
            if written.done():  # else it was this wait that was interrupted
                self._writing = 0, None
        self._saved(step)

    def _saved(self, step: int) -> None:
        """The checkpoint of that step is there, and others may go."""
        self.saved = step
        if not processes.leads():
            return
        done = [step for step in state.steps(self.checkpoints) if step <= self.saved]  # a later one was damaged
        kept = {*done[-self.settings.keep :], *([self.best_at] if self.settings.keep_best else [])}
        if self.settings.spike:
            kept |= {*[step for step in done if step % self.settings.save_every == 0][-1:]}
        self._writer.submit(state.remove_all_but, self.checkpoints, kept)  # gigabytes take a while

    def __iter__(self) -> Iterator[Record]:
        with faults.writing(self.folder, self.saved):
            log = Log(self.folder / "log.jsonl", after=self.step, kept=processes.leads())
        processes.wait()
        with contextlib.closing(log):
            self._look_back(log)
            self.stopping = processes.any_of(self.asked_to_stop)
            try:
                while not (self.finished or self.stopping):
                    self.step += 1
                    yield from self._next(log)
            finally:
                if not self.leaving:
                    self._settle()
                    self._writer.submit(bool).result()  # all that was to be removed is

    def _next(self, log: Log) -> Iterator[Record]:
        """A step, and what is due after it."""
        record, best = self._train(), False
        if "loss" in record and faults.is_far(record["loss"], self.recent, self.settings.spike):
            record = self._roll_back(log, record)
        self._write(log, record)
        yield record
        if "rolled_back" in record:
            return
        if self.finished or self.step % self.settings.eval_every == 0:
            with self.average.in_place(), self.shared.whole():
                found = (self._evaluate(), self.best, self.best_at) if processes.leads() else None
            record, self.best, self.best_at = processes.from_first(found)
            best = record["best"] and self.settings.keep_best
            self._write(log, record)
            self._draw(log.path)
            yield record
        self.stopping = processes.any_of(self.asked_to_stop)
        if self.finished or self.stopping or best or self.step % self.settings.save_every == 0:
            with faults.writing(self.folder, self.saved):
                log.sync()
            self._save()

    def _write(self, log: Log, record: Record) -> None:
        if "loss" in record:
            self.recent.append(record["loss"])
        with faults.writing(self.folder, self.saved):
            log.write(record)

    def _look_back(self, log: Log) -> None:
        """At the losses before this step, so that what is far from them is the same after a stop."""
        if self.settings.spike:
            self.recent.clear()
            self.recent.extend(record["loss"] for record in read(log.path) if "loss" in record)

    def _roll_back(self, log: Log, record: Record) -> Record:
        """Goes back to the last checkpoint that was due, but not to its place in the data: what the loss rose at is not
        read again. Says so, in a record of the step after it; the step's own record, where there is no checkpoint. A
        ValueError after several times, for then it is not the data."""
        settings, data, rolled = self.settings, self.sampler.state(), self.rolled + 1
        if rolled > faults.ROLLBACKS:
            what = f"The loss rose to {record['loss']:.4g} at step {self.step}, after {self.rolled} roll-backs"
            raise ValueError(
                f"{what} to one checkpoint: try a lower lr, or --resume --set spike=0 to go on all the same."
            )
        self._settle()
        found = state.newest(self.checkpoints, STATE, every=settings.save_every)
        if found is None:
            return record
        self._restore(*found)
        self.sampler.restore(data)
        self.rolled = rolled
        with faults.writing(self.folder, self.saved):
            if processes.leads():
                state.remove_all_but(self.checkpoints, range(self.step + 1))
            log.cut(self.step)
        processes.wait()
        self._look_back(log)
        said = {"rolled_back": rolled, "from_step": record["step"], "rose_to": record["loss"]}
        return {"step": self.step + 1, **said}

    def _train(self) -> Record:
        """One step. The loss is the mean over all targets of the step, however it is cut into micro-batches."""
        began, settings, task = time.perf_counter(), self.settings, self.task
        if not task.model.training:
            task.model.train()
        for module in self.at_rest:
            module.training = False
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings) * group["factor"]
        examples = self.sampler.take(self.size)
        processes.draw_anew(settings.seed, self.step)
        parts, idle = processes.share(examples, settings.micro_batch, processes.rank())
        batches = [task.batch(part) for part in parts]
        waited = time.perf_counter() - began
        if not self.finished:
            coming, _ = processes.share(self.sampler.peek(self.size), 0, processes.rank())
            task.expect(coming[0])
        self.at_once = len(parts[0])
        loss = task.learn(batches, Arithmetic(self.device, settings.autocast, self.scaler, self.shared, idle))
        self.shared.finish()
        self._settle()  # before anything changes that is being written
        self.scaler.unscale_(self.optimizer)
        norm = self.shared.clip(settings.clip or math.inf)
        # fp16 skips a step whose gradient overflows, and scales less from then on, which is no fault while it can.
        overflows = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if math.isfinite(loss) and (overflows or math.isfinite(norm)):
            self.skipped, found = 0, {"loss": loss}
            self.scaler.step(self.optimizer)
        else:
            found = self._skip(f"the loss is {loss} and its gradient {norm}", examples, batches)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        noted = task.stepped()
        targets = processes.total(sum(map(task.targets, batches[: len(batches) - idle])))
        if not self.skipped:
            self.average.update(self.step)
        record = {"step": self.step, **found, "lr": learning_rate(self.step, settings), "targets": targets}
        record |= {**noted, "grad_norm": norm if math.isfinite(norm) else None}
        record |= self.compiled.news() if self.compiled else {}
        record |= {"seconds": round(time.perf_counter() - began, 4), "waited": round(waited, 4)}  # for the batch
        return record | ({"trivial_loss": task.trivial, **task.baselines, **task.notes} if self.step == 1 else {})

    def _skip(self, why: str, examples: Sequence[tuple[int, int]], batches: Sequence[Batch]) -> Record:
        """Of a step that changes nothing, for its loss or gradient is no number: its batch is written down. ValueError
        after `nan_limit` of them in a row, and at once where the weights are no numbers either."""
        with faults.writing(self.folder, self.saved):
            path = self._written_down(why, examples, batches)
        lost = processes.any_of(not faults.is_finite(self.task.model))
        if lost or self.skipped >= self.settings.nan_limit:
            before = f", as in the {self.skipped} steps before" if self.skipped else ""
            lost_too = ", for the weights are no numbers either" if lost else ""
            raise ValueError(
                f"T{why[1:]} at step {self.step}{before}: try a lower lr{lost_too}; what it read is said in {path}."
            )
        self.skipped += 1
        return {"skipped": self.skipped, "why": why, "batch": str(path.relative_to(self.folder))}

    def _written_down(self, why: str, examples: Sequence[tuple[int, int]], batches: Sequence[Batch]) -> Path:
        """Where the first process wrote it, with what the others read as well."""
        path = None
        if processes.leads():
            for number in range(1, processes.count()):
                parts, idle = processes.share(examples, self.settings.micro_batch, number)
                batches = [*batches, *map(self.task.batch, parts[: len(parts) - idle])]
            path = faults.write_down(self.folder / "faults", self.step, examples, batches, why)
        return processes.from_first(path)

    def _evaluate(self) -> Record:
        """Validation loss, a sample and a picture; the model is saved if it is the best so far, or the last and none
        was."""
        figures = evaluate(self.task, self.device, autocast=self.settings.autocast)
        figure = figures[self.task.best] if self.task.best == "loss" else 1 - figures[self.task.best]
        best = figure < self.best
        if best:
            self.best = figure
            self.best_at = self.step
        with faults.writing(self.folder, self.saved):
            if best or (self.finished and self.best == math.inf):
                self._keep()
            if (drawn := self.task.draw(self.task.model)) is not None:
                picture = self.folder / "pictures" / f"step-{self.step}.png"
                write_atomically(picture, lambda file: drawn.savefig(file, format="png"))
        shown = {f"valid_{name}": value if math.isfinite(value) else None for name, value in figures.items()}
        return {"step": self.step, **shown, "best": best, "sample": self.task.sample(self.task.model)}

    def _keep(self) -> None:
        """The run's model: one with adapters is merged, and these lie beside it."""
        model = self.task.model
        with lora.merged(model):
            model.save_pretrained(self.folder / "model")
        if lora.adapters(model):
            lora.save(model, self.folder / "adapter", base=self.base)

    def _draw(self, log: Path) -> None:
        if not processes.leads():
            return
        with faults.writing(self.folder, self.saved):
            draw(log, self.folder / "loss.png", trivial=self.task.trivial, unit=self.task.unit, title=self.title)
