"""`ImageClassifier` and `Reconstructor`: a picture in, answers out, beside transformers where it has them."""

import io
from dataclasses import replace

import numpy as np
import pytest
import reference  # noqa: F401 (before transformers is imported)
import torch
from PIL import Image
from test_painting import texts
from transformers import ViTConfig, ViTForImageClassification, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import scratchformers as sf
from scratchformers.checkpoints import files
from scratchformers.images import IMAGENET, Preprocess
from scratchformers.tasks import pictures as tasks

NAMES = ("ape", "größe", "zebra")
EXACT = Preprocess((32, 32), mean=IMAGENET[0], std=IMAGENET[1])
SMALL = sf.MAEConfig(32, 8, dim=32, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)


def photo(seed=0, size=(45, 37)):
    """Shapes under noise, (width, height)."""
    draw = np.random.RandomState(seed)
    coarse = Image.fromarray(draw.randint(0, 256, (4, 5, 3)).astype(np.uint8)).resize(size)
    return Image.fromarray((np.asarray(coarse) // 2 + draw.randint(0, 128, (size[1], size[0], 3))).astype(np.uint8))


def scramble(model, seed=0):
    """Every parameter drawn anew: a new head says the same of everything."""
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * 0.2))
    return model.eval()


def vit(folder, *, preset="tiny", preprocess=EXACT, seed=0, labels=NAMES, **changes):
    config = replace(sf.ViT.preset(preset), dim=32, depth=2, heads=2, classes=len(labels) or None, **changes)
    model = sf.ViT(config)
    if labels:
        model.head = sf.Classify(32, labels, pool=model.pool)
    if preprocess is not None:
        model.assets["preprocessor_config.json"] = files.to_json(preprocess.write())
    scramble(model, seed).save_pretrained(folder)
    return folder


def mae(folder, *, norm=False, preprocess=EXACT, **changes):
    model = scramble(sf.MAE(replace(SMALL, norm_pix_loss=norm, **changes)))
    model.assets["preprocessor_config.json"] = files.to_json(preprocess.write())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return sf.ImageClassifier.from_pretrained(vit(tmp_path_factory.mktemp("vit")))


@pytest.fixture(scope="module", params=[False, True], ids=["pixels", "structure"])
def painter(request, tmp_path_factory):
    return sf.Reconstructor.from_pretrained(mae(tmp_path_factory.mktemp("mae"), norm=request.param))


# --- classifying


def test_labels_are_those_of_the_head_the_most_probable_first(classifier):
    picture = photo()
    found = classifier(picture)
    with torch.no_grad():
        shares = classifier.model(EXACT(picture)[None])[0].softmax(-1)
    wanted = sorted(zip(shares.tolist(), NAMES), reverse=True)
    assert [each.label for each in found] == [label for _, label in wanted]
    assert [each.score for each in found] == pytest.approx([share for share, _ in wanted], abs=1e-6)
    assert isinstance(found[0], sf.Label)
    assert len({round(classifier(photo(i))[0].score, 3) for i in range(9)}) > 5, "else anything would pass"


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        (7, None),
        (7, "single_label_classification"),
        (7, "multi_label_classification"),
        (1, None),
        (2, "regression"),
    ],
)
def test_labels_are_those_of_the_pipeline(tmp_path, count, problem):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=31, image_size=32, patch_size=8,
        id2label={i: f"n{i}" for i in range(count)}, label2id={f"n{i}": i for i in range(count)}, problem_type=problem,
    )  # fmt: skip
    theirs = ViTForImageClassification(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    ours, pipe = (
        sf.ImageClassifier.from_pretrained(tmp_path),
        pipeline("image-classification", theirs, image_processor=processor),
    )
    for i in range(4):
        found, wanted = ours(photo(i), top=None), pipe(photo(i), top_k=count)
        assert [each.label for each in found] == [each["label"] for each in wanted]
        assert [each.score for each in found] == pytest.approx([each["score"] for each in wanted], abs=2e-6, rel=1e-5)


def test_a_list_gives_a_list_and_top_is_how_many(classifier):
    assert len(classifier(photo(), top=2)) == 2
    assert len(classifier(photo(), top=9)) == 3
    assert len(classifier(photo(), top=None)) == 3
    assert classifier([]) == []
    (found,) = classifier([photo()], top=1)
    assert found == classifier(photo(), top=1)
    with pytest.raises(ValueError, match="top is 0: expected at least 1"):
        classifier(photo(), top=0)


def test_five_labels_by_default(tmp_path):
    many = sf.ImageClassifier.from_pretrained(vit(tmp_path, labels=[f"n{i}" for i in range(11)]))
    assert [len(each) for each in many([photo(), photo(1)])] == [5, 5]


def test_an_answer_does_not_depend_on_the_others(classifier):
    """Of more pictures than are computed at once, of all sizes."""
    given = [photo(i, (20 + 3 * i, 60 - i)) for i in range(2 * tasks.BATCH + 3)]
    together = classifier(given, top=None)
    for picture, found in zip(given, together, strict=True):
        alone = classifier(picture, top=None)
        assert [each.label for each in found] == [each.label for each in alone]
        assert [each.score for each in found] == pytest.approx([each.score for each in alone], abs=1e-6)


def test_a_file_its_bytes_and_what_is_in_it_are_one_picture(classifier, tmp_path):
    picture = photo()
    file = io.BytesIO()
    picture.save(file, "PNG")
    (tmp_path / "größe.png").write_bytes(file.getvalue())
    prepared = classifier.prepare(picture)
    given = [picture, tmp_path / "größe.png", str(tmp_path / "größe.png"), file.getvalue(), prepared]
    found = classifier(given)
    assert [each == found[0] for each in found] == [True] * 5
    assert classifier(torch.stack([prepared, prepared])) == found[:2], "a batch, prepared elsewhere"
    assert [each.label for each in classifier(prepared)] == [each.label for each in found[0]]


def test_a_photograph_is_turned_upright_whoever_opened_it(classifier, tmp_path):
    upright, path = photo(3), tmp_path / "phone.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert torch.equal(classifier.prepare(path), classifier.prepare(upright))
    assert torch.equal(classifier.prepare(Image.open(path)), classifier.prepare(upright))
    assert not torch.equal(EXACT(Image.open(path)), EXACT(upright))


def test_pictures_are_prepared_for_the_size_that_is_asked_for(tmp_path):
    cropped = Preprocess(40, (32, 32))
    folder = vit(tmp_path, preprocess=cropped)
    larger = replace(sf.load(folder).config, image=64)
    found = sf.ImageClassifier.from_pretrained(folder, config=larger)
    assert found.preprocess == Preprocess(80, (64, 64))
    assert found.model.config.image == 64
    assert len(found(photo())) == 3
    assert sf.ImageClassifier.from_pretrained(folder).preprocess == cropped


def test_how_pictures_are_prepared_may_be_said(tmp_path):
    folder = vit(tmp_path, preset="simple", preprocess=None)
    with pytest.raises(ValueError, match="does not say how pictures are prepared"):
        sf.ImageClassifier.from_pretrained(folder)
    found = sf.ImageClassifier.from_pretrained(folder, preprocess=Preprocess(64))
    assert found.preprocess == Preprocess(64).sized(32)
    assert len(found(photo())) == 3


def test_a_model_of_another_kind_is_refused_in_a_sentence(tmp_path, classifier):
    gpt2 = sf.GPT2(sf.GPT2Config(vocab=9, length=8, dim=8, depth=1, heads=1))
    with pytest.raises(ValueError, match="GPT2 reads no pictures: expected a model that does, like ViT"):
        sf.ImageClassifier(gpt2, EXACT)
    gpt2.save_pretrained(tmp_path / "gpt2")
    for task in (sf.ImageClassifier, sf.Reconstructor):
        with pytest.raises(ValueError, match="GPT2 reads no pictures"):
            task.from_pretrained(tmp_path / "gpt2")
    for folder in (vit(tmp_path / "headless", labels=()), mae(tmp_path / "mae")):
        with pytest.raises(ValueError, match="This checkpoint has no labels: train it with `train vit`"):
            sf.ImageClassifier.from_pretrained(folder)
    with pytest.raises(ValueError, match="prepared with 1 channels and the model reads 3: pass a preprocess="):
        sf.ImageClassifier(classifier.model, Preprocess((32, 32), mean=(0.5,), std=(0.5,)))
    with pytest.raises(ValueError, match="this model reads"):
        classifier(torch.zeros(3, 31, 32))


def test_what_is_no_picture_is_refused_by_its_name(classifier, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jpg is no picture, or its beginning is lost"):
        classifier([photo(), tmp_path / "a.jpg"])
    with pytest.raises(FileNotFoundError, match=r"b\.jpg is no file: expected a picture"):
        classifier(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="is no picture"):
        classifier(b"no picture")


def test_the_model_is_left_as_it_was(tmp_path):
    """In training and with gradients: dropout acts neither in an answer nor in what follows it."""
    found = sf.ImageClassifier.from_pretrained(vit(tmp_path, dropout=0.5))
    found.model.train()
    assert found(photo()) == found(photo())
    assert found.model.training
    assert found.model(EXACT(photo())[None]).requires_grad


def test_one_loading_is_enough(tmp_path, monkeypatch):
    """That of how pictures are prepared asks the model, where no file says it."""
    folder, loads, real = vit(tmp_path, preprocess=None), [], tasks.models.load
    monkeypatch.setattr(tasks.models, "load", lambda *given, **more: loads.append(1) or real(*given, **more))
    sf.ImageClassifier.from_pretrained(folder)
    assert len(loads) == 1


def answers_of_the_first(patch):
    prepare = tasks.ImageClassifier.prepare
    repeat = lambda self, given: [torch.stack([prepare(self, given[0])] * len(given))]  # noqa: E731
    patch.setattr(tasks.ImageClassifier, "_batches", repeat)


def answers_backwards(patch):
    real = tasks.most_probable
    patch.setattr(tasks, "most_probable", lambda shares, *rest: real(-shares, *rest))


def never_turned(patch):
    patch.setattr(tasks, "upright", lambda picture: picture)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (answers_of_the_first, test_an_answer_does_not_depend_on_the_others),
        (answers_backwards, test_labels_are_those_of_the_head_the_most_probable_first),
        (never_turned, test_a_photograph_is_turned_upright_whoever_opened_it),
    ],
)
def test_a_planted_mistake_is_caught(classifier, tmp_path, plant, check):
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            check(*(classifier, tmp_path)[: check.__code__.co_argcount])


# --- reconstructing


def levels(found):
    return {name: np.asarray(picture) for name, picture in vars(found).items()}


def equal(a, b):
    return {name for name, one in levels(a).items() if (one == levels(b)[name]).all()}


ALL = {"original", "masked", "prediction", "pasted"}


def test_a_reconstruction_is_four_pictures(painter):
    found = painter(photo())
    assert isinstance(found, sf.Reconstruction)
    assert {(picture.mode, picture.size) for picture in vars(found).values()} == {("RGB", (32, 32))}
    assert (levels(found)["original"] == np.asarray(EXACT.pixels(photo()))).all()
    grey = (levels(found)["masked"] == 128).all(-1)
    assert abs(grey.mean() - 0.75) < 0.01
    assert (levels(found)["pasted"][~grey] == levels(found)["original"][~grey]).all()
    assert (levels(found)["pasted"][grey] == levels(found)["prediction"][grey]).all()
    assert equal(found, painter([photo()])[0]) == ALL
    assert painter([]) == []


def test_the_seed_draws_what_is_hidden_whatever_stands_beside(painter):
    given = [photo(i) for i in range(tasks.BATCH + 2)]
    together = painter(given, seed=3)
    hidden = [(levels(each)["masked"] == 128).all(-1) for each in together]
    for picture, found, mask in zip(given, together, hidden, strict=True):
        alone = painter(picture, seed=3)
        assert (mask == hidden[0]).all()
        assert equal(alone, found) >= {"original", "masked"}
        assert np.abs(levels(alone)["pasted"].astype(int) - levels(found)["pasted"]).max() <= 1
    assert equal(painter(photo(), seed=3), painter(photo(), seed=3)) == ALL
    assert equal(painter(photo(), seed=3), painter(photo(), seed=4)) == {"original"}
    assert equal(painter(photo()), painter(photo(), seed=0)) == ALL, "0 by default, never by chance"
    half = (levels(painter(photo(), mask_ratio=0.5))["masked"] == 128).all(-1).mean()
    assert abs(half - 0.5) < 0.01


def test_hidden_pixels_change_nothing_of_the_pictures(painter):
    """Those of a file as large as the model reads, so that no pixel is made of several."""
    picture = photo(1, (32, 32))
    found = painter(picture)
    hidden = (levels(found)["masked"] == 128).all(-1)
    other = Image.fromarray(np.where(hidden[..., None], np.asarray(photo(2, (32, 32))), np.asarray(picture)))
    assert equal(found, painter(other)) == ALL - {"original"}
    found, leaked = (painter(each, statistics="original") for each in (picture, other))
    structure = painter.model.config.norm_pix_loss
    assert equal(found, leaked) == ({"masked"} if structure else ALL - {"original"})


def test_a_panel_of_one_and_of_several(painter):
    one = painter.panel(photo())
    several = painter.panel([photo(i) for i in range(tasks.BATCH + 1)], seed=2, mask_ratio=0.5, note="my note")
    assert several.bbox.height > 15 * (one.bbox.height - 100)
    assert texts(several)[-4:] == ["original", "masked", "prediction", "prediction pasted into visible"]
    assert "my note" in texts(several)
    made = painter(photo(4), seed=2, mask_ratio=0.5)
    column = painter.panel(photo(4), seed=2, mask_ratio=0.5).axes[3].images[0].get_array()
    assert (np.asarray(column) == levels(made)["pasted"]).all()
    for statistics in ("visible", "original"):
        labelled = any("ORIGINAL" in text for text in texts(painter.panel(photo(), statistics=statistics)))
        assert labelled is (statistics == "original" and painter.model.config.norm_pix_loss)
    with pytest.raises(ValueError, match="101 pictures do not make a panel: expected 1 to 100"):
        painter.panel([photo()] * 101)


def test_grey_pictures_are_reconstructed_grey(tmp_path):
    grey = Preprocess((32, 32), mean=(0.3,), std=(0.2,))
    scramble(sf.MAE(replace(SMALL, channels=1))).save_pretrained(tmp_path)
    found = sf.Reconstructor.from_pretrained(tmp_path, preprocess=grey)(photo())
    assert {picture.mode for picture in vars(found).values()} == {"L"}


def test_a_model_that_paints_nothing_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="ViT paints no pictures: expected a masked autoencoder, MAE"):
        sf.Reconstructor.from_pretrained(vit(tmp_path / "vit"))
    encoder = sf.MAE(SMALL)
    encoder.decoder = None
    with pytest.raises(ValueError, match="This MAE has no decoder, so it paints nothing: choose a file that has one"):
        sf.Reconstructor(encoder, EXACT)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
def test_a_part_that_cannot_be_hidden_is_refused(painter, ratio):
    for ask in (painter, painter.panel):
        with pytest.raises(ValueError, match=rf"mask_ratio \(--mask\) is {ratio}: expected a part between 0 and 1"):
            ask(photo(), mask_ratio=ratio)


def test_settings_that_cannot_be_are_refused(painter):
    with pytest.raises(ValueError, match="seed is -1: expected 0 <= seed"):
        painter(photo(), seed=-1)
    with pytest.raises(ValueError, match="statistics is 'mine': expected visible or original"):
        painter(photo(), statistics="mine")
    with pytest.raises(ValueError, match="one of the 16 patches left to see"):
        painter(photo(), mask_ratio=0.97)
