"""Training pictures changed at random, so that none is seen twice: one by one as they are read, or as a batch.

Axes: b batch, c channels, y height, x width. Everything is drawn from the generator given, one of the CPU's, so that
the same generator changes the same pictures alike on every device, and torch's own generator stays as it was.
RandAugment takes pixels from 0 to 1; erasing and mixing come after mean and std, where 0 is the mean colour.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor

Images = Float[Tensor, "b c y x"]
Targets = Float[Tensor, "b classes"]
Range = tuple[float, float]

TRIES = 10  # to fit a rectangle into a picture


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    generator: Generator,
    *,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> Image.Image:
    """A rectangle of the picture, resized to `size`, which is (width, height) as Pillow has it (Szegedy et al. 2015,
    section 6). It has a share `scale` of the area and is `ratio` as wide as high, where such a one fits; else it is the
    largest in the middle. ValueError for a range or an interpolation that cannot be."""
    if interpolation.upper() not in Image.Resampling.__members__:
        names = ", ".join(name.lower() for name in Image.Resampling.__members__)
        raise ValueError(f"interpolation is {interpolation!r}: expected one of {names}.")
    x, y, width, height = _crop(image.size, scale, ratio, generator)
    # Not `resize(box=...)`, which lets pixels outside the rectangle into its border.
    return image.crop((x, y, x + width, y + height)).resize(size, Image.Resampling[interpolation.upper()])


def _crop(sides: tuple[int, int], scale: Range, ratio: Range, generator: Generator) -> tuple[int, int, int, int]:
    """x, y, width and height."""
    if found := _rectangle(sides, sides, scale, ratio, generator):
        return found
    width, height = sides
    nearest = min(max(width / height, ratio[0]), ratio[1])
    wide, high = min(width, round(height * nearest)), min(height, round(width / nearest))
    wide, high = max(1, wide), max(1, high)
    return (width - wide) // 2, (height - high) // 2, wide, high


def _rectangle(
    sides: tuple[int, int], most: tuple[int, int], scale: Range, ratio: Range, generator: Generator
) -> tuple[int, int, int, int] | None:
    """Where a rectangle begins along either side, and its lengths, none above `most`: its area is uniform within
    `scale` of the whole, its first length over its second log-uniform within `ratio`. None if no try fits."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale is {scale}: expected two shares of the area, 0 < least <= most <= 1.")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(f"ratio is {ratio}: expected the least and the most of one side over the other, above 0.")
    for _ in range(TRIES):
        share, shape, *at = _uniform(4, generator)
        area = (scale[0] + (scale[1] - scale[0]) * share) * sides[0] * sides[1]
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** shape
        first, second = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < first <= most[0] and 0 < second <= most[1]:
            return int(at[0] * (sides[0] - first + 1)), int(at[1] * (sides[1] - second + 1)), first, second
    return None


def random_shift(image: Image.Image, padding: int, generator: Generator) -> Image.Image:
    """The picture moved by up to `padding` pixels along each side; what comes in is 0, black."""
    if padding < 0:
        raise ValueError(f"padding is {padding}: expected a number of pixels, 0 or more.")
    x, y = (int(each * (2 * padding + 1)) - padding for each in _uniform(2, generator))
    return image.crop((x, y, x + image.width, y + image.height))


def random_flip(image: Image.Image, generator: Generator, p: float = 0.5) -> Image.Image:
    """The picture, or with probability `p` its mirror image, left for right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _happens(p, generator) else image


def erase(
    images: Images,
    generator: Generator,
    *,
    p: float,
    scale: Range = (0.02, 1 / 3),
    ratio: Range = (0.3, 3.3),
    noise: bool = True,
) -> Images:
    """A new batch, where with probability `p` a rectangle of a picture gives way to normal noise, or without `noise` to
    0 (Zhong et al. 2020). It has a share `scale` of the area, is `ratio` as high as wide, and never spans a side."""
    channels, height, width = images.shape[1:]
    erased = images.clone()
    for image in erased:
        if not _happens(p, generator):
            continue
        if found := _rectangle((height, width), (height - 1, width - 1), scale, ratio, generator):
            y, x, high, wide = found
            value = torch.randn(channels, high, wide, generator=generator).to(images) if noise else 0.0
            image[:, y : y + high, x : x + wide] = value
    return erased


class RandAugment:
    """`n` of kornia's 15 operations, one after another, each of magnitude `m`, 0 < m < 30 (Cubuk et al. 2020).

    `together` pictures get the same operations, with signs of their own: each its own is several times slower. Kornia's
    scale of colour, contrast, brightness and sharpness is signed: less below m = 15, unchanged there, more above.
    ValueError without kornia, and for an `n` or `m` that kornia refuses.
    """

    def __init__(self, n: int, m: int, *, together: int = 8):
        try:
            from kornia.augmentation.auto import RandAugment as Operations
        except ImportError:
            raise ValueError("RandAugment needs the library kornia: pip install 'scratchformers[aug]'.") from None
        if together < 1:
            raise ValueError(f"together is {together}: expected a number of pictures, at least 1.")
        self.operations, self.together = Operations(n=n, m=m), together

    def __call__(self, images: Images, generator: Generator) -> Images:
        """Of pictures of 1 or 3 channels with pixels from 0 to 1, which they keep; ValueError for others."""
        channels, (least, most) = images.shape[1], (float(each) for each in images.aminmax())
        if channels not in (1, 3):
            raise ValueError(f"RandAugment got pictures of {channels} channels: expected 1 or 3.")
        if not (least >= 0 and most <= 1):
            raise ValueError(
                f"RandAugment got pixels from {least:g} to {most:g}: expected 0 to 1, before mean and std are applied."
            )
        coloured = images.expand(-1, 3, -1, -1)  # one of the operations knows colours only, and leaves greys grey
        with torch.random.fork_rng(devices=[]):
            # Kornia draws from torch's own generator on the CPU, wherever the pictures are. `torch.manual_seed` would
            # seed the accelerators' too, which are not put back.
            torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
            changed = torch.cat([self.operations(each) for each in coloured.split(self.together)])
        return changed[:, :channels].clamp(0, 1)


def mixup(images: Images, targets: Targets, generator: Generator, *, alpha: float) -> tuple[Images, Targets]:
    """Each picture and its targets mixed with those before it, by one share for the batch, drawn from Beta(alpha,
    alpha) (Zhang et al. 2018)."""
    share = _beta(alpha, generator)
    return _blended(images, share), _blended(targets, share)


def cutmix(images: Images, targets: Targets, generator: Generator, *, alpha: float) -> tuple[Images, Targets]:
    """A rectangle of each picture, the same in all, replaced by that of the picture before it, whose share of the
    targets is that of its area, after the border cut it off (Yun et al. 2019)."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - _beta(alpha, generator))
    rows, columns = (_span(length, side, at) for length, at in zip((height, width), _uniform(2, generator)))
    mixed = images.clone()
    mixed[..., rows, columns] = images.roll(1, 0)[..., rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, _blended(targets, 1 - pasted)


def _span(length: int, share: float, at: float) -> slice:
    """The part of 0 to length around `at` of it, a share of it long where the border leaves it so."""
    middle, half = int(length * at), int(length * share / 2)
    return slice(max(0, middle - half), min(length, middle + half))


def _blended(batch: Tensor, share: float) -> Tensor:
    """share of each row and 1 - share of the one before it: with more rows than one, never of itself."""
    return batch.roll(1, 0).lerp_(batch, share)


WAYS = (mixup, cutmix)


def mix(
    images: Images, targets: Targets, generator: Generator, *, mixup: float, cutmix: float
) -> tuple[Images, Targets]:
    """By `mixup` or `cutmix` of that alpha: of two above 0 by either, as a coin falls for the batch; 0 is never."""
    given = [(way, alpha) for way, alpha in zip(WAYS, (mixup, cutmix)) if alpha]
    if not given:
        return images, targets
    way, alpha = given[int(len(given) * _uniform(1, generator)[0])]
    return way(images, targets, generator, alpha=alpha)


def one_hot(targets: Int[Tensor, "b"], classes: int, smoothing: float) -> Targets:
    """1 at each target and 0 elsewhere, of which a share `smoothing` is spread evenly over all classes (Szegedy et al.
    2016, section 7). ValueError for a target that is no class."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}: expected a share of each target, 0 <= smoothing < 1.")
    if len(wrong := targets[(targets < 0) | (targets >= classes)]):
        raise ValueError(f"A target is {int(wrong[0])}: expected one of {classes} classes, 0 to {classes - 1}.")
    spread = torch.full((len(targets), classes), smoothing / classes, device=targets.device)
    return spread.scatter_(1, targets[:, None].long(), 1 - smoothing + smoothing / classes)


def _uniform(count: int, generator: Generator) -> Sequence[float]:
    """Numbers from 0 to below 1: of single precision, so that times a whole number they stay below it."""
    return torch.rand(count, generator=generator, dtype=torch.float32).tolist()


def _happens(p: float, generator: Generator) -> bool:
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}: expected a probability, 0 to 1.")
    return _uniform(1, generator)[0] < p


def _beta(alpha: float, generator: Generator) -> float:
    """From Beta(alpha, alpha), which is the first of a Dirichlet's two: torch.distributions takes no generator."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}: expected a number above 0, where 1 makes every share as likely.")
    return float(torch._sample_dirichlet(torch.full((2,), alpha, dtype=torch.float64), generator=generator)[0])
