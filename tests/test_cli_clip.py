"""`classify`, `embed` and `eval` with a CLIP, as a person meets them."""

import json
import re
import shutil

import clip_reference  # before transformers
import numpy as np
import pytest
from test_cli import refused, run
from test_cli_pictures import bad
from test_encoders import classifier as text_classifier
from test_picture_tasks import photo
from test_picture_tasks import vit as vit_folder
from test_zero_shot import LABELS, captioned, save

import scratchformers as sf
from scratchformers.cli import Classify
from scratchformers.evaluation import evaluate_retrieval, evaluate_zero_shot
from scratchformers.tasks import pairs
from scratchformers.tasks.pairs import TEMPLATES
from scratchformers.training.pairs import read_pairs
from scratchformers.training.pictures import read_pictures

NAMED = ["größe/a b.png", "größe/deeper/c.jpg", "zebra/a b.png", "zebra/d.webp"]
ASKED = ", ".join(LABELS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    save(path / "clip")
    vit_folder(path / "vit")
    text_classifier(path / "bert")
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The working folder: pictures in two folders."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMED):
        path = tmp_path / "my photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(path)
    return tmp_path / "my photos"


@pytest.fixture(scope="module")
def ours(models):
    return sf.ZeroShotClassifier.from_pretrained(models / "clip")


def answers(out):
    return {each["picture"]: each["labels"] for each in map(json.loads, out.splitlines())}


def as_json(found):
    return [{"label": each.label, "score": pytest.approx(each.score, abs=1e-6)} for each in found]


# --- classify


def test_classify_with_labels_of_your_own(capsys, models, photos, ours):
    picture = photos / NAMED[0]
    code, out, error = run(capsys, "classify", picture, "--model", models / "clip", "--labels", ASKED, "--top", 2)
    assert (code, error) == (0, "")
    wanted = ours(picture, LABELS, top=2)
    assert out.splitlines() == [str(picture), *(f"  {each.score:7.2%}  {each.label}" for each in wanted)]
    code, out, error = run(capsys, "classify", photos, "--model", models / "clip", "--labels", ASKED, "--json")
    assert (code, error) == (0, "")
    found = answers(out)
    assert list(found) == NAMED
    for name, labels in found.items():
        assert labels == as_json(ours(photos / name, LABELS, top=5))


def test_labels_with_commas_come_from_a_file_and_templates_too(capsys, models, photos, ours):
    picture, labels = photos / NAMED[0], ["a cat, or a dog", "größer", "the sea"]
    (photos / "labels.txt").write_bytes("﻿a cat, or a dog\r\ngrößer\r\nthe sea\r\n".encode())
    (photos / "templates.txt").write_text("{}\ntwo of {}\n", encoding="utf-8")
    asked = ("classify", picture, "--model", models / "clip", "--labels-file", photos / "labels.txt", "--json")
    found = {}
    for name, rest, templates in (
        ("ours", (), None),
        ("file", ("--templates", photos / "templates.txt"), ["{}", "two of {}"]),
        ("text", ("--templates", "two of {}"), ["two of {}"]),
        ("imagenet", ("--templates", "imagenet"), "imagenet"),
    ):
        code, out, error = run(capsys, *asked, *rest)
        assert (code, error) == (0, "")
        (found[name],) = answers(out).values()
        assert found[name] == as_json(ours(picture, labels, templates=templates))
    assert len({str(each) for each in found.values()}) == 4


def test_the_text_tower_is_asked_once_for_all_pictures(capsys, models, tmp_path, monkeypatch):
    for i in range(40):
        photo(i, (9, 7)).save(tmp_path / f"{i:02}.png")
    texts, real = [], pairs.DualEncoder.text_features
    monkeypatch.setattr(
        pairs.DualEncoder, "text_features", lambda self, given, **how: texts.extend(given) or real(self, given, **how)
    )
    code, out, _ = run(capsys, "classify", tmp_path, "--model", models / "clip", "--labels", ASKED, "--json")
    assert (code, len(answers(out))) == (0, 40)
    assert len(texts) == len(LABELS) * len(TEMPLATES)


def test_a_long_label_is_cut_on_request_and_that_is_said(capsys, models, photos, ours):
    long = "the sea " * 40
    asked = ("classify", photos / NAMED[0], "--model", models / "clip", "--labels", f"a cat,{long}", "--json")
    assert "label 'the sea the sea" in refused(capsys, *asked)
    code, out, error = run(capsys, *asked, "--truncate")
    assert code == 0
    assert error == "scratchformers: 5 texts were too long, and cut.\n"
    assert answers(out)[str(photos / NAMED[0])] == as_json(ours(photos / NAMED[0], ["a cat", long], truncate=True))


def test_unreadable_pictures_are_skipped_on_request(capsys, models, photos):
    bad(photos / "größe" / "a.jpg", "text")
    bad(photos / "zebra" / "b.jpg", "cut")
    asked = ("classify", photos, "--model", models / "clip", "--labels", ASKED, "--json")
    assert "1 of 6 pictures cannot be read" in refused(capsys, *asked)
    code, out, error = run(capsys, *asked, "--skip-unreadable")
    assert (code, list(answers(out))) == (0, NAMED)
    assert error.splitlines()[1:] == ["  größe/a.jpg", "  zebra/b.jpg"]


def test_classify_refuses_in_a_sentence(capsys, models, photos):
    picture = photos / NAMED[0]

    def ask(*rest, given=picture, model="clip"):
        return refused(capsys, "classify", given, *rest, "--model", models / model)

    for given in (picture, photos):
        said = ask(given=given)
        assert 'CLIP has no labels of its own: say which it is to choose from, by --labels "a cat, a dog"' in said
    assert "ViT does not compare pictures with texts: expected a CLIP" in ask("--labels", ASKED, model="vit")
    assert "BERT does not compare pictures with texts" in ask("--labels", ASKED, model="bert")
    for labels, said in (
        ("", "Label 1 of 1 is ''"),
        ("a cat,", "Label 2 of 2 is ''"),
        ("a cat", "There is one label, 'a cat', which would get 100 % of any picture"),
        ("a cat, a dog, a cat", "The label 'a cat' is there twice"),
    ):
        assert said in ask("--labels", labels, model="nowhere"), "before a model is fetched"
    assert "'a cat' and 'A CAT' are the same to the model" in ask("--labels", "a cat, A CAT")
    assert "There is no file 'labels.txt'" in ask("--labels-file", "labels.txt")
    (photos / "labels.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    assert "Label 2 of 3 is ''" in ask("--labels-file", photos / "labels.txt")
    (photos / "labels.txt").write_text("", encoding="utf-8")
    assert "There are no labels" in ask("--labels-file", photos / "labels.txt")
    assert "are both given" in ask("--labels-file", photos / "labels.txt", "--labels", ASKED)
    assert "The template 'a photo'" in ask("--labels", ASKED, "--templates", templates(photos, "a photo"))
    assert "missing.txt does not exist" in ask("--labels", ASKED, "--templates", "missing.txt", model="nowhere")
    assert "--templates are for labels" in ask("--templates", "{}", model="nowhere")
    assert "--pair and --truncate are for texts" in ask("--labels", ASKED, "--pair", "x")
    assert "There is no file 'it is'" in ask("--labels", ASKED, given="it is")
    assert "top is 0" in ask("--labels", ASKED, "--top", 0)
    (photos / "nothing").mkdir()
    assert "nothing holds no pictures" in ask("--labels", ASKED, given=photos / "nothing")
    assert "a.jpg is no picture" in ask("--labels", ASKED, given=bad(photos / "a.jpg", "text"))


def templates(folder, text):
    (folder / "templates.txt").write_text(f"{text}\n", encoding="utf-8")
    return folder / "templates.txt"


def test_the_help_names_our_templates(capsys):
    said = " ".join(run(capsys, "classify", "--help")[1].replace("│", " ").split())
    for template in TEMPLATES:
        assert template.rstrip(".") in said


# --- embed


def test_embed_pictures_and_look_for_them(capsys, models, photos, ours):
    out = photos.parent / "photos.npy"
    code, said, error = run(capsys, "embed", photos, "--model", models / "clip", "--out", out)
    assert (code, said) == (0, "")
    assert error == f"scratchformers: 4 vectors of {clip_reference.DIM} numbers in {out}.\n"
    vectors, facts = np.load(out), json.loads(out.with_name("photos.npy.json").read_text(encoding="utf-8"))
    assert facts["pictures"] == NAMED
    np.testing.assert_allclose(vectors, ours.encode_images([photos / name for name in NAMED]), atol=2e-6)
    query = ("--query", "a red tractor on a field", "--query", "größer", "--top", 3)
    wanted = [ours.search(sf.PictureIndex.read(out), query[i], top=3) for i in (1, 3)]
    for given in (photos, out):  # the pictures anew, and what was written of them
        code, said, error = run(capsys, "embed", given, "--model", models / "clip", *query)
        assert (code, error) == (0, "")
        first, second = ([f"  {each.score:7.4f}  {each.picture}" for each in row] for row in wanted)
        assert said.splitlines() == [query[1], *first, query[3], *second]
    code, said, error = run(capsys, "embed", out, "--model", models / "clip", *query[:2], "--json")
    assert (code, error) == (0, "")
    assert json.loads(said) == {"query": query[1], "pictures": [
        {"picture": each.picture, "score": pytest.approx(each.score, abs=1e-6)}
        for each in ours.search(sf.PictureIndex.read(out), query[1], top=5)
    ]}  # fmt: skip
    shutil.rmtree(photos)
    assert run(capsys, "embed", out, "--model", models / "clip", *query)[0] == 0, "no picture is read again"


def test_embed_writes_and_answers_at_once(capsys, models, photos, ours):
    out = photos.parent / "photos.npy"
    asked = ("embed", photos / "zebra", photos / NAMED[1], "--model", models / "clip", "--out", out)
    code, said, error = run(capsys, *asked, "--query", "a cat", "--normalize", "False", "--json")
    assert (code, error.count("\n")) == (0, 1)
    names = [str(photos / NAMED[2]), str(photos / NAMED[3]), str(photos / NAMED[1])]
    assert sorted(each["picture"] for each in json.loads(said)["pictures"]) == sorted(names)
    np.testing.assert_allclose(np.load(out), ours.encode_images(names, normalize=False), atol=2e-5)
    assert json.loads(out.with_name("photos.npy.json").read_text(encoding="utf-8"))["normalized"] is False


def test_embed_pictures_as_json(capsys, models, photos, ours):
    wanted = ours.encode_images([photos / name for name in NAMED])
    for rest in ((), ("--out", photos.parent / "v.npy")):
        code, out, _ = run(capsys, "embed", photos, "--model", models / "clip", "--json", *rest)
        found = [json.loads(line) for line in out.splitlines()]
        assert (code, [each["picture"] for each in found]) == (0, NAMED)
        np.testing.assert_allclose([each["embedding"] for each in found], wanted, atol=2e-6)
    np.savez(photos / "some.npz", images=np.stack([np.asarray(photo(i, (9, 7))) for i in range(3)]))
    (photos / "list.csv").write_text("path\nzebra/d.webp\n", encoding="utf-8")
    for given, names in (("some.npz", [f"some.npz[{i}]" for i in range(3)]), ("list.csv", ["zebra/d.webp"])):
        code, out, _ = run(capsys, "embed", photos / given, "--model", models / "clip", "--json")
        assert [json.loads(line)["picture"] for line in out.splitlines()] == names


def test_embed_texts_with_a_clip(capsys, models, photos, ours):
    path, out = photos / "lines.txt", photos / "lines.npy"
    path.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    for rest, how in (((), {}), (("--normalize", "False"), {"normalize": False})):
        code, said, error = run(capsys, "embed", path, "--model", models / "clip", "--out", out, "--json", *rest)
        assert code == 0
        assert f"{len(LABELS)} vectors of {clip_reference.DIM} numbers" in error
        found = [json.loads(line) for line in said.splitlines()]
        assert [each["text"] for each in found] == LABELS
        for vectors in (np.load(out), [each["embedding"] for each in found]):
            np.testing.assert_allclose(vectors, ours.encode_texts(LABELS, **how), atol=2e-5)
    long = "the sea " * 40
    asked = ("embed", long, "--model", models / "clip", "--json")
    assert "the model takes 24" in refused(capsys, *asked)
    code, _, error = run(capsys, *asked, "--truncate")
    assert (code, error) == (0, "scratchformers: 1 text was too long, and cut.\n")


def test_embed_skips_on_request_and_else_leaves_nothing_behind(capsys, models, photos):
    bad(photos / "größe" / "a.jpg", "text")
    bad(photos / "zebra" / "b.jpg", "cut")
    out = photos.parent / "photos.npy"
    asked = ("embed", photos, "--model", models / "clip", "--out", out)
    assert "1 of 6 pictures cannot be read" in refused(capsys, *asked)
    (photos / "größe" / "a.jpg").unlink()
    assert "b.jpg is truncated or corrupted" in refused(capsys, *asked)
    assert [path.name for path in photos.parent.iterdir()] == ["my photos"]
    bad(photos / "größe" / "a.jpg", "text")
    code, _, error = run(capsys, *asked, "--skip-unreadable")
    assert code == 0
    assert error.splitlines()[:3] == [
        "scratchformers: 2 of 6 pictures could not be read, and were skipped:", "  größe/a.jpg", "  zebra/b.jpg"
    ]  # fmt: skip
    assert list(sf.PictureIndex.read(out).names) == NAMED
    assert np.load(out).shape == (4, clip_reference.DIM)
    code, _, error = run(capsys, "embed", photos / "zebra" / "b.jpg", *asked[2:], "--skip-unreadable")
    assert code == 2
    assert "There are no pictures to index" in error
    assert list(sf.PictureIndex.read(out).names) == NAMED, "what was there stays"


def test_embed_refuses_in_a_sentence(capsys, models, photos):
    out = photos.parent / "photos.npy"

    def ask(*rest, given=(photos,), model="clip"):
        return refused(capsys, "embed", *given, *rest, "--model", models / model)

    assert "There is nothing to embed" in ask("--json", given=())
    assert "There is nowhere to put the vectors: pass --out FILE.npy, or --json" in ask(model="nowhere")
    assert "top is 0" in ask("--query", "a cat", "--top", 0, model="nowhere")
    assert "There is no file 'missing'" in ask("--query", "a cat", given=("missing",), model="nowhere")
    assert "missing.npy does not exist: expected an index" in ask("--query", "a", given=("missing.npy",), model="no")
    assert "A query is empty" in ask("--query", " ")
    assert "BERT reads no pictures, and there are none to look for (--query): expected a CLIP" in ask(
        "--query", "a cat", model="bert"
    )
    assert "BERT reads no pictures" in ask("--json", given=(photos / NAMED[0],), model="bert")
    assert "ViT reads pictures alone: expected a model that reads texts, or a CLIP" in ask("--json", model="vit")
    assert "pool is 'mean': a CLIP says itself" in ask("--json", "--pool", "mean")
    assert "These are 2 texts" in ask("--json", given=("a cat", "a dog"))
    assert run(capsys, "embed", photos, "--model", models / "clip", "--out", out)[0] == 0
    assert "photos.npy holds vectors: pass --query TEXT to look among them" in ask("--json", given=("photos.npy",))
    assert "photos.npy holds vectors already" in ask("--query", "a", "--out", "b.npy", given=("photos.npy",))
    save(photos.parent / "other", seed=1)
    said = ask("--query", "a cat", given=(out,), model=photos.parent / "other")
    assert "The index holds vectors of another model" in said


def test_a_stopped_command_says_where_it_is(capsys, models, photos, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs.DualEncoder, "image_features", stop)
    out = photos.parent / "photos.npy"
    code, _, error = run(capsys, "embed", photos, "--model", models / "clip", "--out", out)
    assert (code, "no file was written" in error) == (130, True)
    assert [path.name for path in photos.parent.iterdir()] == ["my photos"]
    code, _, error = run(capsys, "classify", photos, "--model", models / "clip", "--labels", ASKED)
    assert (code, error) == (130, f"scratchformers: interrupted; {Classify.interrupted(None)}.\n")


# --- eval


def test_eval_of_zero_shot(capsys, models, tmp_path, ours):
    folder = captioned(tmp_path / "data")
    asked = ("eval", "--model", models / "clip", "--data", folder, "--json")
    (folder / "captions.tsv").rename(tmp_path / "captions.tsv")
    code, out, error = run(capsys, *asked)
    assert (code, error) == (0, "")
    found = json.loads(out)
    assert found.pop("task") == "zero-shot", "by default"
    wanted = vars(evaluate_zero_shot(ours, read_pictures(folder)))
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    rest = ("--labels", "the sea, two dogs", "--templates", "{}", "--task", "zero-shot", "--batch", 2)
    other = json.loads(run(capsys, *asked, *rest)[1])
    wanted = vars(evaluate_zero_shot(ours, read_pictures(folder), labels=["the sea", "two dogs"], templates="{}"))
    assert {name: other[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert other["loss"] != pytest.approx(found["loss"], abs=1e-4)
    code, out, _ = run(capsys, *asked[:-1])
    assert re.search(r"^accuracy +0\.\d{4}$", out, re.MULTILINE)
    bad(folder / "cat" / "a.png", "cut")
    assert "a.png is truncated or corrupted" in refused(capsys, *asked)
    code, out, error = run(capsys, *asked, "--skip-unreadable")
    assert (code, json.loads(out)["pictures"]) == (0, 9)
    assert error.splitlines()[1:] == ["  cat/a.png"]


def test_eval_of_retrieval(capsys, models, tmp_path, ours):
    folder = captioned(tmp_path / "data")
    asked = ("eval", "--model", models / "clip", "--data", folder, "--task", "retrieval")
    code, out, error = run(capsys, *asked, "--json")
    assert (code, error) == (0, "")
    found, wanted = json.loads(out), vars(evaluate_retrieval(ours, read_pairs(folder)))
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    code, out, _ = run(capsys, *asked, "--batch", 2)
    assert re.search(r"^text to image at 10 +1\.0000$", out, re.MULTILINE)
    content = (folder / "captions.tsv").read_text(encoding="utf-8").replace("path\tcaption", "file\twords")
    (folder / "captions.tsv").write_text(content, encoding="utf-8")
    code, out, _ = run(capsys, *asked, "--json", "--column", "path=file", "--column", "caption=words")
    assert {name: json.loads(out)[name] for name in wanted} == pytest.approx(wanted)


def test_what_a_clips_features_are_worth(capsys, models, tmp_path):
    train, test = captioned(tmp_path / "train"), captioned(tmp_path / "test", 6)
    for task in ("knn", "probe"):
        asked = ("eval", "--model", models / "clip", "--data", test, "--train", train, "--task", task)
        code, out, error = run(capsys, *asked, "--json")
        assert (code, error) == (0, "")
        assert json.loads(out)["accuracy"] >= 0.5, "they are among those to learn from"
    assert "a CLIP has one vector of a picture, so leave it out (--pool)" in refused(capsys, *asked, "--pool", "mean")


def test_eval_refuses_in_a_sentence(capsys, models, tmp_path):
    folder = captioned(tmp_path / "data")

    def ask(*rest, model="clip", data=folder):
        return refused(capsys, "eval", "--model", models / model, "--data", data, *rest)

    assert "--labels is for zero-shot: leave it out for retrieval" in ask("--task", "retrieval", "--labels", ASKED)
    assert "--labels-file is for zero-shot" in ask("--task", "knn", "--train", "x", "--labels-file", "labels.txt")
    assert "--column is for lists of captions" in ask("--column", "path=file")
    assert "There are 6 labels and 2 classes" in ask("--labels", ASKED)
    assert "The template 'a photo'" in ask("--templates", templates(tmp_path, "a photo"))
    assert "holds a CLIP, which was not made for classify" in ask("--task", "classify")
    assert "holds a ViT, which was not made for zero-shot" in ask("--task", "zero-shot", model="vit")
    assert "holds a BERT, which was not made for retrieval" in ask("--task", "retrieval", model="bert")
    (folder / "captions.tsv").unlink()
    assert "have classes and no captions" in ask("--task", "retrieval")
