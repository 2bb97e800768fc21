"""Keys and values of earlier tokens, so that a new token costs one token's work.

The layers store; the cache knows what is padding and where each row stands. It is changed in place. A dynamic cache
grows; a static one has its size from the start, and of what a compiled step reads only the values of tensors change.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scratchformers.nn import CAUSAL, Mask, causal_mask, positions


class DynamicLayer:
    """Keys and values of one layer, (b, h, s, e) each, that grow by what is passed."""

    def __init__(self):
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self._room: tuple[Tensor, Tensor] | None = None  # what `k` and `v` are the beginning of

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new tokens' keys and values, returns all of them."""
        if self.k is None or self.v is None:
            self.k, self.v = k, v
        elif k.requires_grad or self.k.is_inference():  # nothing that is still needed is written over
            self.k, self.v, self._room = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2), None
        else:
            self.k, self.v = self._append(self.k, self.v, k, v)
        return self.k, self.v

    def _append(self, old_k: Tensor, old_v: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Into room taken for half as many again, so that what is held is copied rarely and not with every token."""
        held, size = old_k.shape[2], old_k.shape[2] + k.shape[2]
        if self._room is None or self._room[0].shape[2] < size:
            room = [old.new_empty(*old.shape[:2], size + size // 2 + 16, old.shape[3]) for old in (old_k, old_v)]
            room[0][:, :, :held], room[1][:, :, :held] = old_k, old_v
            self._room = room[0], room[1]
        for room, new in zip(self._room, (k, v)):
            room[:, :, held:size] = new
        return self._room[0][:, :, :size], self._room[1][:, :, :size]

    def reorder(self, rows: Int[Tensor, "b"]) -> None:
        if self.k is None or self.v is None:
            return
        if self._room is None:
            self.k, self.v = self.k[rows], self.v[rows]
            return
        held = self.k.shape[2]
        self._room = self._room[0][rows], self._room[1][rows]
        self.k, self.v = self._room[0][:, :, :held], self._room[1][:, :, :held]


class StaticLayer:
    """Keys and values of one layer in buffers of (b, h, room, e): written where `cache.column` says, returned whole."""

    def __init__(self, cache: "StaticCache"):
        self.cache = cache
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new tokens' keys and values, returns the buffers, of which the mask hides what is not written."""
        if self.k is None or self.v is None:  # zeros, since a NaN would reach the output through a weight of 0
            self.k, self.v = (x.new_zeros(*x.shape[:2], self.cache.room, x.shape[3]) for x in (k, v))
        self.k, self.v = self._write(self.k, k), self._write(self.v, v)
        return self.k, self.v

    def _write(self, buffer: Tensor, new: Tensor) -> Tensor:
        column, compiling = self.cache.column, torch.compiler.is_compiling()  # a compiler cannot ask about inference
        frozen = not compiling and buffer.is_inference() and not torch.is_inference_mode_enabled()
        in_place = not new.requires_grad and not frozen  # nothing that is still needed is written over
        return buffer.index_copy_(2, column, new) if in_place else buffer.index_copy(2, column, new)

    def reorder(self, rows: Int[Tensor, "b"]) -> None:
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k[rows], self.v[rows]


class Cache:
    """Of `batch` rows and `depth` layers. `keep` (b, s) stays None while nothing is padded, `next` (b,) is each row's
    next position, `empty` a Python bool."""

    layers: Sequence[DynamicLayer | StaticLayer]

    def __init__(self, batch: int, depth: int):
        self.layers = [DynamicLayer() for _ in range(depth)]
        self.keep: Tensor | None = None
        self.next = torch.zeros(batch, dtype=torch.long)
        self.columns = 0
        self.empty = True

    def append(self, ids: Tensor, keep: Tensor | None, *, length: int) -> tuple[Tensor, Mask]:
        """What `place` returns, after its checks."""
        start, end = self.columns, self.columns + ids.shape[1]
        column, following, seen = torch.arange(start, end, device=ids.device), self.next.to(ids.device), None
        if keep is None and self.keep is None:
            position, following = column[None], following + ids.shape[1]
            alone = end == start + 1
            mask = CAUSAL if self.empty else None if alone else causal_mask(ids.new_ones(1, end).bool(), column)
        else:
            now = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
            earlier = now.new_ones(len(ids), start) if self.keep is None else self.keep
            seen = torch.cat([earlier, now], dim=1)
            position, mask = positions(now, following[:, None]), causal_mask(seen, column)
            following = following + now.sum(-1)
        if end > length:  # a padded row may have more columns than positions
            check_positions(position, length)
        self.keep, self.next, self.columns, self.empty = seen, following, end, False
        return position, mask

    def reorder(self, rows: Int[Tensor, "b"]) -> None:
        """Row i becomes what row rows[i] was."""
        self.next, self.keep = self.next[rows], None if self.keep is None else self.keep[rows]
        for layer in self.layers:
            layer.reorder(rows)


class StaticCache(Cache):
    """For `room` columns, padding counted in. `keep` (b, room) is False where nothing is written yet; `column` (t,) is
    where the tokens being read stand. In a compiled step it cannot say that it is full: torch's check of an index does.
    """

    def __init__(self, batch: int, depth: int, room: int):
        if room < 1:
            raise ValueError(f"length is {room}: expected room for at least 1 token.")
        super().__init__(batch, 0)
        self.room, self.layers = room, [StaticLayer(self) for _ in range(depth)]
        self.keep = torch.zeros(batch, room, dtype=torch.bool)
        self.column = torch.zeros(0, dtype=torch.long)
        self.written = torch.zeros((), dtype=torch.long)

    def append(self, ids: Tensor, keep: Tensor | None, *, length: int) -> tuple[Tensor, Mask]:
        assert self.keep is not None
        seen, following, written = (x.to(ids.device) for x in (self.keep, self.next, self.written))
        now = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
        column = written + torch.arange(ids.shape[1], device=ids.device)
        position = positions(now, following[:, None])
        if not torch.compiler.is_compiling():
            if int(written) + ids.shape[1] > self.room:
                raise ValueError(
                    f"{int(written) + ids.shape[1]} tokens do not fit a cache made for {self.room}: make a longer one."
                )
            if self.room > length:
                check_positions(position, length)
        seen = seen.index_copy(1, column, now)
        self.keep, self.next, self.empty = seen, following + now.sum(-1), False
        self.column, self.written = column, written + ids.shape[1]
        return position, causal_mask(seen, column)


def check_positions(position: Int[Tensor, "_ t"], length: int) -> None:
    if position.max() >= length:
        raise ValueError(f"{int(position.max()) + 1} tokens do not fit a model of {length} positions: pass fewer.")


def check_keep(ids: Int[Tensor, "b t"], keep: Tensor | None) -> None:
    if keep is not None and (keep.shape != ids.shape or keep.dtype != torch.bool):
        what = f"{str(keep.dtype).removeprefix('torch.')} of shape {list(keep.shape)}"
        raise ValueError(f"keep is {what}: expected booleans of shape {list(ids.shape)}, for the ids passed now.")


def begin(ids: Int[Tensor, "b t"], keep: Tensor | None, *, length: int) -> Int[Tensor, "_ t"]:
    """Positions (b or 1, t) of tokens that nothing precedes. Raises ValueError where one would pass the model's
    `length`, and for a `keep` that does not fit."""
    check_keep(ids, keep)
    position = torch.arange(ids.shape[1], device=ids.device)[None] if keep is None else positions(keep)
    if ids.shape[1] > length:
        check_positions(position, length)
    return position


def place(
    ids: Int[Tensor, "b t"], keep: Bool[Tensor, "b t"] | None, cache: Cache | None, *, length: int
) -> tuple[Tensor, Mask]:
    """Positions (b or 1, t) and mask of causal tokens that follow what `cache` holds.

    Raises ValueError, before anything is changed, where a position would pass the model's `length`, or a column the
    room of a static cache.
    """
    check_keep(ids, keep)
    cache = Cache(len(ids), 0) if cache is None else cache
    if len(ids) != len(cache.next):
        raise ValueError(f"The cache was made for {len(cache.next)} rows and got {len(ids)}: make one for each batch.")
    return cache.append(ids, keep, length=length)


def last(x: Float[Tensor, "b t d"], keep: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b 1 d"]:
    """The state of each row's last real token, which scores what follows the row."""
    if keep is None:
        return x[:, -1:]
    column = torch.where(keep, torch.arange(keep.shape[1], device=keep.device), 0).amax(-1)
    return x[torch.arange(len(x), device=x.device), column][:, None]
