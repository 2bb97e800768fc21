"""What a decoder reads of a source: keys and values that are computed once, for all its tokens and all its beams."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scratchformers.nn import attend, padding_mask
from scratchformers.ragged import Ragged, padded, unpadded


class Source(NamedTuple):
    """For each block that reads it keys and values, (b, h, s, e) each, and the mask (b, 1, 1, s) of its padding."""

    keys: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "b 1 1 s"] | None

    @classmethod
    def read(cls, blocks: Iterable[Any], x: Float[Tensor, "b s d"], keep: Bool[Tensor, "b s"] | None) -> "Source":
        """Of the states of a source; nothing is computed for its padding."""
        rows = unpadded(keep, first=True, causal=False)
        if rows is None:
            return cls([block.cross.keys_values(x) for block in blocks], padding_mask(keep))
        pairs = [block.cross.keys_values(rows.pack(x)) for block in blocks]
        return cls([(rows.unpack_heads(k), rows.unpack_heads(v)) for k, v in pairs], padding_mask(keep))

    def block(self, number: int, batch: int, rows: Ragged | None) -> dict[str, Any]:
        """What a block takes. `batch` counts rows of queries, n in turn for each of the source; `rows` packs them."""
        (k, v), mask, n = self.keys[number], self.mask, batch // len(self.keys[number][0])
        if padded.get() and n > 1:  # where whole batches must be seen, each row has keys of its own
            k, v = k.repeat_interleave(n, 0), v.repeat_interleave(n, 0)
            mask = None if mask is None else mask.repeat_interleave(n, 0)
        plain = rows is None and batch == len(k)
        return {"source": (k, v), "source_mask": mask if plain else Across(mask, rows)}


class Across:
    """As a mask: queries without padding, or n rows of them to each source. Nobody's keys are copied: the rows that
    read one source are one long row, since a query does not see another."""

    def __init__(self, mask: Any, rows: Ragged | None = None):
        self.mask, self.rows = mask, rows

    def attend(
        self,
        q: Float[Tensor, "_ h t e"],
        k: Float[Tensor, "b h s e"],
        v: Float[Tensor, "b h s e"],
        dropout: float = 0.0,
    ) -> Float[Tensor, "_ h t e"]:
        q = q if self.rows is None else self.rows.unpack_heads(q)
        folded = rearrange(q, "(b n) h t e -> b h (n t) e", b=len(k))
        out = attend(folded, k, v, self.mask, dropout)
        out = rearrange(out, "b h (n t) e -> (b n) h t e", t=q.shape[2])
        return out if self.rows is None else self.rows.pack_heads(out)


@dataclass
class Step:
    """What `generate` calls for the next scores: `score`, and the source that was read for all steps."""

    score: Callable[..., Tensor]
    source: Source

    def __call__(self, ids: Int[Tensor, "b t"], keep: Bool[Tensor, "b t"] | None, cache: Any) -> Tensor:
        """Scores (b, vocab). The rows of `ids` may be n times those of the source, n in turn for each."""
        return self.score(ids, keep, cache, self.source)

    def select(self, rows: Int[Tensor, "r"]) -> None:
        """Only these rows of the source are read from now on."""
        keys, mask = self.source
        self.source = Source([(k[rows], v[rows]) for k, v in keys], None if mask is None else mask[rows])

    @property
    def plain(self) -> "Step":
        """This, where `score` was not compiled; else what was, with the same source."""
        score = getattr(self.score, "_torchdynamo_orig_callable", self.score)
        return self if score is self.score else Step(score, self.source)
