"""Recipes: what each model learns from what kind of data. The loop and the files are the same for all."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scratchformers.checkpoints.pretrained import Pretrained
from scratchformers.grid import Size
from scratchformers.models.bert import BERT
from scratchformers.models.clip import CLIP
from scratchformers.models.encoder_decoder import EncoderDecoder
from scratchformers.models.gpt2 import GPT2
from scratchformers.models.mae import MAE
from scratchformers.models.vit import ViT
from scratchformers.training.contrastive import PairSettings, prepare_pairs
from scratchformers.training.labelled import LabelledSettings, prepare_texts, prepare_words
from scratchformers.training.language import MaskedSettings, prepare_masked, prepare_next_token
from scratchformers.training.loop import Settings, Task
from scratchformers.training.pairs import Lines, read_lines
from scratchformers.training.request import Facts, Request
from scratchformers.training.translation import TranslationSettings, prepare_translation
from scratchformers.training.vision import ClassSettings, PaintSettings, prepare_classes, prepare_painting

FINETUNE = "finetune"  # the preset that goes with a source
ADAPTED = 10  # times its rate, adapters learn best (Schulman and Thinking Machines 2025, over many models and ranks)


@dataclass(frozen=True)
class Recipe:
    """`prepare` makes of a request what is trained, the facts by which a resumed run knows its data again, and what
    there is to say about them."""

    model: type[Pretrained]
    prepare: Callable[[Request, Any, Mapping[str, Any]], tuple[Task, Facts, list[str]]]
    presets: Mapping[str, Mapping[str, Any]]  # settings that go with the model's preset of the same name
    finetune: Mapping[str, Any]  # settings that go with a model that has learnt already
    default: str = "tiny"
    settings: type[Settings] = Settings

    def preset(self, request: Request) -> str:
        """The name of the preset to begin with. ValueError if there is none of the name asked for."""
        known = list(self.presets) if request.source is None else [FINETUNE]
        name = request.preset or (self.default if request.source is None else FINETUNE)
        if name not in known:
            what = f"{request.recipe} has no preset {name!r}"
            what += "" if request.source is None else " to go with --from, which brings its own sizes"
            raise ValueError(f"{what}: expected {'one of ' if len(known) > 1 else ''}{', '.join(known)}.")
        return name


OFTEN = {"eval_every": 100, "save_every": 100}
_PUBLISHED = {"batch": 8, "lr": 3e-4, "beta2": 0.95, "warmup": 200}
_PRETRAINED = {"batch": 32, "lr": 1e-4, "beta2": 0.98, "warmup": 1000, "weight_decay": 0.01, "steps": 10000}
_LABELLED = {"steps": 600, "batch": 32, "warmup": 60, "beta2": 0.98, "weight_decay": 0.01, **OFTEN}
_BERT_LABELLED = {
    "tiny": {**_LABELLED, "lr": 1e-3, "length": 128},
    **{name: {**_LABELLED, "lr": 5e-4} for name in ("mini", "minilm")},
    **{name: {**_LABELLED, "lr": 1e-4} for name in ("small", "medium", "base", "large")},
}
_SIZES = [f"{size}-{patch}" for size in ("tiny", "small", "base", "large", "huge") for patch in (8, 14, 16, 32)]
# DeiT's, for as long as its 300 epochs of ImageNet are (Touvron et al. 2021, table 9), on one machine.
_PICTURES = {
    "steps": 375000,
    "batch": 1024,
    "lr": 1e-3,
    "warmup": 6250,
    "weight_decay": 0.05,
    "beta2": 0.999,
    "crop": 0.08,
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.25,
    "label_smoothing": 0.1,
    "drop_path": 0.1,
    "eval_every": 1250,
}
# He et al. 2022, table 8: 800 epochs, 1.5e-4 for 256 pictures a step.
_PAINT = {
    "steps": 250000,
    "batch": 4096,
    "lr": 2.4e-3,
    "warmup": 12500,
    "weight_decay": 0.05,
    "beta2": 0.95,
    "crop": 0.2,
}
# Radford et al. 2021, tables 18 and 19: 32 epochs of 400 million pairs. A caption is as long as the data has them.
_PAIRS = {
    "steps": 390625,
    "batch": 32768,
    "micro_batch": 256,
    "lr": 5e-4,
    "lr_end": 0.0,
    "warmup": 2000,
    "weight_decay": 0.2,
    "beta2": 0.98,
    "crop": 0.9,
    "eval_every": 2000,
    "save_every": 500,
    "length": 0,
}
_LARGE_PAIRS = {**_PAIRS, "lr": 4e-4}
# Vaswani et al. 2017, section 5: 25,000 tokens of either side a step.
_TRANSLATE = {"steps": 100000, "tokens": 50000, "micro_batch": 128, "lr": 7e-4, "schedule": "noam", "warmup": 4000}
_TRANSLATE |= {"beta2": 0.98, "weight_decay": 0.01, "eval_every": 1000, "save_every": 500}
_PAIRED = {"beta2": 0.98, "weight_decay": 0.01, "length": 256}
_SMALL = {"batch": 64, "lr": 2e-3, "warmup": 40, "weight_decay": 0.05, "beta2": 0.98, "steps": 400, **OFTEN}
RECIPES: dict[str, Recipe] = {
    "gpt2": Recipe(
        GPT2,
        prepare_next_token,
        {
            "tiny": {"steps": 400, "batch": 24, "lr": 6e-3, "warmup": 40, **OFTEN},
            "mini": {"steps": 2000, "batch": 16, "lr": 2e-3},
            "small": {"steps": 5000, "batch": 64, "lr": 1e-3, "eval_every": 250, "save_every": 250},
            **dict.fromkeys(("distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), _PUBLISHED),
        },
        # A rate far below pre-training's, and little decay: what is known should stay.
        {"steps": 400, "batch": 8, "lr": 3e-5, "warmup": 40, "beta2": 0.95, "weight_decay": 0.01, **OFTEN},
    ),
    "bert": Recipe(
        BERT,
        prepare_masked,
        {
            "tiny": {"steps": 400, "batch": 64, "lr": 3e-3, "warmup": 40, "length": 64, "dropout": 0.0, **OFTEN},
            "mini": {"steps": 4000, "batch": 32, "lr": 1e-3, "warmup": 200, "length": 128},
            "simple": {"steps": 4000, "batch": 32, "lr": 1e-3, "warmup": 200},
            "minilm": {**_PRETRAINED, "lr": 5e-4, "length": 128},
            **dict.fromkeys(("small", "medium", "base", "large"), _PRETRAINED),
        },
        {"steps": 400, "batch": 16, "lr": 5e-5, "warmup": 40, "beta2": 0.98, "weight_decay": 0.01, **OFTEN},
        settings=MaskedSettings,
    ),
    "vit": Recipe(
        ViT,
        prepare_classes,
        {**dict.fromkeys(("tiny", "simple"), _SMALL), **dict.fromkeys(_SIZES, _PICTURES)},
        {**_SMALL, "lr": 5e-4, "layer_decay": 0.75, "crop": 0.5, "label_smoothing": 0.1, "drop_path": 0.1},
        settings=ClassSettings,
    ),
    "mae": Recipe(
        MAE,
        prepare_painting,
        {**dict.fromkeys(("tiny", "simple"), _SMALL), **dict.fromkeys(("base", "large", "huge"), _PAINT)},
        {**_SMALL, "lr": 5e-4, "beta2": 0.95},
        settings=PaintSettings,
    ),
    "clip": Recipe(
        CLIP,
        prepare_pairs,
        {
            "tiny": {**_SMALL, "weight_decay": 0.1, "crop": 0.9, "length": 0},
            **dict.fromkeys(("ViT-B/32", "ViT-B/16", "ViT-S-32", "ViT-B-32", "ViT-B-16"), _PAIRS),
            **dict.fromkeys(("ViT-L/14", "ViT-L/14@336px", "ViT-L-14", "ViT-H-14"), _LARGE_PAIRS),
        },
        {**_SMALL, "lr": 3e-5, "weight_decay": 0.1, "crop": 0.9},
        settings=PairSettings,
    ),
    "encoder-decoder": Recipe(
        EncoderDecoder,
        prepare_translation,
        {
            "tiny": {**_PAIRED, "steps": 400, "tokens": 2048, "lr": 3e-3, "warmup": 40, "smoothing": 0.0, **OFTEN},
            "mini": {**_PAIRED, "steps": 4000, "tokens": 4096, "lr": 2e-3, "warmup": 200},
            "small": {**_PAIRED, "steps": 10000, "tokens": 4096, "lr": 1e-3, "warmup": 500, "ema": 0.999},
            **dict.fromkeys(("bart-base", "bart-large", "mbart-large", "opus-mt"), _TRANSLATE),
        },
        {"steps": 400, "tokens": 2048, "lr": 3e-5, "warmup": 40, "beta2": 0.98, "weight_decay": 0.01, **OFTEN},
        settings=TranslationSettings,
    ),
    "bert classify": Recipe(BERT, prepare_texts, _BERT_LABELLED, {**_LABELLED, "lr": 1e-4}, settings=LabelledSettings),
    "bert tokens": Recipe(BERT, prepare_words, _BERT_LABELLED, {**_LABELLED, "lr": 1e-4}, settings=LabelledSettings),
}


def recipe_of(name: str, task: str | None) -> Recipe:
    """What trains this model; without a task it learns from text alone."""
    found = RECIPES.get(name if task is None else f"{name} {task}")
    if found is None:
        known = [key.removeprefix(f"{name} ") for key in RECIPES if key.startswith(f"{name} ")]
        rest = f"expected {' or '.join(known)}, or no --task, for text alone" if known else "leave --task out"
        raise ValueError(f"{name} has no task {task!r}: {rest}.")
    return found


def configure(request: Request) -> tuple[Settings, dict[str, Any]]:
    """Settings and model fields: the preset's, with what the user gave on top. Of a source the fields are its own, and
    only what the user gave is there, to be compared. ValueError for what is neither setting nor field, and where parts
    of a new model should not learn."""
    if request.freeze and request.source is None:
        what = f"--freeze {' '.join(request.freeze)} goes with --from"
        raise ValueError(f"{what}: in a new model there is nothing learnt to keep.")
    if request.lora and request.source is None:
        raise ValueError("--lora goes with --from: adapters are for a model that has learnt already.")
    recipe, given = recipe_of(request.recipe, request.task), parse(request)
    preset, settings = recipe.preset(request), {field.name for field in dataclasses.fields(recipe.settings)}
    if request.source is None:
        fields: dict[str, Any] = dataclasses.asdict(recipe.model.preset(preset))
        shared = dict(recipe.presets[preset])
        fields |= {key: shared.pop(key) for key in [*shared] if key in fields}
        fields |= {key: value for key, value in given.items() if key in fields}
        shared |= {"length": fields["length"]} if "length" in fields else {}
    else:
        fields, shared = {key: value for key, value in given.items() if key not in settings}, dict(recipe.finetune)
        shared["lr"] *= ADAPTED if request.lora else 1
    return recipe.settings(**(shared | {key: value for key, value in given.items() if key in settings})), fields


def parse(request: Request) -> dict[str, Any]:
    """What the user wrote as `--set`, as numbers, and as truth where a setting is on or off."""
    recipe = recipe_of(request.recipe, request.task)
    fields = (*dataclasses.fields(recipe.settings), *dataclasses.fields(recipe.model.config_class))
    kinds: dict[str, Any] = {
        field.name: field.type for field in fields if field.name not in ("vocab", "target_vocab", "classes", "end")
    }  # the data's
    readers = {int | None: int, bool: _truth, Size: _size, Lines: read_lines}
    kinds = {key: readers.get(kind, kind) for key, kind in kinds.items()}
    parsed = {}
    for key, text in request.given.items():
        if key not in kinds:
            raise ValueError(f"There is no setting {key!r}: expected one of {', '.join(sorted(kinds))}.")
        try:
            parsed[key] = kinds[key](text)
        except ValueError:
            kind = {
                int: "whole number",
                _truth: "true or false",
                _size: "size, like 224 or 224x160",
                read_lines: "file of text in UTF-8",
            }.get(kinds[key], "number")
            raise ValueError(f"{key}={text} is no {kind}.") from None
    return parsed


def _size(text: str) -> int | list[int]:
    """A side in pixels, or height x width."""
    sides = [int(side) for side in text.split("x")]
    if not 1 <= len(sides) <= 2:
        raise ValueError
    return sides[0] if len(sides) == 1 or sides[0] == sides[1] else sides


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"
