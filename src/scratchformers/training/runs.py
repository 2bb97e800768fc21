"""A run's folder: what may be begun in it, what may be gone on with, and what it says of itself."""

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scratchformers import __version__
from scratchformers.checkpoints import files
from scratchformers.text import TextTokenizer, characters, load_tokenizer
from scratchformers.training.data import digest, read_texts
from scratchformers.training.loop import Run, Settings
from scratchformers.training.recipes import RECIPES, configure, next_token, parse

CHARACTERS = "characters"


@dataclass(frozen=True)
class Request:
    """What the user asked for. None means: as the recipe, or the run to be resumed, has it."""

    recipe: str
    out: Path
    data: Path | None = None
    valid: Path | None = None
    preset: str | None = None
    tokenizer: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 0


def open_run(request: Request, *, resume: bool = False) -> tuple[Run, list[str]]:
    """A run ready to be iterated, and what there is to say about it. Nothing is written before everything fits.

    Raises ValueError or FileNotFoundError if the folder holds another run, or anything asked for does not fit.
    """
    saved = _saved(request.out, resume=resume)
    if saved is None:
        settings, fields = configure(request.recipe, request.preset, request.given)
    else:
        request = _same_request(request, saved)
        settings, fields = Settings(**saved["settings"]), saved["model"]
    if request.data is None:
        raise ValueError("There is nothing to train on: pass --data FILE_OR_FOLDER.")
    texts = read_texts(request.data)
    held_out = None if request.valid is None else read_texts(request.valid)
    tokenizer = _tokenizer(request.tokenizer, [*texts, *(held_out or [])], several=len(texts) > 1)
    threads = settings.threads or request.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings = dataclasses.replace(settings, threads=threads)
    kind = RECIPES[request.recipe].model
    config = kind.config_class(**{**fields, "vocab": tokenizer.vocab})
    task = next_token(
        settings, config, kind=kind, tokenizer=tokenizer, texts=texts, held_out=held_out, device=request.device
    )
    facts = {
        "recipe": request.recipe,
        "preset": request.preset or RECIPES[request.recipe].default,
        "data": {"path": str(request.data.absolute()), "sha256": digest(texts), "tokens": len(task.train.stream)},
        "valid": {
            "path": None if request.valid is None else str(request.valid.absolute()),
            "sha256": digest(held_out or []),
            "tokens": len(task.held_out),
        },
        "tokenizer": {
            "name": request.tokenizer or CHARACTERS,
            "sha256": digest([text.decode("utf-8") for text in tokenizer.files.values()]),
            "vocab": tokenizer.vocab,
        },
        "settings": dataclasses.asdict(settings),
        "model": dataclasses.asdict(config),
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "device": request.device,
        "versions": {"scratchformers": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    if saved is not None:
        _same_facts(facts, saved, request.out)
        files.remove_temporary(request.out)
    run = Run(task, settings, request.out, resume=resume, title=f"{request.recipe} on {request.data.name}")
    if saved is None:
        files.write_json(request.out / "config.json", facts)
    return run, _notes(run, resume, saved, facts)


def _notes(run: Run, resume: bool, saved: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> list[str]:
    if not resume:
        return []
    if run.step == 0:
        return [f"{run.folder} holds no complete checkpoint: starting anew."]
    if run.finished:
        return [f"The run in {run.folder} is finished ({run.step} steps): its model is {run.folder / 'model'}."]
    notes = [f"Resuming at step {run.step} of {run.settings.steps}."]
    if saved is not None and saved["versions"] != facts["versions"]:
        notes.append(
            f"Begun with {saved['versions']}, resumed with {facts['versions']}: losses may differ in the last digits."
        )
    return notes


def _saved(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """What the run in the folder says of itself; None where one may be begun."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder for --out.")
    path = folder / "config.json"
    saved = files.read_json(path) if path.is_file() else {}
    if "recipe" in saved and "settings" in saved:
        if not resume:
            raise ValueError(f"{folder} holds another run: choose another --out, or pass --resume to go on with it.")
        return saved
    if folder.is_dir() and any(not (p.name.startswith(".") and p.name.endswith(".tmp")) for p in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: choose another --out.")
    return None


def _same_request(request: Request, saved: Mapping[str, Any]) -> Request:
    """The request with what was left out taken from the run. Raises ValueError where both say something else."""
    asked = {"recipe": request.recipe, "preset": request.preset, "tokenizer": request.tokenizer}
    has = {"recipe": saved["recipe"], "preset": saved["preset"], "tokenizer": saved["tokenizer"]["name"]}
    differs = [f"{name} {has[name]}, not {value}" for name, value in asked.items() if value not in (None, has[name])]
    if not differs:
        known = {**saved["settings"], **saved["model"]}
        given = parse(request.recipe, request.given).items()
        differs = [f"{name} {known[name]}, not {value}" for name, value in given if known[name] != value]
    if differs:
        raise ValueError(
            f"The run in {request.out} has {'; '.join(differs)}: resume it as it is, or choose another --out."
        )
    valid = saved["valid"]["path"]
    return dataclasses.replace(
        request,
        preset=has["preset"],
        tokenizer=has["tokenizer"],
        data=request.data or Path(saved["data"]["path"]),
        valid=request.valid or (None if valid is None else Path(valid)),
    )


def _same_facts(facts: Mapping[str, Any], saved: Mapping[str, Any], folder: Path) -> None:
    for name in ("data", "valid", "tokenizer"):
        if facts[name]["sha256"] != saved[name]["sha256"]:
            raise ValueError(
                f"The {name} is not what the run in {folder} began with: resume with the same, or begin anew."
            )


def _tokenizer(name: str | None, texts: list[str], *, several: bool) -> TextTokenizer:
    if name in (None, CHARACTERS):
        return characters(texts, end=several)
    return load_tokenizer(name)
