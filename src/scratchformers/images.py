"""What goes into a model of pictures: files to Pillow's pictures, pictures to tensors (channels, height, width).

Every level of every pixel, and every float made of it, is that of the library a checkpoint comes from: torchvision
(timm, facebook's MAE) or transformers, which round half of an odd margin differently (`Preprocess.middle`).
"""

import functools
import io
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std
_HALF = (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# What is read, by Pillow's names. Not EPS, which it would hand to another program, nor formats that nothing at their
# beginning tells from chance, so that a damaged file is not read as noise.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
}
STRIP = 2**25  # pixels to which a picture is enlarged at once
LARGEST = 2**24  # pixels to which a longer side may be resized, or, where nothing is cut off, the whole

# What transformers' classes do where a preprocessor_config.json is silent. ViT-MAE's is ViT's.
PUBLISHED: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "do_center_crop": False, "image_mean": _HALF, "image_std": _HALF},
    "DeiT": {"size": 256, "crop_size": 224, "image_mean": _HALF, "image_std": _HALF},
    "CLIP": {"size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": CLIP[0], "image_std": CLIP[1]},
}
_ALWAYS = {"do_resize": True, "resample": 3, "do_center_crop": True, "do_rescale": True, "do_normalize": True}


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a model's input: mode, size, crop from the middle, (level * rescale - mean) / std.

    `size` is what the shorter side is brought to, as torchvision's Resize does, or an exact (height, width); None
    leaves it. `crop` is a (height, width); what a smaller picture lacks is black. Both keep to the order of rows and
    columns that tensors have. With one mean the model reads grey, with three colour.
    """

    size: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    rescale: float = 1 / 255
    mean: tuple[float, ...] = _HALF
    std: tuple[float, ...] = _HALF
    middle: str = "round"  # half of an odd margin: "round" to even (torchvision), or "floor" (transformers)

    def __post_init__(self):
        for name in ("size", "crop", "mean", "std"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if not (self.size is None or _is_length(self.size) or _are_lengths(self.size)):
            raise ValueError(f"size is {self.size!r}: expected pixels of the shorter side, or (height, width).")
        if not (self.crop is None or _are_lengths(self.crop)):
            raise ValueError(f"crop is {self.crop!r}: expected (height, width) in pixels.")
        _check_choice("interpolation", self.interpolation, tuple(FILTERS))
        _check_choice("middle", self.middle, ("round", "floor"))
        if not _are_numbers((self.rescale,)) or self.rescale <= 0:
            raise ValueError(f"rescale is {self.rescale!r}: expected a number above 0.")
        if not (_are_numbers(self.mean) and _are_numbers(self.std) and len(self.mean) == len(self.std) in (1, 3)):
            raise ValueError(f"mean is {self.mean!r} and std {self.std!r}: expected 3 numbers each, or 1 for grey.")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}: expected numbers above 0.")

    def __call__(self, image: Image.Image) -> Float[Tensor, "c h w"]:
        return self.tensor(self.pixels(image))

    def pixels(self, image: Image.Image) -> Image.Image:
        """The picture as the model will see it, RGB or L."""
        image = to_mode(image, len(self.mean))
        height, width = self._resized(image)
        how = FILTERS[self.interpolation]
        if self.crop is None:
            return image.resize((width, height), how)
        rows, columns = self.crop
        top, left = self._start(height, rows), self._start(width, columns)
        if height * width <= STRIP or height < image.height or width < image.width:
            return image.resize((width, height), how).crop((left, top, left + columns, top + rows))
        # A long thin picture, enlarged, would fill the memory. Of one that grows Pillow resizes the rows first, rounds
        # to 8 bit, then the columns, each by itself: so few at a time give the same levels. (Of one that shrinks, newer
        # Pillows do the columns first where that is less work.)
        wide = image.resize((width, image.height), how)
        kept = Image.new(image.mode, (columns, rows))
        step = max(1, STRIP // height)
        for x in range(0, columns, step):
            count = min(step, columns - x)
            strip = wide.crop((left + x, 0, left + x + count, image.height)).resize((count, height), how)
            kept.paste(strip.crop((0, top, count, top + rows)), (x, 0))
        return kept

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """Height and width before the crop; the longer side is rounded down."""
        if not isinstance(self.size, int):
            return self.size or (image.height, image.width)
        short, long = sorted((image.height, image.width))
        long = self.size * long // short
        if (long if self.crop else long * self.size) > LARGEST:
            raise ValueError(
                f"The picture is {image.width} x {image.height} pixels (width x height) and would be {long} long when "
                f"its shorter side is resized to {self.size}: cut it into pieces first."
            )
        return (self.size, long) if image.height < image.width else (long, self.size)

    def _start(self, whole: int, part: int) -> int:
        """Where a crop begins; below 0, where it begins before the picture does."""
        margin = whole - part
        if self.middle == "floor":
            return margin // 2
        return round(margin / 2) if margin > 0 else int(margin / 2)

    def tensor(self, pixels: Image.Image) -> Float[Tensor, "c h w"]:
        """Of pixels of 8 bit, float32."""
        if pixels.mode != _mode(len(self.mean)):
            raise ValueError(f"The pixels are {pixels.mode}: expected {_mode(len(self.mean))}, as `pixels` gives them.")
        x = np.stack([np.asarray(band) for band in pixels.split()], dtype=np.float32)
        # Dividing by 255 gives the floats of torchvision, which divides too, and of transformers, which multiplies by
        # 1/255 in float64: the same for every level. By numpy, for many threads do not speed up what is so small.
        x /= np.float32(1 / self.rescale)
        x -= _column(self.mean).numpy()
        x /= _column(self.std).numpy()
        return torch.from_numpy(x)

    def picture(self, x: Float[Tensor, "c h w"]) -> Image.Image:
        """`tensor` undone; what no picture has is clipped to black or white, NaN is black."""
        if x.ndim != 3 or len(x) != len(self.mean):
            raise ValueError(f"The shape is {tuple(x.shape)}: expected ({len(self.mean)}, height, width).")
        x = x.detach().to("cpu", torch.float32)
        levels = x.mul(_column(self.std)).add_(_column(self.mean)).mul_(1 / self.rescale).nan_to_num_(0.0)
        bands = levels.round_().clamp_(0, 255).to(torch.uint8).numpy()
        return Image.merge(_mode(len(bands)), [Image.fromarray(band) for band in bands])

    @property
    def shape(self) -> tuple[int, int] | None:
        """The (height, width) it gives; None where that depends on the picture."""
        return self.crop or (self.size if isinstance(self.size, tuple) else None)

    def seen(self, image: Image.Image) -> tuple[float, float, float, float]:
        """The part of a picture that the model sees: left, top, right and bottom in the picture's own pixels, beyond
        its borders where a crop is larger than it."""
        height, width = self._resized(image)
        rows, columns = self.crop or (height, width)
        top, left = self._start(height, rows), self._start(width, columns)
        x, y = image.width / width, image.height / height
        return left * x, top * y, (left + columns) * x, (top + rows) * y

    def sized(self, image: int | tuple[int, int]) -> "Preprocess":
        """The same for a model that reads another size: what is cut off stays the same part of the picture."""
        new = (image, image) if isinstance(image, int) else image
        if new == self.shape:
            return self
        if isinstance(self.size, int):
            return replace(self, size=max(new) * self.size // max(self.crop or (self.size,)), crop=new)
        if self.crop is None:
            return replace(self, size=new)
        size = self.size and (new[0] * self.size[0] // self.crop[0], new[1] * self.size[1] // self.crop[1])
        return replace(self, size=size, crop=new)

    @classmethod
    def read(cls, published: Mapping[str, Any]) -> "Preprocess":
        """Of transformers' preprocessor_config.json for a ViT, DeiT, ViT-MAE or CLIP, old or new. What it
        does not say is what the class named in it would do; what cannot be done here is a ValueError."""
        named = published.get("image_processor_type") or published.get("feature_extractor_type") or "ViTImageProcessor"
        kind = re.fullmatch(f"({'|'.join(PUBLISHED)})(FeatureExtractor|ImageProcessor(Fast|Pil)?)", str(named))
        if kind is None:
            raise ValueError(
                f"preprocessor_config.json is of {named}: expected the image processor of {', '.join(PUBLISHED)}."
            )
        said: dict[str, Any] = _ALWAYS | PUBLISHED[kind[1]] | dict(published)
        if said.get("do_pad"):
            raise ValueError("preprocessor_config.json says do_pad, which is not done here: expected false.")
        crop = _read_size("crop_size", said.get("crop_size"), square=True) if said["do_center_crop"] else None
        ours = said.get("scratchformers")
        ours = ours if isinstance(ours, Mapping) else {"middle": "floor"}
        names = {how.value: name for name, how in FILTERS.items()}  # written as Pillow's numbers
        normalize = said["do_normalize"]
        return cls(
            size=_read_size("size", said["size"], square=kind[1] != "CLIP") if said["do_resize"] else None,
            crop=crop,
            interpolation=names.get(said["resample"], str(said["resample"])),
            rescale=said.get("rescale_factor", 1 / 255) if said["do_rescale"] else 1.0,
            mean=_read_channels(said["image_mean"]) if normalize else (0.0,) * 3,
            std=_read_channels(said["image_std"]) if normalize else (1.0,) * 3,
            middle="round" if crop is None else ours.get("middle", "floor"),
        )

    @classmethod
    def read_timm(cls, cfg: Mapping[str, Any]) -> "Preprocess":
        """Of timm's `pretrained_cfg`, what `timm.data.create_transform` makes of it for evaluation."""
        said = {name: value for name, value in cfg.items() if value is not None}
        input_size, part = said.get("input_size", (3, 224, 224)), said.get("crop_pct", 0.875)
        if not (_are_lengths(input_size, 3) and _are_numbers((part,)) and part > 0):
            raise ValueError(
                f"timm's config says input_size {input_size!r} and crop_pct {part!r}: expected channels, height and "
                "width, and the part of the picture that is kept."
            )
        channels, *shape = input_size
        mode = said.get("crop_mode", "center")
        _check_choice("crop_mode", mode, ("center", "squash"))
        size: Any = tuple(math.floor(side / part) for side in shape)
        if mode == "center" and size[0] != size[1]:
            raise ValueError(f"timm's config crops {shape[0]} x {shape[1]} from the middle: expected a square.")
        made = cls(
            size=size[0] if mode == "center" else size,
            crop=(shape[0], shape[1]),
            interpolation=said.get("interpolation", "bicubic"),
            mean=tuple(said.get("mean", IMAGENET[0])),
            std=tuple(said.get("std", IMAGENET[1])),
        )
        if len(made.mean) != channels:
            raise ValueError(f"timm's config has {channels} channels and mean {made.mean}: expected as many numbers.")
        return made

    def write(self) -> dict[str, Any]:
        """A preprocessor_config.json that `read` reads as this, and transformers as nearly as it can: it rounds half
        of an odd margin down, and has no other way."""
        said: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": self.size is not None,
            "resample": FILTERS[self.interpolation].value,
            "do_center_crop": self.crop is not None,
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if isinstance(self.size, int):
            said["size"] = {"shortest_edge": self.size}
        elif self.size is not None:
            said["size"] = {"height": self.size[0], "width": self.size[1]}
        if self.crop is not None:
            said["crop_size"] = {"height": self.crop[0], "width": self.crop[1]}
            said["scratchformers"] = {"middle": self.middle}
        return said


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_lengths(values: Any, count: int = 2) -> bool:
    return isinstance(values, list | tuple) and len(values) == count and all(map(_is_length, values))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(each) in (int, float) and math.isfinite(each) for each in values)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")


def _column(values: tuple[float, ...]) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _read_size(name: str, value: Any, *, square: bool) -> Any:
    """An int is a square's side, or where it is no `square`, that of the shorter one. Preprocess checks the numbers."""
    sides = set(value) if isinstance(value, Mapping) else set()
    if sides == {"shortest_edge"} and name == "size":
        return value["shortest_edge"]
    if sides == {"height", "width"}:
        return value["height"], value["width"]
    if _is_length(value):
        return (value, value) if square else value
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    raise ValueError(
        f"preprocessor_config.json says {name} {value!r}: expected pixels, or an object of height and width"
        f"{' or of shortest_edge' if name == 'size' else ''}."
    )


def _read_channels(value: Any) -> tuple[float, ...]:
    """One number is that of all three channels."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * 3


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def open_picture(source: Path | str | bytes | BinaryIO, *, name: str | None = None) -> Image.Image:
    """The picture in a file, decoded and turned upright as its EXIF says; of an animated one, the first frame.

    What is no picture, damaged, cut short, or too large for Pillow's limit is a ValueError that calls it `name`.
    """
    if isinstance(source, Path | str):
        if not Path(source).is_file():
            raise FileNotFoundError(f"{name or source} is no file: expected a picture.")
        with Path(source).open("rb") as file:
            return _decode(file, name or str(source))
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return _decode(file, name or str(getattr(file, "name", "The picture")))


def _decode(file: BinaryIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Only Pillow's, so that threads, which share these filters, can spoil nothing.
            warnings.filterwarnings("ignore", module=r"PIL\b")
            image = Image.open(file, formats=_formats())
            image.load()
            return upright(image)
    except UnidentifiedImageError:
        raise ValueError(f"{name} is no picture, or its beginning is lost: expected {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({_text(error)}): make it smaller.") from None
    except Exception as error:  # a damaged file can raise any
        if isinstance(error, OSError) and error.errno is not None:  # not the file's content: the disk, the network
            raise
        raise ValueError(f"{name} is truncated or corrupted ({_text(error)}): fetch it again.") from None


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are whole: EXIF that cannot be read turns nothing
        return image.copy()


def _text(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """RGB for three channels, L for one; itself, if it is that already. Transparency is dropped and what is beneath it
    shown, as `convert("RGB")` does in the originals. More than 8 bit are brought to 8; Pillow would make them white."""
    mode = _mode(channels)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bit(image)
    between = {"P": "RGBA", "La": "LA", "LAB": "RGB"}.get(image.mode)  # where Pillow warns or knows no direct way
    if between is not None:
        image = image.convert(between)
    return image if image.mode == mode else image.convert(mode)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Of grey that has 16 bit, the higher 8. I and F say nothing of their range: it is the smallest of 0..1 (F), 0..255
    and 0..65535 that holds every level."""
    levels = np.asarray(image)
    if image.mode.startswith("I;"):
        return Image.fromarray((levels >> 8).astype(np.uint8))
    levels = np.nan_to_num(levels.astype(np.float64), nan=0.0)
    top = levels.max()
    if image.mode == "F" and top <= 1:
        levels = np.rint(levels * 255)
    elif top > 255:
        levels = levels / 256
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
