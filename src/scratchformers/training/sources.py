"""What a run begins with that others made: a checkpoint's model, to be trained on, and its tokeniser."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scratchformers.checkpoints.pretrained import Pretrained
from scratchformers.models import load, load_tokenizer
from scratchformers.text import TextTokenizer
from scratchformers.training.request import BPE, CHARACTERS, WORDPIECE


def copied(source: str | Path, settings: Any, fields: Mapping[str, Any]) -> Pretrained:
    """The checkpoint's model, copied out of its file, with all that is saved with it. Its sizes are its own; only its
    dropout may be another."""
    found = load(source)
    own = dataclasses.asdict(found.config)
    if unknown := sorted(set(fields) - set(own)):
        raise ValueError(f"{source} holds a {type(found).__name__}, which has no {', '.join(unknown)}.")
    differs = [f"{k} {own[k]}, not {v}" for k, v in fields.items() if k not in ("dropout", "vocab") and own[k] != v]
    if differs:
        raise ValueError(
            f"{source} has {'; '.join(differs)}: leave that setting out, or train from scratch, without --from."
        )
    if settings.length > own["length"]:
        raise ValueError(f"length is {settings.length}: expected at most the {own['length']} positions of {source}.")
    torch.manual_seed(settings.seed)
    model = copy.deepcopy(found)
    for parameter in model.parameters():  # row by row, as a new model's
        parameter.data = parameter.data.contiguous()
    if (rate := fields.get("dropout", own["dropout"])) != own["dropout"]:
        _set_dropout(model, rate)
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
