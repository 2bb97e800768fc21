"""A text read by a model that writes, and what `record` saw, as data and as a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from scratchformers.insight.pictures import attention_grid, attention_heads, drawable, lens_picture, logit_lens
from scratchformers.insight.record import Record, record
from scratchformers.text import TextTokenizer

LEGIBLE = {"attention": 48, "lens": 24}  # tokens that labels are drawn for


@dataclass(frozen=True)
class Seen:
    data: dict[str, Any]  # what --json prints
    figure: Callable[[], Figure]
    drawn: int  # tokens in the picture: the last ones
    left_out: int


def look(
    model: Any,
    tokenizer: TextTokenizer,
    text: str,
    *,
    what: str,
    layer: int | None = None,
    head: int | None = None,
) -> Seen:
    """What the model does with the text. Raises ValueError for an empty text and for a layer or head there is not."""
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("The text has no tokens: there is nothing to look at.")
    device = next(model.parameters()).device
    with torch.no_grad(), record(model) as found:
        model.encode(torch.tensor([ids], device=device))
    tokens = [tokenizer.decode([id]) for id in ids]
    if what == "lens":
        return _lens(model, tokenizer, found, tokens)
    words = " ".join(text.split())
    return _attention(found, tokens, layer, head, title=drawable(words if len(words) <= 60 else words[:57] + "..."))


def _lens(model: nn.Module, tokenizer: TextTokenizer, found: Record, tokens: list[str]) -> Seen:
    names, ids, probability = logit_lens(model, found)
    words = [[tokenizer.decode([id]) for id in row] for row in ids.tolist()]
    data = {"tokens": tokens, "layers": names, "ids": ids.tolist(), "top": words, "probability": probability.tolist()}
    cut = slice(max(0, len(tokens) - LEGIBLE["lens"]), None)
    title = "Logit lens: each layer's most probable next token"

    def figure() -> Figure:
        shown = [row[cut] for row in words]
        return lens_picture(names, shown, probability[:, cut], tokens[cut], title=title)

    return Seen(data, figure, drawn=len(tokens[cut]), left_out=len(tokens) - len(tokens[cut]))


def _attention(found: Record, tokens: list[str], layer: int | None, head: int | None, *, title: str) -> Seen:
    names = list(found.attention)
    if layer is not None and not -len(names) <= layer < len(names):
        raise ValueError(f"--layer is {layer}: this model has layers 0 to {len(names) - 1}.")
    heads = found.attention[0].shape[1]
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"--head is {head}: this model has heads 0 to {heads - 1}.")
    chosen = names if layer is None else [names[layer]]
    numbers = list(range(heads)) if head is None else [head]
    weights = [_array(found.attention[name][0, numbers]) for name in chosen]
    data = {"tokens": tokens, "heads": numbers, "attention": {n: w.tolist() for n, w in zip(chosen, weights)}}
    if layer is None:
        return Seen(data, lambda: attention_grid(weights, names=chosen, title=f"Attention: {title}"), len(tokens), 0)
    cut = slice(max(0, len(tokens) - LEGIBLE["attention"]), None)

    def figure() -> Figure:
        return attention_heads(weights[0][:, cut, cut], tokens[cut], numbers=numbers, title=f"{chosen[0]}: {title}")

    return Seen(data, figure, drawn=len(tokens[cut]), left_out=len(tokens) - len(tokens[cut]))


def _array(x: Tensor) -> Any:
    return x.detach().float().cpu().numpy()
