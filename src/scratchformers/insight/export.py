"""A checkpoint for elsewhere: the published layout, and a model card made of what is known and nothing else."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import scratchformers
from scratchformers.checkpoints import files, hub
from scratchformers.models import load

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
README, CURVE = "README.md", "loss.png"


@dataclass(frozen=True)
class Use:
    """What a kind of model is for: the hub's word for it, the class of transformers, and lines of ours that use it."""

    tag: str
    theirs: str
    ours: tuple[str, str]


USES = {
    "GPT2LMHeadModel": Use(
        "text-generation", "AutoModelForCausalLM", ("Completer", 'print(task("Once upon a time").text)')
    ),
    "BertForMaskedLM": Use("fill-mask", "AutoModelForMaskedLM", ("MaskFiller", 'print(task("A text with a [MASK]."))')),
    "BertForSequenceClassification": Use(
        "text-classification", "AutoModelForSequenceClassification", ("TextClassifier", 'print(task("A text."))')
    ),
    "BertForTokenClassification": Use(
        "token-classification", "AutoModelForTokenClassification", ("TextClassifier", 'print(task("A text."))')
    ),
    "BertModel": Use(
        "sentence-similarity", "AutoModel", ("SentenceEncoder", 'print(task(["A text.", "Another."]).shape)')
    ),
}
USES["BertForPreTraining"] = USES["BertForMaskedLM"]
USES["BertForNextSentencePrediction"] = dataclasses.replace(
    USES["BertModel"], tag="text-classification", theirs="AutoModelForNextSentencePrediction"
)


def use_of(model: Any) -> Use:
    layout = model.layouts[0]
    said = {**layout.write(model.config), **layout.describe(model)}
    return USES[said["architectures"][0]]


@dataclass(frozen=True)
class Wanted:
    """What only the user can say of the model; nothing is put in its place."""

    name: str | None = None
    license: str | None = None
    language: str | None = None


def export(source: Path, out: Path, *, dtype: str | None = None, overwrite: bool = False, wanted: Wanted) -> list[str]:
    """Writes the checkpoint of a run's folder, or of a model's, into `out`; returns the names of the files.

    Weights are stored as the source stores them, unless `dtype` says otherwise. Raises ValueError where `out` is the
    source, or holds anything and `overwrite` is not set; what else lies in it stays.
    """
    run, folder = _run(source)
    _check(source, folder, out, overwrite)
    weights = files.find_weights(folder)
    stored = next(iter(files.read_tensors(weights).values())).dtype
    chosen = DTYPES[dtype] if dtype else stored if stored.is_floating_point else torch.float32
    model = load(folder, dtype=chosen)
    model.save_pretrained(out)
    name = wanted.name or out.absolute().name
    card = hub.model_card(_body(model, run, name), **_data(model, run, wanted, name))
    extra = {README: partial(_write, content=card.encode("utf-8"))}
    if run is not None and (run.folder / CURVE).is_file():
        extra[CURVE] = partial(_write, content=(run.folder / CURVE).read_bytes())
    files.write_together(out, extra)
    generation = [files.GENERATION] if hasattr(model, "start") else []
    return ["config.json", *generation, "model.safetensors", *sorted(model.assets), *sorted(extra)]


@dataclass(frozen=True)
class _Run:
    """What a run's folder says of itself."""

    folder: Path
    facts: Mapping[str, Any]
    log: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any] | None:
        kept = [record for record in self.log if record.get("best") and record.get("valid_loss") is not None]
        return kept[-1] if kept else None

    @property
    def named(self) -> str:
        """The data without the folders it lay in."""
        path = str(self.facts["paths"]["data"])
        return path if path.startswith("hf:") else Path(path).name


def _run(source: Path) -> tuple[_Run | None, Path]:
    """The run that the source is, or is the model of, and the model's folder."""
    for folder in (source, source.parent):
        path = folder / "config.json"
        facts = files.read_json(path) if path.is_file() else {}
        is_run = "recipe" in facts and "settings" in facts
        if is_run and (folder == source or source.name == "model"):
            if not (folder / "model").is_dir():
                raise ValueError(f"The run in {folder} has no model yet: let it train further.")
            lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
            return _Run(folder, facts, [json.loads(line) for line in lines if line.endswith("}")]), folder / "model"
    return None, source


def _check(source: Path, folder: Path, out: Path, overwrite: bool) -> None:
    if out.resolve() in (source.resolve(), folder.resolve()):
        raise ValueError(f"--out {out} is what is exported: choose another folder.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"--out {out} is not empty: choose another folder, or pass --overwrite.")


def _data(model: Any, run: _Run | None, wanted: Wanted, name: str) -> dict[str, Any]:
    """The card's head, as huggingface_hub names things."""
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": use_of(model).tag, "model_name": name}
    data["tags"] = ["scratchformers", str(model.published.get("model_type", type(model).__name__.lower()))]
    data |= {key: value for key in ("license", "language") if (value := getattr(wanted, key)) is not None}
    if run is not None:
        source = run.facts["paths"]["source"]
        if source and not Path(source).is_absolute():
            data["base_model"] = source
        if run.best is not None:
            best = {name.removeprefix("valid_"): value for name, value in run.best.items() if name.startswith("valid_")}
            if use_of(model).tag in ("text-generation", "fill-mask"):
                best["perplexity"] = math.exp(best["loss"])
            data["results"] = {"dataset": run.named, **{name.capitalize(): (name, x) for name, x in best.items()}}
    return data


def _body(model: Any, run: _Run | None, name: str) -> str:
    kind, config = type(model).__name__, vars(model.config)
    size = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    said = [
        f"# {name}",
        f"A {kind} of {size:,} parameters, stored as {dtype}, in the layout that Hugging Face's transformers reads.",
    ]
    said += [_table([(key, "as follows from dim" if value is None else value) for key, value in config.items()])]
    said += (
        _training(run)
        if run
        else ["## Training", "How it was trained is not known to ScratchFormers, which wrote this card."]
    )
    said += ["## Use", _use(model, name)]
    versions = f"Written by ScratchFormers {scratchformers.__version__}, with torch {torch.__version__}."
    return "\n\n".join([*said, versions]) + "\n"


def _training(run: _Run) -> list[str]:
    facts, best = run.facts, run.best
    steps = [record for record in run.log if "loss" in record]
    seconds, seen = sum(record["seconds"] for record in steps), sum(record["targets"] for record in steps)
    source = facts["paths"]["source"]
    begun = "from nothing" if not source else f"from {source if not Path(source).is_absolute() else Path(source).name}"
    trained, held = facts["data"], facts["valid"]
    unit = "tokens" if "tokens" in trained else "examples"
    said = ["## Training"]
    said.append(
        f"Trained {begun} on `{run.named}`: {trained[unit]:,} {unit} (sha256 `{trained['sha256']}`), validated on "
        f"{held[unit]:,} others (sha256 `{held['sha256']}`). Tokeniser: {facts['tokenizer']['vocab']} ids."
    )
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    said.append(
        f"{len(steps):,} of {facts['settings']['steps']:,} steps in {seconds:,.0f} seconds of training on "
        f"{facts['device']}, {seen:,} {'tokens' if unit == 'tokens' else 'labels'} scored; {versions}."
    )
    said += [] if best is None else [_achieved(run, best)]
    if (run.folder / CURVE).is_file():
        said.append(f"![loss by step]({CURVE})")
    said += ["Settings:", _table(facts["settings"].items())]
    said += ["## Limits"]
    what = "drawn from a text of" if unit == "tokens" else "of"
    said.append(
        f"It was trained on {seen:,} {'tokens' if unit == 'tokens' else 'labels'}, {what} {trained[unit]:,} {unit}. "
        "Nothing was done to keep out what is wrong, private or offensive in it, and it may repeat passages of it. "
        "Besides what is said above of the held-out data, nothing about it was measured."
    )
    return said


def _achieved(run: _Run, best: Mapping[str, Any]) -> str:
    loss, first = best["valid_loss"], next((record for record in run.log if "trivial_loss" in record), {})
    nothing = f"; knowing nothing costs {first['trivial_loss']:.4f}" if first else ""
    words = run.facts.get("task") is None
    figures = f"Validation loss {loss:.4f} nats a {'token' if words else 'label'}"
    figures += f" (perplexity {math.exp(loss):.2f})" if words else ""
    others = {name.removeprefix("valid_"): x for name, x in best.items() if name.startswith("valid_")}
    figures += "".join(f", {name} {value:.4f}" for name, value in others.items() if name != "loss")
    return f"{figures}, at step {best['step']:,}, the best of the run{nothing}."


def _use(model: Any, name: str) -> str:
    use, tokenizer = use_of(model), bool(model.assets)
    ours = ["import scratchformers as sf", ""]
    theirs = [f"from transformers import {use.theirs}{', AutoTokenizer' if tokenizer else ''}", ""]
    if tokenizer:
        ours += [f'task = sf.{use.ours[0]}.from_pretrained("{name}")', use.ours[1]]
        theirs += [f'tokenizer = AutoTokenizer.from_pretrained("{name}")']
    else:
        ours += [f'model = sf.load("{name}")']
    theirs += [f'model = {use.theirs}.from_pretrained("{name}")']
    return "```python\n" + "\n".join(ours) + "\n```\n\n```python\n" + "\n".join(theirs) + "\n```"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    return "\n".join(lines)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
