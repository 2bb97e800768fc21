"""Recipes: what each model learns from what kind of data. The loop and the files are the same for all."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchformers.checkpoints import hub
from scratchformers.checkpoints.pretrained import Generation, Pretrained, fingerprint
from scratchformers.generate import generate
from scratchformers.models import load, load_tokenizer
from scratchformers.models.gpt2 import GPT2, GPT2Config
from scratchformers.text import TextTokenizer, characters, check_fits, train_bpe
from scratchformers.training.data import Windows, to_stream
from scratchformers.training.documents import Documents, digest, read_texts
from scratchformers.training.loop import Batch, Settings, Task

CHARACTERS, BPE = "characters", "bpe"  # tokenisers made from the user's text
VOCAB = 8000  # ids of a BPE at most, unless told
FINETUNE = "finetune"  # the preset that goes with a source
EPOCHS = 100  # at most, in one step
SAMPLED = 200  # tokens written at each evaluation, to be looked at
EVALUATED = 1024  # windows of the validation text at most, evenly spread, so that evaluation stays short


@dataclass(frozen=True)
class Request:
    """What the user asked for. None means: as the recipe, or the run to be resumed, has it."""

    recipe: str
    out: Path
    data: Path | str | None = None
    valid: Path | str | None = None
    preset: str | None = None
    source: str | Path | None = None  # a checkpoint to go on from, as `load` takes it
    tokenizer: str | None = None
    vocab: int | None = None  # of a BPE made from the text
    given: Mapping[str, str] = field(default_factory=dict)  # settings and fields of the model, as written
    device: str = "cpu"
    threads: int = 0


Facts = dict[str, dict[str, Any]]  # by what: the sha256 of it, and what there is to say


class NextToken:
    """Each token from those before it, on a stream of text."""

    unit = "token"

    def __init__(self, model: Any, tokenizer: TextTokenizer, train: Tensor, valid: Tensor, settings: Settings):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, settings.batch
        self.length = settings.length or model.config.length
        self.train, self.held_out = Windows(train, self.length, seed=settings.seed), valid
        self.rows, self.trivial = self.train.rows, math.log(model.config.vocab)
        if settings.batch > EPOCHS * self.rows:
            what = f"batch is {settings.batch} and the text has {self.rows} windows"
            raise ValueError(f"{what}: expected at most {EPOCHS * self.rows}, which is each of them {EPOCHS} times.")
        if len(valid) < 2:
            raise ValueError(f"The validation text has {len(valid)} tokens, too few to predict one: give more text.")

    def batch(self, examples: list[tuple[int, int]]) -> Batch:
        inputs, targets = zip(*(self.train[example] for example in examples))
        return {"ids": torch.stack(inputs), "targets": torch.stack(targets)}

    def targets(self, batch: Batch) -> int:
        return batch["targets"].numel()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["ids"]).flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum")

    def valid(self) -> Iterator[Batch]:
        """The validation text in windows side by side; the last may be shorter."""
        length = self.length
        starts = range(0, len(self.held_out) - 1, length)
        if len(starts) > EVALUATED:
            starts = [starts[i * len(starts) // EVALUATED] for i in range(EVALUATED)]
        windows = [self.held_out[start : start + length + 1].long() for start in starts]
        for size in sorted({len(window) for window in windows}, reverse=True):
            alike = [window for window in windows if len(window) == size]
            for i in range(0, len(alike), self.batch_size):
                rows = torch.stack(alike[i : i + self.batch_size])
                yield {"ids": rows[:, :-1], "targets": rows[:, 1:]}

    def sample(self, model: Any) -> str:
        """What it writes after the first words of the validation text, by the same draw every time."""
        prompt = self.held_out[: max(1, min(16, model.config.length // 4))].long()[None]
        device = next(model.parameters()).device
        settings = {"temperature": 0.8, "generator": torch.Generator(device).manual_seed(0), "stop": (), "slide": True}
        ids = generate(model, prompt.to(device), max_new_tokens=SAMPLED, **settings)
        return self.tokenizer.decode(ids[0].tolist())


def prepare_text(request: Request, settings: Settings, fields: Mapping[str, Any]) -> tuple[NextToken, Facts, list[str]]:
    """A GPT-2, new or from a checkpoint, and its text, whose last tenth is held out where no other text is given."""
    if request.data is None:
        raise ValueError("There is nothing to train on: pass --data FILE_OR_FOLDER.")
    texts = read_texts(request.data)
    if request.source is not None:  # of a hub id, model and tokeniser from one commit
        request = dataclasses.replace(request, source=hub.find(request.source))
    held_out = None if request.valid is None else read_texts(request.valid)
    size = 0 if held_out is not None else sum(map(len, texts))
    cut = size * 9 // 10
    parts = (texts, held_out) if held_out is not None else (texts.part(0, cut), texts.part(cut, size))
    model = None if request.source is None else _from_source(request.source, settings, fields)
    tokenizer = _tokenizer(request, *parts)
    if model is not None:
        check_fits(tokenizer, model.config.vocab)
    train, valid = (to_stream(part, tokenizer) for part in parts)
    if model is None:
        Windows(train, settings.length, seed=0)  # they fit: said before a model is made for them
    model = model or _new(tokenizer, train, settings, fields)
    task = NextToken(model.to(request.device), tokenizer, train, valid, settings)
    facts: Facts = {
        "data": {"sha256": digest(texts), "tokens": len(train)},
        "valid": {"sha256": digest(parts[1]), "tokens": len(valid)},
        "tokenizer": {"sha256": tokenizer.digest(), "vocab": tokenizer.vocab},
    }
    if request.source is not None:
        facts["source"] = {"sha256": fingerprint(model)}
    few = request.tokenizer == BPE and tokenizer.vocab < (request.vocab or VOCAB)
    return task, facts, [f"The text gave a vocabulary of {tokenizer.vocab} ids, and no more."] if few else []


def _tokenizer(request: Request, train: Documents, valid: Documents) -> TextTokenizer:
    """The one asked for. A BPE sees the text to train on only; characters are taken from all of the text, because one
    that is missing has no id."""
    if request.vocab is not None and request.tokenizer != BPE:
        raise ValueError(f"--vocab {request.vocab} sizes a BPE made from your text: add --tokenizer bpe.")
    if request.source is not None:
        return _tokenizer_of(request.source, request.tokenizer)
    if request.tokenizer == BPE:
        return train_bpe(train, VOCAB if request.vocab is None else request.vocab)
    if request.tokenizer in (None, CHARACTERS):
        return characters((text for part in (train, valid) for text in part), end=train.many)
    return load_tokenizer(request.tokenizer)


def _tokenizer_of(source: str | Path, asked: str | None) -> TextTokenizer:
    tokenizer = load_tokenizer(source)
    if asked in (CHARACTERS, BPE) or (asked is not None and load_tokenizer(asked).digest() != tokenizer.digest()):
        raise ValueError(
            f"--tokenizer {asked} is not that of {source}, whose weights know only the ids they were trained with: "
            "leave --tokenizer out, or train from scratch, without --from."
        )
    return tokenizer


def _new(tokenizer: TextTokenizer, train: Tensor, settings: Settings, fields: Mapping[str, Any]) -> GPT2:
    torch.manual_seed(settings.seed)
    model = GPT2(GPT2Config(**{**fields, "vocab": tokenizer.vocab}))
    if tokenizer.end is not None:
        begins = bool((train == tokenizer.end).any())  # else the model never saw what follows it
        model.generation = Generation(start=tokenizer.end if begins else None, end=(tokenizer.end,))
    model.assets = tokenizer.files
    return model


def _from_source(source: str | Path, settings: Settings, fields: Mapping[str, Any]) -> Pretrained:
    """The checkpoint's model, copied out of its file, with all that is saved with it. Its sizes are its own; only its
    dropout may be another."""
    found = load(source)
    own = dataclasses.asdict(found.config)
    differs = [f"{k} {own[k]}, not {v}" for k, v in fields.items() if k not in ("dropout", "vocab") and own[k] != v]
    if differs:
        raise ValueError(
            f"{source} has {'; '.join(differs)}: leave that setting out, or train from scratch, without --from."
        )
    if settings.length > own["length"]:
        raise ValueError(f"length is {settings.length}: expected at most the {own['length']} positions of {source}.")
    torch.manual_seed(settings.seed)
    config = dataclasses.replace(found.config, dropout=fields.get("dropout", own["dropout"]))
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        model = type(found)(config)
    model.to_empty(device="cpu").load_state_dict(found.state_dict())
    layout = next((one for one in found.layouts if one.model_type == found.published.get("model_type")), None)
    before, after = ({}, {}) if layout is None else (layout.write(found.config), layout.write(config))
    model.published = found.published | {name: value for name, value in after.items() if before[name] != value}
    model.generation, model.assets = found.generation, found.assets
    return model


@dataclass(frozen=True)
class Recipe:
    """`prepare` makes of a request what is trained, the facts by which a resumed run knows its data again, and what
    there is to say about them."""

    model: type[Pretrained]
    prepare: Callable[[Request, Settings, Mapping[str, Any]], tuple[Task, Facts, list[str]]]
    presets: Mapping[str, Mapping[str, Any]]  # settings that go with the model's preset of the same name
    finetune: Mapping[str, Any]  # settings that go with a model that has learnt already
    default: str = "tiny"

    def preset(self, request: Request) -> str:
        """The name of the preset to begin with. ValueError if there is none of the name asked for."""
        known = list(self.presets) if request.source is None else [FINETUNE]
        name = request.preset or (self.default if request.source is None else FINETUNE)
        if name not in known:
            what = f"{request.recipe} has no preset {name!r}"
            what += "" if request.source is None else " to go with --from, which brings its own sizes"
            raise ValueError(f"{what}: expected {'one of ' if len(known) > 1 else ''}{', '.join(known)}.")
        return name


_PUBLISHED = {"batch": 8, "lr": 3e-4, "beta2": 0.95, "warmup": 200}
RECIPES: dict[str, Recipe] = {
    "gpt2": Recipe(
        GPT2,
        prepare_text,
        {
            "tiny": {"steps": 400, "batch": 24, "lr": 6e-3, "warmup": 40, "eval_every": 100, "save_every": 100},
            "mini": {"steps": 2000, "batch": 16, "lr": 2e-3},
            "small": {"steps": 5000, "batch": 64, "lr": 1e-3, "eval_every": 250, "save_every": 250},
            **dict.fromkeys(("distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), _PUBLISHED),
        },
        # A rate far below pre-training's, and little decay: what is known should stay.
        {"steps": 400, "batch": 8, "lr": 3e-5, "warmup": 40, "beta2": 0.95, "weight_decay": 0.01}
        | {"eval_every": 100, "save_every": 100},
    )
}


def configure(request: Request) -> tuple[Settings, dict[str, Any]]:
    """Settings and model fields: the preset's, with what the user gave on top. Of a source the fields are its own, and
    only what the user gave is there, to be compared. ValueError for what is neither setting nor field."""
    recipe, given = RECIPES[request.recipe], parse(request.recipe, request.given)
    preset, settings = recipe.preset(request), {field.name for field in dataclasses.fields(Settings)}
    if request.source is None:
        fields, shared = dataclasses.asdict(recipe.model.preset(preset)), dict(recipe.presets[preset])
        fields |= {key: value for key, value in given.items() if key in fields}
        shared["length"] = fields["length"]
    else:
        fields, shared = {key: value for key, value in given.items() if key not in settings}, dict(recipe.finetune)
    return Settings(**(shared | {key: value for key, value in given.items() if key in settings})), fields


def parse(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """What the user wrote as `--set`, as numbers."""
    fields = (*dataclasses.fields(Settings), *dataclasses.fields(RECIPES[name].model.config_class))
    kinds: dict[str, Any] = {field.name: field.type for field in fields if field.name != "vocab"}  # the tokeniser's
    kinds = {key: int if kind == int | None else kind for key, kind in kinds.items()}
    parsed = {}
    for key, text in given.items():
        if key not in kinds:
            raise ValueError(f"There is no setting {key!r}: expected one of {', '.join(sorted(kinds))}.")
        try:
            parsed[key] = kinds[key](text)
        except ValueError:
            raise ValueError(f"{key}={text} is no {'whole ' if kinds[key] is int else ''}number.") from None
    return parsed
