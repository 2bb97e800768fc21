"""Pictures changed at random: as torchvision does for the same draws, by the generator given and by nothing else. The
famous bugs are planted."""

import math
import random
import sys

import numpy as np
import pytest
import reference  # noqa: F401 (declares the operators without which torchvision cannot be imported here)
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import InterpolationMode, functional, transforms, v2

from scratchformers.training import augment
from scratchformers.training.augment import RandAugment

SIZES = [(1, 1), (1, 300), (300, 1), (2, 3), (37, 53), (640, 480), (30, 200), (200, 30), (32, 32)]  # width, height
CROPS = [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.2, 0.5), (0.5, 2.0)), ((0.9, 1.0), (1.5, 2.0)), ((1.0, 1.0), (1.0, 1.0))]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(width=37, height=53, mode="RGB"):
    values = np.random.RandomState(0).randint(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values.squeeze(2) if mode == "L" else values)


def same(one, other):
    return one.size == other.size and one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))


def batch(count=5, channels=3, height=13, width=17):
    """Pictures in which hardly a value occurs twice, and a class of its own for each."""
    return torch.rand(count, channels, height, width, generator=generator()), torch.eye(count, count + 2)


# --- a rectangle of the picture


class Fed:
    """torch as torchvision's transforms see it, which draws what ours draws: four numbers for each try, area and shape,
    and the two `places`, which theirs draws for y first."""

    log, exp, tensor = torch.log, torch.exp, torch.tensor

    def __init__(self, generator, places):
        self.generator, self.places, self.asked, self.numbers = generator, [*places], 0, []

    def empty(self, size):
        return self

    def uniform_(self, low, high):
        if self.asked % 2 == 0:
            self.numbers = torch.rand(4, generator=self.generator).tolist()
        self.asked += 1
        return torch.as_tensor(low + (high - low) * self.numbers[(self.asked - 1) % 2])

    def randint(self, low, high, size):
        return torch.tensor(low + int(self.numbers[self.places.pop(0)] * (high - low)))


def check_crops(monkeypatch, draws=150):
    """That the rectangles are torchvision's; how many did not fit at all."""
    fallbacks = 0
    for sides in SIZES:
        for scale, ratio in CROPS:
            for seed in range(draws):
                fed = Fed(generator(seed), (3, 2))
                with monkeypatch.context() as patch:
                    patch.setattr(transforms, "torch", fed)
                    box = transforms.RandomResizedCrop.get_params(Image.new("L", sides), [*scale], [*ratio])
                y, x, height, width = box
                assert augment._crop(sides, scale, ratio, generator(seed)) == (x, y, width, height), (sides, seed)
                fallbacks += len(fed.places) == 2
    return fallbacks


def test_the_rectangle_is_torchvisions_for_the_same_draws(monkeypatch):
    total = len(SIZES) * len(CROPS) * 150
    assert total * 0.1 < check_crops(monkeypatch) < total * 0.9, "both ways to a rectangle are taken"


def test_area_and_shape_stay_within_their_bounds_and_fill_them():
    boxes = [augment._crop((1000, 800), (0.08, 1.0), (3 / 4, 4 / 3), generator(seed)) for seed in range(2000)]
    x, y, width, height = np.array(boxes).T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + width <= 1000).all()
    assert (y + height <= 800).all()
    area, shape = width * height / 800_000, width / height
    assert 0.08 <= area.min() + 0.001 < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.75 <= shape.min() + 0.005 < 0.77
    assert 1.32 < shape.max() - 0.005 <= 4 / 3
    small = area < 0.5  # all of them fit
    assert abs(np.log(shape[small]).mean()) < 0.02, "as often wide as high"
    assert stats.kstest(area[small], stats.uniform(0.08, 0.42).cdf).pvalue > 0.01


def test_a_picture_no_rectangle_fits_gives_its_middle():
    ranges = (0.08, 1.0), (3 / 4, 4 / 3)
    for seed in range(50):
        assert augment._crop((1, 1), *ranges, generator(seed)) == (0, 0, 1, 1)
        assert augment._crop((1, 300), *ranges, generator(seed)) == (0, 149, 1, 1)
        assert augment._crop((300, 1), *ranges, generator(seed)) == (149, 0, 1, 1)
        assert augment._crop((1, 300), (0.08, 1.0), (4.0, 5.0), generator(seed))[2:] == (1, 1), "never of no pixel"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("sides", [(1, 1), (1, 300), (37, 53), (300, 200)])
def test_the_crop_is_torchvisions_to_the_last_level(sides, mode, interpolation):
    image, how = picture(*sides, mode), InterpolationMode(interpolation)
    for seed in range(8):
        ours = augment.random_resized_crop(image, (32, 24), generator(seed), interpolation=interpolation)
        x, y, width, height = augment._crop(sides, (0.08, 1.0), (3 / 4, 4 / 3), generator(seed))
        assert same(ours, functional.resized_crop(image, y, x, height, width, [24, 32], how))
        assert ours.size == (32, 24)


def test_resizing_with_a_box_would_let_other_pixels_in():
    """Which is why the rectangle is cut out first."""
    image, box = picture(), (5, 7, 25, 40)
    boxed = image.resize((16, 16), Image.Resampling.BICUBIC, box=box)
    assert not same(boxed, functional.resized_crop(image, 7, 5, 33, 20, [16, 16], InterpolationMode.BICUBIC))


# --- moved, mirrored


def check_shifts(width, height, padding, draws):
    """Each result is one of torchvision's, and all of them occur, about equally often."""
    image, counts = picture(width, height), {}
    padded = functional.pad(image, padding)
    sides = range(2 * padding + 1)
    for y in sides:
        for x in sides:
            counts[functional.crop(padded, y, x, height, width).tobytes()] = 0
    assert len(counts) == len(sides) ** 2
    for seed in range(draws):
        moved = augment.random_shift(image, padding, generator(seed))
        assert moved.size == image.size
        assert moved.tobytes() in counts
        counts[moved.tobytes()] += 1
    expected = draws / len(counts)
    assert min(counts.values()) > 0
    assert max(abs(count - expected) for count in counts.values()) <= 5 * expected**0.5


@pytest.mark.parametrize(("width", "height", "padding"), [(32, 28, 2), (5, 7, 2), (9, 4, 1), (6, 5, 0)])
def test_a_shifted_picture_is_torchvisions_padded_crop(width, height, padding):
    check_shifts(width, height, padding, 1500)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_flipped_picture_is_torchvisions(mode):
    image = picture(mode=mode)
    assert same(augment.random_flip(image, generator(), p=1.0), functional.hflip(image))
    assert same(augment.random_flip(image, generator(), p=0.0), image)
    assert not same(functional.hflip(image), image)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_a_share_p_of_pictures_is_flipped(p):
    draw, image = generator(), picture(2, 1)
    flips = sum(not same(augment.random_flip(image, draw, p), image) for _ in range(2000))
    assert flips == pytest.approx(2000 * p, abs=5 * (2000 * p * (1 - p)) ** 0.5)


# --- erased


def erased_rectangle(before, after):
    """The (height, width) of the rectangle in which every value changed; an AssertionError if others did."""
    changed = before != after
    assert torch.equal(changed.any(0), changed.all(0)), "in all channels"
    rows, columns = (changed.any(0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return 0, 0
    height, width = (int(each.max() - each.min()) + 1 for each in (rows, columns))
    assert changed[0].sum() == height * width, "a rectangle, and nothing else"
    return height, width


def check_erasing(noise, scale=(0.02, 1 / 3), ratio=(0.3, 3.3)):
    images, _ = batch(300, 3, 60, 80)
    given = images.clone()
    erased = augment.erase(images, generator(), p=1.0, scale=scale, ratio=ratio, noise=noise)
    assert torch.equal(images, given), "a new batch"
    assert erased.shape == images.shape
    sizes = np.array([erased_rectangle(before, after) for before, after in zip(images, erased)])
    height, width = sizes.T
    assert (height > 0).all()
    least, most = ((height + shift) * (width + shift) for shift in (-0.5, 0.5))  # lengths were rounded
    assert (most >= scale[0] * 4800).all()
    assert (least <= scale[1] * 4800).all()
    assert ((height + 0.5) / (width - 0.5) >= ratio[0]).all()
    assert ((height - 0.5) / (width + 0.5) <= ratio[1]).all()
    values = erased[erased != images]
    if not noise:
        assert not values.any()
        return
    assert stats.kstest(values[::97].numpy(), stats.norm.cdf).pvalue > 0.01
    assert len(values.unique()) > 0.9 * len(values), "each value by itself"


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("bounds", [{}, {"scale": (0.1, 0.12)}, {"ratio": (2.0, 3.0)}, {"ratio": (1.0, 1.0)}])
def test_the_erased_rectangle_is_within_bounds_and_the_rest_as_it_was(noise, bounds):
    check_erasing(noise, **bounds)


@pytest.mark.parametrize("ratio", [(0.3, 3.3), (2.0, 8.0)])
@pytest.mark.parametrize(("height", "width"), [(13, 17), (32, 32), (11, 60)])
def test_erasing_is_torchvisions_for_the_same_draws(height, width, ratio, monkeypatch):
    image, erasures = batch(1, 3, height, width)[0], 0
    for seed in range(100):
        ours = augment.erase(image, generator(seed), p=1.0, ratio=ratio, noise=False)[0]
        draw = generator(seed)
        torch.rand(1, generator=draw)  # by which it was decided that this picture is erased
        with monkeypatch.context() as patch:
            patch.setattr(transforms, "torch", Fed(draw, (2, 3)))
            box = transforms.RandomErasing.get_params(image[0], (0.02, 1 / 3), ratio, [0.0])
        assert torch.equal(ours, functional.erase(image[0], *box))
        erasures += not torch.equal(ours, image[0])
    assert erasures > 40


def test_a_share_p_of_pictures_is_erased():
    images, _ = batch(1000, 1, 8, 8)
    for p in (0.0, 0.25, 1.0):
        erased = augment.erase(images, generator(), p=p)
        count = int((erased != images).flatten(1).any(1).sum())
        assert count == pytest.approx(1000 * p, abs=5 * (1000 * p * (1 - p)) ** 0.5)
        assert erased.data_ptr() != images.data_ptr()


def test_half_precision_and_pictures_of_a_pixel_are_erased_where_they_can_be():
    half = batch()[0].bfloat16()
    assert augment.erase(half, generator(), p=1.0).dtype == torch.bfloat16
    pixel = torch.ones(4, 3, 1, 1)
    assert torch.equal(augment.erase(pixel, generator(), p=1.0), pixel)


# --- mixed


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0, 30.0])
def test_shares_are_drawn_from_beta(alpha):
    draw = generator()
    shares = [augment._beta(alpha, draw) for _ in range(4000)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1e-4, 1e6])
def test_extreme_shares_are_no_nan(alpha):
    draw = generator()
    assert all(0 <= augment._beta(alpha, draw) <= 1 for _ in range(500))


def check_mixup():
    images, targets = batch()
    given = images.clone(), targets.clone()
    for seed in range(30):
        mixed, labels = augment.mixup(images, targets, generator(seed), alpha=0.8)
        share = augment._beta(0.8, generator(seed))
        for i in range(5):
            assert labels[i, i] == pytest.approx(share, abs=1e-6)
            assert labels[i, i - 1 if i else 4] == pytest.approx(1 - share, abs=1e-6)
            torch.testing.assert_close(mixed[i], share * images[i] + (1 - share) * images[i - 1])
        torch.testing.assert_close(labels.sum(1), torch.ones(5))
    assert torch.equal(images, given[0]), "what was given stays"
    assert torch.equal(targets, given[1])


def test_mixup_is_the_formula_for_the_share_drawn():
    check_mixup()


def check_cutmix():
    """On pictures of one value each: of which picture a pixel is can be seen, and the labels have to say it."""
    images = torch.arange(1.0, 7.0)[:, None, None, None].expand(6, 3, 12, 20).contiguous()
    targets, given, shares = torch.eye(6), images.clone(), []
    for seed in range(200):
        mixed, labels = augment.cutmix(images, targets, generator(seed), alpha=1.0)
        own = (mixed == images).float().mean((1, 2, 3))
        before = (mixed == images.roll(1, 0)).float().mean((1, 2, 3))
        torch.testing.assert_close(own + before, torch.ones(6))
        torch.testing.assert_close(labels.diagonal(), own)
        torch.testing.assert_close(labels[torch.arange(6), torch.arange(6) - 1], before)
        torch.testing.assert_close(labels.sum(1), torch.ones(6))
        for one, other in zip(mixed, images):
            erased_rectangle(other, one)
        shares.append(float(before[0]))
    assert torch.equal(images, given)
    assert torch.equal(targets, torch.eye(6))
    assert min(shares) < 0.05
    assert max(shares) > 0.6
    assert len({*shares}) > 50


def test_the_labels_of_cutmix_are_the_share_of_pixels():
    check_cutmix()


def fed_mixing(monkeypatch, share, at):
    """Both draw the share, and the middle of the rectangle at this part of height and of width."""
    numbers = [at[1], at[0]]  # theirs asks for x first
    monkeypatch.setattr(augment, "_beta", lambda alpha, generator: share)
    monkeypatch.setattr(augment, "_uniform", lambda count, generator: [*at])
    monkeypatch.setattr(torch, "randint", lambda most, size: torch.tensor([int(numbers.pop(0) * most)]))
    theirs = v2.MixUp(alpha=1.0), v2.CutMix(alpha=1.0)
    for each in theirs:
        monkeypatch.setattr(
            each, "_dist", type("Fixed", (), {"sample": lambda self, shape: torch.tensor(share).double()})()
        )
    return theirs


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, 0.5), (0.2, 0.95), (0.99, 0.4)])
def test_mixing_is_torchvisions_for_the_same_share(share, at, monkeypatch):
    images, targets = batch(6, 3, 31, 24)
    with monkeypatch.context() as patch:
        theirs = fed_mixing(patch, share, at)
        for ours, their in zip((augment.mixup, augment.cutmix), theirs):
            mixed, labels = ours(images, targets, generator(), alpha=1.0)
            expected, their_labels = their(images, targets)
            torch.testing.assert_close(mixed, expected, rtol=0, atol=2e-7 if ours is augment.mixup else 0)
            torch.testing.assert_close(labels, their_labels, rtol=0, atol=2e-7)


def ways_of_mixing(**alphas):
    """How often a batch of constant pictures came out blended, cut and as it was."""
    images, targets = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16), torch.eye(4)
    found = {"blended": 0, "cut": 0, "same": 0}
    for seed in range(300):
        mixed, _ = augment.mix(images, targets, generator(seed), **alphas)
        whole = bool((mixed == mixed.round()).all())
        found["same" if torch.equal(mixed, images) else "cut" if whole else "blended"] += 1
    return found


def test_of_two_ways_to_mix_either_is_taken_for_half_of_the_batches():
    found = ways_of_mixing(mixup=5.0, cutmix=5.0)
    assert found["blended"] == pytest.approx(150, abs=45)
    assert found["cut"] == pytest.approx(150, abs=45)
    assert ways_of_mixing(mixup=5.0, cutmix=0.0)["blended"] == 300
    assert ways_of_mixing(mixup=0.0, cutmix=5.0)["cut"] > 290  # the middle may be in a corner
    images, targets = batch()
    unchanged = augment.mix(images, targets, generator(), mixup=0.0, cutmix=0.0)
    assert unchanged[0] is images
    assert unchanged[1] is targets


def test_a_batch_of_one_is_mixed_with_itself():
    images, targets = batch(1)
    for way in (augment.mixup, augment.cutmix):
        mixed, labels = way(images, targets, generator(), alpha=1.0)
        torch.testing.assert_close(mixed, images)
        torch.testing.assert_close(labels, targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_smoothed_targets_cost_what_torchs_label_smoothing_costs(smoothing, dtype):
    targets = torch.tensor([2, 0, 6, 2], dtype=dtype)
    spread = augment.one_hot(targets, 7, smoothing)
    scores = torch.randn(4, 7, generator=generator())
    ours, theirs = (
        torch.nn.functional.cross_entropy(scores, spread),
        torch.nn.functional.cross_entropy(scores, targets.long(), label_smoothing=smoothing),
    )
    torch.testing.assert_close(ours, theirs)
    assert spread.dtype == torch.float32
    assert spread[0, 2] == pytest.approx(1 - smoothing + smoothing / 7)
    assert spread[0, 1] == pytest.approx(smoothing / 7)
    torch.testing.assert_close(spread.sum(1), torch.ones(4))


# --- RandAugment


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (5, 1, 28, 28), (9, 3, 17, 31), (1, 3, 8, 8)])
@pytest.mark.parametrize(("n", "m"), [(1, 5), (2, 9), (4, 29)])
def test_randaugment_changes_pictures_and_keeps_their_range(shape, n, m):
    images, changes = torch.rand(shape, generator=generator()), RandAugment(n, m)
    given, changed = images.clone(), 0
    for seed in range(12):
        result = changes(images, generator(seed))
        assert result.shape == images.shape
        assert result.dtype == images.dtype
        assert 0 <= result.min() <= result.max() <= 1
        changed += not torch.equal(result, images)
    assert changed >= 8
    assert torch.equal(images, given)


def test_pictures_changed_together_share_their_operations(monkeypatch):
    images = torch.rand(1, 3, 16, 16, generator=generator()).expand(20, -1, -1, -1)
    alone = RandAugment(1, 9, together=1)(images, generator())
    assert len(alone.unique(dim=0)) > 6, "each its own, of 15"
    changes, calls = RandAugment(1, 9), []
    monkeypatch.setattr(changes, "operations", lambda some: calls.append(len(some)) or some * 0 + len(calls) / 10)
    assert changes(images, generator())[:, 0, 0, 0].tolist() == pytest.approx([0.1] * 8 + [0.2] * 8 + [0.3] * 4)
    assert calls == [8, 8, 4]


def test_a_magnitude_of_15_leaves_brightness_as_it_is():
    """As the docstring says: below it kornia makes darker, above it brighter."""
    from kornia.augmentation import auto

    images = torch.rand(4, 3, 16, 16, generator=generator()) / 4 + 0.25
    for operation in ("brightness", "contrast", "color", "sharpness"):
        low, middle, high = (auto.RandAugment(1, m, policy=[[(operation, 0.1, 1.9)]])(images) for m in (5, 15, 25))
        torch.testing.assert_close(middle, images)
        if operation == "brightness":
            assert low.mean() < images.mean() < high.mean()


def test_what_leaves_the_range_is_cut_off(monkeypatch):
    changes = RandAugment(1, 9)
    monkeypatch.setattr(changes, "operations", lambda images: images * 3 - 1)
    result = changes(batch()[0], generator())
    assert result.min() == 0
    assert result.max() == 1


def test_without_kornia_one_sentence_says_what_to_install(monkeypatch):
    for name in [*sys.modules, "kornia", "kornia.augmentation", "kornia.augmentation.auto"]:
        if name.partition(".")[0] == "kornia":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=r"RandAugment needs the library kornia: pip install 'scratchformers\[aug\]'\.$"
    ):
        RandAugment(2, 9)


# --- by the generator, and nothing else

CALLS = {
    "crop": lambda g: augment.random_resized_crop(picture(), (16, 16), g),
    "shift": lambda g: augment.random_shift(picture(), 4, g),
    "flip": lambda g: [augment.random_flip(picture(), g) for _ in range(16)],
    "erase": lambda g: augment.erase(batch()[0], g, p=0.5),
    "mixup": lambda g: augment.mixup(*batch(), g, alpha=1.0),
    "cutmix": lambda g: augment.cutmix(*batch(), g, alpha=1.0),
    "mix": lambda g: augment.mix(*batch(), g, mixup=0.8, cutmix=1.0),
    "randaugment": lambda g: RandAugment(2, 9)(batch()[0], g),
}


def values(result):
    if isinstance(result, list | tuple):
        return b"".join(map(values, result))
    return np.asarray(result).tobytes()


def states():
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()


def check_draws(name):
    torch.manual_seed(1)
    before = states()
    draw = generator(7)
    first, second = values(CALLS[name](draw)), values(CALLS[name](draw))
    assert states() == before, "the generators of torch, numpy and Python stay as they were"
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert values(CALLS[name](generator(7))) == first, "and have no say"
    seeds = {values(CALLS[name](generator(seed))) for seed in range(8)}
    assert second != first or len(seeds) > 2
    assert len(seeds) > 2, "another generator gives another result"


@pytest.mark.parametrize("name", CALLS)
def test_the_same_generator_gives_the_same_and_no_other_is_touched(name):
    check_draws(name)


# --- what cannot be


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: augment.random_resized_crop(picture(), (8, 8), generator(), interpolation="cubic"),
            "interpolation is 'cubic': expected one of nearest, box, bilinear, hamming, bicubic, lanczos",
        ),
        (
            lambda: augment.random_resized_crop(picture(), (8, 8), generator(), scale=(0.5, 1.5)),
            r"scale is \(0.5, 1.5\): expected two shares of the area, 0 < least <= most <= 1",
        ),
        (
            lambda: augment.erase(batch()[0], generator(), p=1.0, scale=(0.5, 0.1)),
            r"scale is \(0.5, 0.1\): expected two shares of the area",
        ),
        (
            lambda: augment.random_resized_crop(picture(), (8, 8), generator(), ratio=(0.0, 1.0)),
            r"ratio is \(0.0, 1.0\): expected the least and the most of one side over the other, above 0",
        ),
        (
            lambda: augment.random_shift(picture(), -1, generator()),
            "padding is -1: expected a number of pixels, 0 or more",
        ),
        (lambda: augment.random_flip(picture(), generator(), 1.5), "p is 1.5: expected a probability, 0 to 1"),
        (lambda: augment.erase(batch()[0], generator(), p=-0.1), "p is -0.1: expected a probability, 0 to 1"),
        (
            lambda: augment.mixup(*batch(), generator(), alpha=0.0),
            "alpha is 0.0: expected a number above 0, where 1 makes every share as likely",
        ),
        (lambda: augment.cutmix(*batch(), generator(), alpha=math.inf), "alpha is inf: expected a number above 0"),
        (lambda: augment.mix(*batch(), generator(), mixup=-1.0, cutmix=0.0), "alpha is -1.0: expected"),
        (lambda: augment.mix(*batch(), generator(), mixup=math.nan, cutmix=0.0), "alpha is nan: expected"),
        (
            lambda: augment.one_hot(torch.tensor([0, 1]), 2, 1.0),
            "smoothing is 1.0: expected a share of each target, 0 <= smoothing < 1",
        ),
        (
            lambda: augment.one_hot(torch.tensor([0, 5]), 3, 0.0),
            "A target is 5: expected one of 3 classes, 0 to 2",
        ),
        (lambda: augment.one_hot(torch.tensor([-1]), 3, 0.1), "A target is -1: expected one of 3 classes"),
        (lambda: RandAugment(2, 9, together=0), "together is 0: expected a number of pictures, at least 1"),
        (lambda: RandAugment(0, 9), "Expect `n` in"),
        (lambda: RandAugment(2, 30), "Expect `m` in"),
        (
            lambda: RandAugment(2, 9)(torch.rand(2, 4, 8, 8), generator()),
            "RandAugment got pictures of 4 channels: expected 1 or 3",
        ),
        (
            lambda: RandAugment(2, 9)(torch.tensor([-1.5, 2.5]).expand(2, 3, 8, 2), generator()),
            "RandAugment got pixels from -1.5 to 2.5: expected 0 to 1, before mean and std are applied",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# --- planted


def test_planted_mistakes_in_the_rectangle_are_caught(monkeypatch):
    real = augment._crop
    for wrong in (
        lambda sides, scale, ratio, g: real(sides, (scale[0] ** 0.5, scale[1]), ratio, g),  # of the side, not the area
        lambda sides, scale, ratio, g: real(sides[::-1], scale, ratio, g),
        lambda sides, scale, ratio, g: (lambda x, y, w, h: (y, x, w, h))(*real(sides, scale, ratio, g)),
        lambda sides, scale, ratio, g: augment._rectangle(sides, sides, scale, ratio, g) or (0, 0, *sides),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(augment, "_crop", wrong)
            with pytest.raises(AssertionError):
                check_crops(monkeypatch, 5)
    check_crops(monkeypatch, 5)


def test_a_crop_by_box_is_caught(monkeypatch):
    def boxed(image, size, generator, *, interpolation):
        x, y, width, height = augment._crop(image.size, (0.08, 1.0), (3 / 4, 4 / 3), generator)
        return image.resize(size, Image.Resampling[interpolation.upper()], (x, y, x + width, y + height))

    monkeypatch.setattr(augment, "random_resized_crop", boxed)
    with pytest.raises(AssertionError):
        test_the_crop_is_torchvisions_to_the_last_level((37, 53), "RGB", "bicubic")


def test_a_shift_that_never_reaches_its_end_is_caught(monkeypatch):
    real = augment.random_shift
    monkeypatch.setattr(augment, "random_shift", lambda image, padding, g: real(image, padding - 1, g))
    with pytest.raises(AssertionError):
        check_shifts(32, 28, 2, 1500)


def test_planted_mistakes_in_erasing_are_caught(monkeypatch):
    real = augment.erase

    def in_place(images, generator, **settings):
        return images.copy_(real(images, generator, **settings))

    def one_colour(images, generator, **settings):
        erased = real(images, generator, **settings)
        return torch.where(erased == images, images, 0.5)

    def turned(images, generator, *, ratio, **settings):
        return real(images, generator, ratio=(1 / ratio[1], 1 / ratio[0]), **settings)

    for wrong, bounds in ((in_place, {}), (one_colour, {}), (turned, {"ratio": (2.0, 3.0)})):
        with monkeypatch.context() as patch:
            patch.setattr(augment, "erase", wrong)
            with pytest.raises(AssertionError):
                check_erasing(True, **bounds)


def test_planted_mistakes_in_mixing_are_caught(monkeypatch):
    blended, cutmix, mixup = augment._blended, augment.cutmix, augment.mixup

    def uncorrected(images, targets, generator, *, alpha):
        mixed, _ = cutmix(images, targets, generator, alpha=alpha)
        return mixed, blended(targets, augment._beta(alpha, torch.Generator().manual_seed(generator.initial_seed())))

    def labels_the_other_way(way):
        def mixed(images, targets, generator, *, alpha):
            return way(images, targets, generator, alpha=alpha)[0], way(
                images, targets.roll(1, 0), generator.manual_seed(generator.initial_seed()), alpha=alpha
            )[1]

        return mixed

    for name, wrong, check in (
        ("_blended", lambda batch, share: batch.flip(0).lerp_(batch, share), check_mixup),
        ("_blended", lambda batch, share: blended(batch, 1 - share), check_mixup),
        ("_blended", lambda batch, share: batch.lerp_(batch.roll(1, 0), 1 - share), check_mixup),
        ("_blended", lambda batch, share: blended(batch, 1 - share), check_cutmix),
        ("mixup", labels_the_other_way(mixup), check_mixup),
        ("cutmix", labels_the_other_way(cutmix), check_cutmix),
        ("cutmix", uncorrected, check_cutmix),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(augment, name, wrong)
            with pytest.raises(AssertionError):
                check()


def test_a_draw_from_the_global_generator_is_caught(monkeypatch):
    monkeypatch.setattr(augment, "_uniform", lambda count, generator: torch.rand(count).tolist())
    for name in CALLS:
        if name not in ("mixup", "randaugment"):
            with pytest.raises(AssertionError):
                check_draws(name)


def test_a_global_generator_that_stays_seeded_is_caught(monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    with pytest.raises(AssertionError):
        check_draws("randaugment")
