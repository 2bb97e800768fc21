"""Pictures of what `record` found: attention head by head, over a picture too, its rollout, where a text is seen, and
the logit lens.

Arrays in, figures out; nothing is shown or written here (`figure.savefig` does that), and pyplot's global state is left
alone.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from scratchformers.grid import cells
from scratchformers.insight.record import Record

MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


@cache
def _glyphs() -> frozenset[int]:
    """The characters that matplotlib's own font can draw."""
    from matplotlib import font_manager

    path = font_manager.findfont("DejaVu Sans")
    return frozenset(font_manager.get_font(path).get_charmap())


def drawable(text: str) -> str:
    """The text with what the font lacks, or nothing can draw, by its number."""
    return "".join(c if c.isprintable() and ord(c) in _glyphs() else f"U+{ord(c):X}" for c in text)


def visible(token: str, *, most: int = 14) -> str:
    """A token as a label: white space by marks, a long one without its middle."""
    text = drawable("".join(MARKS.get(character, character) for character in token))
    return text if len(text) <= most else f"{text[: most - 5]}…{text[-4:]}"


def attention_grid(attention: Sequence[np.ndarray], *, names: Sequence[str], title: str = "") -> Figure:
    """Of each layer (a row) each head's weights (heads, t, s), the query downwards: which heads do the same thing."""
    heads, layers = attention[0].shape[0], len(attention)
    figure = Figure(figsize=(1.2 + 1.1 * heads, 0.9 + 1.15 * layers), layout="constrained")
    grid = figure.subplots(layers, heads, squeeze=False)
    for row, (weights, name) in enumerate(zip(attention, names)):
        for head, axes in enumerate(grid[row]):
            axes.imshow(weights[head], vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"head {head}", fontsize=8)
        _said(grid[row][0].set_ylabel(name, fontsize=8))
    bar = figure.colorbar(grid[0, 0].images[0], ax=grid, shrink=min(1.0, 3 / layers), aspect=30)
    bar.set_label("weight", fontsize=8)
    _said(figure.suptitle(title, fontsize=10))
    return figure


def attention_heads(weights: np.ndarray, tokens: Sequence[str], *, numbers: Sequence[int], title: str = "") -> Figure:
    """Weights (heads, t, s) of one layer, tokens at the axes: each row says where that token looks. `numbers` are the
    heads' own."""
    names = [f"head {number}" for number in numbers]
    return _panels(weights, tokens[-weights.shape[1] :], tokens[-weights.shape[2] :], names=names, title=title)


def cross_attention(
    weights: np.ndarray, target: Sequence[str], source: Sequence[str], *, numbers: Sequence[int], title: str = ""
) -> Figure:
    """Weights (heads, t, s) of one layer of a decoder: each row says where in the source was looked when that token of
    the target was written. Before several heads, their mean."""
    names = [f"head {number}" for number in numbers]
    if len(numbers) > 1:
        weights, names = np.concatenate([weights.mean(0, keepdims=True), weights]), ["mean of the heads", *names]
    return _panels(weights, target, source, names=names, title=title, axes=("target", "source"))


def _panels(
    weights: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    names: Sequence[str],
    title: str,
    axes: tuple[str, str] = ("", ""),
) -> Figure:
    """Maps (n, rows, columns) side by side, in one scale, with tokens at the axes."""
    down = -(-len(weights) // 4)
    across = -(-len(weights) // down)
    wide, high = (max(2.2, 0.17 * len(tokens) + 1.0) for tokens in (columns, rows))
    figure = Figure(figsize=(across * wide + 0.8, down * high + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    labels = [[visible(token) for token in tokens] for tokens in (columns, rows)]
    font = 8 if max(map(len, labels)) <= 24 else 6
    for number, place in enumerate(grid.flat):
        if number >= len(weights):
            place.set_axis_off()
            continue
        place.imshow(weights[number], vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        place.set_title(names[number], fontsize=9)
        place.set_xticks(range(len(columns)), labels[0], rotation=90, fontsize=font)
        place.set_yticks(range(len(rows)), labels[1], fontsize=font)
        for label in (*place.get_xticklabels(), *place.get_yticklabels()):
            _said(label)
    for label, said in zip((figure.supylabel, figure.supxlabel), axes):
        if said:
            label(said, fontsize=9)
    figure.colorbar(grid[0, 0].images[0], ax=grid, shrink=0.8 / down**0.5, aspect=30).set_label("weight", fontsize=8)
    _said(figure.suptitle(title, fontsize=10))
    return figure


def rollout(attention: Iterable[Float[Tensor, "b h t s"]]) -> Float[Tensor, "b t s"]:
    """What each token's last state owes to each token's first, if nothing but attention moved anything: of every layer
    the mean over heads, half of it and half the residual, multiplied from the first to the last (Abnar and Zuidema
    2020, section 3). Rows sum to 1."""
    whole: Any = None
    for weights in attention:
        step = weights.mean(1)
        step = step + torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
        step = step / step.sum(-1, keepdim=True)
        whole = step if whole is None else step @ whole
    if whole is None:
        raise ValueError("There is no attention to roll out: call the model within `record`.")
    return whole


def as_read(model: Any, weights: Float[Tensor, "*n t s"]) -> tuple[Float[Tensor, "*n y x"], Float[Tensor, "*n"]]:
    """Of weights among the tokens of a picture those of what is read in the end, the class token, or where that is not
    read, of all patches in the mean: on the patches, where they lie, and on the class token, 0 if there is none."""
    before = int(_tower(model).class_token is not None)
    row = weights[..., 0, :] if reads_class_token(model) else weights[..., before:, :].mean(-2)
    return row[..., before:].unflatten(-1, cells(model.config.image, model.config.patch)), row[..., :before].sum(-1)


def reads_class_token(model: Any) -> bool:
    return _tower(model).class_token is not None and getattr(model.config, "pool", "class") == "class"


def _tower(model: Any) -> Any:
    """What reads pictures: of a model that reads texts too, a part."""
    return getattr(model, "image", model)


def relevance(
    attention: Iterable[Float[Tensor, "b h t t"]], gradients: Iterable[Float[Tensor, "b h t t"]]
) -> Float[Tensor, "b t t"]:
    """How much of a score each token's last state brings from each token's first (Chefer et al. 2021, Generic
    Attention-model Explainability, equations 5 and 6): every layer adds the mean over heads of its attention times the
    score's gradient for that, where it is above 0, to what it is given. With each token's own share, which begins as 1.
    """
    whole: Any = None
    for weights, gradient in zip(attention, gradients, strict=True):
        step = (weights * gradient).clamp(min=0).mean(1)
        own = torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
        whole = own + step if whole is None else whole + step @ whole
    if whole is None:
        raise ValueError("There is no attention to follow: call the model within `record`.")
    return whole


def over_picture(
    picture: Image.Image, maps: Sequence[np.ndarray], *, names: Sequence[str], label: str, title: str = ""
) -> Figure:
    """The picture, then each map of its patches (rows, columns) laid over it in grey, all in one scale.

    The picture keeps its shape, whatever shape the model squeezed it into. The few largest values of all may have one
    colour: a scale up to the very largest would leave the others dark.
    """
    count, (width, height) = len(maps) + 1, picture.size
    columns = min(count, 5 if count > 8 else 4)
    rows, shape, side = -(-count // columns), min(4.0, max(0.25, width / height)), 4.2 if count == 2 else 2.6
    wide, high = max(1.6, side * min(1.0, shape)), max(0.8, side * min(1.0, 1 / shape))
    figure = Figure(figsize=(columns * wide + 0.9, rows * (high + 0.3) + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    most = max(float(np.quantile(each, 0.995)) for each in maps) or 1.0
    scale, extent = ScalarMappable(Normalize(0, most), cmap="inferno"), (0, width, height, 0)
    panels[0, 0].imshow(picture, extent=extent)
    panels[0, 0].set_title("the part that is seen", fontsize=9)
    for axes, values, name in zip(panels.flat[1:], maps, names):
        axes.imshow(picture.convert("L"), extent=extent, cmap="gray", vmin=-90, vmax=345)
        shares = (values / most).clip(0, 1)
        axes.imshow(
            values, extent=extent, cmap="inferno", vmin=0, vmax=most, alpha=0.35 + 0.5 * shares, interpolation="nearest"
        )
        axes.set_title(name, fontsize=9)
    for axes in panels.flat:
        axes.set_axis_off()
    above = any(float(each.max()) > most for each in maps)
    bar = figure.colorbar(
        scale, ax=panels, shrink=0.9 / rows**0.5, aspect=25, pad=0.01, extend="max" if above else "neither"
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _said(figure.suptitle(title, fontsize=10))
    return figure


@torch.no_grad()
def logit_lens(model: Any, found: Record, *, row: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What the model would say if it stopped at each layer: its last norm and its unembedding, applied to every hidden
    state between blocks (nostalgebraist 2020). Names of the layers, the most probable ids (layers, t), and their
    probabilities. The last row is the model's own answer. Raises ValueError for a model without the two."""
    if not (hasattr(model, "norm") and hasattr(model, "unembed")):
        raise ValueError(f"{type(model).__name__} has no last norm and unembedding: there is no logit lens of it.")
    names = [name for name in found.hidden if name != "norm"]
    states = [found.hidden[name][row][None] for name in names]
    best = [model.unembed(model.norm(state))[0].softmax(-1).max(-1) for state in states]
    ids = torch.stack([each.indices for each in best]).cpu().numpy()
    return names, ids, torch.stack([each.values for each in best]).float().cpu().numpy()


def lens_picture(
    names: Sequence[str],
    words: Sequence[Sequence[str]],
    probability: np.ndarray,
    tokens: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """What `logit_lens` found, words for ids: the text below, the first layer at the bottom, the answer at the top."""
    layers, columns = probability.shape
    figure = Figure(figsize=(2.2 + 0.78 * columns, 2.0 + 0.34 * layers), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(probability, vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
    for layer in range(layers):
        for column in range(columns):
            colour = "white" if probability[layer, column] > 0.55 else "black"
            word = visible(words[layer][column], most=9)
            _said(axes.text(column, layer, word, ha="center", va="center", fontsize=7, color=colour))
    axes.set_xticks(range(columns), [visible(token, most=11) for token in tokens], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(layers), names, fontsize=8)
    for label in axes.get_xticklabels():
        _said(label)
    axes.set_xlabel("after reading", fontsize=9)
    figure.colorbar(image, ax=axes, aspect=30, pad=0.01).set_label("probability", fontsize=8)
    _said(figure.suptitle(title, fontsize=10))
    return figure


def _said(text: Any) -> None:
    """As it stands: a dollar is no mathematics."""
    text.set_parse_math(False)
