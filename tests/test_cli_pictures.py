"""`classify` and `reconstruct` of pictures, as a person meets them."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from test_cli import refused, run
from test_encoders import WORDPIECE
from test_encoders import classifier as text_classifier
from test_picture_tasks import NAMES, mae, photo, vit

import scratchformers as sf
from scratchformers.cli import Classify, Reconstruct
from scratchformers.tasks import pictures as tasks


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of every kind."""
    path = tmp_path_factory.mktemp("models")
    vit(path / "vit")
    mae(path / "mae")
    mae(path / "structure", norm=True)
    text_classifier(path / "bert")
    torch.manual_seed(0)
    gpt2 = sf.GPT2(sf.GPT2Config(vocab=WORDPIECE.vocab, length=40, dim=16, depth=1, heads=2))
    gpt2.assets = WORDPIECE.files
    gpt2.save_pretrained(path / "gpt2")
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The working folder: pictures in two folders, two of them with one name."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("größe/a b.png", "größe/deeper/c.jpg", "zebra/a b.png", "zebra/d.webp")):
        path = tmp_path / "my photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(path)
    return tmp_path / "my photos"


NAMED = ["größe/a b.png", "größe/deeper/c.jpg", "zebra/a b.png", "zebra/d.webp"]


def bad(path, kind):
    """A file that is called a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "text":
        path.write_text("no picture\n", encoding="utf-8")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(path, "PNG")
    else:
        photo(size=(200, 200)).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:6000])
    return path


KINDS = {
    "text": "is no picture, or its beginning is lost",
    "empty": "is no picture, or its beginning is lost",
    "cut": "is truncated or corrupted",
    "bomb": "is too large",
}


def by_name(out):
    return {each["picture"]: each["labels"] for each in map(json.loads, out.splitlines())}


# --- classify


def test_classify_a_picture(capsys, models, photos):
    picture = photos / "zebra" / "a b.png"
    code, out, error = run(capsys, "classify", picture, "--model", models / "vit", "--top", 2)
    assert (code, error) == (0, "")
    wanted = sf.ImageClassifier.from_pretrained(models / "vit")(picture, top=2)
    assert out.splitlines() == [str(picture), *(f"  {each.score:7.2%}  {each.label}" for each in wanted)]
    code, out, error = run(capsys, "classify", picture, "--model", models / "vit", "--json")
    assert (code, error) == (0, "")
    (found,) = by_name(out).values()
    assert sorted(each["label"] for each in found) == sorted(NAMES)
    assert "größe" in out


def test_classify_a_folder_picture_by_picture(capsys, models, photos):
    code, out, error = run(capsys, "classify", photos, "--model", models / "vit", "--json")
    assert (code, error) == (0, "")
    ours, found = sf.ImageClassifier.from_pretrained(models / "vit"), by_name(out)
    assert list(found) == NAMED, "in order, and two of one name are two"
    for name, labels in found.items():
        wanted = [vars(each) for each in ours(photos / name)]
        assert [each["label"] for each in labels] == [each["label"] for each in wanted]
        assert [each["score"] for each in labels] == pytest.approx([each["score"] for each in wanted], abs=1e-6)


def test_classify_several_at_once(capsys, models, photos):
    given = ["my photos/zebra/d.webp", "my photos/größe"]
    code, out, error = run(capsys, "classify", *given, "--model", models / "vit", "--json", "--top", 1)
    assert (code, error) == (0, "")
    assert list(by_name(out)) == [
        "my photos/zebra/d.webp",
        "my photos/größe/a b.png",
        "my photos/größe/deeper/c.jpg",
    ]


def test_classify_what_a_list_or_a_packed_file_names(capsys, models, photos):
    (photos / "list.csv").write_text("path,label\nzebra/d.webp,x\ngröße/a b.png,y\n", encoding="utf-8")
    code, out, _ = run(capsys, "classify", photos / "list.csv", "--model", models / "vit", "--json")
    assert (code, list(by_name(out))) == (0, ["zebra/d.webp", "größe/a b.png"])
    np.savez(photos / "some.npz", images=np.stack([np.asarray(photo(i, (9, 7))) for i in range(3)]))
    code, out, _ = run(capsys, "classify", photos / "some.npz", "--model", models / "vit", "--json")
    assert (code, list(by_name(out))) == (0, ["some.npz[0]", "some.npz[1]", "some.npz[2]"])


def test_answers_come_before_the_last_picture_was_decoded(capsys, models, tmp_path, monkeypatch):
    for i in range(50):
        photo(size=(9, 7)).save(tmp_path / f"{i:02}.png")
    decoded, seen, load = [], [], ImageFile.ImageFile.load
    real = tasks.ImageClassifier.__call__
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image) or load(image))
    monkeypatch.setattr(
        tasks.ImageClassifier, "__call__",
        lambda self, images, **how: seen.append(len({id(each) for each in decoded})) or real(self, images, **how),
    )  # fmt: skip
    code, out, _ = run(capsys, "classify", tmp_path, "--model", models / "vit", "--json", "--top", 1)
    assert (code, list(by_name(out))) == (0, [f"{i:02}.png" for i in range(50)])
    assert len(seen) == 4
    assert seen[0] <= 2 * tasks.BATCH + 1, "a batch is read ahead, and no more"
    assert seen[1] <= 3 * tasks.BATCH + 1


def test_classify_still_reads_texts(capsys, models, photos):
    code, out, error = run(capsys, "classify", "it is", "--model", models / "bert", "--json")
    assert (code, error) == (0, "")
    assert json.loads(out)["text"] == "it is"
    (photos / "lines.txt").write_text("it is\nThe value.\n", encoding="utf-8")
    code, out, _ = run(capsys, "classify", photos / "lines.txt", "--model", models / "bert", "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["it is", "The value."]
    code, out, _ = run(capsys, "classify", "my photos", "--model", models / "bert", "--json")
    assert (code, json.loads(out)["text"]) == (0, "my photos"), "the model says what is read: here that is a text"


@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_picture_is_one_sentence(capsys, models, photos, kind):
    path = bad(photos / "a.jpg", kind)
    for command, *rest in (("classify",), ("reconstruct", "--out", photos / "panel.png")):
        model = models / {"classify": "vit", "reconstruct": "mae"}[command]
        said = refused(capsys, command, path, "--model", model, *rest)
        assert f"a.jpg {KINDS[kind]}" in said
    assert not (photos / "panel.png").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_that_a_picture_is_bad_is_said_before_a_model_is_fetched(capsys, photos, kind):
    assert KINDS[kind] in refused(capsys, "classify", bad(photos / "a.jpg", kind), "--model", photos / "no model")


@pytest.mark.parametrize("size", [(1, 1), (20_000, 3), (3, 20_000), (20_000, 1)])
def test_pictures_of_odd_sizes_are_pictures(capsys, models, photos, size):
    Image.new("RGB", size, "red").save(photos / "odd.png")
    assert run(capsys, "classify", photos / "odd.png", "--model", models / "vit")[0] == 0
    asked = ("reconstruct", photos / "odd.png", "--model", models / "mae", "--out", photos / "panel.png")
    assert run(capsys, *asked)[0] == 0
    assert Image.open(photos / "panel.png").size[0] > 1000


def test_an_unreadable_picture_in_a_folder_stops_all_by_default(capsys, models, photos):
    bad(photos / "größe" / "deeper" / "b.jpg", "text")
    said = refused(capsys, "classify", photos, "--model", models / "vit")
    assert "1 of 5 pictures cannot be read" in said
    assert "b.jpg" in said
    assert "--skip-unreadable" in said


def test_one_that_is_cut_stops_at_its_turn_and_nothing_before_is_lost(capsys, models, photos):
    bad(photos / "zebra" / "b.jpg", "cut")
    code, out, error = run(capsys, "classify", photos, "--model", models / "vit", "--json")
    assert (code, list(by_name(out))) == (2, NAMED[:3])
    assert error.count("\n") == 1
    assert "b.jpg is truncated or corrupted" in error
    given = [photos / NAMED[0], photos / "zebra" / "b.jpg", photos / NAMED[1]]
    code, out, error = run(capsys, "classify", *given, "--model", models / "vit", "--json")
    assert (code, list(by_name(out)), error.count("\n")) == (2, [str(given[0])], 1)


def test_unreadable_pictures_are_skipped_on_request_counted_and_named(capsys, models, photos):
    names = ("größe/a.jpg", "zebra/b.jpg", "zebra/e.png", "zebra/f.png")
    for name, kind in zip(names, ("text", "cut", "bomb", "empty")):
        bad(photos / name, kind)
    code, out, error = run(capsys, "classify", photos, "--model", models / "vit", "--json", "--skip-unreadable")
    assert (code, list(by_name(out))) == (0, NAMED)
    count, *said = error.splitlines()
    assert count == "scratchformers: 4 of 8 pictures could not be read, and were skipped:"
    assert sorted(said) == [f"  {name}" for name in names]
    given = [photos / "zebra", photos / "größe" / "a.jpg", photos / NAMED[1]]
    code, out, error = run(capsys, "classify", *given, "--model", models / "vit", "--json", "--skip-unreadable")
    assert (code, len(by_name(out)), error.count("\n")) == (0, 3, 5)
    code, out, error = run(capsys, "classify", given[1], "--model", models / "vit", "--skip-unreadable")
    assert (code, out) == (2, "")
    assert "None of the pictures could be read" in error


@pytest.mark.parametrize("one", [False, True])
def test_a_picture_that_grows_too_long_is_named(capsys, models, photos, tmp_path, one):
    """It is whole, but what it would become is not to be held."""
    uncropped = sf.images.Preprocess(200, None)
    vit(tmp_path / "vit", preprocess=uncropped)
    said = json.loads((tmp_path / "vit" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert "crop_size" not in said
    Image.new("RGB", (70_000, 1)).save(photos / "long.png")
    found = refused if one else run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sf.images, "LARGEST", 10_000)
        given = photos / "long.png" if one else photos
        said = found(capsys, "classify", given, "--model", tmp_path / "vit")
    if one:
        assert "long.png: The picture is 70000 x 1 pixels" in said
    else:
        code, out, error = said
        assert (code, out.count(".png\n")) == (2, 1), "what comes before it in order is answered"
        assert "long.png: The picture is 70000 x 1 pixels" in error


def test_classify_refuses_in_a_sentence(capsys, models, photos):
    ask = lambda *rest, model="vit": refused(capsys, "classify", *rest, "--model", models / model)  # noqa: E731
    picture = photos / NAMED[0]
    assert "There is nothing to classify: pass a text, or a picture" in ask()
    assert "There is no file 'missing.jpg': expected a picture, or a folder of them" in ask("missing.jpg")
    assert "There is no file 'What a film!'" in ask("What a film!")
    assert "There is no file 'a\\nb'" in ask("a\nb")
    assert "There is no file 'xxx" in ask("x" * 5000)
    assert "GPT2 reads no pictures: expected a model that does, like ViT" in ask(picture, model="gpt2")
    assert "BERT reads no pictures" in ask(picture, model="bert")
    assert "There is no file 'it is'" in ask(picture, "it is", model="bert")
    assert "This checkpoint has no labels" in ask(picture, model="mae")
    assert "This checkpoint has no labels" in ask(photos, model="mae")
    assert "GPT2 writes texts" in ask("it is", model="gpt2")
    assert "does not exist" in ask(picture, model="nowhere")
    assert "top is 0: expected at least 1" in ask(picture, "--top", 0)
    assert "--pair and --truncate are for texts" in ask(picture, "--pair", "x")
    assert "--pair and --truncate are for texts" in ask(photos, "--truncate")
    assert "--skip-unreadable is for pictures" in ask("it is", "--skip-unreadable", model="bert")
    assert "These are 2 texts: put quotes around one" in ask("it", "is", model="bert")
    assert "no device 'toaster'" in ask(picture, "--device", "toaster")
    (photos / "nothing").mkdir()
    assert "nothing holds no pictures" in ask(photos / "nothing")
    (photos / "lines.txt").write_text("it is\n", encoding="utf-8")
    assert "lines.txt holds no pictures, by its name" in ask(photos / "lines.txt")


# --- reconstruct


def panel_of(capsys, models, out, *rest, model="mae"):
    code, said, error = run(capsys, "reconstruct", *rest, "--model", models / model, "--out", out)
    assert (code, said, error) == (0, "", "")
    return np.asarray(Image.open(out).convert("RGB"))


def test_reconstruct_draws_the_panel_of_the_task(capsys, models, photos):
    picture, out = photos / NAMED[0], photos / "panel.png"
    seen = panel_of(capsys, models, out, picture, "--mask", 0.5, "--seed", 3)
    ours = sf.Reconstructor.from_pretrained(models / "mae")
    note = f"{models / 'mae'}: 0.5 of the patches hidden, seed 3."
    ours.panel(picture, mask_ratio=0.5, seed=3, note=note).savefig(photos / "ours.png")
    assert (seen == np.asarray(Image.open(photos / "ours.png").convert("RGB"))).all()
    assert (panel_of(capsys, models, out, picture, "--mask", 0.5, "--seed", 3) == seen).all()
    assert (panel_of(capsys, models, out, picture, "--mask", 0.5, "--seed", 4) != seen).any()
    assert sorted(path.name for path in photos.iterdir() if path.is_file()) == ["ours.png", "panel.png"]


def test_reconstruct_is_honest_unless_told_and_then_the_picture_says_so(capsys, models, photos):
    picture, out = photos / NAMED[0], photos / "panel.png"
    red = lambda pixels: (pixels == (178, 34, 34)).all(-1).any()  # noqa: E731
    plain = panel_of(capsys, models, out, picture, model="structure")
    assert not red(plain)
    assert red(panel_of(capsys, models, out, picture, "--statistics", "original", model="structure"))
    pixels = panel_of(capsys, models, out, picture)
    assert (panel_of(capsys, models, out, picture, "--statistics", "original") == pixels).all()


def test_reconstruct_a_folder_row_by_row_and_other_files(capsys, models, photos):
    one = panel_of(capsys, models, photos / "one.png", photos / NAMED[0])
    four = panel_of(capsys, models, photos.parent / "four.PNG", *(photos / name for name in NAMED))
    assert four.shape[0] > 3 * one.shape[0]
    for name, start in (("a.svg", b"<?xml"), ("a.pdf", b"%PDF")):
        code, _, _ = run(capsys, "reconstruct", photos, "--model", models / "mae", "--out", photos / name)
        assert code == 0
        assert (photos / name).read_bytes().startswith(start)


def test_reconstruct_skips_on_request(capsys, models, photos):
    bad(photos / "größe" / "a.jpg", "text")
    bad(photos / "zebra" / "b.jpg", "cut")
    asked = ("reconstruct", photos, "--model", models / "mae", "--out", photos.parent / "panel.png")
    assert "1 of 6 pictures cannot be read" in refused(capsys, *asked)
    assert not (photos.parent / "panel.png").exists()
    code, _, error = run(capsys, *asked, "--skip-unreadable")
    assert (code, error.splitlines()[1:]) == (0, ["  größe/a.jpg", "  zebra/b.jpg"])
    assert (photos.parent / "panel.png").exists()


def test_reconstruct_refuses_in_a_sentence_and_loses_nothing(capsys, models, photos):
    picture = photos / NAMED[0]

    def ask(*rest, given=(picture,), model="mae", out=photos / "panel.png"):
        return refused(capsys, "reconstruct", *given, *rest, "--model", models / model, "--out", out)

    for mask in (0, 1, -0.5, 1.5, "nan"):
        assert "mask_ratio (--mask) is" in ask("--mask", mask, model="nowhere"), "before a model is fetched"
    assert "one of the 16 patches left to see" in ask("--mask", 0.97)
    assert "seed is -1" in ask("--seed", -1)
    assert "GPT2 reads no pictures" in ask(model="gpt2")
    assert "ViT paints no pictures: expected a masked autoencoder" in ask(model="vit")
    assert "There is no file 'missing.jpg'" in ask(given=["missing.jpg"])
    assert "0 pictures do not make a panel" in ask(given=[])
    (photos / "nothing").mkdir()
    assert "nothing holds no pictures" in ask(given=[photos / "nothing"])
    assert "must end in .png, .svg or .pdf" in ask(out=photos / "panel.jpg")
    assert "must end in .png, .svg or .pdf" in ask(out=photos / "panel")
    assert "does not exist: make it first" in ask(out=photos / "no folder" / "panel.png")
    np.savez(photos / "nothing" / "many.npz", images=np.zeros((101, 5, 5), np.uint8))
    assert "101 pictures do not make a panel: expected 1 to 100" in ask(given=[photos / "nothing" / "many.npz"])
    assert not [path for path in photos.iterdir() if path.is_file()]


def test_a_panel_is_never_written_over_a_picture_it_shows(capsys, models, photos):
    before = {name: (photos / name).read_bytes() for name in NAMED}
    (photos / "list.csv").write_text("path\nzebra/a b.png\n", encoding="utf-8")
    os.link(photos / NAMED[0], photos.parent / "same.png")
    for given, out in (
        (photos / NAMED[0], photos / NAMED[0]),
        (photos / NAMED[0], photos.parent / "same.png"),
        (photos, photos / NAMED[2]),
        (photos / "list.csv", photos / NAMED[2]),
        ("my photos/zebra", photos / NAMED[2]),
    ):
        said = refused(capsys, "reconstruct", given, "--model", models / "mae", "--out", out)
        assert "is one of the pictures: choose another file" in said
    assert {name: (photos / name).read_bytes() for name in NAMED} == before


def test_an_encoder_paints_nothing(capsys, models, photos, tmp_path):
    encoder = sf.load(models / "mae")
    encoder.decoder = None
    encoder.save_pretrained(tmp_path / "encoder")
    said = refused(capsys, "reconstruct", photos, "--model", tmp_path / "encoder", "--out", photos / "a.png")
    assert "This MAE has no decoder, so it paints nothing: choose a file that has one" in said
    assert not (photos / "a.png").exists()


def test_a_stopped_command_says_where_it_is(capsys, models, photos, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks.ImageClassifier, "__call__", stop)
    code, _, error = run(capsys, "classify", photos, "--model", models / "vit")
    assert (code, error) == (130, f"scratchformers: interrupted; {Classify.interrupted(None)}.\n")
    monkeypatch.setattr(tasks.Reconstructor, "panel", stop)
    code, _, error = run(capsys, "reconstruct", photos, "--model", models / "mae", "--out", photos / "a.png")
    assert (code, error) == (130, f"scratchformers: interrupted; {Reconstruct.interrupted(None)}.\n")
    assert not (photos / "a.png").exists()


def test_what_cannot_be_written_leaves_the_old_panel(capsys, models, photos, monkeypatch):
    out = photos.parent / "panel.png"
    out.write_bytes(b"old")

    def full(self, path, **_):
        shutil.copy(photos / NAMED[0], path)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert "No space left" in refused(capsys, "reconstruct", photos, "--model", models / "mae", "--out", out)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in photos.parent.iterdir()) == ["my photos", "panel.png"]
