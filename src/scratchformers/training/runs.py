"""A run's folder: what may be begun in it, what may be gone on with, and what it says of itself."""

import dataclasses
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from scratchformers import __version__, lora
from scratchformers.checkpoints import files
from scratchformers.checkpoints.vision import as_config
from scratchformers.training import packing, processes
from scratchformers.training.documents import HUB, hub_parts
from scratchformers.training.faults import check_writable
from scratchformers.training.loop import Run, Settings, Task, freeze, share_that_learns
from scratchformers.training.memory import keep_freed_memory
from scratchformers.training.parallel import parallel_paths
from scratchformers.training.recipes import Recipe, configure, parse, recipe_of
from scratchformers.training.request import BPE, CHARACTERS, WORDPIECE, Request

PATHS = ("data", "valid", "tokenizer", "source")  # of a request
# Settings that older runs lack; their defaults are what those runs did.
ADDED = (
    "ema",
    "layer_decay",
    "schedule",
    "workers",
    "keep",
    "keep_best",
    "nan_limit",
    "spike",
    "checkpointing",
    "compile",
    "optimizer",
    "shard",
)
# Settings that may be others when a run is resumed: of how it is computed and kept, not of what it learns.
FREE = ("keep", "keep_best", "micro_batch", "nan_limit", "shard", "spike", "workers")
CHANGING = ("data", "valid")  # what a run reads and may read changed, when told


def open_run(request: Request, *, resume: bool = False, changed_data: bool = False) -> tuple[Run, list[str]]:
    """A run ready to be iterated, and what there is to say about it. Nothing is written before everything fits.

    Raises ValueError or FileNotFoundError if the folder holds another run, or anything asked for does not fit; so does
    data that is not what the run began with, unless `changed_data`: then an epoch of it begins.
    """
    check_writable(request.out)
    saved = _saved(request.out, resume=resume)
    processes.wait()  # nothing is there yet of what the first one will write
    recipe = recipe_of(request.recipe, request.task) if saved is None else recipe_of(saved["recipe"], saved["task"])
    if resume and saved is None and request.data is None:
        raise FileNotFoundError(f"{request.out} holds no run to resume: check --out, or pass --data to begin one.")
    if saved is None:
        settings, fields = configure(request)
    else:
        free = {name: value for name, value in parse(_of_task(request, saved)).items() if name in FREE}
        request = _same_request(request, saved)
        settings, fields = recipe.settings(**{**saved["settings"], **free}), saved["model"]
    same = saved is None or saved.get("processes", 1) == processes.count()  # else a process has another share of cores
    threads = (settings.threads if same else 0) or request.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    settings = dataclasses.replace(settings, threads=threads)
    fields = {name: as_config(value) for name, value in fields.items()}
    with processes.first():
        task, data, said = recipe.prepare(request, settings, fields)
    parameters = sum(parameter.numel() for parameter in task.model.parameters())  # adapters are merged in the end
    if request.lora:
        lora.add(task.model, **lora.read(request.lora))
        said = [*said, *([] if request.freeze else [share_that_learns(task.model)])]
    said = [*said, *freeze(task.model, request.freeze, head=task.head)]
    facts = _facts(request, recipe, task, settings) | {**data, "parameters": parameters}
    others = _others(facts, saved, request.out, told=changed_data)
    if saved is not None and processes.leads():
        files.remove_temporary(request.out)
    title = f"{request.recipe} on {Path(str(request.data)).name}"
    run = Run(task, settings, request.out, resume=resume, title=title, base=_absolute(request.source))
    if others:
        run.begin_epoch()
        said = [*said, f"The {' and '.join(others)} changed since the run began: an epoch of what is there now begins."]
    if (now := _amended(saved, facts, others, run.step)) != saved and processes.leads():
        files.write_json(request.out / "config.json", now)
    return run, said + (_notes(run, saved, facts) if resume else [])


def _facts(request: Request, recipe: Recipe, task: Task, settings: Settings) -> dict[str, Any]:
    """What a run says of itself, but for its data."""
    facts: dict[str, Any] = {
        "recipe": request.recipe,
        "task": request.task,
        "preset": recipe.preset(request),
        "paths": {name: _absolute(getattr(request, name)) for name in PATHS},
        "vocab": request.vocab,
        "columns": dict(request.columns),
        "freeze": _parts(request.freeze),
        "lora": lora.read(request.lora) if request.lora else {},
        "settings": dataclasses.asdict(settings),
        "model": dataclasses.asdict(task.model.config),
        "device": request.device,
        "processes": processes.count(),
        "versions": {"scratchformers": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    labels = getattr(getattr(task.model, "head", None), "labels", None)
    return facts if labels is None else {**facts, "labels": [*labels]}


def _amended(saved: dict[str, Any] | None, facts: dict[str, Any], others: list[str], step: int) -> dict[str, Any]:
    """The facts of a run, as it was begun if it is resumed. Where it goes on otherwise, `before` says change by change
    until which step what was how."""
    if saved is None:
        return facts
    was, now = saved["settings"], facts["settings"]
    free = {name: was[name] for name in FREE if was[name] != now[name]}
    if not (free or others):
        return saved
    old = {"step": step, **{name: saved[name] for name in others}, **({"settings": free} if free else {})}
    settings = {**was, **{name: now[name] for name in free}}
    changed = {name: facts[name] for name in (*others, *(["paths"] if others else []))}
    return {**saved, **changed, "settings": settings, "before": [*saved.get("before", []), old]}


def _parts(freeze: Iterable[str]) -> list[str]:
    """In whatever order they were named."""
    return sorted(set(freeze))


def _absolute(path: Path | str | None) -> str | None:
    """So that a run can be resumed from any folder; a name that is no path stays as it is."""
    if path in (None, CHARACTERS, BPE, WORDPIECE):
        return path
    text = str(path)
    if text.startswith(HUB):
        name = hub_parts(text)[0]
        return f"{HUB}{Path(name).absolute()}{text[len(HUB + name) :]}" if Path(name).is_dir() else text
    parts = parallel_paths(text)
    return ",".join(str(part.absolute()) for part in parts) if all(part.exists() for part in parts) else text


def _notes(run: Run, saved: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> list[str]:
    if run.step == 0:
        return [*run.damaged, f"{run.folder} holds no complete checkpoint: starting anew."]
    if run.finished:
        return [f"The run in {run.folder} is finished ({run.step} steps): its model is {run.folder / 'model'}."]
    notes = [*run.damaged, f"Resuming at step {run.step} of {run.settings.steps}."]
    if saved is not None and saved["settings"]["micro_batch"] != run.settings.micro_batch:
        was = saved["settings"]["micro_batch"]
        notes.append(f"micro_batch is {run.settings.micro_batch}, not {was}: losses may differ in the last digits.")
    for name in ("device", "versions", "processes"):
        was, now = (each.get(name, 1) for each in (saved or facts, facts))
        if was != now:
            what = "" if name != "processes" else " processes"
            notes.append(f"Begun with {was}{what}, resumed with {now}: losses may differ in the last digits.")
    return notes


def _saved(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """What the run in the folder says of itself; None where one may be begun."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder for --out.")
    path = folder / "config.json"
    saved = files.read_json(path) if path.is_file() else {}
    if "recipe" in saved and "settings" in saved:
        if not resume:
            raise ValueError(
                f"{folder} holds another run: choose another --out, pass --resume to go on with it, or delete it."
            )
        return _checked(saved, path)
    if folder.is_dir() and any(not (_is_hidden(p.name) or p.name == packing.FOLDER) for p in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: choose another --out.")
    return None


def _is_hidden(name: str) -> bool:
    """Whether it is what a killed process left half written."""
    return name.startswith(".") and name.endswith(".tmp")


def _checked(saved: dict[str, Any], path: Path) -> dict[str, Any]:
    """The facts, with what older runs lack. Raises ValueError unless this version could have written them."""
    try:
        added = {name: getattr(Settings, name) for name in ADDED}
        saved = {"freeze": [], "lora": {}, **saved, "settings": {**added, **saved["settings"]}}
        recipe = recipe_of(saved["recipe"], saved["task"])
        settings = {field.name for field in dataclasses.fields(recipe.settings)}
        fields = {field.name for field in dataclasses.fields(recipe.model.config_class)}
        there = {"preset", "paths", "vocab", "columns", "device", "versions"} <= saved.keys()
        there = there and saved["paths"].keys() == set(PATHS) and saved["freeze"] == _parts(saved["freeze"])
        there = there and saved["lora"] in ({}, lora.read(saved["lora"]))
        whole = there and saved["settings"].keys() == settings and saved["model"].keys() == fields
    except (KeyError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged, or of another version of this program: it cannot be resumed.")
    return saved


def _same_request(request: Request, saved: Mapping[str, Any]) -> Request:
    """The request with what was left out taken from the run. Raises ValueError where both say something else."""
    asked = {name: getattr(request, name) for name in ("recipe", "task", "preset", "vocab")}
    asked |= {"columns": dict(request.columns) or None, "freeze": _parts(request.freeze) or None}
    asked |= {"lora": lora.read({**saved["lora"], **request.lora}) if request.lora else None}
    differs = [
        f"{name} {saved[name]}, not {value}" for name, value in asked.items() if value not in (None, saved[name])
    ]
    if not differs:
        known = {**saved["model"], **saved["settings"]}  # `length` is both: the positions and the window
        free = FREE if saved.get("processes", 1) == processes.count() else (*FREE, "threads")
        given = {name: value for name, value in parse(_of_task(request, saved)).items() if name not in free}
        differs = [f"{name} {known[name]}, not {value}" for name, value in given.items() if known[name] != value]
    if request.source is not None and saved["paths"]["source"] is None:
        differs.append("no source")
    if differs:
        raise ValueError(
            f"The run in {request.out} has {'; '.join(differs)}: resume it as it is, or choose another --out."
        )
    paths = {name: getattr(request, name) or saved["paths"][name] for name in PATHS}
    kept = {name: saved[name] for name in ("task", "preset", "vocab", "columns", "lora")}
    return dataclasses.replace(request, **kept, **paths, freeze=tuple(saved["freeze"]))


def _of_task(request: Request, saved: Mapping[str, Any]) -> Request:
    return dataclasses.replace(request, task=saved["task"])


def _others(facts: Mapping[str, Any], saved: Mapping[str, Any] | None, folder: Path, *, told: bool) -> list[str]:
    """What of the data is not what the run began with. ValueError unless told that it may be, and where the run's
    weights would no longer mean what they did."""
    if saved is None:
        return []
    digests = {name: value["sha256"] for name, value in facts.items() if isinstance(value, dict) and "sha256" in value}
    others = [name for name, found in digests.items() if found != saved.get(name, {}).get("sha256")]
    for name in others:
        if name not in CHANGING or not told:
            how = ", or pass --changed-data to go on with it as it is" if name in CHANGING else ""
            how = f", which is that of {folder / 'model'}" if name == "tokenizer" and told else how
            raise ValueError(f"The {name} is not what the run in {folder} began with: resume it with the same{how}.")
    for name, what in (("model", "sizes of the model"), ("labels", "labels")):
        if others and name in saved and files.to_json({name: facts.get(name)}) != files.to_json({name: saved[name]}):
            raise ValueError(f"The changed data needs other {what} than the run in {folder} has: choose another --out.")
    return others
