"""Batches without padding: the real tokens of all rows side by side, as one long row.

Linears, norms and MLPs then do no work on padding. Attention goes row by row, those of one length together, and never
through one large mask, which would cost the square of the whole batch.
"""

from contextvars import ContextVar
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from scratchformers.nn import CAUSAL, attend

padded = ContextVar("padded", default=False)  # set where whole batches must be seen, as when attention is recorded


def unpadded(keep: Bool[Tensor, "b t"] | None, *, first: bool, causal: bool) -> "Ragged | None":
    """The rows of a batch that is better computed without its padding, else None.

    That is on the CPU, where something is padded and nothing has been cached before (`first`). A compiled model takes
    the padded path: it may not depend on how long the rows are.
    """
    if keep is None or not first or keep.device.type != "cpu" or torch.compiler.is_compiling() or padded.get():
        return None
    return None if bool(keep.all()) or not bool(keep.any()) else Ragged(keep, causal=causal)


def check_texts(ids: Int[Tensor, "b t"], length: int, end: int | None) -> None:
    """ValueError for texts longer than `length`, or one in which the id `end`, where one is given, does not occur."""
    if ids.shape[1] > length:
        raise ValueError(f"A text has {ids.shape[1]} tokens and the model reads {length}: truncate it.")
    if end is not None and not (torch.compiler.is_compiling() or bool((ids == end).any(-1).all())):
        raise ValueError(f"A text has no end: expected the id {end} in each, as the tokeniser puts it.")


class Ragged:
    """The real tokens of a batch, rows of one length together. As a mask it lets each attend within its own row."""

    def __init__(self, keep: Bool[Tensor, "b t"], *, causal: bool):
        lengths = keep.sum(-1)
        order = lengths.argsort(stable=True)
        sizes, counts = lengths[order].unique_consecutive(return_counts=True)
        self.groups = [(count, size) for count, size in zip(counts.tolist(), sizes.tolist()) if size]
        self.index = torch.arange(keep.numel()).view(keep.shape)[order][keep[order]]  # where each token came from
        self.shape, self.mask = keep.shape, CAUSAL if causal else None

    def pack(self, x: Shaped[Tensor, "_ t *d"]) -> Shaped[Tensor, "1 n *d"]:
        """The real ones of states, or of whatever else there is one of for each token; `_` is b, or 1 for all rows."""
        return x.expand(*self.shape, *x.shape[2:]).flatten(0, 1)[self.index][None]

    def unpack(self, x: Float[Tensor, "1 n d"]) -> Float[Tensor, "b t d"]:
        """Where it was, and 0 at padding."""
        out = x.new_zeros(self.shape.numel(), x.shape[-1])
        out[self.index] = x[0]
        return out.unflatten(0, self.shape)

    def pack_heads(self, x: Float[Tensor, "b h t e"]) -> Float[Tensor, "1 h n e"]:
        return rearrange(self.pack(rearrange(x, "b h t e -> b t (h e)")), "1 n (h e) -> 1 h n e", h=x.shape[1])

    def unpack_heads(self, x: Float[Tensor, "1 h n e"]) -> Float[Tensor, "b h t e"]:
        return rearrange(self.unpack(rearrange(x, "1 h n e -> 1 n (h e)")), "b t (h e) -> b h t e", h=x.shape[1])

    def attend(
        self,
        q: Float[Tensor, "1 h n e"],
        k: Float[Tensor, "1 h n e"],
        v: Float[Tensor, "1 h n e"],
        dropout: float = 0.0,
    ) -> Float[Tensor, "1 h n e"]:
        out, sizes = [], [count * size for count, size in self.groups]
        for (_, size), *parts in zip(self.groups, *(x.split(sizes, dim=2) for x in (q, k, v))):
            q, k, v = (rearrange(part, "1 h (g l) e -> g h l e", l=size) for part in parts)
            out.append(rearrange(attend(q, k, v, self.mask, dropout), "g h l e -> (g l) h e"))
        return rearrange(torch.cat(out), "n h e -> 1 h n e")  # lies token by token, as what reads it wants it


class Padding:
    """A cache's layer that is given rows without padding, and keeps them with it."""

    def __init__(self, layer: Any, rows: Ragged):
        self.held, self.rows = layer, rows

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.held.update(*(self.rows.unpack_heads(x) for x in (k, v)))
        return k, v


def layer(cache: Any, number: int, rows: Ragged | None) -> Any:
    """What a block is to take for its layer of a cache, or of none."""
    if cache is None:
        return None
    return cache.layers[number] if rows is None else Padding(cache.layers[number], rows)
