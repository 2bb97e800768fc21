"""Is my loss normal? A run beside others of its recipe, which differ by their seeds alone.

Losses of single steps are noisy, so that a curve is its means over stretches of steps, each about a sixteenth as long
as what is before it. Where in a stretch five runs' losses have a mean and a deviation, that of a sixth is expected in

    mean +- WIDTH * deviation * sqrt(1 + 1 / runs)

all of it of asinh(loss / small): losses differ by ratios while they are large, and where little is left of the first
loss by what is left. The deviation is that of the stretch and its neighbours together: of five values alone it is often
far too small. WIDTH is such that, of the committed references, each seed beside the five others is never twice in a row
outside (the farthest are at 5.5, once at 15 where a BERT's loss leapt for a few steps), nor once in validation.
"""

import bisect
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchformers.checkpoints import files
from scratchformers.checkpoints.files import write_atomically
from scratchformers.training.log import Record, read

FOLDER = Path(__file__).parent / "reference_runs"
BANDS = ("training", "validation")
WIDTH = {"training": 5.0, "validation": 6.0}  # deviations
LEAST = 0.002  # what a deviation is at least, for rounding and other versions
SMALL, TINY = 0.05, 1e-12  # the share of the highest loss below which one is small; and what that is at least
NEAR = 3  # stretches on either side whose deviations are taken together
# What does not change what is learnt, or is of the data.
FREE = {"seed", "threads", "workers", "keep", "keep_best", "save_every", "eval_every", "micro_batch", "nan_limit"}
FREE |= {"spike", "checkpointing", "compile", "shard", "scored", "truncate", "skip_unreadable"}
OF_DATA = {"vocab", "target_vocab", "classes", "end", "joint"}


@dataclass(frozen=True)
class Curve:
    """Steps and the losses there."""

    steps: list[int]
    losses: list[float]


@dataclass(frozen=True)
class Band:
    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]

    def at(self, step: int) -> tuple[float, float] | None:
        """The lowest and highest normal loss at a step that the band has."""
        if step not in self.steps:
            return None
        i = self.steps.index(step)
        return self.low[i], self.high[i]

    def where(self, step: int, loss: float) -> str:
        low, high = self.at(step) or (-math.inf, math.inf)
        return "above" if loss > high else "below" if loss < low else "within"


@dataclass(frozen=True)
class Losses:
    """What a run's folder says."""

    folder: Path
    facts: dict[str, Any]
    steps: list[int]
    raw: list[float]
    valid: Curve
    trivial: float | None

    @property
    def step(self) -> int:
        return self.steps[-1]

    @property
    def name(self) -> str:
        return name_of(self.facts)

    def curve(self) -> Curve:
        """The means over whole stretches."""
        steps, losses = [], []
        for first, last in stretches(self.step):
            some = self.raw[bisect.bisect_left(self.steps, first) : bisect.bisect_right(self.steps, last)]
            if some:
                steps.append(last)
                losses.append(math.fsum(some) / len(some))
        return Curve(steps, losses)


def name_of(facts: Mapping[str, Any]) -> str:
    return " ".join(str(facts[name]) for name in ("recipe", "task", "preset") if facts.get(name))


def stretches(steps: int) -> Iterator[tuple[int, int]]:
    """The first and last step of each that ends within so many steps."""
    first = 1
    while (last := first + max(0, first // 16 - 1)) <= steps:
        yield first, last
        first = last + 1


def read_run(folder: Path) -> Losses:
    """ValueError or FileNotFoundError, in a sentence, for what is no run that could be compared."""
    config, log = folder / "config.json", folder / "log.jsonl"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} holds no run: expected a folder that `train` wrote, with its config.json.")
    facts = files.read_json(config)
    if not _is_whole(facts):
        raise ValueError(f"{config} says of no run what it is: expected the file that `train` wrote.")
    records = _records(log)
    steps = {record["step"]: record["loss"] for record in records if "loss" in record}  # the last, of one done again
    if not steps:
        raise ValueError(f"{log} holds no step yet: let the run take some.")
    valid = {r["step"]: r["valid_loss"] for r in records if r.get("valid_loss") is not None}
    trivial = next((r["trivial_loss"] for r in records if "trivial_loss" in r), None)
    for step, loss in (*steps.items(), *valid.items(), *([] if trivial is None else [(1, trivial)])):
        if not isinstance(loss, (int, float)) or not math.isfinite(loss):
            raise ValueError(f"{log} has the loss {loss} at step {step}: expected a number, as `train` logs.")
    order = sorted(steps)
    checked = Curve(sorted(valid), [valid[step] for step in sorted(valid)])
    return Losses(folder, facts, order, [steps[step] for step in order], checked, trivial)


def _is_whole(facts: Mapping[str, Any]) -> bool:
    tables = [facts.get(name) for name in ("settings", "model")]
    tables += [facts[name] for name in ("data", "valid", "versions") if facts.get(name) is not None]
    return isinstance(facts.get("recipe"), str) and all(isinstance(table, dict) for table in tables)


def _records(log: Path) -> list[Record]:
    if not log.is_file():
        raise FileNotFoundError(f"{log} does not exist: the run has not begun, or its log was moved.")
    found = read(log)
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    if len(found) < len(lines):
        raise ValueError(f"Line {len(found) + 1} of {log} is damaged: expected a JSON object, as `train` logs.")
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise ValueError(f"Line {number} of {log} names no step: expected a JSON object, as `train` logs.")
    return found


# --- references


def band_of(curves: Sequence[Curve], width: float) -> Band:
    """Of at least two curves, at the steps that all have; `width` deviations to either side."""
    shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    by_step = [dict(zip(curve.steps, curve.losses)) for curve in curves]
    small = max(TINY, SMALL * max((losses[step] for losses in by_step for step in shared), default=0.0))
    columns = [[math.asinh(losses[step] / small) for losses in by_step] for step in shared]
    spread, band = [statistics.variance(column) for column in columns], []
    for i, column in enumerate(columns):
        deviation = max(LEAST, math.sqrt(statistics.fmean(spread[max(0, i - NEAR) : i + NEAR + 1])))
        half, middle = width * deviation * math.sqrt(1 + 1 / len(curves)), statistics.fmean(column)
        edges = [small * math.sinh(middle + side * half) for side in (0, -1, 1)]
        band.append([float(f"{max(0.0, edge):.5g}") for edge in edges])
    return Band(shared, *([*edge] for edge in zip(*band)) if band else ([], [], []))


def make_reference(runs: Sequence[Losses]) -> dict[str, Any]:
    """What a reference's file holds. ValueError unless the runs differ by their seeds alone."""
    if len(runs) < 2:
        raise ValueError(f"There is {len(runs)} run to make a band of: expected at least 2, and 5 are better.")
    first = runs[0]
    for run in runs[1:]:
        others = [f"{run.name}, not {first.name}"] if run.name != first.name else differences(run.facts, first.facts)
        others += ["other data"] if other_data(run.facts, first.facts) else []
        if others:
            what = ", ".join(others)
            raise ValueError(f"{run.folder} is no run like {first.folder} ({what}): a band is of runs that are.")
    kept = ("recipe", "task", "preset", "settings", "model", "parameters", "device", "versions", "data", "valid")
    return {
        **{name: first.facts.get(name) for name in kept},
        "seeds": [run.facts["settings"].get("seed") for run in runs],
        "trivial_loss": first.trivial,
        "training": vars(band_of([run.curve() for run in runs], WIDTH["training"])),
        "validation": vars(band_of([run.valid for run in runs], WIDTH["validation"])),
    }


def read_reference(path: Path) -> dict[str, Any]:
    found = files.read_json(path)
    try:
        bands = [[[*map(float, values)] for values in vars(Band(**found[name])).values()] for name in BANDS]
        whole = all(len({*map(len, band)}) == 1 for band in bands) and bool(bands[0][0])
        whole = whole and math.isfinite(float(found.get("trivial_loss") or 0))
        whole = whole and _is_whole(found) and bool(found["seeds"])
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is no reference: expected a file that `compare --save` wrote.")
    return found


def find_reference(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The committed one of this recipe, task and preset. ValueError, naming those there are, where there is none."""
    known = {name_of(found): found for found in map(files.read_json, sorted(FOLDER.glob("*.json")))}
    if (name := name_of(facts)) not in known:
        raise ValueError(
            f"There is no reference for {name}, but for {', '.join(known)}: compare with runs of your own, --against."
        )
    return known[name]


def differences(facts: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """What was asked of both otherwise, or read by both, and could change what is learnt."""
    found = []
    for part in ("settings", "model"):
        ours, theirs = facts[part], reference[part]
        for name in sorted(ours.keys() & theirs.keys() - FREE - OF_DATA):
            if ours[name] != theirs[name] and not any(each.startswith(f"{name} ") for each in found):
                found.append(f"{name} {ours[name]}, not {theirs[name]}")
    for name in ("lora", "freeze"):
        found += [f"{name} {facts[name]}"] if facts.get(name) != reference.get(name) and facts.get(name) else []
    return found


def other_data(facts: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    digests = [[(each.get(name) or {}).get("sha256") for name in ("data", "valid")] for each in (facts, reference)]
    return digests[0] != digests[1]


def other_machine(facts: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    found = [] if facts.get("device") == reference.get("device") else [f"{facts.get('device')}"]
    ours, theirs = facts.get("versions") or {}, reference.get("versions") or {}
    return found + [f"{name} {ours[name]}" for name in ours if name != "python" and ours[name] != theirs.get(name)]


# --- where a run stands


@dataclass(frozen=True)
class Standing:
    """A run beside a reference, by its losses, or on other data in shares of what knowing nothing costs."""

    run: Losses
    reference: dict[str, Any]
    shares: bool
    training: Band
    validation: Band
    curve: Curve
    valid: Curve
    settings: list[str]
    machine: list[str]

    @property
    def where(self) -> str:
        """within, above or below the band, at that step."""
        return self.training.where(self.curve.steps[-1], self.curve.losses[-1])

    @property
    def left(self) -> int | None:
        """The step at which the curve left the band, for two stretches at least or to its end."""
        places = [self.training.where(step, loss) for step, loss in zip(self.curve.steps, self.curve.losses)]
        follows = [*places[1:], places[-1]]
        return next((s for s, a, b in zip(self.curve.steps, places, follows) if a == b != "within"), None)

    def to_json(self) -> dict[str, Any]:
        step, valid = self.curve.steps[-1], self.valid.steps[-1] if self.valid.steps else None
        return {
            "run": str(self.run.folder),
            "reference": name_of(self.reference),
            "unit": "share of the trivial loss" if self.shares else "loss",
            "reached": self.run.step,
            "step": step,
            "loss": self.curve.losses[-1],
            "band": self.training.at(step),
            "where": self.where,
            "left": self.left,
            "validation": None
            if valid is None
            else {
                "step": valid,
                "loss": self.valid.losses[-1],
                "band": self.validation.at(valid),
                "where": self.validation.where(valid, self.valid.losses[-1]),
            },
            "other_data": self.shares,
            "other_settings": self.settings,
            "other_machine": self.machine,
            "sentence": self.sentence(),
        }

    def sentence(self) -> str:
        low, high = self.training.at(self.curve.steps[-1]) or (math.nan, math.nan)
        unit = " of what knowing nothing costs" if self.shares else ""
        beyond = f" (the run is at {self.run.step})" if self.run.step != self.curve.steps[-1] else ""
        said = f"At step {self.curve.steps[-1]}{beyond} the training loss {self.curve.losses[-1]:.3f}{unit} lies "
        said += f"{self.where} the band of {len(self.reference['seeds'])} runs of {name_of(self.reference)} "
        said += f"({low:.3f} to {high:.3f})"
        if self.left is not None:
            said += f", which it left at step {self.left}" + (" and came back to" if self.where == "within" else "")
        if self.valid.steps:
            step, loss = self.valid.steps[-1], self.valid.losses[-1]
            low, high = self.validation.at(step) or (math.nan, math.nan)
            said += f"; the validation loss {loss:.3f}{unit} at step {step} lies "
            said += f"{self.validation.where(step, loss)} its band ({low:.3f} to {high:.3f})"
        return "; ".join([said, *self._but()]) + "."

    def _but(self) -> Iterator[str]:
        """What it is that differs, and what that means."""
        if self.shares:
            yield (
                "the data is not the reference's, so that not the losses can be compared but only the curves' shapes, "
                "which data too may change"
            )
        if self.settings:
            yield f"its settings are others ({', '.join(self.settings)}), which moves the curve"
        if self.machine:
            yield f"it ran on {', '.join(self.machine)}, which changes the last digits and not the band"


def compare(run: Losses, reference: Mapping[str, Any]) -> Standing:
    """ValueError where they are not of one recipe, or nothing can be compared."""
    if name_of(reference) != run.name:
        raise ValueError(f"The reference is of {name_of(reference)}, and {run.folder} of {run.name}: take one of it.")
    shares, own, theirs = other_data(run.facts, reference), 1.0, 1.0
    if shares:
        own, theirs = run.trivial or 0.0, reference.get("trivial_loss") or 0.0
        if not (own > 0 and theirs > 0):
            raise ValueError(
                f"{run.folder} read other data than the reference, and what knowing nothing costs is not logged: "
                "nothing can be compared."
            )
    bands = {name: _scaled(reference[name], theirs) for name in BANDS}
    curves = {"training": run.curve(), "validation": run.valid}
    common = {}
    for name, curve in curves.items():
        pairs = [(s, loss / own) for s, loss in zip(curve.steps, curve.losses) if s in set(bands[name].steps)]
        common[name] = Curve([s for s, _ in pairs], [loss for _, loss in pairs])
    if not common["training"].steps:
        raise ValueError(f"{run.folder} and the reference have no step in common: nothing can be compared.")
    return Standing(
        run, dict(reference), shares, bands["training"], bands["validation"], common["training"],
        common["validation"], differences(run.facts, reference), other_machine(run.facts, reference),
    )  # fmt: skip


def _scaled(band: Mapping[str, Any], unit: float) -> Band:
    scaled = {name: [value / unit for value in band[name]] for name in ("mean", "low", "high")}
    return Band(list(band["steps"]), **scaled)


def draw(standing: Standing, picture: Path) -> None:
    """The run's curves, and the bands. OSError where the picture cannot be written."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    run, known = standing.run, standing.training
    per = run.trivial or 1.0 if standing.shares else 1.0
    raw = [loss / per for loss in run.raw]
    count = len(standing.reference["seeds"])
    axes.fill_between(known.steps, known.low, known.high, color="tab:grey", alpha=0.3, linewidth=0)
    axes.plot(known.steps, known.mean, color="tab:grey", label=f"training, {count} runs and their band")
    axes.plot(run.steps, raw, color="tab:blue", alpha=0.2, linewidth=0.8)
    mean = run.curve()
    axes.plot(mean.steps, [loss / per for loss in mean.losses], color="tab:blue", label=f"training, {run.folder.name}")
    checked = standing.validation
    below, above = ([abs(a - b) for a, b in zip(checked.mean, edge)] for edge in (checked.low, checked.high))
    axes.errorbar(
        checked.steps, checked.mean, yerr=[below, above], color="tab:grey", fmt="_", capsize=4,
        label=f"validation, {count} runs and their band",
    )  # fmt: skip
    shown = [loss / per for loss in run.valid.losses]
    axes.plot(run.valid.steps, shown, "o", color="tab:red", markersize=4, label=f"validation, {run.folder.name}")
    if (nothing := 1.0 if standing.shares else run.trivial) is not None:
        axes.axhline(nothing, color="grey", linestyle=":", label="knowing nothing")
    if standing.left is not None:
        axes.axvline(standing.left, color="tab:blue", linestyle="--", linewidth=0.8, label="where it left the band")
    unit = "loss, as a share of knowing nothing" if standing.shares else "loss"
    axes.set(xlabel="step", ylabel=unit, xscale="log", title=f"{run.folder.name} beside {name_of(standing.reference)}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=8)
    write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=120))
