"""A text or a picture read by a model, and what `record` saw, as data and as a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from scratchformers.grid import check_pictures
from scratchformers.images import Preprocess, to_mode
from scratchformers.insight.pictures import (
    as_read,
    attention_grid,
    attention_heads,
    drawable,
    lens_picture,
    logit_lens,
    over_picture,
    reads_class_token,
    rollout,
)
from scratchformers.insight.record import Record, record
from scratchformers.text import TextTokenizer

LEGIBLE = {"attention": 48, "lens": 24}  # tokens that labels are drawn for
LARGEST = 1200  # pixels of the longer side of a picture that is drawn


@dataclass(frozen=True)
class Seen:
    data: dict[str, Any]  # what --json prints
    figure: Callable[[], Figure]
    drawn: int = 0  # of a text, tokens in the picture: the last ones
    left_out: int = 0


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
    if what == "rollout":
        raise ValueError("The rollout is laid over a picture: choose attention or lens for a text.")
    if head is not None and layer is None:
        raise ValueError("--head is one of a layer: say which by --layer.")
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
    names, numbers = list(found.attention), _heads(found, layer, head)
    chosen = names if layer is None else [names[layer]]
    weights = [_array(found.attention[name][0, numbers]) for name in chosen]
    data = {"tokens": tokens, "heads": numbers, "attention": {n: w.tolist() for n, w in zip(chosen, weights)}}
    if layer is None:
        return Seen(data, lambda: attention_grid(weights, names=chosen, title=f"Attention: {title}"), len(tokens), 0)
    cut = slice(max(0, len(tokens) - LEGIBLE["attention"]), None)

    def figure() -> Figure:
        return attention_heads(weights[0][:, cut, cut], tokens[cut], numbers=numbers, title=f"{chosen[0]}: {title}")

    return Seen(data, figure, drawn=len(tokens[cut]), left_out=len(tokens) - len(tokens[cut]))


def _heads(found: Record, layer: int | None, head: int | None) -> list[int]:
    """The numbers of those asked for. ValueError for a layer or head there is not."""
    layers, heads = len(found.attention), found.attention[0].shape[1]
    if layer is not None and not -layers <= layer < layers:
        raise ValueError(f"--layer is {layer}: this model has layers 0 to {layers - 1}.")
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"--head is {head}: this model has heads 0 to {heads - 1}.")
    return list(range(heads)) if head is None else [head]


def look_at_picture(
    model: Any,
    preprocess: Preprocess,
    picture: Image.Image,
    *,
    what: str,
    layer: int | None = None,
    head: int | None = None,
    name: str = "",
) -> Seen:
    """What the model does with the picture: the attention of one layer's heads, of the last by default, or its rollout
    through all. Raises ValueError for a layer or head there is not, and for what only a text has."""
    if what == "lens":
        raise ValueError("The lens shows the words of a model that writes: choose attention or rollout for a picture.")
    if what == "rollout" and (layer is not None or head is not None):
        raise ValueError("The rollout goes through every layer and head: leave --layer and --head out.")
    preprocess, weight = preprocess.sized(model.config.image), next(model.parameters())
    x = preprocess(picture)[None]
    check_pictures(x, model.config.image, model.config.channels)
    with torch.no_grad(), record(model) as found:
        model.encode(x.to(weight.device, weight.dtype))
    reads = reads_class_token(model)
    reader = "the class token" if reads else "the mean of the patches"
    data: dict[str, Any] = {"picture": name, "read": reader}
    if what == "rollout":
        maps, own = as_read(model, rollout(found.attention.values())[0])
        data |= {"rollout": maps.tolist(), "class_token": own.tolist()}
        maps, names, label = maps[None], ["attention rollout"], f"share of a patch in what is read,\n{reader}"
        title = f"Attention rollout: {drawable(name)}"
    else:
        numbers, at = _heads(found, layer, head), list(found.attention)[-1 if layer is None else layer]
        maps, own = as_read(model, found.attention[at][0, numbers])
        data |= {"layer": at, "heads": numbers, "attention": maps.tolist(), "class_token": own.tolist()}
        kept = [f" ({share:.0%} on itself)" if reads else "" for share in own.tolist()]
        names, label = [f"head {i}{own}" for i, own in zip(numbers, kept)], f"weight of a patch for\n{reader}"
        title = f"{at}: {drawable(name)}"
    drawn, arrays = _part(picture, preprocess.seen(picture)), [_array(each) for each in maps]
    return Seen(data, lambda: over_picture(drawn, arrays, names=names, label=label, title=title))


def _part(picture: Image.Image, seen: tuple[float, float, float, float]) -> Image.Image:
    """What the model saw of it, in the picture's own shape; what lies beyond its borders is black."""
    left, top, right, bottom = (round(side) for side in seen)
    part = to_mode(picture, 3).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    part.thumbnail((LARGEST, LARGEST))
    return part


def _array(x: Tensor) -> Any:
    return x.detach().float().cpu().numpy()
