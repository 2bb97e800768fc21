"""The loop: it knows no model, only a task that gives batches and says what they cost."""

import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scratchformers.generate import evaluating
from scratchformers.training import state
from scratchformers.training.data import Sampler
from scratchformers.training.log import Log, Record, draw

Batch = dict[str, Tensor]
STATE = {"best", "data", "scaler", "schedule"}  # of a run, beside its tensors and its step


@dataclass(frozen=True)
class Settings:
    """What every recipe shares. A setting is given as `--set name=value`."""

    steps: int = 2000
    batch: int = 16  # rows a step
    length: int = 0  # of a row, in tokens; 0 means all positions of the model. From scratch, its positions as well
    micro_batch: int = 0  # rows at once, for less memory and the same result; 0 means batch
    lr: float = 1e-3  # the highest, after `warmup` steps; then a cosine down to lr * lr_end
    lr_end: float = 0.1
    warmup: int = 100
    weight_decay: float = 0.1  # of matrices only
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0  # largest norm of the gradient; 0 means no limit
    seed: int = 0
    eval_every: int = 200
    save_every: int = 200
    autocast: str = "off"  # off, bf16, fp16
    threads: int = 0  # 0 means every core, at most 8

    def __post_init__(self):
        least = {"steps": 1, "batch": 1, "eval_every": 1, "save_every": 1}
        for name, value in vars(self).items():
            if not isinstance(value, str) and not least.get(name, 0) <= value < math.inf:
                raise ValueError(f"{name} is {value}: expected at least {least.get(name, 0)}.")
        for name, limit in (("seed", 2**63), ("threads", 257)):
            if getattr(self, name) >= limit:
                raise ValueError(f"{name} is {getattr(self, name)}: expected less than {limit}.")
        if self.autocast not in ("off", "bf16", "fp16"):
            raise ValueError(f"autocast is {self.autocast!r}: expected off, bf16 or fp16.")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected less than 1.")


class Task(ABC):
    """What a recipe makes of the user's data."""

    model: Any
    rows: int  # examples in an epoch
    trivial: float  # the loss of knowing nothing
    unit: str  # what a target is: a token, a picture
    baselines: Mapping[str, float] = {}  # what knowing a little would give, by the figure's name
    best: str = "loss"  # the figure by which the best model is chosen; of an accuracy or f1 the highest

    @abstractmethod
    def batch(self, examples: list[tuple[int, int]]) -> Batch:
        """The examples (epoch, row) of one micro-batch."""

    @abstractmethod
    def targets(self, batch: Batch) -> int:
        """How many targets the loss of this batch sums over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed over the targets, so that micro-batches of unequal length weigh what they hold."""

    @abstractmethod
    def valid(self) -> Iterator[Batch]: ...

    @abstractmethod
    def sample(self, model: Any) -> str:
        """Something to look at."""

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Of a validation batch the loss, and what else there is to count, summed over the targets."""
        return {"loss": float(self.loss(model, batch))}

    def figures(self, sums: Mapping[str, float], targets: int) -> dict[str, float]:
        """What sums over all validation batches come to."""
        return {name: value / targets for name, value in sums.items()}


def learning_rate(step: int, settings: Settings) -> float:
    """At `step`, counted from 1: linear warm-up, then a cosine (Loshchilov and Hutter 2017, without restarts)."""
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (settings.lr_end + (1 - settings.lr_end) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; weights that multiply decay, biases and norms do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True)


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
    """One training run in `folder`. Iterating it trains and yields the record of each step as it is logged."""

    def __init__(self, task: Task, settings: Settings, folder: Path, *, resume: bool = False, title: str = ""):
        self.task, self.settings, self.folder, self.title = task, settings, folder, title
        self.device = next(task.model.parameters()).device
        self.optimizer = make_optimizer(task.model, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.autocast == "fp16")
        self.sampler = Sampler(task.rows, seed=settings.seed)
        self.step, self.best = (
            0,
            math.inf,
        )  # the best figure so far; an accuracy is turned round, so that less is better
        found = state.newest(folder / "checkpoints", STATE) if resume else None
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

    def _restore(self, rest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        state.restore(tensors, self.task.model, self.optimizer)
        self.step, self.best = rest["step"], math.inf if rest["best"] is None else rest["best"]
        self.sampler.restore(rest["data"])
        self.scaler.load_state_dict(rest["scaler"])

    def _save(self) -> None:
        rest = {
            "best": self.best if math.isfinite(self.best) else None,
            "data": self.sampler.state(),
            "scaler": self.scaler.state_dict(),
            "schedule": {"lr": learning_rate(self.step, self.settings)},
        }
        state.save(self.folder / "checkpoints", self.step, self.task.model, self.optimizer, rest)

    def __iter__(self) -> Iterator[Record]:
        log = Log(self.folder / "log.jsonl", after=self.step)
        try:
            while not self.finished:
                self.step += 1
                record = self._train()
                log.write(record)
                yield record
                done = self.finished
                if done or self.step % self.settings.eval_every == 0:
                    record = self._evaluate()
                    log.write(record)
                    self._draw(log.path)
                    yield record
                if done or self.step % self.settings.save_every == 0:
                    log.sync()
                    self._save()
        finally:
            log.close()

    def _train(self) -> Record:
        """One step. The loss is the mean over all targets of the step, however it is cut into micro-batches."""
        began, settings, task = time.perf_counter(), self.settings, self.task
        task.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        examples = self.sampler.take(settings.batch)
        size = settings.micro_batch or settings.batch
        batches = [task.batch(examples[i : i + size]) for i in range(0, len(examples), size)]
        targets, loss = sum(map(task.targets, batches)), 0.0
        for batch in batches:
            with _autocast(self.device, settings.autocast):
                part = task.loss(task.model, _to(batch, self.device)) / targets
            self.scaler.scale(part).backward()
            loss += float(part.detach())
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(task.model.parameters(), settings.clip or math.inf))
        skips = self.scaler.is_enabled()  # fp16 skips a step whose gradient overflows, and scales less from then on
        if not math.isfinite(loss) or not (skips or math.isfinite(norm)):
            raise ValueError(f"The loss is {loss} and its gradient {norm} at step {self.step}: try a lower lr.")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        record = {"step": self.step, "loss": loss, "lr": learning_rate(self.step, settings), "targets": targets}
        record |= {"grad_norm": norm if math.isfinite(norm) else None, "seconds": round(time.perf_counter() - began, 4)}
        return record | ({"trivial_loss": task.trivial, **task.baselines} if self.step == 1 else {})

    def _evaluate(self) -> Record:
        """Validation loss and a sample; the model is saved if it is the best so far, or the last and none was."""
        figures = evaluate(self.task, self.device, autocast=self.settings.autocast)
        figure = figures[self.task.best] if self.task.best == "loss" else 1 - figures[self.task.best]
        best = figure < self.best
        if best:
            self.best = figure
        if best or (self.finished and self.best == math.inf):
            self.task.model.save_pretrained(self.folder / "model")
        shown = {f"valid_{name}": value if math.isfinite(value) else None for name, value in figures.items()}
        return {"step": self.step, **shown, "best": best, "sample": self.task.sample(self.task.model)}

    def _draw(self, log: Path) -> None:
        draw(log, self.folder / "loss.png", trivial=self.task.trivial, unit=self.task.unit, title=self.title)
