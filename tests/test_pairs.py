"""What `--data` takes for CLIP: pictures with captions, or with classes that templates make captions of."""

import json

import numpy as np
import pytest
from PIL import Image

from scratchformers.training.pairs import mentioned, prompts_of, read_lines, read_pairs, split_pairs

COLOURS = [(250, 10, 20), (10, 200, 30), (20, 30, 240), (200, 200, 10)]


def draw(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), COLOURS[number]).save(path)
    return path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "my pictures"
    draw(root / "a b.png", 0)
    draw(root / "deeper" / "é.png", 1)
    draw(root / "c.png", 2)
    return root


def said(pairs):
    return {pairs.pictures.name(i): captions for i, captions in enumerate(pairs.captions)}


def colours(pairs):
    return [pairs.pictures.image(i).convert("RGB").getpixel((0, 0)) for i in range(len(pairs))]


def refused(path, sentence, **how):
    """Reading is a ValueError of one sentence."""
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as error:
        read_pairs(path, **how)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith((".", ").")), str(error.value)


# --- lists


def test_a_table_of_paths_and_captions(folder):
    table = 'path\tcaption\na b.png\tA "red" one\ndeeper/é.png\tgrün, 緑\nc.png\t blue\n'
    write(folder / "captions.tsv", table)
    expected = {"a b.png": ('A "red" one',), "deeper/é.png": ("grün, 緑",), "c.png": (" blue",)}
    assert said(read_pairs(folder / "captions.tsv")) == expected
    assert said(read_pairs(str(folder))) == expected, "the folder is enough"
    assert colours(read_pairs(folder)) == COLOURS[:3]


def test_several_captions_of_a_picture_are_one_picture(folder):
    table = "path,caption\nc.png,one\na b.png,two\n./c.png,three\nc.png,one\n"
    pairs = read_pairs(write(folder / "list.csv", table))
    assert said(pairs) == {"c.png": ("one", "three"), "a b.png": ("two",)}
    assert colours(pairs) == [COLOURS[2], COLOURS[0]]


def test_json_lines_with_a_caption_or_several(folder):
    rows = [{"path": "c.png", "caption": ["one", "two"], "more": 1}, {"path": "a b.png", "caption": "three"}]
    file = write(folder / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert said(read_pairs(file)) == {"c.png": ("one", "two"), "a b.png": ("three",)}


def test_columns_of_other_names(folder):
    file = write(folder / "x.tsv", "image\ttext\nc.png\tone\n")
    assert said(read_pairs(file, columns={"path": "image", "caption": "text"})) == {"c.png": ("one",)}
    refused(file, r"line 2, has no 'path': it has 'image', 'text'. Say which it is: --column path=NAME")
    refused(file, "no column for label: expected path or caption", columns={"label": "text"})
    refused(folder, "is none: leave it out", columns={"caption": "text"})


def test_absent_pictures_are_named_in_a_sentence(folder):
    names = ["c.png", *(f"{i}.png" for i in range(8))]
    file = write(folder / "x.tsv", "path\tcaption\n" + "".join(f"{name}\tsay\n" for name in names))
    refused(file, r"names 8 of 9 pictures that are not there \(0.png, .*4.png and 3 more\): expected paths from")
    pairs = read_pairs(file, unreadable="skip")
    assert said(pairs) == {"c.png": ("say",)}
    assert pairs.skipped == names[1:]
    (folder / "c.png").unlink()
    refused(file, "names 9 of 9 pictures that are not there", unreadable="skip")


def test_what_is_no_picture_stops_or_is_left_out_with_its_captions(folder):
    write(folder / "a b.png", "no picture")
    file = write(folder / "x.tsv", "path\tcaption\na b.png\tone\nc.png\ttwo\n")
    refused(file, r"1 of 2 pictures cannot be read: .*a b.png.*--skip-unreadable")
    pairs = read_pairs(file, unreadable="skip")
    assert (said(pairs), pairs.skipped) == ({"c.png": ("two",)}, ["a b.png"])
    assert colours(pairs) == [COLOURS[2]]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.tsv", "path\tcaption\n", "lists no pictures"),
        ("x.tsv", "", "lists no pictures"),
        ("x.tsv", "path\tcaption\nc.png\t\n", "line 2, has an empty caption"),
        ("x.csv", "path,caption\n,one\n", "line 2, has an empty path"),
        ("x.tsv", "path\tcaption\nc.png\n", "fewer fields"),
        ("x.csv", "path,text\nc.png,one\n", "has no 'caption': it has 'path', 'text'"),
        ("x.jsonl", '{"path": "c.png", "caption": []}\n', "has no caption"),
        ("x.jsonl", '{"path": "c.png", "caption": ["a", 3]}\n', "no text under 'caption'"),
        ("x.jsonl", '{"path": "c.png", "caption": 3}\n', "no text under 'caption'"),
        ("x.jsonl", '{"path": "c.png"}\n', "has no 'caption'"),
        ("x.jsonl", "[]\n", "holds a list"),
        ("x.txt", "c.png one", "holds no pictures, by its name"),
    ],
)
def test_a_list_that_is_none_is_a_sentence(folder, name, text, sentence):
    refused(write(folder / name, text), sentence)


def test_two_lists_in_a_folder_are_one_too_many(folder):
    for name in ("captions.tsv", "captions.jsonl"):
        write(folder / name, "")
    refused(folder, "holds captions.tsv and captions.jsonl: pass one of them")


def test_what_is_not_there(tmp_path):
    refused(tmp_path / "nothing", "does not exist: expected a folder of pictures with captions.tsv")


# --- packed


def pixels(*numbers):
    return np.stack([np.full((4, 5, 3), COLOURS[number], np.uint8) for number in numbers])


def test_an_npz_file_with_captions(tmp_path):
    np.savez(tmp_path / "x.npz", images=pixels(0, 1), captions=np.array(["one", "zwei ü"]))
    assert read_pairs(tmp_path / "x.npz").captions == [("one",), ("zwei ü",)]
    np.savez(tmp_path / "y.npz", images=pixels(0, 1), captions=np.array([["one", ""], ["two", "three"]]))
    assert read_pairs(tmp_path / "y.npz").captions == [("one",), ("two", "three")]


def test_a_picture_that_is_packed_twice_is_one(tmp_path):
    """Else its captions would be each other's negatives."""
    np.savez(tmp_path / "x.npz", images=pixels(0, 1, 0), captions=np.array(["one", "two", "three"]))
    pairs = read_pairs(tmp_path / "x.npz")
    assert pairs.captions == [("one", "three"), ("two",)]
    assert colours(pairs) == COLOURS[:2]


def test_a_packed_picture_that_is_none_is_left_out_with_its_caption(tmp_path):
    files = [b"no picture", *(draw(tmp_path / f"{i}.png", i).read_bytes() for i in range(2))]
    packed = {"data": np.frombuffer(b"".join(files), np.uint8), "offsets": np.cumsum([0, *map(len, files)])}
    np.savez(tmp_path / "x.npz", **packed, captions=np.array(["none", "red", "green"]))
    refused(tmp_path / "x.npz", "1 of 3 pictures cannot be read")
    pairs = read_pairs(tmp_path / "x.npz", unreadable="skip")
    assert (pairs.captions, len(pairs.skipped)) == ([("red",), ("green",)], 1)
    assert colours(pairs) == COLOURS[:2]


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        (np.array(["one"]), "has 2 pictures and captions of 1"),
        (np.array([1, 2]), r"captions of shape \(2,\), int64: expected texts"),
        (np.array(["one", " "]), r"x.npz\[1\] has no caption"),
        (np.array(["one", None], dtype=object), "cannot be read .*write them as"),
    ],
)
def test_captions_of_an_npz_that_do_not_fit(tmp_path, captions, sentence):
    np.savez(tmp_path / "x.npz", images=pixels(0, 1), captions=captions)
    refused(tmp_path / "x.npz", sentence)


def test_a_torn_npz_is_a_sentence(tmp_path):
    np.savez(tmp_path / "x.npz", images=pixels(0, 1), captions=np.array(["one", "two"]))
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "x.npz", "cannot be read as .npz")


# --- classes


@pytest.fixture
def classes(tmp_path):
    for i, name in enumerate(("ice_bear", "zebra")):
        for j in range(3):
            draw(tmp_path / "classes" / name / f"{j}.png", i)
    return tmp_path / "classes"


def test_captions_are_made_of_classes(classes):
    pairs = read_pairs(classes)
    assert pairs.prompts == [("a photo of a ice bear.",), ("a photo of a zebra.",)]
    assert pairs.captions == [pairs.prompts[0]] * 3 + [pairs.prompts[1]] * 3
    more = read_pairs(classes, templates=("a {}", "the {}!"), names=("bear", "horse"))
    assert more.prompts == [("a bear", "the bear!"), ("a horse", "the horse!")]
    assert more.pictures.labels == ("bear", "horse")


def test_names_stand_for_the_numbers_of_an_idx_file_or_npz(tmp_path):
    np.savez(tmp_path / "x.npz", images=pixels(0, 1, 2), labels=np.array([7, 0, 7]))
    names = [f"name {i}" for i in range(10)]
    pairs = read_pairs(tmp_path / "x.npz", names=names)
    assert pairs.prompts == prompts_of(["name 0", "name 7"], ())
    assert pairs.captions == [("a photo of a name 7.",), ("a photo of a name 0.",), ("a photo of a name 7.",)]
    refused(tmp_path / "x.npz", "There are 7 names for the classes of .*, 0, 7: expected one for each", names=names[:7])


def test_a_list_of_labels_is_classes(folder):
    file = write(folder / "x.csv", "path,label\na b.png,red\nc.png,blue\n")
    assert said(read_pairs(file, templates=["{}"])) == {"a b.png": ("red",), "c.png": ("blue",)}


def test_too_few_names_and_templates_of_captions_are_refused(classes, folder):
    refused(classes, "There are 3 names for the classes of", names=["a", "b", "c"])
    write(folder / "captions.tsv", "path\tcaption\nc.png\tone\n")
    refused(folder, "has captions of its own: leave it out", templates=["a {}"])
    assert len(read_pairs(folder, templates=["a {}"], names=["one", "two"])) == 1, "which zero-shot needs"


def test_pictures_without_captions_or_classes_are_refused(folder):
    refused(folder, "has no classes")


# --- what is made of them


def test_a_split_keeps_captions_with_their_pictures(tmp_path):
    draw = np.random.RandomState(0)
    images = draw.randint(0, 256, (40, 4, 5, 3)).astype(np.uint8)
    captions = np.array([str(image[0, 0]) for image in images])
    np.savez(tmp_path / "x.npz", images=images, captions=captions)
    train, valid = split_pairs(read_pairs(tmp_path / "x.npz"), seed=0)
    assert (len(train), len(valid)) == (36, 4)
    assert not {*train.captions} & {*valid.captions}
    for part in (train, valid):
        for i, (caption,) in enumerate(part.captions):
            assert str(np.asarray(part.pictures.image(i))[0, 0]) == caption


def test_a_split_of_classes_has_each_class_in_both(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((40, 4, 5), np.uint8), labels=np.arange(40) % 2)
    train, valid = split_pairs(read_pairs(tmp_path / "x.npz"), seed=0)
    assert {*train.captions} == {*valid.captions} == {*train.prompts} == {*valid.prompts}


def test_the_digest_tells_captions_from_others(folder):
    found = set()
    for caption in ("one", "two", "one"):
        write(folder / "captions.tsv", f"path\tcaption\nc.png\t{caption}\na b.png\tother\n")
        found.add(read_pairs(folder).digest())
    assert len(found) == 2


def test_lines_come_from_a_file_or_are_parted(tmp_path):
    file = write(tmp_path / "names.txt", "\ufeffT-shirt/top \n\n  trouser\n")
    assert read_lines(str(file)) == "T-shirt/top\ntrouser"
    assert read_lines("T-shirt/top | trouser|") == "T-shirt/top\ntrouser"


def test_a_name_is_mentioned_as_a_word():
    names = ["cat", "dog", "hot dog"]
    assert mentioned(["A CAT sits."], names) == 0
    assert mentioned(["concatenate"], names) == -1
    assert mentioned(["a cat", "and a dog"], names) == -1, "two of them"
    assert mentioned(["a dog-house", "nothing"], names) == 1
