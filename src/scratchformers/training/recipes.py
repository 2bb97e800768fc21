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

from scratchformers.checkpoints.pretrained import Generation, Pretrained
from scratchformers.generate import generate
from scratchformers.models import load_tokenizer
from scratchformers.models.gpt2 import GPT2, GPT2Config
from scratchformers.text import TextTokenizer, characters
from scratchformers.training.data import Windows, digest, read_texts, to_stream
from scratchformers.training.loop import Batch, Settings, Task

CHARACTERS = "characters"
EVALUATED = 1024  # windows of the validation text at most, evenly spread, so that evaluation stays short


@dataclass(frozen=True)
class Request:
    """What the user asked for. None means: as the recipe, or the run to be resumed, has it."""

    recipe: str
    out: Path
    data: Path | None = None
    valid: Path | None = None
    preset: str | None = None
    tokenizer: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)  # settings and fields of the model, as written
    device: str = "cpu"
    threads: int = 0


Facts = dict[str, dict[str, Any]]  # by what: the sha256 of it, and what there is to say


class NextToken:
    """Each token from those before it, on a stream of text."""

    unit = "token"

    def __init__(self, model: Any, tokenizer: TextTokenizer, train: Tensor, valid: Tensor, settings: Settings):
        length = model.config.length
        self.model, self.tokenizer, self.batch_size = model, tokenizer, settings.batch
        self.train, self.held_out = Windows(train, length, seed=settings.seed), valid
        self.rows, self.trivial = self.train.rows, math.log(model.config.vocab)
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
        length = self.model.config.length
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
        length = model.config.length
        prompt = self.held_out[: max(1, min(16, length // 4))].long()[None]
        device = next(model.parameters()).device
        new = min(200, length - prompt.shape[1])
        if new < 1:
            return self.tokenizer.decode(prompt[0].tolist())
        draw = torch.Generator(device).manual_seed(0)
        ids = generate(model, prompt.to(device), max_new_tokens=new, temperature=0.8, stop=(), generator=draw)
        return self.tokenizer.decode(ids[0].tolist())


def prepare_text(request: Request, settings: Settings, fields: Mapping[str, Any]) -> tuple[NextToken, Facts]:
    """A new GPT-2 and its text; the last tenth of the text is held out where no validation text is given."""
    if request.data is None:
        raise ValueError("There is nothing to train on: pass --data FILE_OR_FOLDER.")
    texts = read_texts(request.data)
    held_out = None if request.valid is None else read_texts(request.valid)
    if request.tokenizer in (None, CHARACTERS):
        tokenizer = characters([*texts, *(held_out or [])], end=len(texts) > 1)
    else:
        tokenizer = load_tokenizer(request.tokenizer)
    stream = to_stream(texts, tokenizer)
    cut = len(stream) * 9 // 10
    train, valid = (stream[:cut], stream[cut:]) if held_out is None else (stream, to_stream(held_out, tokenizer))
    torch.manual_seed(settings.seed)
    model = GPT2(GPT2Config(**{**fields, "vocab": tokenizer.vocab})).to(request.device)
    if tokenizer.end is not None:
        model.generation = Generation(start=tokenizer.end, end=(tokenizer.end,))
    model.assets = tokenizer.files
    task = NextToken(model, tokenizer, train, valid, settings)
    return task, {
        "data": {"sha256": digest(texts), "tokens": len(train)},
        "valid": {"sha256": digest(held_out or []), "tokens": len(valid)},
        "tokenizer": {"sha256": tokenizer.digest(), "vocab": tokenizer.vocab},
    }


@dataclass(frozen=True)
class Recipe:
    """`prepare` makes of a request what is trained, and the facts by which a resumed run knows its data again."""

    model: type[Pretrained]
    prepare: Callable[[Request, Settings, Mapping[str, Any]], tuple[Task, Facts]]
    presets: Mapping[str, Mapping[str, Any]]  # settings that go with the model's preset of the same name
    default: str = "tiny"


_PUBLISHED = {"batch": 8, "lr": 3e-4, "beta2": 0.95, "warmup": 200}
RECIPES: dict[str, Recipe] = {
    "gpt2": Recipe(
        GPT2,
        prepare_text,
        {
            "tiny": {"steps": 400, "batch": 24, "lr": 6e-3, "warmup": 40, "eval_every": 100, "save_every": 100},
            "mini": {"steps": 2000, "batch": 16, "lr": 2e-3},
            "small": {"steps": 5000, "batch": 64, "lr": 1e-3, "eval_every": 250, "save_every": 250},
            **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), _PUBLISHED),
        },
    )
}


def configure(name: str, preset: str | None, given: Mapping[str, str]) -> tuple[Settings, dict[str, Any]]:
    """Settings and model fields: the preset's, with what the user gave on top. ValueError for what is neither."""
    recipe, preset = RECIPES[name], preset or RECIPES[name].default
    if preset not in recipe.presets:
        raise ValueError(f"{name} has no preset {preset!r}: expected one of {', '.join(recipe.presets)}.")
    fields, shared = dataclasses.asdict(recipe.model.preset(preset)), dict(recipe.presets[preset])
    for key, value in parse(name, given).items():
        (fields if key in fields else shared)[key] = value
    return Settings(**shared), fields


def parse(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """What the user wrote as `--set`, as numbers."""
    fields = (*dataclasses.fields(Settings), *dataclasses.fields(RECIPES[name].model.config_class))
    kinds: dict[str, Any] = {field.name: field.type for field in fields if field.name != "vocab"}  # the tokeniser's
    parsed = {}
    for key, text in given.items():
        if key not in kinds:
            raise ValueError(f"There is no setting {key!r}: expected one of {', '.join(sorted(kinds))}.")
        try:
            parsed[key] = kinds[key](text)
        except ValueError:
            raise ValueError(f"{key}={text} is no {'whole ' if kinds[key] is int else ''}number.") from None
    return parsed
