"""What a picture becomes, beside torchvision, timm and transformers: equal to the last level and the last bit."""

import dataclasses
import io
import json
import pickle
import warnings

import numpy as np
import pytest
import reference  # noqa: F401 (declares the operators without which torchvision cannot be imported here)
import timm.data
import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import v2
from transformers.image_utils import load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from scratchformers import images
from scratchformers.images import FILTERS, IMAGENET, Preprocess, open_picture, to_mode

HUGGING = {"ViT": ViTImageProcessorPil, "DeiT": DeiTImageProcessorPil, "CLIP": CLIPImageProcessorPil}


def drawn(width, height, *, bands=3, seed=0):
    """Noise over a slope: neither flat, where every filter agrees, nor without a large shape."""
    draw = np.random.RandomState(seed + 1000 * width + height)
    slope = np.linspace(0, 128, max(width, height), dtype=int)
    levels = slope[:height, None, None] + slope[None, :width, None] // 2 + draw.randint(0, 64, (height, width, bands))
    return levels.astype(np.uint8)


def rgb(width, height):
    return Image.fromarray(drawn(width, height))


def palette(*, transparency):
    picture = rgb(41, 29).quantize(17)
    if transparency is not None:
        picture.info["transparency"] = transparency
    return picture


def through(picture, form, **options):
    """Written and read again."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return open_picture(file.getvalue())


def odd_pictures():
    found = {
        f"{width} x {height}": rgb(width, height)
        for width, height in [
            (1, 1), (1, 300), (300, 1), (3, 2), (2, 3), (5, 7), (31, 33), (32, 32), (33, 32), (34, 32), (35, 32),
            (36, 32), (37, 32), (32, 35), (32, 39), (29, 27), (53, 37), (64, 48), (101, 67), (67, 101), (128, 128),
            (375, 500), (500, 375), (1023, 17), (17, 1023), (20000, 3), (3, 2000),
        ]
    }  # fmt: skip
    grey, color = Image.fromarray(drawn(45, 31)[..., 0]), rgb(43, 35)
    four = Image.fromarray(drawn(39, 47, bands=4))
    found |= {
        "RGBA": four,
        "RGBA PNG": through(four, "PNG"),
        "LA": Image.merge("LA", four.split()[2:]),
        "La": Image.merge("LA", four.split()[2:]).convert("La"),
        "PA": color.quantize(11).convert("PA"),
        "L": grey,
        "L with a transparent level": through(grey, "PNG", transparency=70),
        "RGB with a transparent colour": through(color, "PNG", transparency=(1, 2, 3)),
        "P": palette(transparency=None),
        "P with a transparent colour": palette(transparency=3),
        "P with transparencies": palette(transparency=bytes(range(0, 170, 10))),
        "P GIF": through(color, "GIF"),
        "1": grey.convert("1"),
        "CMYK": color.convert("CMYK"),
        "CMYK JPEG": through(color.convert("CMYK"), "JPEG"),
        "YCbCr": color.convert("YCbCr"),
        "HSV": color.convert("HSV"),
        "LAB": color.convert("LAB"),
        "WebP": through(color, "WEBP"),
        "TIFF": through(color, "TIFF"),
    }
    return found


ODD = odd_pictures()
TARGETS = [
    (32, (28, 28)),
    (31, (28, 27)),
    (37, (30, 23)),
    (24, (31, 29)),  # padded
    (29, None),
    ((32, 32), (27, 29)),
    ((23, 41), None),
    ((24, 40), (31, 23)),  # padded above, cropped at the sides
    (None, (19, 30)),
]
MARGINS = {"32 x 35", "32 x 39", "35 x 32"}  # of 3 and 7 pixels


def as_theirs(picture):
    """RGB as the originals make it, which give up on La, and know a way to RGB from LAB only in newer Pillows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return picture.convert("LA" if picture.mode == "La" else picture.mode).convert("RGB")


def of_torchvision(size, crop, interpolation):
    steps = [] if size is None else [v2.Resize(size, v2.InterpolationMode[interpolation.upper()], antialias=True)]
    return v2.Compose([*steps, v2.CenterCrop(crop)] if crop else steps)


def of_transformers(size, crop, interpolation, kind=ViTImageProcessorPil, **more):
    sizes = {"shortest_edge": size} if isinstance(size, int) else size and {"height": size[0], "width": size[1]}
    return kind(
        do_resize=size is not None, size=sizes, resample=FILTERS[interpolation].value, do_center_crop=crop is not None,
        crop_size=crop and {"height": crop[0], "width": crop[1]}, **more,
    )  # fmt: skip


def their_levels(processor, picture):
    found = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.moveaxis(found, 0, -1)


def differences(preprocess, interpolation, names):
    """The odd pictures, and targets, of which some level is not that of torchvision, or of transformers."""
    found = []
    for size, crop in TARGETS:
        rounded = preprocess(size=size, crop=crop, interpolation=interpolation)
        floored = preprocess(size=size, crop=crop, interpolation=interpolation, middle="floor")
        torchvision, transformers = (
            of_torchvision(size, crop, interpolation),
            of_transformers(size, crop, interpolation),
        )
        for name in names:
            picture = ODD[name]
            ours, theirs = np.asarray(rounded.pixels(picture)), np.asarray(torchvision(as_theirs(picture)))
            if not np.array_equal(ours, theirs):
                found.append(("torchvision", name, size, crop))
            ours, theirs = np.asarray(floored.pixels(picture)), their_levels(transformers, as_theirs(picture))
            if not np.array_equal(ours, theirs):
                found.append(("transformers", name, size, crop))
    return found


def test_there_are_forty_odd_pictures():
    assert len(ODD) >= 40
    assert {picture.mode for picture in ODD.values()} >= {"RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "YCbCr"}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_pixels_are_those_of_torchvision_and_of_transformers(interpolation):
    assert differences(Preprocess, interpolation, ODD) == []


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos", "box", "hamming"])
def test_the_pixels_are_so_with_the_filters_few_use(interpolation):
    names = ["101 x 67", "3 x 2", "P"]
    floored = Preprocess(32, (27, 30), interpolation, middle="floor")
    theirs = of_transformers(32, (27, 30), interpolation)
    for name in names:
        assert np.array_equal(floored.pixels(ODD[name]), their_levels(theirs, as_theirs(ODD[name]))), name


def test_odd_margins_are_where_the_two_originals_part():
    """A margin of 3 begins at 2 in torchvision, which rounds half to even, and at 1 in transformers."""
    rounded, floored = Preprocess(crop=(32, 32)), Preprocess(crop=(32, 32), middle="floor")
    apart = {name for name in ODD if rounded.pixels(ODD[name]).tobytes() != floored.pixels(ODD[name]).tobytes()}
    assert apart >= MARGINS
    assert not apart & {"33 x 32", "34 x 32", "36 x 32", "37 x 32", "128 x 128"}
    assert rounded._start(35, 32) == 2
    assert floored._start(35, 32) == 1


def shorter_side_rounded(self, image):
    """As if the longer side were rounded to the nearest."""
    if not isinstance(self.size, int):
        return self.size or (image.height, image.width)
    scale = self.size / min(image.height, image.width)
    return round(image.height * scale), round(image.width * scale)


MUTANTS = {
    "the longer side rounded": ("_resized", shorter_side_rounded),
    "width first": ("_resized", lambda self, image, right=Preprocess._resized: right(self, image)[::-1]),
    "cropped at the corner": ("_start", lambda self, whole, part: 0),
    "all margins floored": ("_start", lambda self, whole, part: (whole - part) // 2),
    "all margins rounded": ("_start", lambda self, whole, part: round((whole - part) / 2)),
    "resized after the crop": (
        "pixels",
        lambda self, image, right=Preprocess.pixels: right(
            dataclasses.replace(self, crop=None), right(dataclasses.replace(self, size=None), image)
        ),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_preprocess_that_errs_is_caught(mutant, monkeypatch):
    name, wrong = MUTANTS[mutant]
    names = ["35 x 32", "101 x 67", "53 x 37", "3 x 2"]
    assert differences(Preprocess, "bicubic", names) == []
    monkeypatch.setattr(Preprocess, name, wrong)
    assert differences(Preprocess, "bicubic", names)


@pytest.mark.parametrize("change", [{"mean": IMAGENET[0]}, {"std": IMAGENET[1]}, {"rescale": 1 / 256}])
def test_other_numbers_are_caught(change):
    picture = ODD["101 x 67"]
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])(picture)
    assert torch.equal(Preprocess()(picture), theirs)
    assert not torch.allclose(Preprocess(**change)(picture), theirs, atol=1e-3)


@pytest.fixture
def resized(monkeypatch):
    """The sizes in pixels to which Pillow resized anything."""
    found, right = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda *a: (made := right(*a), found.append(made.width * made.height))[0]
    )
    return found


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [301, (210, 350)])
def test_a_picture_enlarged_in_strips_is_the_one_enlarged_at_once(interpolation, size, resized, monkeypatch):
    for name in ("101 x 67", "67 x 101", "31 x 33", "3 x 2", "1 x 1"):
        for mean in ((0.5,), (0.5,) * 3):
            preprocess = Preprocess(size, (200, 223), interpolation, mean=mean, std=mean)
            whole = preprocess.pixels(ODD[name])
            resized.clear()
            with monkeypatch.context() as patched:
                patched.setattr(images, "STRIP", 5000)
                assert preprocess.pixels(ODD[name]).tobytes() == whole.tobytes(), name
            assert len(resized) > 10, "in strips"


@pytest.mark.parametrize("size", [(90, 190), (190, 90), (40, 30)])
def test_what_shrinks_is_never_cut_in_strips(size, monkeypatch):
    """There a newer Pillow resizes the columns first, and its levels would not be those of strips."""
    monkeypatch.setattr(images, "STRIP", 100)
    for name in ("101 x 67", "67 x 101", "375 x 500", "17 x 1023"):
        ours, theirs = (
            Preprocess(size, (80, 77)).pixels(ODD[name]),
            of_torchvision(size, (80, 77), "bicubic")(ODD[name]),
        )
        assert np.array_equal(ours, theirs), name


@pytest.mark.parametrize("size", [(20000, 3), (3, 2000)])
def test_a_long_thin_picture_does_not_fill_the_memory(size, resized, monkeypatch):
    """With its shorter side brought to 256 and kept whole, the one of 20000 pixels would be 1.7 GB."""
    monkeypatch.setattr(images, "STRIP", 2**21)
    assert Preprocess(256, (224, 224))(rgb(*size)).shape == (3, 224, 224)
    assert max(resized) < 2**23


def test_a_picture_that_would_grow_without_bound_is_refused():
    with pytest.raises(ValueError, match=r"100000 x 1 pixels .* would be 25600000 long .* resized to 256: cut it"):
        Preprocess(256, (224, 224))(Image.new("RGB", (100000, 1)))
    with pytest.raises(ValueError, match="cut it into pieces"):
        Preprocess(256)(Image.new("RGB", (20000, 3)))
    assert Preprocess()(Image.new("RGB", (20000, 3))).shape == (3, 3, 20000)


# --- floats


CONSTANTS = [((0.5,) * 3, (0.5,) * 3), IMAGENET, images.CLIP]


@pytest.mark.parametrize(("mean", "std"), CONSTANTS)
def test_the_floats_are_those_of_torchvision_and_of_transformers_to_the_last_bit(mean, std):
    every = Image.merge("RGB", [Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))] * 3)
    torchvision = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    transformers = ViTImageProcessorPil(do_resize=False, image_mean=list(mean), image_std=list(std))
    ours = Preprocess(mean=mean, std=std)(every)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(ours, torchvision(every))
    assert torch.equal(ours, transformers(every, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("factor", [1.0, 1 / 127.5, 1 / 256, 0.01])
def test_another_rescale_is_that_of_transformers(factor):
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    theirs = ViTImageProcessorPil(do_resize=False, rescale_factor=factor)(every, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Preprocess(rescale=factor)(every), theirs)


@pytest.mark.parametrize("name", ODD)
def test_a_tensor_becomes_its_picture_again(name):
    for preprocess in (Preprocess(32, (24, 28)), Preprocess(mean=IMAGENET[0], std=IMAGENET[1])):
        pixels = preprocess.pixels(ODD[name])
        again = preprocess.picture(preprocess.tensor(pixels))
        assert (again.mode, again.size) == (pixels.mode, pixels.size)
        assert again.tobytes() == pixels.tobytes()


def test_a_prediction_beyond_black_and_white_is_clipped():
    x = torch.tensor([-9.0, -1.0, 0.0, 0.004, 1.0, 9.0, torch.inf, torch.nan]).expand(3, 1, 8).requires_grad_()
    levels = np.asarray(Preprocess().picture(x))[0, :, 0]
    assert levels.tolist() == [0, 0, 128, 128, 255, 255, 255, 0]
    assert Preprocess().picture(x.to(torch.bfloat16)).size == (8, 1)


def test_grey_stays_one_channel():
    grey = Preprocess(mean=(0.25,), std=(0.5,))
    x = grey(ODD["101 x 67"])
    theirs = transforms.Compose([transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize((0.25,), (0.5,))])
    assert torch.equal(x, theirs(ODD["101 x 67"]))
    assert grey.picture(x).mode == "L"
    for name, picture in ODD.items():
        assert grey(picture).shape == (1, picture.height, picture.width), name


def test_a_tensor_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="The pixels are L: expected RGB"):
        Preprocess().tensor(ODD["L"])
    with pytest.raises(ValueError, match=r"The shape is \(1, 4, 4\): expected \(3, height, width\)"):
        Preprocess().picture(torch.zeros(1, 4, 4))


# --- modes


@pytest.mark.parametrize("name", ODD)
def test_every_mode_becomes_rgb_as_the_originals_make_it(name):
    assert np.array_equal(to_mode(ODD[name], 3), as_theirs(ODD[name]))


def test_what_is_beneath_transparency_is_shown():
    four = ODD["RGBA"]
    assert np.array_equal(to_mode(four, 3), np.asarray(four)[..., :3])


def test_modes_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for picture in ODD.values():
            to_mode(picture, 3)
            to_mode(picture, 1)


def test_sixteen_bit_grey_is_not_white():
    high, low = drawn(40, 30)[..., 0].astype(np.uint16), np.arange(1200, dtype=np.uint16).reshape(30, 40) % 256
    levels, expected = 256 * high + low, high
    for mode, kind in [("I;16", "<u2"), ("I;16B", ">u2")]:
        picture = Image.frombytes(mode, (40, 30), levels.astype(kind).tobytes())
        assert np.array_equal(to_mode(picture, 1), expected), mode
        assert np.array_equal(
            to_mode(picture, 3)[..., 1] if False else np.asarray(to_mode(picture, 3))[..., 1], expected
        )
    for form in ("PNG", "TIFF"):
        assert np.array_equal(to_mode(through(Image.fromarray(levels), form), 1), expected), form
    assert np.array_equal(to_mode(Image.fromarray(levels.astype(np.int32)), 1), expected)
    assert np.array_equal(to_mode(Image.fromarray(levels.astype(np.float32)), 1), expected)
    assert np.asarray(Image.fromarray(levels).convert("L")).mean() > 250, "what Pillow alone makes of it"


def test_grey_of_an_unknown_range_is_read_in_the_smallest_that_holds_it():
    levels = drawn(40, 30)[..., 0]
    assert np.array_equal(to_mode(Image.fromarray(levels.astype(np.int32)), 1), levels)
    assert np.array_equal(to_mode(Image.fromarray(levels.astype(np.float32)), 1), levels)
    assert np.array_equal(to_mode(Image.fromarray(levels.astype(np.float32) / 255), 1), levels)
    dark = np.array([[-1, 0, 1]], dtype=np.int32)
    assert np.asarray(to_mode(Image.fromarray(dark), 1)).tolist() == [[0, 0, 1]]
    strange = np.array([[-3.0, np.nan, 0.5, 1.0]], dtype=np.float32)
    assert np.asarray(to_mode(Image.fromarray(strange), 1)).tolist() == [[0, 0, 128, 255]]


# --- files


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_as_it_was_held(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb(43, 35).save(tmp_path / "été 1.jpg", exif=exif)
    ours, theirs = open_picture(tmp_path / "été 1.jpg"), load_image(str(tmp_path / "été 1.jpg"))
    assert ours.size == ((43, 35) if orientation < 5 else (35, 43))
    assert np.array_equal(ours, theirs)
    assert np.array_equal(Preprocess(30, (23, 27)).pixels(ours), of_torchvision(30, (23, 27), "bicubic")(theirs))


def test_a_broken_exif_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    rgb(43, 35).save(file, "JPEG", exif=exif)
    content = bytearray(file.getvalue())
    at = content.index(bytes([0x01, 0x12, 0x00, 0x03]))  # the tag, a short: now a text, which is no orientation
    content[at + 3] = 2
    assert open_picture(bytes(content)).size == (43, 35)


def test_exif_that_makes_pillow_fail_costs_no_picture(monkeypatch):
    def fail(image):
        raise TypeError("bad operand type for abs(): 'str'")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert through(rgb(43, 35), "PNG").size == (43, 35)


def test_an_animated_picture_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        path = tmp_path / f"moves.{form.lower()}"
        frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=100)
        red, green, blue = to_mode(open_picture(path), 3).getpixel((3, 3))
        assert red > 200, form
        assert max(green, blue) < 60, form


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_file_cut_short_is_refused_wherever_it_ends(form, tmp_path):
    file = io.BytesIO()
    rgb(61, 47).save(file, form)
    content = file.getvalue()
    for length in range(0, len(content) - 20, 97):
        with pytest.raises(ValueError, match=r"^a photo (is truncated or corrupted|is no picture)[^\n]*\.$"):
            open_picture(content[:length], name="a photo")
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg is truncated or corrupted \(.+\): fetch it again\.$"):
        open_picture(tmp_path / "half.jpg")


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.jpg").write_text("A text, whatever its name says.\n" * 99, encoding="utf-8")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("text.jpg", "empty.jpg"):
        with pytest.raises(ValueError, match=rf"{name} is no picture, .*: expected AVIF, .*WEBP\.$"):
            open_picture(tmp_path / name)
        with (tmp_path / name).open("rb") as file, pytest.raises(ValueError, match=f"{name} is no picture"):
            open_picture(file)
    for path in (tmp_path, tmp_path / "absent.jpg"):
        with pytest.raises(FileNotFoundError, match="is no file: expected a picture"):
            open_picture(path)


def test_a_picture_that_is_a_program_is_not_run(tmp_path):
    """Pillow hands EPS to Ghostscript."""
    rgb(8, 8).save(tmp_path / "a.png", "EPS")
    with pytest.raises(ValueError, match="is no picture"):
        open_picture(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_and_a_large_picture_is_not(monkeypatch):
    file = io.BytesIO()
    rgb(40, 40).save(file, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)
    with pytest.raises(ValueError, match=r"^bomb\.png is too large \(Image size \(1600 pixels\).*: make it smaller\.$"):
        open_picture(file.getvalue(), name="bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 801)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(file.getvalue()).size == (40, 40)


def test_a_disk_that_fails_is_not_called_a_broken_picture():
    class Failing(io.BytesIO):
        def read(self, *size):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        open_picture(Failing())


def test_a_picture_outlives_its_file_and_goes_to_another_process(tmp_path):
    rgb(8, 6).save(tmp_path / "a.png")
    picture = open_picture(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert pickle.loads(pickle.dumps(picture)).tobytes() == picture.tobytes() == rgb(8, 6).tobytes()
    preprocess = Preprocess(4, (4, 4))
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess


# --- configurations


# As published: google/vit-base-patch16-224, facebook/vit-mae-base, facebook/deit-base-distilled-patch16-224,
# openai/clip-vit-base-patch32 in its older and its newer form.
FILES = [
    ("ViT", {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
             "image_std": [0.5] * 3, "image_processor_type": "ViTImageProcessor", "resample": 2,
             "rescale_factor": 0.00392156862745098,
             "size": {"height": 22, "width": 22}}),
    ("ViT", {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
             "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2, "size": 22}),
    ("DeiT", {"crop_size": 22, "do_center_crop": True, "do_normalize": True, "do_resize": True,
              "feature_extractor_type": "DeiTFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
              "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 25}),
    ("CLIP", {"crop_size": 22, "do_center_crop": True, "do_normalize": True, "do_resize": True,
              "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
              "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 22}),
    ("CLIP", {"crop_size": {"height": 22, "width": 20}, "do_center_crop": True, "do_convert_rgb": True,
              "do_normalize": True, "do_rescale": True, "do_resize": True,
              "image_processor_type": "CLIPImageProcessorFast", "resample": 3, "size": {"shortest_edge": 25}}),
    ("ViT", {"do_resize": True, "size": {"shortest_edge": 25}, "do_center_crop": True,
             "crop_size": {"height": 22, "width": 22}, "resample": 1, "do_normalize": False}),
    ("ViT", {"do_resize": False, "do_rescale": False, "image_mean": 127.5, "image_std": [127.5] * 3}),
    ("ViT", {"size": [21, 30], "image_processor_type": None, "do_rescale": None, "do_center_crop": None}),
    ("ViT", {}),
    ("DeiT", {"image_processor_type": "DeiTImageProcessor"}),
    ("CLIP", {"image_processor_type": "CLIPImageProcessor", "do_center_crop": None}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file"), FILES, ids=range(len(FILES)))
def test_a_published_file_is_read_as_transformers_reads_it(kind, file, tmp_path):
    ours, theirs = Preprocess.read(file), HUGGING[kind](**file)
    for name in ("101 x 67", "31 x 33", "32 x 35", "3 x 2"):
        expected = theirs(ODD[name], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours(ODD[name]), expected), name
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert Preprocess.read(saved) == ours


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess((22, 26), interpolation="bilinear", mean=IMAGENET[0], std=IMAGENET[1]),
        Preprocess(25, (22, 22), middle="floor"),
        Preprocess((25, 29), (22, 24), "lanczos", rescale=1 / 127.5, middle="floor"),
        Preprocess(crop=(22, 22), middle="floor"),
        Preprocess(25),
    ],
)
def test_what_is_written_is_read_again_and_by_transformers(preprocess, tmp_path):
    text = json.dumps(preprocess.write())
    assert Preprocess.read(json.loads(text)) == preprocess
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    theirs = ViTImageProcessorPil.from_pretrained(tmp_path)
    for name in ("101 x 67", "31 x 33", "32 x 35"):
        assert torch.equal(preprocess(ODD[name]), theirs(ODD[name], return_tensors="pt")["pixel_values"][0]), name


@pytest.mark.parametrize("preprocess", [Preprocess(25, (22, 22)), Preprocess(mean=(0.5,), std=(0.3,), crop=(9, 9))])
def test_what_transformers_has_no_word_for_is_read_again(preprocess):
    assert Preprocess.read(json.loads(json.dumps(preprocess.write()))) == preprocess


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"image_processor_type": "BeitImageProcessor"}, "is of BeitImageProcessor: expected .*ViT, DeiT, CLIP"),
        ({"size": {"longest_edge": 224}}, "size {'longest_edge': 224}: expected pixels"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "expected pixels"),
        ({"size": "224"}, "says size '224': expected pixels"),
        ({"size": {"shortest_edge": -1}}, "size is -1: expected pixels"),
        ({"do_center_crop": True}, "crop_size None"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 22}}, "crop_size {'shortest_edge': 22}"),
        ({"do_pad": True}, "says do_pad"),
        ({"resample": 9}, "interpolation is '9': expected one of nearest"),
        ({"image_mean": None}, r"mean is \(None, None, None\)"),
        ({"size": None}, "says size None: expected"),
        ({"image_mean": [0.5, 0.5]}, "expected 3 numbers each, or 1 for grey"),
        ({"image_std": [0.5, 0.0, 0.5]}, "std is .*: expected numbers above 0"),
        ({"rescale_factor": "1/255"}, "rescale is '1/255': expected a number above 0"),
        ({"do_center_crop": True, "crop_size": 9, "scratchformers": {"middle": "ceil"}}, "middle is 'ceil'"),
    ],
)
def test_a_file_that_asks_for_more_is_refused(file, said):
    with pytest.raises(ValueError, match=said) as error:
        Preprocess.read(file)
    assert str(error.value).endswith(".")


TIMM = [
    {"input_size": (3, 22, 22), "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    {"input_size": [3, 38, 38], "crop_pct": 0.875, "interpolation": "bilinear", "crop_mode": None},
    {"input_size": (3, 22, 22), "crop_pct": 1.0, "crop_mode": "center"},
    {"input_size": (3, 22, 22), "crop_pct": 0.95, "crop_mode": "squash"},
    {"input_size": (3, 22, 30), "crop_pct": 0.95, "crop_mode": "squash"},
    {"crop_pct": None, "mean": None, "num_classes": 7},
]


@pytest.mark.parametrize("cfg", TIMM, ids=range(len(TIMM)))
def test_timms_config_is_read_as_timm_reads_it(cfg):
    ours = Preprocess.read_timm(cfg)
    theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg))
    for name, picture in ODD.items():
        if ours.shape[0] < 100 or max(picture.size) < 1000:
            assert torch.equal(ours(picture), theirs(as_theirs(picture))), name


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"crop_mode": "border"}, "crop_mode is 'border': expected one of center, squash"),
        ({"input_size": (3, 22, 30)}, "crops 22 x 30 from the middle: expected a square"),
        ({"input_size": 224}, "says input_size 224 and"),
        ({"crop_pct": 0}, "crop_pct 0: expected"),
        ({"interpolation": "random"}, "interpolation is 'random'"),
        ({"input_size": (1, 28, 28)}, "has 1 channels and mean"),
    ],
)
def test_a_config_of_timm_that_asks_for_more_is_refused(cfg, said):
    with pytest.raises(ValueError, match=said):
        Preprocess.read_timm(cfg)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": True}, "size is True"),
        ({"size": (3, -1)}, r"size is \(3, -1\): expected pixels"),
        ({"crop": 224}, r"crop is 224: expected \(height, width\)"),
        ({"crop": (0, 4)}, r"crop is \(0, 4\)"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic': expected one of nearest, lanczos, bilinear"),
        ({"mean": (0.5,)}, "3 numbers each, or 1"),
        ({"mean": (0.5,) * 2, "std": (0.5,) * 2}, "3 numbers each, or 1"),
        ({"mean": (float("nan"),) * 3}, "mean is"),
        ({"mean": 0.5}, "mean is 0.5"),
        ({"std": (0.5, 0.5, -0.5)}, "std is .*: expected numbers above 0"),
        ({"rescale": 0}, "rescale is 0"),
        ({"middle": "top"}, "middle is 'top': expected one of round, floor"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(fields, said):
    with pytest.raises(ValueError, match=said) as error:
        Preprocess(**fields)
    assert str(error.value).endswith(".")


def test_lists_of_json_are_as_good_as_tuples():
    made = Preprocess([22, 26], [20, 20], mean=[0.5, 0.5, 0.5])
    assert made == Preprocess((22, 26), (20, 20))
    assert hash(made) == hash(Preprocess((22, 26), (20, 20)))


@pytest.mark.parametrize(
    ("preprocess", "shape"),
    [(Preprocess(), None), (Preprocess(9), None), (Preprocess((9, 8)), (9, 8)), (Preprocess(9, (7, 6)), (7, 6))],
)
def test_the_shape_it_gives_is_known_beforehand(preprocess, shape):
    assert preprocess.shape == shape
    if shape:
        assert preprocess(ODD["101 x 67"]).shape == (3, *shape)


@pytest.mark.parametrize(
    ("preprocess", "image", "expected"),
    [
        (Preprocess(256, (224, 224)), 384, Preprocess(438, (384, 384))),  # as timm's, 384 / 0.875
        (Preprocess(256, (224, 224)), (112, 224), Preprocess(256, (112, 224))),
        (Preprocess((256, 256), (224, 224)), 112, Preprocess((128, 128), (112, 112))),
        (Preprocess((224, 224)), (96, 128), Preprocess((96, 128))),
        (Preprocess(), 32, Preprocess((32, 32))),
        (Preprocess(64), 32, Preprocess(32, (32, 32))),
        (Preprocess(crop=(24, 24)), 32, Preprocess(crop=(32, 32))),
    ],
)
def test_another_size_keeps_the_part_that_is_seen(preprocess, image, expected):
    assert preprocess.sized(image) == expected
    assert expected.sized(image) is expected
