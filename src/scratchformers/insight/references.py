"""What each model is verified against: the class of transformers, where to look within both, what both are given.

A model registers with values: a `Reference` under its class's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Case = dict[str, Tensor]  # the arguments of one call; `keep` among them marks what is compared
Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Reference:
    kind: str  # the class of transformers
    places: Callable[[Any], list[tuple[str, str]]]  # of a config: our module, theirs, in order of execution
    cases: Callable[..., dict[str, Case]]  # of a config, a generator, and a text's ids where there is a tokeniser
    ours: Mapping[str, Call]  # ways in which ours computes the same; into `output` one can look
    theirs: Call
    published: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # of presets: bytes, sha256 of the weights


def written(config: Any, generator: torch.Generator, text: list[int]) -> dict[str, Case]:
    """For a model that writes: rows of 16 tokens, whole, padded on the left, padded on the right; one of 80; a text."""
    columns = min(16, config.length)
    ids = torch.randint(config.vocab, (2, columns), generator=generator)
    left, right = torch.ones_like(ids).bool(), torch.ones_like(ids).bool()
    left[1, : columns // 3], right[0, columns - columns // 4 :] = False, False
    cases = {"whole": {"ids": ids}, "left": {"ids": ids, "keep": left}, "right": {"ids": ids, "keep": right}}
    cases["long"] = {"ids": torch.randint(config.vocab, (1, min(80, config.length)), generator=generator)}
    return cases | ({"text": {"ids": torch.tensor([text[:columns]])}} if text else {})


def with_cache(model: Any, ids: Tensor, keep: Tensor | None = None, *, length: int | None = None) -> Tensor:
    """In two pieces, the second continuing the first."""
    cut, cache = (ids.shape[1] + 1) // 2, model.new_cache(len(ids), length=length)
    pieces = [slice(0, cut), slice(cut, None)] if ids.shape[1] > 1 else [slice(None)]
    given = [(ids[:, piece], None if keep is None else keep[:, piece]) for piece in pieces]
    return torch.cat([model(part, keep=kept, cache=cache) for part, kept in given], dim=1)


def gpt2_of_transformers(model: Any, ids: Tensor, keep: Tensor | None = None) -> Tensor:
    if keep is None:
        return model(ids).logits
    return model(ids, attention_mask=keep.long(), position_ids=(keep.cumsum(-1) - 1).clamp(min=0)).logits


def gpt2_places(config: Any) -> list[tuple[str, str]]:
    blocks = [(f"blocks.{i}", f"transformer.h.{i}") for i in range(config.depth)]
    return [("dropout", "transformer.drop"), *blocks, ("norm", "transformer.ln_f")]


REFERENCES = {
    "GPT2": Reference(
        "GPT2LMHeadModel",
        gpt2_places,
        written,
        {
            "output": lambda model, **case: model(**case),
            "without padding": lambda model, **case: model(**case),
            "with a cache": with_cache,
            "with a static cache": lambda model, **case: with_cache(model, **case, length=case["ids"].shape[1]),
        },
        gpt2_of_transformers,
        published={
            "gpt2": (548105171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"),
            "gpt2-medium": (1519984962, "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd"),
            "distilgpt2": (352824413, "e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b"),
        },
    )
}
