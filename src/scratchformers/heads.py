"""Heads: what makes an answer of an encoder's states. Each is called with the states (b, t, d) and `keep` (b, t)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scratchformers.nn import clear_padding

Keep = Bool[Tensor, "b t"] | None
Pool = Callable[[Float[Tensor, "b t d"], Keep], Float[Tensor, "b d"]]


def first(x: Float[Tensor, "b t d"], keep: Keep = None) -> Float[Tensor, "b d"]:
    """The state of each row's first real token, wherever padding stands: where there is one, the class token."""
    return x[:, 0] if keep is None else x[torch.arange(len(x), device=x.device), keep.int().argmax(-1)]


def mean(x: Float[Tensor, "b t d"], keep: Keep = None) -> Float[Tensor, "b d"]:
    """The mean over each row's real tokens; 0 for a row that has none."""
    if keep is None:
        return x.mean(1)
    return clear_padding(x, keep).sum(1) / keep.sum(-1, keepdim=True).clamp(min=1)


def unit(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Of length 1, in float32 at least: what cosines are taken of."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


class Classify(nn.Module):
    """Scores of `labels` for each row, from the one vector that `pool` makes of its states.

    `pool` is a function (`first`, `mean`) or a method of the model (`model.pool`), which stays the model's own.
    """

    def __init__(self, dim: int, labels: Sequence[str], *, pool: Pool = first, dropout: float = 0.0):
        super().__init__()
        self.labels, self.pool = _checked(labels), pool
        self.dropout, self.out = nn.Dropout(dropout), _linear(dim, len(self.labels))

    def forward(self, x: Float[Tensor, "b t d"], keep: Keep = None) -> Float[Tensor, "b classes"]:
        return self.out(self.dropout(self.pool(x, keep)))


class TokenClassify(nn.Module):
    """Scores of `labels` for each token."""

    def __init__(self, dim: int, labels: Sequence[str], *, dropout: float = 0.0):
        super().__init__()
        self.labels = _checked(labels)
        self.dropout, self.out = nn.Dropout(dropout), _linear(dim, len(self.labels))

    def forward(self, x: Float[Tensor, "b t d"], keep: Keep = None) -> Float[Tensor, "b t classes"]:
        return self.out(self.dropout(x))


def _linear(dim: int, classes: int) -> nn.Linear:
    """Begins near 0, so that a new head says nothing yet."""
    linear = nn.Linear(dim, classes)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def _checked(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels are {labels!r}: expected a list of names, each once.")
    return tuple(labels)


def published_labels(id2label: Any, count: int) -> list[str]:
    """The labels that config.json names by number, or transformers' names for so many where it names none."""
    named = id2label or {i: f"LABEL_{i}" for i in range(count)}
    if not (isinstance(named, Mapping) and all(str(key).isdecimal() for key in named)):
        raise ValueError(f"config.json says id2label {named!r}: expected a name for each number.")
    return [str(named[key]) for key in sorted(named, key=int)]


def label_names(labels: Sequence[str]) -> dict[str, Any]:
    """Labels as config.json names them, both ways; None where there are none."""
    names = {str(i): label for i, label in enumerate(labels)}
    return {"id2label": names or None, "label2id": {label: int(i) for i, label in names.items()} or None}
