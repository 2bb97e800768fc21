"""What a masked autoencoder saw and what it painted, as pictures: original, masked, prediction, pasted into visible.

Nothing of the hidden pixels is in the last three, unless that is asked for; then the panel says so.

Axes: b batch, c channels, y and x pixels, n patches row by row, p what a patch holds (row, column, channel), s its mean
and deviation.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from scratchformers import grid
from scratchformers.grid import Noise, Pixels, cells, cut
from scratchformers.images import Preprocess, to_mode
from scratchformers.models.mae import MAE


@dataclass(frozen=True)
class Painting:
    """Pictures as the model has them, prepared. `statistics` says whose mean and deviation the hidden patches have been
    given, where the model paints patches without; None where it paints pixels as they are."""

    original: Pixels
    masked: Pixels  # 0, which is the mean of what such pictures are prepared by, where a patch is hidden
    prediction: Pixels  # of all patches, the visible ones too
    pasted: Pixels  # the prediction where hidden, else the original
    mask: Bool[Tensor, "b n"]  # True = hidden
    statistics: str | None = None


def check_paints(model: Any) -> None:
    """ValueError for a model that cannot paint."""
    if not isinstance(model, MAE):
        raise ValueError(f"{type(model).__name__} paints no pictures: expected a masked autoencoder, MAE.")
    if model.decoder is None:
        raise ValueError("This MAE has no decoder, so it paints nothing: choose a file that has one.")


def check_hiding(mask_ratio: int | float, seed: int) -> None:
    """ValueError for what cannot be, whatever the model."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio (--mask) is {mask_ratio}: expected a part between 0 and 1 to be hidden.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}: expected 0 <= seed < 2**63.")


@torch.no_grad()
def paint(
    model: Any,
    images: Pixels,
    *,
    noise: Noise | None = None,
    mask_ratio: float = 0.75,
    statistics: str = "visible",
) -> Painting:
    """What an MAE paints of prepared pictures, of which the patches of highest `noise` are hidden; without noise it is
    drawn, always the same.

    With `norm_pix_loss` a prediction is a patch less its mean, over its deviation. "visible" estimates the two from
    the visible patches around; "original" takes the hidden patch's own, which is part of the answer. ValueError for a
    model that paints nothing, and as the model's `forward`.
    """
    check_paints(model)
    if statistics not in ("visible", "original"):
        raise ValueError(f"statistics is {statistics!r}: expected visible or original.")
    patches = cut(images, model.config, "p q c")
    noise = grid.draw_noise(patches, mask_ratio, noise, seed=0)
    painted = model(images, noise=noise, mask_ratio=mask_ratio)
    hidden, prediction = painted.mask[..., None], painted.prediction.to(patches.dtype)
    # Not multiplied by 0: whatever stands in a hidden pixel, NaN too, must not come through.
    seen = patches.masked_fill(hidden, 0)
    if model.config.norm_pix_loss:
        own = _moments(patches if statistics == "original" else seen)
        known = own if statistics == "original" else torch.where(hidden, _around(own, painted.mask, model.config), own)
        prediction = prediction * known[..., 1:] + known[..., :1]
    together = torch.where(hidden, prediction, patches)
    said = statistics if model.config.norm_pix_loss else None
    masked, prediction, pasted = (_joined(each, model.config) for each in (seen, prediction, together))
    return Painting(images, masked, prediction, pasted, painted.mask, said)


def _moments(patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n s"]:
    """Mean and deviation, as the target of the loss has them."""
    deviation = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return torch.cat([patches.mean(-1, keepdim=True), deviation], dim=-1)


def _around(values: Float[Tensor, "b n s"], mask: Bool[Tensor, "b n"], config: Any) -> Float[Tensor, "b n s"]:
    """For each patch the mean of what visible ones have, weighted by 1 / distance^4 (Shepard 1968; of 1 to 6 the power
    that came nearest to hidden patches of photographs)."""
    rows, columns = (torch.arange(count, device=values.device) for count in cells(config.image, config.patch))
    places = torch.cartesian_prod(rows, columns).to(values.dtype)
    squared = (places[:, None] - places).square().sum(-1)
    weights = squared.fill_diagonal_(torch.inf).pow(-2)  # a patch says nothing of itself
    visible = (~mask)[..., None].to(values.dtype)
    return weights @ (values * visible) / (weights @ visible)


def _joined(patches: Float[Tensor, "b n p"], config: Any) -> Pixels:
    rows, columns = cells(config.image, config.patch)
    return rearrange(patches, "b (y x) (p q c) -> b c (y p) (x q)", y=rows, x=columns, p=config.patch, q=config.patch)


Four = tuple[Image.Image, Image.Image, Image.Image, Image.Image]


def to_pictures(painting: Painting, preprocess: Preprocess) -> list[Four]:
    """Of each picture the original, the masked one, hidden patches in mid grey, the prediction, and it pasted."""
    grey = preprocess.tensor(to_mode(Image.new("L", (1, 1), 128), len(preprocess.mean)))
    masked = torch.where(_pixels(painting), grey.to(painting.masked), painting.masked)
    kinds = (painting.original, masked, painting.prediction, painting.pasted)
    one, two, three, four = ([preprocess.picture(each) for each in kind] for kind in kinds)
    return list(zip(one, two, three, four))


def _pixels(painting: Painting) -> Bool[Tensor, "b 1 y x"]:
    """Which pixels are hidden."""
    height, width = painting.original.shape[2:]
    patch = isqrt(height * width // painting.mask.shape[1])
    mask = rearrange(painting.mask, "b (y x) -> b 1 y x", y=height // patch)
    return mask.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


TITLES = ("original", "masked", "prediction", "prediction pasted into visible")
SAID: dict[str | None, tuple[str, str]] = {
    "visible": (
        "The model paints patches less their mean, over their deviation: hidden patches have been given those of the "
        "visible patches around them.",
        "black",
    ),
    "original": (
        "Hidden patches have been given the ORIGINAL's own means and deviations, which the model did not paint: part "
        "of the answer is in the picture.",
        "firebrick",
    ),
}
MOST = 100  # pictures on a panel
DPI = 150
# In dots: longer sides shrink to SIDE, shorter grow to ENOUGH, and a column is never narrower than its title.
SIDE, ENOUGH, NARROWEST = 600, 300, 300
GAP, TITLE, LINE = 12, 30, 26


def panel(painting: Painting, preprocess: Preprocess, *, note: str | None = None) -> Any:
    """A matplotlib Figure with a picture a row: original, masked, prediction, pasted. Under the titles stands what was
    done to hidden patches, then the `note`. Every pixel is a square of whole dots, unless the picture is large."""
    from matplotlib.figure import Figure  # here, for it takes a while, and most who paint do not draw

    check_rows(len(painting.original))
    longer = max(painting.original.shape[2:])
    times = SIDE / longer if longer > SIDE else -(-ENOUGH // longer)
    columns = [_stacked(column, round(GAP / times)) for column in zip(*to_pictures(painting, preprocess))]
    height, width = (max(1, round(side * times)) for side in columns[0].shape[:2])
    column = max(width, NARROWEST)
    across = 4 * column + 5 * GAP
    lines = [
        (line, colour)
        for text, colour in (SAID.get(painting.statistics, ("", "")), (note or "", "black"))
        for line in textwrap.wrap(text, (across - 2 * GAP) // 9)
    ]
    down = TITLE + GAP + LINE * len(lines) + height + GAP
    figure = Figure(figsize=(across / DPI, down / DPI), dpi=DPI, facecolor="white")
    how: Any = {"va": "top", "parse_math": False}  # a dollar is no mathematics
    for i, (line, colour) in enumerate(lines):
        figure.text(GAP / across, 1 - (GAP + TITLE + i * LINE) / down, line, fontsize=7, color=colour, **how)
    for i, (title, pixels) in enumerate(zip(TITLES, columns)):
        left = GAP + i * (column + GAP)
        figure.text((left + column / 2) / across, 1 - GAP / down, title, fontsize=8, ha="center", **how)
        box = ((left + (column - width) // 2) / across, GAP / down, width / across, height / down)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        smooth = "nearest" if times >= 1 else "auto"
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=smooth, aspect="auto")
    return figure


def _stacked(pictures: Sequence[Image.Image], gap: int) -> np.ndarray:
    """One above another with white between: far quicker to draw than each by itself."""
    levels = [np.asarray(picture) for picture in pictures]
    between = np.full((max(1, gap), *levels[0].shape[1:]), 255, np.uint8)
    return np.concatenate([part for each in levels for part in (between, each)][1:])


def check_rows(count: int) -> None:
    """ValueError unless so many pictures can stand on a panel."""
    if not 1 <= count <= MOST:
        raise ValueError(f"{count} pictures do not make a panel: expected 1 to {MOST}.")
