"""A run's folder: what may be begun in it, what may be gone on with, and what it says of itself."""

import dataclasses
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from scratchformers import __version__
from scratchformers.checkpoints import files
from scratchformers.checkpoints.vision import as_config
from scratchformers.training.documents import HUB, hub_parts
from scratchformers.training.loop import Run, Settings, freeze
from scratchformers.training.memory import keep_freed_memory
from scratchformers.training.parallel import parallel_paths
from scratchformers.training.recipes import configure, parse, recipe_of
from scratchformers.training.request import BPE, CHARACTERS, WORDPIECE, Request

PATHS = ("data", "valid", "tokenizer", "source")  # of a request
# Settings that older runs lack; their defaults are what those runs did.
ADDED = ("ema", "layer_decay", "schedule", "workers")


def open_run(request: Request, *, resume: bool = False) -> tuple[Run, list[str]]:
    """A run ready to be iterated, and what there is to say about it. Nothing is written before everything fits.

    Raises ValueError or FileNotFoundError if the folder holds another run, or anything asked for does not fit.
    """
    saved = _saved(request.out, resume=resume)
    recipe = recipe_of(request.recipe, request.task) if saved is None else recipe_of(saved["recipe"], saved["task"])
    if resume and saved is None and request.data is None:
        raise FileNotFoundError(f"{request.out} holds no run to resume: check --out, or pass --data to begin one.")
    if saved is None:
        settings, fields = configure(request)
    else:
        request = _same_request(request, saved)
        settings, fields = recipe.settings(**saved["settings"]), saved["model"]
    threads = settings.threads or request.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    settings = dataclasses.replace(settings, threads=threads)
    fields = {name: as_config(value) for name, value in fields.items()}
    task, data, said = recipe.prepare(request, settings, fields)
    said = [*said, *freeze(task.model, request.freeze, head=task.head)]
    facts = {
        "recipe": request.recipe,
        "task": request.task,
        "preset": recipe.preset(request),
        "paths": {name: _absolute(getattr(request, name)) for name in PATHS},
        "vocab": request.vocab,
        "columns": dict(request.columns),
        "freeze": _parts(request.freeze),
        **data,
        "settings": dataclasses.asdict(settings),
        "model": dataclasses.asdict(task.model.config),
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "device": request.device,
        "versions": {"scratchformers": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    if saved is not None:
        _same_data(data, saved, request.out)
        files.remove_temporary(request.out)
    title = f"{request.recipe} on {Path(str(request.data)).name}"
    run = Run(task, settings, request.out, resume=resume, title=title)
    if saved is None:
        files.write_json(request.out / "config.json", facts)
    return run, said + (_notes(run, saved, facts) if resume else [])


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
        return [f"{run.folder} holds no complete checkpoint: starting anew."]
    if run.finished:
        return [f"The run in {run.folder} is finished ({run.step} steps): its model is {run.folder / 'model'}."]
    notes = [f"Resuming at step {run.step} of {run.settings.steps}."]
    for name in ("device", "versions"):
        if saved is not None and saved[name] != facts[name]:
            notes.append(f"Begun with {saved[name]}, resumed with {facts[name]}: losses may differ in the last digits.")
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
    if folder.is_dir() and any(not (p.name.startswith(".") and p.name.endswith(".tmp")) for p in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: choose another --out.")
    return None


def _checked(saved: dict[str, Any], path: Path) -> dict[str, Any]:
    """The facts, with what older runs lack. Raises ValueError unless this version could have written them."""
    try:
        added = {name: getattr(Settings, name) for name in ADDED}
        saved = {"freeze": [], **saved, "settings": {**added, **saved["settings"]}}
        recipe = recipe_of(saved["recipe"], saved["task"])
        settings = {field.name for field in dataclasses.fields(recipe.settings)}
        fields = {field.name for field in dataclasses.fields(recipe.model.config_class)}
        there = {"preset", "paths", "vocab", "columns", "device", "versions"} <= saved.keys()
        there = there and saved["paths"].keys() == set(PATHS) and saved["freeze"] == _parts(saved["freeze"])
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
    differs = [
        f"{name} {saved[name]}, not {value}" for name, value in asked.items() if value not in (None, saved[name])
    ]
    if not differs:
        known = {**saved["model"], **saved["settings"]}  # `length` is both: the positions and the window
        given = parse(dataclasses.replace(request, task=saved["task"])).items()
        differs = [f"{name} {known[name]}, not {value}" for name, value in given if known[name] != value]
    if request.source is not None and saved["paths"]["source"] is None:
        differs.append("no source")
    if differs:
        raise ValueError(
            f"The run in {request.out} has {'; '.join(differs)}: resume it as it is, or choose another --out."
        )
    paths = {name: getattr(request, name) or saved["paths"][name] for name in PATHS}
    kept = {name: saved[name] for name in ("task", "preset", "vocab", "columns")}
    return dataclasses.replace(request, **kept, **paths, freeze=tuple(saved["freeze"]))


def _same_data(data: Mapping[str, Any], saved: Mapping[str, Any], folder: Path) -> None:
    for name, facts in data.items():
        if facts["sha256"] != saved.get(name, {}).get("sha256"):
            raise ValueError(f"The {name} is not what the run in {folder} began with: resume it with the same.")
