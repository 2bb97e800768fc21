"""A checkpoint for elsewhere: the published layout, and a model card made of what is known and nothing else."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

import scratchformers
from scratchformers.checkpoints import files, hub, tables
from scratchformers.checkpoints.clip import write_open_clip
from scratchformers.grid import height_width
from scratchformers.models import load, load_preprocess, load_tokenizer
from scratchformers.models.clip import CLIP

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
README, CURVE = "README.md", "loss.png"
WORDS, OPENAIS = "a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]  # by which OpenAI's tokeniser is known


@dataclass(frozen=True)
class Reads:
    """What a kind of model reads, and what a run says of that."""

    counted: str  # of a run's data
    scored: str  # of its steps
    theirs: tuple[str, str]  # the class of transformers that prepares it, and what to call that
    limits: str


TOKENS = Reads(
    "tokens", "tokens scored", ("AutoTokenizer", "tokenizer"),
    "It was trained on {seen:,} tokens, drawn from a text of {count:,} tokens. Nothing was done to keep out what is "
    "wrong, private or offensive in it, and it may repeat passages of it.",
)  # fmt: skip
LABELS = Reads(
    "examples", "labels scored", TOKENS.theirs,
    "It was trained on {seen:,} labels, of {count:,} examples. Nothing was done to keep out what is wrong, private or "
    "offensive in it, and it may repeat passages of it.",
)  # fmt: skip
PICTURES = Reads(
    "pictures", "pictures seen", ("AutoImageProcessor", "processor"),
    "It was trained on {count:,} pictures, each seen {times:.1f} times. Nothing was done to keep out what is wrong, "
    "private or offensive in them.",
)  # fmt: skip


PAIRS = Reads(
    "pictures", "pictures seen", ("AutoProcessor", "processor"),
    "It was trained on {count:,} pictures, each seen {times:.1f} times with a caption. Nothing was done to keep out "
    "what is wrong, private or offensive in them. Which of some labels it finds best depends on their words, and on "
    "the other labels: one of them always is.",
)  # fmt: skip


TRANSLATIONS = Reads(
    "pairs", "tokens scored", TOKENS.theirs,
    "It was trained on {count:,} pairs of texts, of whose targets it was asked {seen:,} tokens. Nothing was done to "
    "keep out what is wrong, private or offensive in them. What it writes may read well and say something else than "
    "its source.",
)  # fmt: skip


@dataclass(frozen=True)
class Use:
    """What a kind of model is for: the hub's word for it, the class of transformers, lines of ours that use it, what
    its loss is in, and lines that use it there, where its loading alone would not say how."""

    tag: str
    theirs: str
    ours: tuple[str, ...]
    loss: str
    reads: Reads = TOKENS
    there: tuple[str, ...] = ()


def _task(name: str, line: str) -> tuple[str, ...]:
    return "import scratchformers as sf", "", f'task = sf.{name}.from_pretrained("{{name}}")', line


_STATES = (
    "import scratchformers as sf",
    "from PIL import Image",
    "",
    'model, preprocess = sf.load("{name}"), sf.load_preprocess("{name}")',
    'print(model.encode(preprocess(Image.open("photo.jpg"))[None]).shape)',
)
_CHOSEN = 'print(task("photo.jpg", labels=["a cat", "a dog"]{}))'
SHORT = 20  # tokens of a text at most: such a model learnt captions that are no longer, and has no room for templates
_PAINTED = _task("Reconstructor", 'task("photo.jpg").pasted.save("painted.png")')
USES = {
    "GPT2LMHeadModel": Use(
        "text-generation", "AutoModelForCausalLM", _task("Completer", 'print(task("Once upon a time").text)'),
        "nats a token",
    ),
    "BertForMaskedLM": Use(
        "fill-mask", "AutoModelForMaskedLM", _task("MaskFiller", 'print(task("A text with a [MASK]."))'), "nats a token"
    ),
    "BertForSequenceClassification": Use(
        "text-classification", "AutoModelForSequenceClassification", _task("TextClassifier", 'print(task("A text."))'),
        "nats a label", LABELS,
    ),
    "BertForTokenClassification": Use(
        "token-classification", "AutoModelForTokenClassification", _task("TextClassifier", 'print(task("A text."))'),
        "nats a label", LABELS,
    ),
    "BertModel": Use(
        "sentence-similarity", "AutoModel", _task("SentenceEncoder", 'print(task(["A text.", "Another."]).shape)'),
        "nats a token",
    ),
    "ViTForImageClassification": Use(
        "image-classification", "AutoModelForImageClassification", _task("ImageClassifier", 'print(task("photo.jpg"))'),
        "nats a picture", PICTURES,
    ),
    "ViTModel": Use("image-feature-extraction", "AutoModel", _STATES, "", PICTURES),
    "ViTMAEForPreTraining": Use(
        "image-feature-extraction", "AutoModelForPreTraining", _PAINTED,
        "(mean squared error of what was hidden)", PICTURES,
    ),
    "ViTMAEModel": Use("image-feature-extraction", "AutoModel", _STATES, "", PICTURES),
    "CLIPModel": Use(
        "zero-shot-image-classification", "AutoModelForZeroShotImageClassification",
        _task("ZeroShotClassifier", _CHOSEN.format("")), "nats a pair", PAIRS,
    ),
    "BartForConditionalGeneration": Use(
        "translation", "AutoModelForSeq2SeqLM", _task("Translator", 'print(task("A text.").text)'),
        "nats a token", TRANSLATIONS, (
            'ids = model.generate(**tokenizer("A text.", return_tensors="pt"), max_new_tokens={most})',
            "print(tokenizer.decode(ids[0], skip_special_tokens=True))",
        ),
    ),
}  # fmt: skip
USES["BertForPreTraining"] = USES["BertForMaskedLM"]
USES["BertForNextSentencePrediction"] = dataclasses.replace(
    USES["BertModel"], tag="text-classification", theirs="AutoModelForNextSentencePrediction"
)
# How training pictures were changed, by the settings that say it.
CHANGES = {
    "crop": "crops of at least {:.0%} of them", "shift": "shifts by up to {} pixels", "flip": "flips",
    "randaugment": "{} operations of RandAugment", "mixup": "Mixup ({})", "cutmix": "CutMix ({})",
    "erasing": "a rectangle erased of {:.0%}",
}  # fmt: skip
UNCHANGED = {"crop": 1.0}


def use_of(model: Any) -> Use:
    layout = model.layouts[0]
    said = {**layout.write(model.config), **layout.describe(model)}
    found = USES[said["architectures"][0]]
    if found.reads is PAIRS and model.config.length < SHORT:
        bare = _CHOSEN.format(', templates=["{{}}"]')
        found = dataclasses.replace(found, ours=_task("ZeroShotClassifier", bare))
    return found


# Who reads a layout besides us, what the card says of that, and how its weights are loaded there.
TRANSFORMERS = ("transformers", "in the layout that Hugging Face's transformers reads")
TIMM = ("timm", "in the layout that timm reads")
OPEN_CLIP = ("open_clip", "in the layout that open_clip reads")
OURS = ("scratchformers", "in a layout of ScratchFormers' own: Hugging Face's transformers has no such model")


def read_by(model: Any) -> tuple[str, str]:
    """A model's own layouts are called so, and those of timm."""
    kind = model.saved_as().model_type
    return OURS if kind.startswith("scratchformers-") else TIMM if kind.startswith("timm") else TRANSFORMERS


@dataclass(frozen=True)
class Wanted:
    """What only the user can say of the model; nothing is put in its place."""

    name: str | None = None
    license: str | None = None
    language: str | None = None


def export(
    source: Path,
    out: Path,
    *,
    layout: Literal["open_clip"] | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    wanted: Wanted,
) -> list[str]:
    """Writes the checkpoint of a run's folder, or of a model's, into `out`; returns the names of the files.

    The layout is the one asked for, of a CLIP; else that of transformers, where it can express the model, else the
    source's, or our own. Weights are stored as the source stores them, unless `dtype` says otherwise. Raises ValueError
    where `out` is the source, or holds anything and `overwrite` is not set; what else lies in it stays.
    """
    run, folder = _run(source)
    _check(source, folder, out, overwrite)
    weights = files.find_weights(folder)
    stored = next(iter(files.read_tensors(weights).values())).dtype
    chosen = DTYPES[dtype] if dtype else stored if stored.is_floating_point else torch.float32
    model = load(folder, dtype=chosen)
    if model.layout != model.layouts[0].model_type and model.layouts[0].holds(model.config):
        model.published = {}  # which belongs to another layout: it is saved in that of transformers
    if layout is None:
        written, reader = _save(model, out), read_by(model)
    else:
        written, reader = _save_for_open_clip(model, folder, out), OPEN_CLIP
    name = wanted.name or out.absolute().name
    card = hub.model_card(_body(model, run, name, reader), **_data(model, run, wanted, name, reader))
    extra = {README: partial(_write, content=card.encode("utf-8"))}
    if run is not None and (run.folder / CURVE).is_file():
        extra[CURVE] = partial(_write, content=(run.folder / CURVE).read_bytes())
    files.write_together(out, extra)
    return [*written, *sorted(model.assets), *sorted(extra)]


def _save(model: Any, out: Path) -> list[str]:
    model.save_pretrained(out)
    return ["config.json", *([files.GENERATION] if hasattr(model, "start") else []), "model.safetensors"]


def _save_for_open_clip(model: Any, folder: Path, out: Path) -> list[str]:
    """Under the names that `open_clip.create_model_and_transforms("local-dir:OUT")` looks for."""
    if not isinstance(model, CLIP):
        raise ValueError(f"open_clip reads no {type(model).__name__}: leave --layout out.")
    weights, config = files.OPEN_CLIP[0], files.CONFIGS[1]
    first = [name for name in (*files.WEIGHTS, *files.CONFIGS) if name not in (weights, config)]
    if found := [name for name in first if (out / name).exists()]:
        raise ValueError(f"{out} holds {found[0]}, which would be read instead: choose another folder.")
    (layout,) = (each for each in model.layouts if each.model_type == "open_clip")
    own_words = model.assets.keys() > {files.PREPROCESSOR} and load_tokenizer(folder).encode(WORDS) != OPENAIS
    said = write_open_clip(model.config, load_preprocess(folder, model=model), own_words=own_words)
    tensors = tables.save(layout, model.state_dict(), model.config)
    writers = {name: partial(_write, content=content) for name, content in model.assets.items()}
    writers |= {weights: partial(files.save_tensors, tensors=tensors), config: partial(files.write_json, content=said)}
    files.write_together(out, writers, last=config)
    return [config, weights]


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
        """The data without the folders it lay in, of two files both."""
        path = str(self.facts["paths"]["data"])
        parts = path.split(",")
        both = len(parts) == 2 and all(Path(part).is_absolute() for part in parts)
        names = [Path(part).name for part in (parts if both else [path])]
        return path if path.startswith("hf:") else ", ".join(names)


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


def _data(model: Any, run: _Run | None, wanted: Wanted, name: str, reader: tuple[str, str]) -> dict[str, Any]:
    """The card's head, as huggingface_hub names things."""
    (library, _), use = reader, use_of(model)
    data: dict[str, Any] = {"library_name": library, "pipeline_tag": use.tag, "model_name": name}
    kind = model.saved_as().model_type if library == "transformers" else type(model).__name__.lower()
    data["tags"] = ["scratchformers", kind]
    data |= {key: value for key in ("license", "language") if (value := getattr(wanted, key)) is not None}
    if run is not None:
        source = run.facts["paths"]["source"]
        if source and not Path(source).is_absolute():
            data["base_model"] = source
        if run.best is not None:
            best = {name.removeprefix("valid_"): value for name, value in run.best.items() if name.startswith("valid_")}
            if use.loss == "nats a token":
                best["perplexity"] = math.exp(best["loss"])
            known = {"dataset": run.named, "type": "image" if use.reads in (PICTURES, PAIRS) else "text"}
            data["results"] = known | {name.capitalize(): (name, x) for name, x in best.items()}
    return data


def _body(model: Any, run: _Run | None, name: str, reader: tuple[str, str]) -> str:
    kind, config = type(model).__name__, vars(model.config)
    size = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    said = [
        f"# {name}",
        f"{kind} of {size:,} parameters, stored as {dtype}, {reader[1]}.",
    ]
    said += [_table([(key, _follows(key, config) if value is None else value) for key, value in config.items()])]
    said += (
        _training(run, use_of(model), model)
        if run
        else ["## Training", "How it was trained is not known to ScratchFormers, which wrote this card."]
    )
    said += ["## Use", _use(model, name, reader)]
    versions = f"Written by ScratchFormers {scratchformers.__version__}, with torch {torch.__version__}."
    return "\n\n".join([*said, versions]) + "\n"


def _follows(field: str, config: Mapping[str, Any]) -> str:
    """What a field means that is None."""
    dim, other = field.replace("hidden", "dim"), field.removeprefix("decoder_").removeprefix("target_")
    if dim in config and dim != field:
        return f"as follows from {dim}"
    return f"as {other}" if other in config and other != field else "none"


def _training(run: _Run, use: Use, model: Any) -> list[str]:
    facts, best, reads = run.facts, run.best, use.reads
    steps = [record for record in run.log if "loss" in record]
    seconds, seen = sum(record["seconds"] for record in steps), sum(record["targets"] for record in steps)
    source = facts["paths"]["source"]
    begun = "from nothing" if not source else f"from {source if not Path(source).is_absolute() else Path(source).name}"
    count, unit = facts["data"][reads.counted], reads.counted
    said = ["## Training"]
    said.append(
        f"Trained {begun} on `{run.named}`: {count:,} {unit} (sha256 `{facts['data']['sha256']}`), validated on "
        f"{facts['valid'][unit]:,} others (sha256 `{facts['valid']['sha256']}`). {_read(facts, model)}"
    )
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    said.append(
        f"{len(steps):,} of {facts['settings']['steps']:,} steps in {seconds:,.0f} seconds of training on "
        f"{facts['device']}, {seen:,} {reads.scored}; {versions}."
    )
    said += [] if best is None else [_achieved(run, use, best)]
    if (run.folder / CURVE).is_file():
        said.append(f"![loss by step]({CURVE})")
    said += ["Settings:", _table(facts["settings"].items())]
    said += ["## Limits"]
    limits = [reads.limits.format(seen=seen, count=count, times=seen / count)]
    if use.tag == "image-classification":
        limits.append(f"It calls a picture by one of its {len(model.head.labels)} classes, whatever it shows.")
    limits.append("Besides what is said above of the held-out data, nothing about it was measured.")
    said.append(" ".join(limits))
    return said


def _read(facts: Mapping[str, Any], model: Any) -> str:
    """How the data became what the model reads."""
    counts = [str(count) for name, count in facts.get("tokenizer", {}).items() if name.endswith("vocab")]
    tokenizer = f"Tokeniser: {' and, of targets, '.join(dict.fromkeys(counts))} ids." if counts else ""
    if not hasattr(model.config, "image"):
        return tokenizer
    height, width = height_width(model.config.image)
    settings = {name: value for name, value in facts["settings"].items() if name in CHANGES}
    done = [CHANGES[name].format(value) for name, value in settings.items() if value != UNCHANGED.get(name, 0)]
    changed = f"changed at random by {', '.join(done)}" if done else "never changed"
    pixels = f"Read at {height} x {width} pixels (height x width); those trained on were {changed}."
    return f"{pixels} {tokenizer}".rstrip()


def _achieved(run: _Run, use: Use, best: Mapping[str, Any]) -> str:
    loss, first = best["valid_loss"], next((record for record in run.log if "trivial_loss" in record), {})
    nothing = f"; knowing nothing costs {first['trivial_loss']:.4f}" if first else ""
    figures = f"Validation loss {loss:.4f} {use.loss}"
    figures += f" (perplexity {math.exp(loss):.2f})" if use.loss == "nats a token" else ""
    others = {name.removeprefix("valid_"): x for name, x in best.items() if name.startswith("valid_")}
    figures += "".join(f", {name} {value:.4f}" for name, value in others.items() if name != "loss")
    judged = f" BLEU: {signature}." if (signature := first.get("bleu_signature")) else ""
    return f"{figures}, at step {best['step']:,}, the best of the run{nothing}.{judged}"


def _use(model: Any, name: str, reader: tuple[str, str]) -> str:
    (library, _), use, prepared = reader, use_of(model), bool(model.assets)
    ours = use.ours if prepared else ("import scratchformers as sf", "", 'model = sf.load("{name}")')
    kind, called = use.reads.theirs
    theirs = [f"from transformers import {use.theirs}{f', {kind}' if prepared else ''}", ""]
    theirs += [f'{called} = {kind}.from_pretrained("{name}")'] if prepared else []
    theirs += [f'model = {use.theirs}.from_pretrained("{name}")']
    most = min(64, getattr(model.config, "length", 1) - 1)  # tokens: without a limit, twenty
    theirs += [line.format(most=most) for line in use.there] if prepared else []
    of_timm = ["import timm", "", f'model = timm.create_model("local-dir:{name}", pretrained=True)']
    here = f'"local-dir:{name}"'
    of_open_clip = ["import open_clip", "", f"model, _, preprocess = open_clip.create_model_and_transforms({here})"]
    of_open_clip += [f"tokenizer = open_clip.get_tokenizer({here})"] if prepared else []
    others = {"transformers": [theirs], "timm": [of_timm], "open_clip": [of_open_clip], "scratchformers": []}[library]
    blocks = [[line.format(name=name) for line in ours], *others]
    return "\n\n".join("```python\n" + "\n".join(lines) + "\n```" for lines in blocks)


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    return "\n".join(lines)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
