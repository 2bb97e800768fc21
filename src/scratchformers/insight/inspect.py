"""A text or a picture read by a model, or a picture with texts, and what `record` saw, as data and as a picture."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from tokenizers import decoders
from torch import Tensor, nn

from scratchformers.generate import generate
from scratchformers.grid import check_pictures
from scratchformers.images import Preprocess, to_mode
from scratchformers.insight.pictures import (
    as_read,
    attention_grid,
    attention_heads,
    cross_attention,
    drawable,
    lens_picture,
    logit_lens,
    over_picture,
    reads_class_token,
    relevance,
    rollout,
)
from scratchformers.insight.record import Record, record
from scratchformers.text import TextTokenizer, check_belongs, check_fits, padded

LEGIBLE = {"attention": 48, "lens": 24}  # tokens that labels are drawn for
METHOD = "Chefer et al. 2021"
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
    if what in ("rollout", "relevance"):
        raise ValueError(f"The {what} is laid over a picture: choose attention or lens for a text.")
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
    return _attention(found, tokens, layer, head, title=drawable(_short(text)))


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
    names, numbers = list(found.attention), _heads(found.attention, layer, head)
    chosen = names if layer is None else [names[layer]]
    weights = [_array(found.attention[name][0, numbers]) for name in chosen]
    data = {"tokens": tokens, "heads": numbers, "attention": {n: w.tolist() for n, w in zip(chosen, weights)}}
    if layer is None:
        return Seen(data, lambda: attention_grid(weights, names=chosen, title=f"Attention: {title}"), len(tokens), 0)
    cut = slice(max(0, len(tokens) - LEGIBLE["attention"]), None)

    def figure() -> Figure:
        return attention_heads(weights[0][:, cut, cut], tokens[cut], numbers=numbers, title=f"{chosen[0]}: {title}")

    return Seen(data, figure, drawn=len(tokens[cut]), left_out=len(tokens) - len(tokens[cut]))


def look_across(
    model: Any,
    tokenizer: TextTokenizer,
    text: str,
    *,
    target: str | None = None,
    what: str,
    layer: int | None = None,
    head: int | None = None,
) -> Seen:
    """Where in the text an encoder-decoder looked when it wrote each token of its own translation, greedily made, or of
    the `target`: the attention of one layer's heads, by default the last's. ValueError for an empty text or target, and
    for a layer or head there is not."""
    if what != "attention":
        raise ValueError(f"There is no {what} of a model that reads one text and writes another: choose attention.")
    if not text.strip() or (target is not None and not target.strip()):
        raise ValueError(f"The {'text' if not text.strip() else 'target'} is empty: there is nothing to look at.")
    check_belongs(tokenizer, model)
    source = torch.tensor([tokenizer.encode(text)], device=next(model.parameters()).device)
    if target is None:
        rules = model.generation
        most = [rules.max_new_tokens, rules.max_length and rules.max_length - 1, model.config.length - 1]
        written = generate(model, source, max_new_tokens=min(limit for limit in most if limit))
    else:
        ids = tokenizer.target.encode(target)
        ends = [i + 1 for i, id in enumerate(ids) if id in model.generation.end]  # mBART has a language behind it
        with torch.no_grad():
            begin = model.start(source, None)[0]
        written = torch.cat([begin, begin.new_tensor([ids[: min(ends, default=None)]])], dim=1)
    with torch.no_grad(), record(model) as found:
        model(source, written[:, :-1])
    crossed = {name: weights for name, weights in found.attention.items() if name.endswith(".cross")}
    numbers, at = _heads(crossed, layer, head), list(crossed)[-1 if layer is None else layer]
    read = [_piece(tokenizer, id) for id in source[0].tolist()]
    wrote = [_piece(tokenizer.target, id) for id in written[0, 1:].tolist()]
    weights = _array(crossed[at][0, numbers])
    data = {"source": read, "target": wrote, "layer": at, "heads": numbers, "attention": weights.tolist()}
    t, s = (slice(max(0, len(tokens) - LEGIBLE["attention"]), None) for tokens in (wrote, read))

    def figure() -> Figure:
        title = f"{at}: {drawable(_short(text))}"
        return cross_attention(weights[:, t, s], wrote[t], read[s], numbers=numbers, title=title)

    return Seen(data, figure, drawn=LEGIBLE["attention"], left_out=max(t.start, s.start))


def _piece(tokenizer: TextTokenizer, id: int) -> str:
    """As it stands in a text, with the space that begins a word."""
    cutter = tokenizer.tokenizer
    if isinstance(cutter.decoder, decoders.ByteLevel):
        return cutter.decode([id], skip_special_tokens=False)
    return str(cutter.id_to_token(id)).replace("▁", " ")


def _heads(found: Mapping[str, Tensor], layer: int | None, head: int | None) -> list[int]:
    """The numbers of those asked for. ValueError for a layer or head there is not."""
    layers, heads = len(found), next(iter(found.values())).shape[1]
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
    if what == "relevance":
        raise ValueError(
            "Relevance is that of a picture for a text: say which (--text), or choose attention or rollout."
        )
    if what == "rollout" and (layer is not None or head is not None):
        raise ValueError("The rollout goes through every layer and head: leave --layer and --head out.")
    preprocess = preprocess.sized(model.config.image)
    encode = getattr(model, "encode_image", None) or model.encode
    with torch.no_grad(), record(model) as found:
        encode(_prepared(model, preprocess, picture))
    reads = reads_class_token(model)
    reader = "the class token" if reads else "the mean of the patches"
    data: dict[str, Any] = {"picture": name, "read": reader}
    if what == "rollout":
        maps, own = as_read(model, rollout(found.attention.values())[0])
        data |= {"rollout": maps.tolist(), "class_token": own.tolist()}
        maps, names, label = maps[None], ["attention rollout"], f"share of a patch in what is read,\n{reader}"
        title = f"Attention rollout: {drawable(name)}"
    else:
        numbers, at = _heads(found.attention, layer, head), list(found.attention)[-1 if layer is None else layer]
        maps, own = as_read(model, found.attention[at][0, numbers])
        data |= {"layer": at, "heads": numbers, "attention": maps.tolist(), "class_token": own.tolist()}
        kept = [f" ({share:.0%} on itself)" if reads else "" for share in own.tolist()]
        names, label = [f"head {i}{own}" for i, own in zip(numbers, kept)], f"weight of a patch for\n{reader}"
        title = f"{at}: {drawable(name)}"
    drawn, arrays = _part(picture, preprocess.seen(picture)), [_array(each) for each in maps]
    return Seen(data, lambda: over_picture(drawn, arrays, names=names, label=label, title=title))


def look_for(
    model: Any,
    tokenizer: TextTokenizer,
    preprocess: Preprocess,
    picture: Image.Image,
    texts: Sequence[str],
    *,
    name: str = "",
) -> Seen:
    """Where in the picture a model that compares it with texts sees each of these: the relevance of its patches for the
    score, all in one scale, and the cosine of which that is a multiple. A cosine near 1 has hardly a gradient, and its
    map says little. ValueError for a model that compares nothing, no text, an empty one, one too long."""
    if not hasattr(model, "encode_text"):
        raise ValueError(f"{type(model).__name__} reads no texts beside pictures: expected a CLIP, or no --text.")
    if not texts or not all(each.strip() for each in texts):
        raise ValueError("The text is empty: there is nothing to look for.")
    check_fits(tokenizer, model.config.vocab)
    check_belongs(tokenizer, model)
    ids = padded(tokenizer.encode_batch(texts))["ids"]
    preprocess = preprocess.sized(model.config.image)
    x = _prepared(model, preprocess, picture)
    with torch.no_grad():
        wanted = F.normalize(model.encode_text(ids.to(x.device)), dim=-1)
    with torch.enable_grad(), record(model) as found:  # a gradient of the picture, for the model may not learn
        cosines = wanted @ F.normalize(model.encode_image(x.requires_grad_()), dim=-1)[0]
        if not cosines.isfinite().all():
            raise ValueError("The cosines are not finite: the model's weights hold NaN, or overflow.")
        scores, attention = model.scale.detach().exp() * cosines, list(found.attention.values())
        gradients = [torch.autograd.grad(each, attention, retain_graph=True) for each in scores]
    with torch.no_grad():
        maps, own = as_read(model, torch.cat([relevance(attention, each) for each in gradients]))
    data: dict[str, Any] = {"picture": name, "method": METHOD, "texts": [*texts], "cosine": cosines.tolist()}
    data |= {"relevance": maps.tolist(), "class_token": own.tolist()}
    said = [textwrap.fill(drawable(_short(text)), 30) for text in texts]
    names = [f"{text}\ncosine {cosine:.3f}" for text, cosine in zip(said, cosines.tolist())]
    label, title = f"relevance of a patch for the text\n({METHOD})", f"Where a text is seen: {drawable(name)}"
    drawn, arrays = _part(picture, preprocess.seen(picture)), [_array(each) for each in maps]
    return Seen(data, lambda: over_picture(drawn, arrays, names=names, label=label, title=title))


def _prepared(model: Any, preprocess: Preprocess, picture: Image.Image) -> Tensor:
    """(1, channels, height, width), where the model is and as exact as it."""
    x, weight = preprocess(picture)[None], next(model.parameters())
    check_pictures(x, model.config.image, model.config.channels)
    return x.to(weight.device, weight.dtype)


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 60 else words[:57] + "..."


def _part(picture: Image.Image, seen: tuple[float, float, float, float]) -> Image.Image:
    """What the model saw of it, in the picture's own shape; what lies beyond its borders is black."""
    left, top, right, bottom = (round(side) for side in seen)
    part = to_mode(picture, 3).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    part.thumbnail((LARGEST, LARGEST))
    return part


def _array(x: Tensor) -> Any:
    return x.detach().float().cpu().numpy()
