"""Pictures as grids of patches: what the models that read pictures share beside the bricks.

Axes: b batch, c channels, y and x pixels, n patches row by row, d model width.
A size is (height, width), or a number.
"""

from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from scratchformers.nn import sinusoids

Size = int | tuple[int, int]
Pixels = Float[Tensor, "b c y x"]
Noise = Float[Tensor, "b n"]  # one number a patch
Places = Int[Tensor, "b s"]  # of tokens among others


def height_width(image: Size) -> tuple[int, int]:
    return image if isinstance(image, tuple) else (image, image)


def checked(image: Any, patch: int) -> Size:
    """A size as a config holds it, a square by one number. ValueError if the patch does not divide it."""
    sides = tuple(image) if isinstance(image, list | tuple) else (image, image)
    if type(patch) is not int or patch < 1:
        raise ValueError(f"patch is {patch!r}: expected a positive integer.")
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**16 for side in sides):
        raise ValueError(f"image is {image!r}: expected a number of pixels, or (height, width).")
    if any(side % patch for side in sides):
        raise ValueError(f"image is {image!r}: expected a multiple of the patch, {patch}.")
    return sides[0] if sides[0] == sides[1] else sides


def cells(image: Size, patch: int) -> tuple[int, int]:
    """(rows, columns) of the grid."""
    height, width = height_width(image)
    return height // patch, width // patch


def count(image: Size, patch: int) -> int:
    """How many patches there are."""
    return prod(cells(image, patch))


def square(patches: int) -> int | None:
    """The side of a square grid of so many patches; None if there is none."""
    side = round(patches**0.5)
    return side if side * side == patches else None


def check_pictures(images: Tensor, image: Size, channels: int) -> None:
    """ValueError unless they are what the model was made for."""
    expected = [channels, *height_width(image)]
    if images.ndim != 4 or list(images.shape[1:]) != expected:
        raise ValueError(
            f"Pictures of shape {list(images.shape)}: this model reads (batch, {', '.join(map(str, expected))}); "
            "prepare them by its preprocessing, or load it for another size by config=."
        )


def draw_noise(patches: Tensor, mask_ratio: float, given: Tensor | None, *, seed: int | None) -> Float[Tensor, "b n"]:
    """The noise given for `patches` (b, n, ...), or drawn anew, by torch's own generator where there is no seed.
    ValueError unless it is one number a patch, and `mask_ratio` leaves a patch to be seen."""
    if given is None:
        given = torch.rand(patches.shape[:2], generator=None if seed is None else torch.Generator().manual_seed(seed))
    if given.shape != patches.shape[:2]:
        expected = list(patches.shape[:2])
        raise ValueError(f"noise is of shape {list(given.shape)}: expected one number a patch, {expected}.")
    if not (0 <= mask_ratio < 1 and int(given.shape[1] * (1 - mask_ratio))):
        raise ValueError(
            f"mask_ratio is {mask_ratio}: expected at least 0, and one of the {given.shape[1]} patches left to see."
        )
    return given.to(patches.device)


def cut(images: Pixels, config: Any, order: str = "c p q") -> Float[Tensor, "b n p"]:
    """Patches, row by row, each read in this order of its channels (c), rows (p) and columns (q). ValueError unless
    pictures are what the config says."""
    check_pictures(images, config.image, config.channels)
    return rearrange(images, f"b c (y p) (x q) -> b (y x) ({order})", p=config.patch, q=config.patch)


def take(x: Float[Tensor, "_ n d"], places: Places | None) -> Float[Tensor, "_ s d"]:
    """Of each row the tokens at its `places`; None means all."""
    return x if places is None else x.expand(len(places), -1, -1).take_along_dim(places[..., None], dim=1)


def fixed_positions(config: Any, dim: int) -> nn.Parameter:
    """Sinusoids that are not learned, 0 for the class token, where there is one."""
    if dim % 4:
        raise ValueError(f"A width of {dim} has no sinusoids for rows and columns: expected a multiple of 4.")
    with torch.device("cpu"):
        position = sinusoids_2d(*cells(config.image, config.patch), dim)
    return nn.Parameter(F.pad(position, (0, 0, int(config.class_token), 0)), requires_grad=False)


def resize(model: Any, image: Size) -> None:
    """From now on for pictures of another size: the positions are interpolated."""
    config = replace(model.config, image=image)
    old, new = (cells(one.image, one.patch) for one in (model.config, config))
    for module in model.modules():
        if isinstance(position := getattr(module, "position", None), nn.Parameter):
            resized = resize_positions(position.detach(), old, new)
            module.position = nn.Parameter(resized, requires_grad=position.requires_grad)
    model.config = config


def sinusoids_2d(rows: int, columns: int, dim: int) -> Float[Tensor, "1 n d"]:
    """The sinusoids of each patch's column, then those of its row (He et al. 2022, appendix A.1)."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sinusoids(x.flatten(), dim // 2), sinusoids(y.flatten(), dim // 2)], dim=-1)[None]


def resize_positions(
    position: Float[Tensor, "1 s d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 t d"]:
    """Learned positions of an `old` grid (rows, columns) for a `new` one: bicubic, with antialiasing, as timm does.
    What stands before the patches (a class token's) stays."""
    before = position.shape[1] - old[0] * old[1]
    grid = rearrange(position[:, before:].float(), "1 (y x) d -> 1 d y x", y=old[0])
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    grid = rearrange(grid, "1 d y x -> 1 (y x) d").to(position.dtype)
    return torch.cat([position[:, :before], grid], dim=1)


def initialise(model: nn.Module) -> None:
    """Linears by their width (Glorot and Bengio 2010), tokens and learned positions small, biases and norms as torch
    has them; heads begin as they like."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and parameter.requires_grad:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif not name.startswith("head.") and parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif not name.startswith("head.") and name.endswith("bias"):
            nn.init.zeros_(parameter)
