"""What a masked autoencoder painted, as pictures: honest by default, and said where it is not."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import scratchformers as sf
from scratchformers import painting
from scratchformers.grid import cut
from scratchformers.images import IMAGENET, Preprocess
from scratchformers.painting import Painting, paint, panel, to_pictures

CONFIG = sf.MAEConfig((12, 20), 4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)
PREPARED = Preprocess((12, 20), mean=IMAGENET[0], std=IMAGENET[1])
GREY = Preprocess((12, 20), mean=(0.4,), std=(0.3,))


def mae(*, norm=False, seed=0, dtype=torch.float64, **changes):
    """Every parameter drawn anew: what a new model paints is nearly flat."""
    model = sf.MAE(replace(CONFIG, norm_pix_loss=norm, **changes)).to(dtype).eval()
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * 0.25))
    return model


def drawn(count=3, *, seed=1, channels=3, dtype=torch.float64):
    values = np.random.RandomState(seed).standard_normal((count, channels, 12, 20))
    return torch.from_numpy(values).cumsum(-1).div(4).to(dtype)  # neighbours are alike, patches are not


def spread(mask, patch=4):
    """Which pixels are hidden, of a grid of 3 x 5."""
    found = np.zeros((len(mask), 1, 12, 20), bool)
    for row in range(3):
        for column in range(5):
            where = np.s_[:, 0, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            found[where] = mask[:, row * 5 + column, None, None].numpy()
    return torch.from_numpy(found)


def same(a, b):
    """To the last bit, NaN as itself."""
    return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def oracle(model):
    """Paints exactly what the loss wants."""

    def forward(images, *, noise, mask_ratio):
        mask = type(model).forward(model, images, noise=noise, mask_ratio=mask_ratio).mask
        target = cut(images, model.config, "p q c")
        if model.config.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return sf.models.mae.Painted(torch.zeros(()), target, mask)

    model.forward = forward
    return model


# --- what is hidden stays hidden

OTHERS = {
    "noise": lambda images: torch.randn_like(images) * 9,
    "black": torch.zeros_like,
    "nan": lambda images: torch.full_like(images, torch.nan),
    "infinite": lambda images: torch.full_like(images, torch.inf),
    "huge": lambda images: torch.full_like(images, 1e200),
}


def changed(model, other, **how):
    """Which parts differ to the bit when the hidden pixels become others."""
    images, noise = drawn(), torch.rand(3, 15, generator=torch.Generator().manual_seed(5))
    before = paint(model, images, noise=noise, **how)
    images = torch.where(spread(before.mask), OTHERS[other](images), images)
    after = paint(model, images, noise=noise, **how)
    names = ("masked", "prediction", "pasted", "mask")
    return {name for name in names if not same(getattr(before, name), getattr(after, name))}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_hidden_pixels_change_nothing_of_what_is_painted(norm, other):
    assert changed(mae(norm=norm), other) == set()
    assert changed(mae(norm=norm), other, mask_ratio=0.5) == set()


def test_statistics_of_the_original_are_the_answer_leaking():
    assert changed(mae(norm=True), "noise", statistics="original") == {"prediction", "pasted"}
    assert changed(mae(norm=False), "noise", statistics="original") == set(), "where there is nothing to be undone"


def leaks_its_own_statistics(patch):
    patch.setattr(painting, "_around", lambda own, mask, config: own)
    patch.setattr(torch.Tensor, "masked_fill", lambda patches, hidden, value: patches)


def multiplies_by_nought(patch):
    patch.setattr(torch.Tensor, "masked_fill", lambda patches, hidden, value: patches * ~hidden)


@pytest.mark.parametrize(("plant", "other"), [(leaks_its_own_statistics, "noise"), (multiplies_by_nought, "nan")])
def test_a_planted_leak_is_caught(plant, other, monkeypatch):
    plant(monkeypatch)
    assert changed(mae(norm=True), other) >= {"prediction", "pasted"}


# --- what is shown


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("statistics", ["visible", "original"])
def test_visible_patches_are_the_original_to_the_bit(norm, statistics):
    images = drawn(dtype=torch.float32)
    made = paint(mae(norm=norm, dtype=torch.float32), images, statistics=statistics)
    hidden = spread(made.mask).expand_as(images)
    assert made.mask.sum(1).tolist() == [12, 12, 12]
    assert made.original is images
    assert same(made.pasted[~hidden], images[~hidden])
    assert same(made.pasted[hidden], made.prediction[hidden])
    assert not (made.pasted == images)[hidden].any()
    assert same(made.masked[~hidden], images[~hidden])
    assert not made.masked[hidden].any()


@pytest.mark.parametrize("norm", [False, True])
def test_a_perfect_painter_gives_the_original_back(norm):
    images = drawn()
    made = paint(oracle(mae(norm=norm)), images, statistics="original")
    assert torch.allclose(made.prediction, images, rtol=0, atol=1e-12)
    assert torch.allclose(made.pasted, images, rtol=0, atol=1e-12)
    honest = paint(oracle(mae(norm=norm)), images)
    assert torch.equal(honest.prediction, made.prediction) != norm, "brightness is not in a prediction of structure"


def channels_first(patch):
    real = painting.rearrange
    swapped = lambda given, rule, **axes: real(given, rule.replace("(p q c)", "(c p q)"), **axes)  # noqa: E731
    patch.setattr(painting, "rearrange", swapped)


def variance_of_all(patch):
    patch.setattr(torch.Tensor, "var", lambda x, *axes, **how: x.square().mean(-1, keepdim=True))


@pytest.mark.parametrize("plant", [channels_first, variance_of_all])
def test_a_planted_mistake_in_the_pixels_is_caught(plant):
    images = drawn()
    model = oracle(mae(norm=True))
    found = model(images, noise=torch.rand(3, 15), mask_ratio=0.5)
    model.forward = lambda *_, **__: found
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        assert not torch.allclose(paint(model, images, statistics="original").prediction, images, atol=1e-3)


def test_pixels_are_as_the_model_painted_them():
    model, images = mae(), drawn()
    noise = torch.rand(3, 15, generator=torch.Generator().manual_seed(2))
    made = paint(model, images, noise=noise, mask_ratio=0.6)
    with torch.no_grad():
        said = model(images, noise=noise, mask_ratio=0.6)
    assert torch.equal(cut(made.prediction, CONFIG, "p q c"), said.prediction)
    assert torch.equal(made.mask, said.mask)
    assert made.statistics is None


def test_statistics_come_from_the_visible_patches_the_nearer_the_more():
    """Equal to the formula, patch by patch."""
    model, images = mae(norm=True), drawn()
    made, patches = paint(model, images), cut(images, CONFIG, "p q c").numpy()
    with torch.no_grad():
        said = model(images).prediction.numpy()
    found = cut(made.prediction, CONFIG, "p q c").numpy()
    for b in range(3):
        visible = [j for j in range(15) if not made.mask[b, j]]
        for i in range(15):
            near = {j: ((i // 5 - j // 5) ** 2 + (i % 5 - j % 5) ** 2) ** -2.0 for j in visible if j != i}
            near = {i: 1.0} if i in visible else near
            mean, deviation = (
                sum(weight * of(patches[b, j]) for j, weight in near.items()) / sum(near.values())
                for of in (np.mean, lambda x: (np.var(x, ddof=1) + 1e-6) ** 0.5)
            )
            np.testing.assert_allclose(found[b, i], said[b, i] * deviation + mean, atol=1e-10)
    assert made.statistics == "visible"


def test_one_visible_patch_speaks_for_all():
    images = drawn(1)
    made = paint(oracle(mae(norm=True)), images, mask_ratio=0.93)
    (seen,) = (~made.mask[0]).nonzero()[0].tolist()
    found, own = (cut(each, CONFIG, "p q c")[0] for each in (made.prediction, images))
    assert torch.allclose(found.mean(-1), own[seen].mean().expand(15))
    assert torch.allclose(found.std(-1), own[seen].std().expand(15), rtol=1e-4)


def test_a_picture_does_not_depend_on_the_others():
    images, model = drawn(4), mae(norm=True)
    noise = torch.rand(4, 15, generator=torch.Generator().manual_seed(3))
    made = paint(model, images, noise=noise)
    for i in range(4):
        alone = paint(model, images[i : i + 1], noise=noise[i : i + 1])
        for name in ("masked", "prediction", "pasted"):
            assert torch.allclose(getattr(alone, name)[0], getattr(made, name)[i], rtol=0, atol=1e-12), name


def test_a_model_in_training_is_left_so_and_hides_the_same():
    model, images = mae().train(), drawn()
    model.blocks[0].eval()
    first, second = paint(model, images), paint(model, images)
    assert torch.equal(first.mask, second.mask)
    assert not first.prediction.requires_grad
    assert (model.training, model.blocks[0].training) == (True, False)
    assert torch.equal(first.mask, model.eval()(images).mask)


def test_what_cannot_be_painted_is_refused():
    model, images = mae(), drawn()
    with pytest.raises(ValueError, match="statistics is 'own': expected visible or original"):
        paint(model, images, statistics="own")
    with pytest.raises(ValueError, match="one of the 15 patches left to see"):
        paint(model, images, mask_ratio=0.99)
    with pytest.raises(ValueError, match="noise is of shape"):
        paint(model, images, noise=torch.zeros(3, 14))
    with pytest.raises(ValueError, match="this model reads"):
        paint(model, images[..., :16])
    with pytest.raises(ValueError, match="ViT paints no pictures: expected a masked autoencoder"):
        paint(sf.ViT(sf.ViTConfig(8, 4, dim=8, depth=1, heads=1)), images)
    model.decoder = None
    with pytest.raises(ValueError, match="no decoder, so it paints nothing"):
        paint(model, images)


# --- pictures


def test_pictures_have_the_levels_of_what_is_visible_and_grey_elsewhere():
    levels = Image.fromarray(np.random.RandomState(0).randint(0, 256, (12, 20, 3)).astype(np.uint8))
    made = paint(mae(dtype=torch.float32), PREPARED(levels)[None])
    (four,) = to_pictures(made, PREPARED)
    original, masked, prediction, pasted = (np.asarray(each) for each in four)
    hidden = spread(made.mask)[0, 0].numpy()
    assert (original == np.asarray(levels)).all()
    assert (masked[hidden] == 128).all()
    assert (masked[~hidden] == original[~hidden]).all()
    assert (pasted[~hidden] == original[~hidden]).all()
    assert (pasted[hidden] == prediction[hidden]).all()
    assert (pasted[hidden] != original[hidden]).any()


def test_grey_pictures_are_grey():
    levels = Image.fromarray(np.random.RandomState(0).randint(0, 256, (12, 20)).astype(np.uint8))
    made = paint(mae(channels=1, dtype=torch.float32), GREY(levels)[None])
    (four,) = to_pictures(made, GREY)
    assert [each.mode for each in four] == ["L"] * 4
    assert (np.asarray(four[1])[spread(made.mask)[0, 0].numpy()] == 128).all()
    seen = np.asarray(read(panel(made, GREY)))[100:, 12:300]
    assert (seen.max(-1) - seen.min(-1)).max() == 0, "no colours"


def test_numbers_that_no_picture_has_are_drawn():
    made = paint(mae(dtype=torch.float32), drawn(dtype=torch.float32) * 1000)
    panel(replace(made, prediction=torch.full_like(made.prediction, torch.nan)), PREPARED)


# --- panels


def read(figure, form="png"):
    file = io.BytesIO()
    figure.savefig(file, format=form)
    return Image.open(file).convert("RGB") if form == "png" else file.getvalue()


def texts(figure):
    return [text.get_text() for text in figure.texts]


def joined(figure):
    return " ".join(texts(figure))


TITLES = ["original", "masked", "prediction", "prediction pasted into visible"]


def test_every_pixel_of_a_small_picture_is_a_square_of_one_colour():
    made = paint(mae(dtype=torch.float32), drawn(dtype=torch.float32))
    figure = panel(made, PREPARED)
    seen, found = np.asarray(read(figure)), to_pictures(made, PREPARED)
    assert len(figure.axes) == 4
    for column, axes in enumerate(figure.axes):
        box = axes.get_position()
        left, right = (round(x * seen.shape[1]) for x in (box.x0, box.x1))
        top, bottom = (round((1 - y) * seen.shape[0]) for y in (box.y1, box.y0))
        assert (right - left, bottom - top) == (300, 180 * 3 + 15 * 2)
        for row in range(3):
            begin, levels = top + row * 195, np.asarray(found[row][column])
            assert (seen[begin : begin + 180, left:right] == levels.repeat(15, 0).repeat(15, 1)).all(), (row, column)


def test_a_panel_says_what_its_columns_are_and_the_note():
    made = paint(mae(dtype=torch.float32), drawn(dtype=torch.float32))
    assert texts(panel(made, PREPARED)) == TITLES
    figure = panel(made, PREPARED, note="After 3 $epochs$ of 4$.\nSecond line")
    assert joined(figure).startswith("After 3 $epochs$ of 4$.")
    top, title = figure.texts[0].get_position()[1], figure.texts[-1].get_position()[1]
    assert max(axes.get_position().y1 for axes in figure.axes) < top < title
    read(figure)
    figure = panel(made, PREPARED, note="word " * 200)
    assert len(texts(figure)) > 6
    figure.canvas.draw()
    for text in figure.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, "nothing leaves the panel"
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height


def test_statistics_of_the_original_are_labelled_on_the_panel_and_cannot_be_forgotten():
    images, said = drawn(dtype=torch.float32), "Hidden patches have been given the ORIGINAL's own means and deviations"
    norm, plain = (mae(norm=norm, dtype=torch.float32) for norm in (True, False))
    assert said in joined(panel(paint(norm, images, statistics="original"), PREPARED))
    assert said in joined(panel(paint(norm, images, statistics="original"), PREPARED, note="mine"))
    honest = joined(panel(paint(norm, images), PREPARED))
    assert "those of the visible patches around them" in honest
    assert "ORIGINAL" not in honest
    assert texts(panel(paint(plain, images, statistics="original"), PREPARED)) == TITLES, "nothing was undone"


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (16, 512), (350, 350), (900, 1300)])
def test_a_panel_of_any_size_is_sensible(size):
    x = torch.rand(2, 3, *size)
    made = Painting(x, x, x, x, torch.zeros(2, 1, dtype=torch.bool))
    if size[0] != size[1]:  # one patch is a square: to_pictures asks for the grid
        made = replace(made, mask=torch.zeros(2, size[0] * size[1], dtype=torch.bool))
    width, height = read(panel(made, Preprocess())).size
    assert 1200 < width < 2600
    assert 50 < height < 1400


@pytest.mark.parametrize(("form", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_panel_is_written_as_other_files_too(form, start):
    made = paint(mae(dtype=torch.float32), drawn(dtype=torch.float32))
    assert read(panel(made, PREPARED), form).startswith(start)


def test_many_pictures_fit_and_more_are_refused():
    x = torch.rand(100, 3, 12, 20)
    made = Painting(x, x, x, x, torch.zeros(100, 15, dtype=torch.bool))
    assert panel(made, PREPARED).bbox.height > 100 * 180, "each as large as it would be alone"
    for count in (0, 101):
        x = torch.rand(count, 3, 12, 20)
        with pytest.raises(ValueError, match=f"{count} pictures do not make a panel: expected 1 to 100"):
            panel(Painting(x, x, x, x, torch.zeros(count, 15, dtype=torch.bool)), PREPARED)
