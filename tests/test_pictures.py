"""What `--data` takes for models of pictures: folders, lists, packed files; and what is said of what does not fit."""

import gzip
import io
import os
import struct
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from scratchformers.training.pictures import Pictures, read_pictures, split

COLOURS = [(250, 10, 20), (10, 200, 30), (20, 30, 240), (200, 200, 10), (5, 5, 5), (120, 0, 120)]


def draw(path, number=0, size=(5, 4), **how):
    """A picture of one colour, told from others by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[number]).save(path, **how)
    return path


def encoded(number=0, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), COLOURS[number]).save(file, form)
    return file.getvalue()


def colours(pictures):
    return [pictures.image(i).convert("RGB").getpixel((0, 0)) for i in range(len(pictures))]


def names(pictures):
    return [pictures.name(i) for i in range(len(pictures))]


def classes(pictures):
    return [pictures.labels[target] for target in pictures.targets]


def refused(path, said, **how):
    """Reading is a ValueError of one sentence."""
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        read_pictures(path, **how)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    assert str(error.value).count(". ") == 0, "one sentence"


# --- folders


@pytest.fixture
def folder(tmp_path):
    """Two classes, with names as people give them."""
    root = tmp_path / "my pictures"
    draw(root / "zebra (größe)" / "a b.png", 0)
    draw(root / "zebra (größe)" / "deeper" / "still" / "é.PNG", 1)
    draw(root / "ape" / "a b.png", 2)
    draw(root / "ape" / "c.bmp", 3)
    return root


def test_a_folder_for_each_class(folder):
    found = read_pictures(folder, labelled=True)
    assert found.labels == ("ape", "zebra (größe)")
    assert names(found) == ["ape/a b.png", "ape/c.bmp", "zebra (größe)/a b.png", "zebra (größe)/deeper/still/é.PNG"]
    assert found.targets == [0, 0, 1, 1], "two pictures of one name in two classes are two"
    assert colours(found) == [COLOURS[2], COLOURS[3], COLOURS[0], COLOURS[1]]
    assert found.skipped == []
    again = read_pictures(str(folder))
    assert (names(again), again.labels, again.targets) == (names(found), found.labels, found.targets)
    assert again.digest() == found.digest()


def test_classes_are_ignored_on_request(folder):
    found = read_pictures(folder, labelled=False)
    assert (len(found), found.labels, found.targets) == (4, (), [])
    assert found.digest() != read_pictures(folder).digest(), "with classes it is other data"


def test_a_folder_with_pictures_outside_its_folders_has_no_classes(folder):
    draw(folder / "b.png", 4)
    found = read_pictures(folder)
    assert (len(found), found.labels, found.targets) == (5, (), [])
    assert "b.png" in names(found)
    refused(folder, r"has no classes \(b.png lies in none\): expected a folder for each", labelled=True)


def test_one_folder_only_is_no_class(tmp_path):
    draw(tmp_path / "images" / "a.png", 0)
    draw(tmp_path / "images" / "b.png", 1)
    found = read_pictures(tmp_path)
    assert (len(found), found.labels, found.targets) == (2, (), [])
    refused(tmp_path, "is of the class 'images': there is nothing to tell apart, expected two classes", labelled=True)


def test_every_format_is_found_whatever_the_case_of_its_name(tmp_path):
    for name in ["a.jpg", "b.JPEG", "c.png", "d.WebP", "e.bmp", "f.gif", "g.tif", "h.TIFF", "i.ppm", "j.jp2"]:
        draw(tmp_path / name, 1)
    Image.new("L", (3, 2), 9).save(tmp_path / "k.pgm")
    Image.new("L", (3, 2), 9).save(tmp_path / "l.jpeg")
    found = read_pictures(tmp_path)
    assert [name[0] for name in names(found)] == list("abcdefghijkl")
    assert all(found.image(i).size in ((5, 4), (3, 2)) for i in range(len(found)))


def test_hidden_files_and_other_kinds_are_no_pictures(folder):
    before = names(read_pictures(folder))
    draw(folder / ".hidden.png")
    draw(folder / "ape" / "._a b.png")
    draw(folder / ".thumbnails" / "a.png")
    draw(folder / "__MACOSX" / "ape" / "a.png")
    (folder / "README.md").write_text("read me")
    (folder / "ape" / "Thumbs.db").write_bytes(b"\0")
    (folder / "ape" / "folder.png").mkdir()
    assert names(read_pictures(folder, labelled=True)) == before


def test_linked_folders_are_read_and_a_circle_ends(folder, tmp_path):
    draw(tmp_path / "elsewhere" / "x.png", 4)
    (folder / "bee").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "ape" / "up").symlink_to(folder, target_is_directory=True)
    found = read_pictures(folder)
    assert found.labels == ("ape", "bee", "zebra (größe)")
    assert len(found) == 5
    assert colours(found)[2] == COLOURS[4]


def test_an_empty_class_is_named(folder):
    (folder / "cow" / "nothing").mkdir(parents=True)
    refused(folder, r"The class 'cow' has no pictures: put some into .*cow, or remove that folder")
    refused(folder, "The class 'cow' has no pictures", labelled=True)
    assert len(read_pictures(folder, labelled=False)) == 4


def test_parts_of_a_data_set_are_not_taken_for_classes(tmp_path):
    for part in ("Train", "test"):
        draw(tmp_path / part / "ape" / "a.png")
    refused(tmp_path, "holds Train and test, parts of a data set and no classes: pass one of them", labelled=True)
    assert len(read_pictures(tmp_path, labelled=False)) == 2
    draw(tmp_path / "ape" / "a.png")
    assert read_pictures(tmp_path).labels == ("Train", "ape", "test"), "beside others they may be"


def test_nothing_to_read_is_said(tmp_path):
    refused(tmp_path / "no", "no does not exist: expected a folder of pictures, a list")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty holds no pictures: expected .jpg")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path / "notes.txt", "notes.txt holds no pictures, by its name: expected a folder")
    refused(tmp_path, "holds no pictures", labelled=True)


def test_one_picture(tmp_path):
    found = read_pictures(draw(tmp_path / "a photo.png", 2))
    assert (names(found), colours(found), found.labels) == (["a photo.png"], [COLOURS[2]], ())
    refused(tmp_path / "a photo.png", "is one picture: expected two classes", labelled=True)
    (tmp_path / "text.jpg").write_text("hello")
    refused(tmp_path / "text.jpg", r"No picture of .*text.jpg can be read: .*text.jpg \(it is no picture\)")


def test_a_folder_that_may_not_be_read_is_said(folder, monkeypatch):
    def forbidden(path, *_):
        if os.fspath(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", forbidden)
    refused(folder, r"deeper cannot be read: permission denied")


# --- what cannot be read


def spoil(folder):
    (folder / "ape" / "text.jpg").write_text("This is no picture.")
    (folder / "ape" / "empty.png").touch()
    (folder / "zebra (größe)" / "gone.png").symlink_to("nowhere.png")
    (folder / "zebra (größe)" / "cut.jpg").write_bytes(encoded(form="JPEG")[:10])
    # What Pillow would read by its content, but nobody expects here.
    (folder / "ape" / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


def test_one_file_among_many_that_is_no_picture_stops_the_reading_or_is_left_out(folder):
    before = read_pictures(folder)
    spoil(folder)
    refused(
        folder,
        r"^5 of 9 pictures cannot be read: .*empty.png \(it is empty\); .*script.png \(it is no picture\); .*text.jpg "
        r"\(it is no picture\); .*cut.jpg \(.+\); .*gone.png \(no such file or directory\); mend or remove them, or "
        r"leave them out with --skip-unreadable.$",
    )
    found = read_pictures(folder, unreadable="skip")
    assert names(found) == names(before)
    assert found.targets == before.targets
    assert colours(found) == colours(before)
    assert found.digest() == before.digest()
    assert found.skipped == [
        "ape/empty.png", "ape/script.png", "ape/text.jpg", "zebra (größe)/cut.jpg", "zebra (größe)/gone.png",
    ]  # fmt: skip


def test_of_many_that_cannot_be_read_the_first_are_named(folder):
    for i in range(9):
        (folder / "ape" / f"n{i}.png").write_text("no")
    refused(folder, r"^9 of 13 .*n0.png .*n4.png \(it is no picture\); and 4 more; mend")


def test_a_class_none_of_which_can_be_read_is_said(folder):
    for path in (folder / "ape").iterdir():
        path.write_text("no")
    refused(folder, "No picture of the class 'ape' can be read", unreadable="skip", labelled=True)
    assert len(read_pictures(folder, unreadable="skip", labelled=False)) == 2
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_text("no")
    refused(folder, r"No picture of .*my pictures can be read: .*a b.png", unreadable="skip")


def test_a_picture_cut_short_is_found_when_it_is_decoded_and_named(folder):
    path = draw(folder / "ape" / "cut.png", 1, size=(90, 90))
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    found = read_pictures(folder)
    i = names(found).index("ape/cut.png")
    with pytest.raises(ValueError, match=r"ape.cut.png"):
        found.image(i)
    assert len(colours(found.part([j for j in range(len(found)) if j != i]))) == 4


def test_a_picture_that_vanishes_is_named(folder):
    found = read_pictures(folder)
    (folder / "ape" / "c.bmp").unlink()
    with pytest.raises(ValueError, match=r"c.bmp cannot be read: no such file or directory"):
        found.image(1)


def test_a_picture_of_too_many_pixels_is_found_by_its_header(folder, monkeypatch):
    draw(folder / "ape" / "huge.png", size=(100, 70))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    refused(folder, r"^1 of 5 .*huge.png \(it has too many pixels\)")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    assert len(read_pictures(folder)) == 5, "of one that is only large Pillow warns, which is no fault"


def test_reading_a_folder_decodes_nothing_and_keeps_no_file_open(tmp_path, monkeypatch):
    for i in range(2000):
        path = tmp_path / str(i % 2) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(i % 2))
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (decoded.append(1), load(self))[1])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    found = read_pictures(tmp_path)
    train, valid = split(found, seed=0)
    assert len(found) == len(train) + len(valid) == 2000
    assert found.digest()
    assert decoded == []
    found.image(1999)
    assert len(decoded) >= 1, "what counts decodings is seen to count"
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


# --- what a data set is known again by


def test_a_digest_tells_other_names_sizes_classes_and_rows(folder):
    found = read_pictures(folder)
    seen = {found.digest(), found.part([0, 1, 2]).digest(), found.part([1, 0, 2, 3]).digest()}
    assert found.part(range(4)).digest() == found.digest()
    draw(folder / "ape" / "c.bmp", 3, size=(9, 9))
    seen.add(read_pictures(folder).digest())
    (folder / "ape" / "c.bmp").rename(folder / "ape" / "d.bmp")
    seen.add(read_pictures(folder).digest())
    (folder / "ape" / "d.bmp").rename(folder / "zebra (größe)" / "d.bmp")
    seen.add(read_pictures(folder).digest())
    (folder / "ape").rename(folder / "aye")
    seen.add(read_pictures(folder).digest())
    assert len(seen) == 7


def test_a_folder_elsewhere_is_the_same_data(folder, tmp_path):
    before = read_pictures(folder).digest()
    folder.rename(tmp_path / "moved")
    assert read_pictures(tmp_path / "moved").digest() == before


@pytest.mark.parametrize("form", ["pixels", "packed"])
def test_packed_data_is_known_by_its_contents(tmp_path, form):
    make = {"pixels": lambda *a, **k: pixels(*a, **k)[0], "packed": packed}[form]
    digest = read_pictures(make(tmp_path / "a.npz", labels=[0, 1, 0])).digest()
    assert read_pictures(make(tmp_path / "b.npz", labels=[0, 1, 0], compressed=True)).digest() == digest
    assert read_pictures(make(tmp_path / "c.npz", labels=[0, 1, 1])).digest() != digest
    seen = [
        read_pictures(make(tmp_path / "n.npz", labels=[0, 1, 0], names=np.array([*n]))).digest() for n in ("ab", "ba")
    ]
    assert len({digest, *seen}) == 3, "the names of classes count"
    other = tmp_path / "d.npz"
    held = dict(np.load(tmp_path / "a.npz"))
    key = "images" if form == "pixels" else "data"
    held[key] = held[key].copy()
    held[key].flat[-1] ^= 1
    np.savez(other, **held)
    assert read_pictures(other).digest() != digest


def test_pixels_of_another_shape_are_other_data(tmp_path):
    row = np.arange(48, dtype=np.uint8)
    found = []
    for shape in ((2, 4, 6), (2, 6, 4)):
        np.savez(tmp_path / "a.npz", images=row.reshape(shape))
        found.append(read_pictures(tmp_path / "a.npz").digest())
    assert found[0] != found[1]


# --- parts


def test_a_part_keeps_the_labels_of_all(folder):
    found = read_pictures(folder).part([3, 0])
    assert isinstance(found, Pictures)
    assert found.labels == ("ape", "zebra (größe)")
    assert (len(found), found.targets, colours(found)) == (2, [1, 0], [COLOURS[1], COLOURS[2]])
    assert names(found.part([1])) == ["ape/a b.png"]
    assert names(found.part(np.array([1, 1]))) == ["ape/a b.png"] * 2
    with pytest.raises(IndexError):
        found.image(2)


def counted(sizes, tmp_path):
    """An .npz with so many pictures of each class, in a mixed order."""
    targets = torch.tensor([c for c, size in enumerate(sizes) for _ in range(size)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))].numpy()
    np.savez(tmp_path / "c.npz", images=np.zeros((len(targets), 2, 2), np.uint8), labels=targets)
    return read_pictures(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("sizes", "share", "held"),
    [
        ([100, 50, 10], 0.1, [10, 5, 1]),
        ([14, 14, 14], 0.1, [2, 1, 1]),  # 4.2 in all: 1.4 each, what is over to the first
        ([6, 6, 28], 0.1, [1, 0, 3]),
        ([5, 5], 0.1, [1, 0]),
        ([2, 2], 0.1, [1, 0]),  # at least one
        ([100, 1], 0.5, [50, 0]),  # every class keeps one to learn from
        ([2, 2], 0.9, [1, 1]),
        ([100, 100], 0.29, [29, 29]),
    ],
)
def test_a_split_is_even_by_class(tmp_path, sizes, share, held):
    pictures = counted(sizes, tmp_path)
    train, valid = split(pictures, seed=3, share=share)
    counts = Counter(valid.targets)
    assert [counts[c] for c in range(len(sizes))] == held
    assert sorted([*names(train), *names(valid)]) == sorted(names(pictures)), "nothing is lost, nothing is in both"
    assert train.labels == valid.labels == pictures.labels


def test_a_split_is_drawn_by_its_seed(tmp_path):
    pictures = counted([60, 40], tmp_path)
    first, again, other = (split(pictures, seed=seed)[1] for seed in (0, 0, 1))
    assert names(first) == names(again) != names(other)
    rows = [int(name[6:-1]) for name in names(first)]
    assert rows == sorted(rows)
    assert max(rows) > 50 > min(rows), "drawn, not cut off at an end"


def test_pictures_without_classes_are_split(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((30, 2, 2), np.uint8))
    train, valid = split(read_pictures(tmp_path / "a.npz"), seed=0)
    assert (len(train), len(valid), train.targets, valid.targets) == (27, 3, [], [])


def test_too_few_to_split_is_said(tmp_path):
    one = read_pictures(draw(tmp_path / "a.png"))
    with pytest.raises(ValueError, match=r"to split are 1 \(classes: 1\): expected two of a class, one"):
        split(one, seed=0)
    with pytest.raises(ValueError, match=r"to split are 3 \(classes: 3\)"):
        split(counted([1, 1, 1], tmp_path), seed=0)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"share is {share}: expected a number between 0 and 1"):
            split(counted([9, 9], tmp_path), seed=0, share=share)


# --- .npz


def pixels(path, *, shape=(3, 4, 5), name="images", label="labels", labels=None, compressed=False, **more):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = {} if labels is None else {label: np.array(labels)}
    (np.savez_compressed if compressed else np.savez)(path, **{name: array}, **labels, **more)
    return path, array


def packed(path, *, count=3, labels=None, compressed=False, **more):
    parts = [encoded(i, "PNG" if i % 2 else "JPEG") for i in range(count)]
    offsets = np.cumsum([0, *map(len, parts)])
    given = {} if labels is None else {"labels": np.array(labels)}
    arrays = {"data": np.frombuffer(b"".join(parts), np.uint8), "offsets": offsets, **given, **more}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 1), (3, 4, 5, 3), (3, 4, 5, 4)])
def test_pixels_are_read_as_they_are(tmp_path, shape, compressed):
    path, array = pixels(tmp_path / "größe 1.npz", shape=shape, compressed=compressed)
    found = read_pictures(path)
    assert names(found) == [f"größe 1.npz[{i}]" for i in range(3)]
    for i in range(3):
        image = found.image(i)
        assert (image.size, image.mode) == ((5, 4), {1: "L", 3: "RGB", 4: "RGBA"}[shape[3] if len(shape) == 4 else 1])
        assert np.array_equal(np.asarray(image).reshape(shape[1:]), array[i])


@pytest.mark.parametrize("name", ["images", "x", "data", "x_train", "train_images"])
@pytest.mark.parametrize("label", ["labels", "y", "targets", "y_train", "train_labels"])
def test_the_usual_names_of_arrays_are_known(tmp_path, name, label):
    more = {"x_test": np.zeros((9, 2, 2), np.uint8), "y_test": np.zeros(9)}
    path, array = pixels(tmp_path / "a.npz", name=name, label=label, labels=[[7], [3], [10]], **more)
    found = read_pictures(path, labelled=True)
    assert found.labels == ("3", "7", "10")
    assert classes(found) == ["7", "3", "10"]
    assert np.array_equal(np.asarray(found.image(2)), array[2])


def test_columns_first_and_other_orders_of_bytes_are_read(tmp_path):
    array = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8))
    np.savez(tmp_path / "a.npz", images=array, labels=np.array([0, 1, 300], ">i4"))
    found = read_pictures(tmp_path / "a.npz")
    assert all(np.array_equal(np.asarray(found.image(i)), array[i]) for i in range(3))
    assert found.labels == ("0", "1", "300")


def test_what_is_not_compressed_stays_in_the_file(tmp_path):
    for compressed in (False, True):
        pixels(tmp_path / "a.npz", compressed=compressed)
        assert isinstance(read_pictures(tmp_path / "a.npz")._source.pixels, np.memmap) != compressed
        packed(tmp_path / "b.npz", compressed=compressed)
        assert isinstance(read_pictures(tmp_path / "b.npz")._source.data, np.memmap) != compressed


@pytest.mark.parametrize("compressed", [True, False])
def test_encoded_pictures_in_a_file(tmp_path, compressed):
    path = packed(tmp_path / "train.npz", labels=[1, 0, 1], names=np.array(["äpfel", "bird"]), compressed=compressed)
    found = read_pictures(path, labelled=True)
    assert found.labels == ("äpfel", "bird")
    assert classes(found) == ["bird", "äpfel", "bird"]
    assert names(found) == ["train.npz[0]", "train.npz[1]", "train.npz[2]"]
    assert np.abs(np.subtract(colours(found), COLOURS[:3])).max() < 5


@pytest.mark.parametrize("name", ["files", "names"])
def test_encoded_pictures_may_have_names_of_their_own(tmp_path, name):
    """Without labels, `names` can be those of nothing else."""
    path = packed(tmp_path / "a.npz", **{name: np.array(["é.jpg", "b.png", "c.jpg"])})
    assert names(read_pictures(path)) == ["a.npz[é.jpg]", "a.npz[b.png]", "a.npz[c.jpg]"]


def test_names_may_be_bytes(tmp_path):
    names = np.array([b"a", "é".encode()])
    assert read_pictures(packed(tmp_path / "a.npz", labels=[1, 0, 1], names=names)).labels == ("a", "é")


def test_encoded_pictures_that_are_none_are_found_at_reading(tmp_path):
    parts = [encoded(0), b"This is no picture.", b"", encoded(1)]
    given = {"data": np.frombuffer(b"".join(parts), np.uint8), "offsets": np.cumsum([0, *map(len, parts)])}
    np.savez(tmp_path / "train.npz", **given, labels=np.array([0, 1, 1, 1]))
    refused(
        tmp_path / "train.npz",
        r"^2 of 4 .*: picture 1 of train.npz \(it is no picture\); picture 2 of train.npz \(it is empty\); mend",
    )
    found = read_pictures(tmp_path / "train.npz", unreadable="skip")
    assert found.skipped == ["train.npz[1]", "train.npz[2]"]
    assert names(found) == ["train.npz[0]", "train.npz[3]"]
    assert (found.targets, colours(found)) == ([0, 1], COLOURS[:2])


def test_an_encoded_picture_cut_short_is_named_when_it_is_decoded(tmp_path):
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)).save(noise, "PNG")
    data = np.frombuffer(encoded(0) + noise.getvalue()[:3000], np.uint8)
    np.savez(tmp_path / "train.npz", data=data, offsets=np.array([0, len(encoded(0)), len(data)]))
    found = read_pictures(tmp_path / "train.npz")
    assert found.image(0).size == (5, 4)
    with pytest.raises(ValueError, match=r"picture 1 of train\.npz"):
        found.image(1)


def test_a_folder_of_npz_files_is_all_of_them_in_order(tmp_path):
    packed(tmp_path / "b.npz", count=2, labels=[0, 2], names=np.array(["x", "y", "z"]))
    packed(tmp_path / "a.npz", count=3, labels=[1, 1, 0], names=np.array(["x", "y", "z"]))
    (tmp_path / "README.md").write_text("read me")
    found = read_pictures(tmp_path, labelled=True)
    assert names(found) == ["a.npz[0]", "a.npz[1]", "a.npz[2]", "b.npz[0]", "b.npz[1]"]
    assert classes(found) == ["y", "y", "x", "x", "z"]
    assert np.abs(np.subtract(colours(found), [*COLOURS[:3], *COLOURS[:2]])).max() < 5
    assert found.part([4]).digest() == found.part([4]).digest() != found.part([3]).digest()


def test_numbers_of_several_files_are_counted_together(tmp_path):
    pixels(tmp_path / "a.npz", labels=[9, 9, 4])
    pixels(tmp_path / "b.npz", labels=[0, 4, 4])
    found = read_pictures(tmp_path)
    assert found.labels == ("0", "4", "9")
    assert classes(found) == ["9", "9", "4", "0", "4", "4"]


def test_a_folder_of_packed_files_means_those_to_train_on(tmp_path):
    """So that nobody trains on what he then measures with."""
    for name in ("train_0", "train_1", "test", "my-valid", "testament", "latest", "Test_2"):
        pixels(tmp_path / f"{name}.npz", labels=[0, 1, 1])
    found = read_pictures(tmp_path)
    assert sorted({name.partition(".")[0] for name in names(found)}) == [
        "latest", "testament", "train_0", "train_1",
    ]  # fmt: skip
    assert len(read_pictures(tmp_path / "test.npz")) == 3
    only = tmp_path / "only"
    only.mkdir()
    pixels(only / "test.npz", labels=[0, 1, 1])
    assert len(read_pictures(only)) == 3


def test_files_that_do_not_belong_together_are_said(tmp_path):
    for name, more in (("a", {"names": np.array(["x", "y"])}), ("b", {"names": np.array(["y", "x"])})):
        pixels(tmp_path / f"{name}.npz", labels=[0, 1, 1], **more)
    refused(tmp_path, r"b.npz names other classes than .*a.npz: expected one data set")
    pixels(tmp_path / "b.npz")
    refused(tmp_path, r"b.npz has no labels and other files beside it have: expected them in all or none")
    assert len(read_pictures(tmp_path, labelled=False)) == 6
    draw(tmp_path / "ape" / "a.png")
    refused(tmp_path, r"holds pictures of several kinds \(ape/a.png, a.npz\): pass one file")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": np.zeros(3), "y": np.zeros(3)}, r"expected an array images, x, .* and found pictures, y"),
        ({}, "and found none"),
        ({"images": np.zeros((3, 4, 5))}, r"images of shape \(3, 4, 5\), float64: expected uint8 \(n, height"),
        ({"images": np.zeros((3, 3, 4, 5), np.uint8)}, r"images of shape \(3, 3, 4, 5\), uint8: .*1, 3 or 4 channels"),
        ({"images": np.zeros((4, 5), np.uint8)}, r"shape \(4, 5\)"),
        ({"images": np.zeros((0, 4, 5), np.uint8)}, r"holds no pictures: images has the shape \(0, 4, 5\)"),
        ({"images": np.zeros((3, 0, 5), np.uint8)}, r"holds no pictures: images has the shape \(3, 0, 5\)"),
        ({"images": np.array([None, {}])}, r"cannot be read as .npz \(.*\): fetch it again, or write it anew"),
        ({"data": np.zeros(9, np.uint8)}, r"data of shape \(9,\), uint8: expected"),
        (
            {"data": np.zeros(9), "offsets": np.arange(3)},
            r"data \(9,\) float64 and offsets \(3,\) int64: expected rows",
        ),
        ({"data": np.zeros(9, np.uint8), "offsets": np.zeros(3)}, r"offsets \(3,\) float64: expected rows"),
        (
            {"data": np.zeros(9, np.uint8), "offsets": np.array([0])},
            "holds no pictures: expected offsets with one",
        ),
        ({"data": np.zeros(9, np.uint8), "offsets": np.array([0, 5, 3])}, "offsets that do not rise from 0 to 9"),
        ({"data": np.zeros(9, np.uint8), "offsets": np.array([0, 5, 10])}, "offsets that do not rise from 0 to 9"),
        ({"data": np.zeros(9, np.uint8), "offsets": np.array([-1, 5, 9])}, "offsets that do not rise from 0 to 9"),
        (
            {"data": np.zeros(9, np.uint8), "offsets": np.array([0, 5, 9]), "files": np.array(["a"])},
            "has 2 pictures and 1 names of them: expected one for each",
        ),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_that_are_no_pictures_are_said(tmp_path, arrays, said, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": [0, 1]}, "has 3 pictures and 2 labels: expected one for each"),
        ({"labels": [0.0, 1.0, 1.0]}, r"has labels of shape \(3,\), float64: expected a row of whole numbers"),
        ({"labels": [[0, 1], [1, 0], [0, 1]]}, r"has labels of shape \(3, 2\), int64: expected a row"),
        ({"labels": 3}, r"has labels of shape \(\), int64"),
        ({"labels": [0, -1, 1]}, "has the label -1: expected 0 or more"),
        ({"labels": [0, 2, 1], "names": ["a", "b"]}, "has the label 2: expected 0 to 1, for it has 2 names"),
        ({"labels": [0, 1, 1], "names": ["a", "a"]}, "names two classes 'a': expected a name of its own for each"),
        ({"labels": [0, 1, 1], "names": [3, 4]}, r"has names of shape \(2,\), int64: expected a row of texts"),
        ({}, "a.npz has no labels: expected the array labels"),
        ({"labels": [1, 1, 1]}, "is of the class '1': there is nothing to tell apart"),
    ],
)
def test_labels_that_do_not_fit_are_said(tmp_path, given, said):
    pixels(tmp_path / "a.npz", **{name: np.array(value) for name, value in given.items()})
    refused(tmp_path / "a.npz", said, labelled=True)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_npz_is_said(tmp_path, compressed):
    path = packed(tmp_path / "a.npz", count=6, compressed=compressed)
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        refused(path, r"a.npz cannot be read as .npz \(.+\): fetch it again, or write it anew from plain arrays")
    pixels(path, shape=(30, 20, 20), compressed=compressed)
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 500):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        refused(path, r"a.npz cannot be read as .npz \(.+\)")


def test_an_array_shorter_than_it_says_is_said(tmp_path):
    """Its sum is right, and what follows it in the file is no part of it."""
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        np.save(file, np.zeros((3, 4, 5), np.uint8))
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            archive.writestr("images.npy", file.getvalue()[:-1])
            archive.writestr("zzz.npy", bytes(1000))
        refused(tmp_path / "a.npz", r"cannot be read as .npz \(.+\)")


def test_an_npz_is_never_unpickled(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=np.zeros((2, 3, 3), np.uint8), labels=np.array([0, "x"], object))
        refused(tmp_path / "a.npz", r"cannot be read as .npz \(.*[Oo]bject.*\)")


# --- idx


def write_idx(path, array):
    content = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mnist(folder, names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), gz=("", ""), count=4, seed=0):
    folder.mkdir(exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (count, 5, 7), np.uint8)
    write_idx(folder / f"{names[0]}{gz[0]}", array)
    write_idx(folder / f"{names[1]}{gz[1]}", np.array([5, 0, 9, 5][:count], np.uint8))
    return array


@pytest.mark.parametrize("gz", [("", ""), (".gz", ".gz"), ("", ".gz"), (".gz", "")])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_files_and_their_labels_beside_them(tmp_path, gz, dot):
    array = mnist(tmp_path, (f"train-images{dot}idx3-ubyte", f"train-labels{dot}idx1-ubyte"), gz)
    found = read_pictures(tmp_path / f"train-images{dot}idx3-ubyte{gz[0]}", labelled=True)
    assert found.labels == ("0", "5", "9")
    assert classes(found) == ["5", "0", "9", "5"]
    assert all(np.array_equal(np.asarray(found.image(i)), array[i]) for i in range(4))
    assert found.image(0).size == (7, 5)
    assert names(found)[3] == f"train-images{dot}idx3-ubyte{gz[0]}[3]"
    assert isinstance(found._source.pixels, np.memmap) == (gz[0] == "")


def test_a_folder_of_idx_files_is_the_pair_to_train_on(tmp_path):
    mnist(tmp_path, ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"), seed=1)
    assert names(read_pictures(tmp_path))[0] == "t10k-images-idx3-ubyte[0]", "where there is no other"
    array = mnist(tmp_path, gz=(".gz", ".gz"))
    found = read_pictures(tmp_path)
    assert names(found)[0] == "train-images-idx3-ubyte.gz[0]"
    assert np.array_equal(np.asarray(found.image(0)), array[0])
    mnist(tmp_path)
    again = read_pictures(tmp_path)
    assert names(again)[0] == "train-images-idx3-ubyte[0]", "the same twice: the one that is not compressed"
    assert again.digest() == found.digest()
    mnist(tmp_path, ("emnist-train-images-idx3-ubyte", "emnist-train-labels-idx1-ubyte"))
    refused(tmp_path, "holds emnist-train-images-idx3-ubyte, train-images-idx3-ubyte: pass one of these files")


def test_idx_without_labels(tmp_path):
    mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert read_pictures(tmp_path).labels == ()
    refused(tmp_path, "has no labels: expected labels beside it, as train-labels-idx1-ubyte", labelled=True)


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_damaged_idx_files_are_said(tmp_path, gz):
    mnist(tmp_path, gz=(gz, gz))
    path = tmp_path / f"train-images-idx3-ubyte{gz}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    refused(path, "says that it holds 140 bytes and has 137: fetch it again" if not gz else r"cannot be read \(.+\)")
    raw = gzip.decompress(whole) if gz else whole
    for content, said in (
        (raw + b"x", "says that it holds 140 bytes and has more"),
        (raw[:-1], "says that it holds 140 bytes and has 139"),
        (raw[:9], "is no idx file of uint8 with 3 axes, by its first bytes"),
        (b"\0\0\x0d\3" + raw[4:], "is no idx file of uint8"),
        (b"", "is no idx file"),
        (raw[:4] + struct.pack(">3I", 0, 5, 7), r"holds nothing: its axes are \(0, 5, 7\)"),
        (raw[:4] + b"\xff" * 12 + raw[16:], "cannot be read|says that it holds 79228162458924105385300197375 bytes"),
    ):
        path.write_bytes(gzip.compress(content) if gz else content)
        refused(path, said)
    path.write_bytes(b"no gzip" if gz else b"")
    refused(path, r"cannot be read \(.+\): fetch it again" if gz else "is no idx file")
    mnist(tmp_path, gz=(gz, gz))
    write_idx(tmp_path / f"train-labels-idx1-ubyte{gz}", np.array([1, 2, 3], np.uint8))
    refused(path, "has 4 pictures and 3 labels: expected one for each")


def test_a_gz_with_a_wrong_sum_is_said(tmp_path):
    mnist(tmp_path, gz=(".gz", ".gz"))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-8] + bytes(4) + path.read_bytes()[-4:])
    refused(path, r"cannot be read \(CRC.+\): fetch it again")


# --- lists


@pytest.fixture
def listed(tmp_path):
    for i, name in enumerate(("a b.png", "é, ü.png", "c.png")):
        draw(tmp_path / "files" / name, i)
    return tmp_path


def test_a_list_of_paths_and_labels(listed):
    path = listed / "list.csv"
    path.write_text('label,path\n10,files/a b.png\n9,"files/é, ü.png"\n10,files/c.png\n', encoding="utf-8")
    found = read_pictures(path, labelled=True)
    assert found.labels == ("9", "10")
    assert classes(found) == ["10", "9", "10"]
    assert names(found) == ["files/a b.png", "files/é, ü.png", "files/c.png"]
    assert colours(found) == COLOURS[:3]
    tabs = listed / "list.tsv"
    tabs.write_text(f"path\tlabel\n{listed}/files/a b.png\tbär\nfiles/é, ü.png\tape\n", encoding="utf-8-sig")
    found = read_pictures(tabs)
    assert classes(found) == ["bär", "ape"]
    assert found.labels == ("ape", "bär")
    assert colours(found) == COLOURS[:2]
    assert read_pictures(tabs, labelled=False).targets == []


def test_a_list_of_paths_only(listed):
    (listed / "list.csv").write_text("path\nfiles/c.png\nfiles/a b.png\n", encoding="utf-8")
    found = read_pictures(listed / "list.csv")
    assert (found.labels, colours(found)) == ((), [COLOURS[2], COLOURS[0]])
    refused(listed / "list.csv", "list.csv has no column 'label': expected the columns path and label", labelled=True)


def test_a_picture_listed_twice_is_one_unless_its_labels_differ(listed):
    path = listed / "list.csv"
    path.write_text("path,label\nfiles/c.png,x\nfiles/a b.png,y\n./files/c.png,x\n", encoding="utf-8")
    found = read_pictures(path)
    assert (names(found), classes(found)) == (["files/c.png", "files/a b.png"], ["x", "y"])
    path.write_text("path,label\nfiles/c.png,x\nfiles/a b.png,y\n./files/c.png,y\n", encoding="utf-8")
    refused(path, r"list.csv, line 4, gives ./files/c.png the label 'y' and an earlier line 'x': expected one")
    assert len(read_pictures(path, labelled=False)) == 2, "without classes they do not count"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\nfiles/c.png,x\n", "has no column 'path': its first line names 'file', 'label'"),
        ("path,label\nfiles/c.png,\n", "line 2, has no label: every picture needs one"),
        ("path,label\n,x\n", "line 2, has no path: every picture needs one"),
        ("path,label\n", "lists no pictures: expected a line with the names of the columns"),
        ("", "lists no pictures"),
        ("path,label\nfiles/c.png\n", "line 2, has fewer fields than the first line names"),
        ("path,label\nfiles/c.png,x\nfiles/no.png,y\n", r"^1 of 2 .*files.no.png \(no such file or directory\)"),
        ("path,label\nfiles/c.png,x\nfiles,y\n", r"^1 of 2 .*files \(is a directory\)"),
        ("path,label\nfiles/c.png,x\nfiles/a b.png,x\n", "is of the class 'x': there is nothing to tell apart"),
    ],
)
def test_lists_that_do_not_fit_are_said(listed, text, said):
    (listed / "list.csv").write_text(text, encoding="utf-8")
    refused(listed / "list.csv", said, labelled=True)


def test_a_listed_file_that_is_missing_can_be_left_out(listed):
    (listed / "l.csv").write_text("path,label\nfiles/no.png,x\nfiles/c.png,y\nfiles/a b.png,x\n", encoding="utf-8")
    found = read_pictures(listed / "l.csv", unreadable="skip")
    assert (found.skipped, classes(found), colours(found)) == (["files/no.png"], ["y", "x"], [COLOURS[2], COLOURS[0]])


def test_a_list_that_is_not_utf8_is_said(listed):
    (listed / "list.csv").write_bytes("path\nfiles/é.png\n".encode("latin-1"))
    refused(listed / "list.csv", "is not UTF-8 .*: convert it")
