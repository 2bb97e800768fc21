"""What a run begins with that others made: a checkpoint's model, to be trained on, and its tokeniser."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scratchformers.checkpoints.pretrained import Pretrained
from scratchformers.models import load, load_tokenizer
from scratchformers.text import TextTokenizer
from scratchformers.training.request import BPE, CHARACTERS, WORDPIECE


def copied(
    source: str | Path, settings: Any, fields: Mapping[str, Any], *, kind: type[Pretrained] | None = None
) -> Pretrained:
    """The checkpoint's model, or what of it a `kind` reads, copied out of its file, with all that is saved with it. Its
    sizes are its own; only dropout, and of a model of pictures `image` and the way to pool, may be others."""
    found = load(source) if kind is None else kind.from_pretrained(source)
    own = dataclasses.asdict(found.config)
    if unknown := sorted(set(fields) - set(own)):
        raise ValueError(f"{source} holds a {type(found).__name__}, which has no {', '.join(unknown)}.")
    free = {"dropout", "vocab", "classes", *(("image", "pool") if hasattr(found, "resize") else ())}
    differs = [f"{k} {own[k]}, not {v}" for k, v in fields.items() if k not in free and own[k] != v]
    if "mean" in {own.get("pool"), fields.get("pool")} and own.get("pool") != fields.get("pool", own.get("pool")):
        differs.append(f"pool {own['pool']}, not {fields['pool']}, which has another number of tokens")
    if differs:
        raise ValueError(
            f"{source} has {'; '.join(differs)}: leave that setting out, or train from scratch, without --from."
        )
    if settings.length > own.get("length", math.inf):
        raise ValueError(f"length is {settings.length}: expected at most the {own['length']} positions of {source}.")
    torch.manual_seed(settings.seed)
    model: Any = copy.deepcopy(found)
    for parameter in model.parameters():  # row by row, as a new model's
        parameter.data = parameter.data.contiguous()
    if (rate := fields.get("dropout", own.get("dropout"))) != own.get("dropout"):
        _set_dropout(model, rate)
    image = fields.get("image")
    if image is not None and (tuple(image) if isinstance(image, list) else image) != own["image"]:
        model.resize(image)
    if (pool := fields.get("pool", own.get("pool"))) != own.get("pool"):
        model.config = dataclasses.replace(model.config, pool=pool)
    return model


def _set_dropout(model: Pretrained, rate: float) -> None:
    """Everywhere, and in what config.json will say."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), int | float):
            setattr(module, "dropout", rate)  # noqa: B010 (torch declares that what is set are modules)
    model.config = dataclasses.replace(model.config, dropout=rate)


def tokenizer_of(source: str | Path | None, asked: str | None) -> TextTokenizer:
    """That of a source, which is the only one for its weights; without a source the one asked for."""
    if source is None:
        assert asked is not None
        return load_tokenizer(asked)
    tokenizer, made = load_tokenizer(source), (CHARACTERS, BPE, WORDPIECE)
    if asked in made or (asked is not None and load_tokenizer(asked).digest() != tokenizer.digest()):
        raise ValueError(
            f"--tokenizer {asked} is not that of {source}, whose weights know only the ids they were trained with: "
            "leave --tokenizer out, or train from scratch, without --from."
        )
    return tokenizer
