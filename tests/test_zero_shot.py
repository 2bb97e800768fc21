"""`ZeroShotClassifier`, `DualEncoder` and `PictureIndex`: pictures and texts compared, beside transformers' CLIP."""

import importlib.util
import json
import weakref
from pydoc_data.topics import topics

import clip_reference  # before open_clip and transformers
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageSequence
from test_picture_tasks import photo
from test_picture_tasks import vit as vit_folder

import scratchformers as sf
from scratchformers.checkpoints import files
from scratchformers.clip_text import train_clip_bpe
from scratchformers.evaluation import evaluate_retrieval, evaluate_zero_shot
from scratchformers.images import CLIP as MEAN_STD
from scratchformers.images import Preprocess
from scratchformers.tasks import check_labels, pairs, pictures, read_ahead, read_templates
from scratchformers.tasks.pairs import IMAGENET, TEMPLATES
from scratchformers.tasks.texts import BATCH_TOKENS
from scratchformers.text import characters
from scratchformers.training.pairs import read_pairs
from scratchformers.training.pictures import read_pictures

LABELS = ["a cat", "a dog", "two dogs", "the sea", "ein süßer Käse", "a red tractor on a field"]
TOKENIZER = train_clip_bpe([*list(topics.values())[:20], *[*LABELS, *TEMPLATES] * 50], 700)
LENGTH = 24
PREPROCESS = Preprocess(21, (21, 21), mean=MEAN_STD[0], std=MEAN_STD[1])


def save(folder, *, end=TOKENIZER.end, seed=0, length=LENGTH):
    """A CLIP of transformers in float64 on weights that hide nothing, and the folder it lies in with our tokeniser."""
    sizes = {"vocab_size": TOKENIZER.vocab, "max_position_embeddings": length, "eos_token_id": end}
    theirs = clip_reference.scramble(clip_reference.clip(text=sizes), seed=seed)
    with torch.no_grad():
        theirs.logit_scale.fill_(3.0)  # so that shares differ
    theirs.save_pretrained(folder)
    for name, content in TOKENIZER.files.items():
        (folder / name).write_bytes(content)
    (folder / files.PREPROCESSOR).write_bytes(files.to_json(PREPROCESS.write()))
    return theirs, folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return save(tmp_path_factory.mktemp("a clip"))


@pytest.fixture
def classifier(published):
    return sf.ZeroShotClassifier.from_pretrained(published[1], dtype=torch.float64)


@torch.no_grad()
def by_hand(theirs, images, labels, templates):
    """Shares (pictures, labels): section 3.1.4 written out with transformers' towers, a text at a time."""
    rows = []
    for label in labels:
        vectors = []
        for template in templates:
            ids = torch.tensor([TOKENIZER.encode(template.replace("{}", label))])
            vector = theirs.text_projection(theirs.text_model(ids).pooler_output)[0]
            vectors.append(vector / vector.norm())
        mean = torch.stack(vectors).mean(0)
        rows.append(mean / mean.norm())
    pixels = torch.stack([PREPROCESS(image) for image in images]).double()
    seen = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
    seen = seen / seen.norm(dim=-1, keepdim=True)
    return (theirs.logit_scale.exp() * seen @ torch.stack(rows).T).softmax(-1)


def check_equal(classifier, theirs, templates, given=None):
    images = [photo(i) for i in range(5)]
    wanted = by_hand(theirs, images, LABELS, templates)
    found = classifier(images, LABELS, templates=given)
    for row, answers in zip(wanted, found, strict=True):
        order = row.argsort(descending=True)
        assert [each.label for each in answers] == [LABELS[i] for i in order]
        assert [each.score for each in answers] == pytest.approx(row[order].tolist(), abs=1e-10)
        assert sum(each.score for each in answers) == pytest.approx(1)
    assert wanted.std(0).min() > 1e-3, "else anything would pass"


# --- labels of a picture


@pytest.mark.parametrize("templates", [["{}"], ["a photo of {}."], ["{}", "two {}, or more?", "{} on a field"]])
def test_shares_are_those_of_transformers(published, classifier, templates):
    check_equal(classifier, published[0], templates, templates)


def test_without_templates_ours_are_averaged(published, classifier):
    check_equal(classifier, published[0], TEMPLATES)
    assert len(TEMPLATES) == 5


def test_scores_are_transformers_own_logits(published, classifier):
    """Of plain labels, as CLIPModel computes them whole."""
    ids = [TOKENIZER.encode(label) for label in LABELS]
    padded = torch.tensor([row + [TOKENIZER.end] * (LENGTH - len(row)) for row in ids])
    pixels = torch.stack([PREPROCESS(photo(i)) for i in range(4)]).double()
    with torch.no_grad():
        wanted = published[0](input_ids=padded, pixel_values=pixels).logits_per_image
    found = classifier.scores(pixels, classifier.encode_labels(LABELS, templates=["{}"]))
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_a_text_may_end_at_its_largest_id(tmp_path):
    theirs, folder = save(tmp_path, end=2)
    ours = sf.ZeroShotClassifier.from_pretrained(folder, dtype=torch.float64)
    assert ours.model.config.end is None
    check_equal(ours, theirs, TEMPLATES)


def unnormalised_pictures(patch):
    real = pairs.ZeroShotClassifier.scores

    def scores(self, images, labels):
        return real(self, images, labels) * self.image_features(images).norm(dim=-1, keepdim=True)

    patch.setattr(pairs.ZeroShotClassifier, "scores", scores)


def unnormalised(patch):
    patch.setattr(pairs, "unit", lambda x: x)


def templates_averaged_raw(patch):
    def ensemble(self, names, slots, truncate):
        texts = [slot.replace("{}", name) for name in names for slot in slots]
        vectors = self.text_features(texts, truncate=truncate).unflatten(0, (len(names), len(slots)))
        return F.normalize(vectors.mean(1), dim=-1)

    patch.setattr(pairs.ZeroShotClassifier, "_ensemble", ensemble)


def mean_not_normalised(patch):
    def ensemble(self, names, slots, truncate):
        texts = [slot.replace("{}", name) for name in names for slot in slots]
        vectors = self.text_features(texts, truncate=truncate).unflatten(0, (len(names), len(slots)))
        return F.normalize(vectors, dim=-1).mean(1)

    patch.setattr(pairs.ZeroShotClassifier, "_ensemble", ensemble)


def no_scale(patch):
    real = pairs.ZeroShotClassifier.scores
    patch.setattr(
        pairs.ZeroShotClassifier, "scores",
        lambda self, *given: real(self, *given) / self.model.scale.detach().exp(),
    )  # fmt: skip


def texts_left_in_order_of_length(patch):
    real = pairs.DualEncoder.id_features
    patch.setattr(pairs.DualEncoder, "id_features", lambda self, rows: real(self, sorted(rows, key=len)))


def first_template_only(patch):
    real = pairs.read_templates
    patch.setattr(pairs, "read_templates", lambda given: real(given)[:1])


def padding_read_as_the_end(patch):
    real = pairs.padded

    def spoilt(rows):
        found = real(rows)
        found["ids"][:, 1] = TOKENIZER.end
        return found

    patch.setattr(pairs, "padded", spoilt)


@pytest.mark.parametrize(
    "plant",
    [
        unnormalised_pictures,
        unnormalised,
        templates_averaged_raw,
        mean_not_normalised,
        no_scale,
        texts_left_in_order_of_length,
        first_template_only,
        padding_read_as_the_end,
    ],
)
def test_planted_mistakes_are_caught(published, classifier, monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_equal(classifier, published[0], TEMPLATES)


def test_answers_do_not_depend_on_the_batch(classifier):
    images = [photo(i, (21 + i, 40 - i)) for i in range(2 * pictures.BATCH + 3)]
    together = classifier(images, LABELS)
    assert [[vars(each) for each in answer] for answer in together] == [
        [{"label": each.label, "score": pytest.approx(each.score, abs=1e-12)} for each in classifier(image, LABELS)]
        for image in images
    ]
    backwards = classifier(images[0], LABELS[::-1])
    assert [x.label for x in backwards] == [x.label for x in together[0]]
    assert [x.score for x in backwards] == pytest.approx([x.score for x in together[0]], abs=1e-12)


def test_one_picture_several_and_none(classifier, tmp_path):
    photo().save(tmp_path / "größe.png")
    one = classifier(tmp_path / "größe.png", LABELS)
    assert [type(each) for each in one] == [sf.Label] * len(LABELS)
    assert classifier([photo()], LABELS)[0] == one
    assert classifier([], LABELS) == []
    assert [each.label for each in classifier(photo(), LABELS, top=2)] == [each.label for each in one[:2]]
    assert classifier(photo(), (f"  {label}\n" for label in LABELS)) == one, "white space around a label is nothing"
    with pytest.raises(ValueError, match="top is 0"):
        classifier(photo(), LABELS, top=0)


def lazily(consume, *, last):
    """How many pictures were taken when the first answer came, and how many were ever alive at once."""
    alive, taken, most, first = set(), 0, 0, None

    def given():
        nonlocal taken, most
        for i in range(10 * pictures.BATCH):
            taken += 1
            image = photo(i % 7, (30, 30))
            alive.add(i)
            weakref.finalize(image, alive.discard, i)
            most = max(most, len(alive))
            yield image
            del image

    for _ in consume(given()):
        first = taken if first is None else first
    assert taken == 10 * pictures.BATCH
    assert first is None or first < last
    return most


def test_a_generator_of_pictures_is_taken_as_it_is_needed(classifier):
    """Bounded memory: never more than is computed and the batch read ahead."""
    bound = 3 * pictures.BATCH
    assert lazily(lambda given: classifier.stream_images(given), last=bound) <= bound
    assert lazily(lambda given: classifier(given, LABELS), last=10 * bound) <= bound
    named = lambda given: [classifier.index((str(i), each) for i, each in enumerate(given))]  # noqa: E731
    assert lazily(named, last=10 * bound) <= bound


# --- vectors of labels are computed once


@pytest.fixture
def calls(classifier):
    """How many texts the text tower was given, call by call."""
    counts = []
    classifier.model.text.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
    return counts


def test_the_same_labels_cost_nothing_the_next_time(classifier, calls):
    first = classifier(photo(), LABELS)
    assert sum(calls) == len(LABELS) * len(TEMPLATES)
    assert classifier([photo(), photo(1)], list(LABELS))[0] == [
        sf.Label(each.label, pytest.approx(each.score, abs=1e-12)) for each in first
    ]
    assert sum(calls) == len(LABELS) * len(TEMPLATES), "not one more"
    classifier(photo(), LABELS, templates=["{}"])
    assert sum(calls) == len(LABELS) * (len(TEMPLATES) + 1), "other templates are others"
    classifier(photo(), LABELS[:2], templates=["{}"])
    assert sum(calls) == len(LABELS) * (len(TEMPLATES) + 1) + 2


def test_what_is_kept_is_bounded_and_the_last_used_stays(classifier, calls):
    sets = [[f"a cat {i}", f"a dog {i}"] for i in range(pairs.KEPT + 3)]
    for labels in sets:
        classifier.encode_labels(labels, templates=["{}"])
        classifier.encode_labels(sets[0], templates=["{}"])
    assert len(classifier._known) == pairs.KEPT
    assert sum(calls) == 2 * len(sets), "the first set is used again and again"
    classifier.encode_labels(sets[1], templates=["{}"])
    assert sum(calls) == 2 * len(sets) + 2, "the second was let go"


def test_a_model_that_learns_is_asked_anew(published, classifier):
    """Vectors kept from before would be silently wrong."""
    classifier(photo(), LABELS)
    with torch.no_grad():
        classifier.model.text.project.weight.mul_(-1)
        published[0].text_projection.weight.mul_(-1)
    try:
        check_equal(classifier, published[0], TEMPLATES)
        classifier.model.text.norm.weight = torch.nn.Parameter(classifier.model.text.norm.weight * 2)
        changed = classifier.encode_labels(LABELS)
        assert changed.shape == (len(LABELS), clip_reference.DIM)
    finally:
        with torch.no_grad():
            published[0].text_projection.weight.mul_(-1)


def test_many_labels_are_those_of_one_alone_and_short_ones_cost_little(classifier):
    """Texts of like lengths come together, in batches of tokens: no position is computed that no text has."""
    draw = np.random.RandomState(0)
    words = ["cat", "dog", "sea", "red", "field", "tractor"]
    labels = [*dict.fromkeys(" ".join(draw.choice(words, draw.randint(1, 7))) for _ in range(700))]
    sizes, tokens = [], []
    classifier.model.text.token.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    vectors = classifier.encode_labels(labels, templates=["{}", "the {}"])
    for label in labels:
        tokens += [len(TOKENIZER.encode(label)), len(TOKENIZER.encode(f"the {label}"))]
    assert sum(sizes) < 1.15 * sum(tokens)
    assert max(sizes) <= BATCH_TOKENS
    assert len(sizes) < sum(tokens) / BATCH_TOKENS + 8, "and not one by one"
    for i in (0, 7, len(labels) - 1):
        alone = classifier._ensemble([labels[i]], ("{}", "the {}"), False)[0]
        torch.testing.assert_close(vectors[i], alone, atol=1e-12, rtol=0)


# --- what cannot be


def test_labels_that_cannot_be_are_named(classifier):
    for labels, said in (
        ([], "There are no labels: expected two or more"),
        (["a cat"], "one label, 'a cat', which would get 100 % of any picture: expected two or more"),
        (["a cat", " "], "Label 2 of 2 is '': expected a text"),
        (["", "a cat"], "Label 1 of 2 is ''"),
        (["a cat", None], "Label 2 of 2 is None"),
        (["a cat", "a dog", "a cat "], "The label 'a cat' is there twice"),
        (["a cat", "a dog", "A  Cat"], "The labels 'a cat' and 'A  Cat' are the same to the model"),
        ("a cat, a dog", "labels is the text 'a cat, a dog': expected a list"),
        (
            ["a cat", "the sea " * 40],
            r"label 'the sea .* \d+ tokens in the template 'a photo .* the model takes 24: .*templ",
        ),
        (["a cat", "\ud800"], "no valid Unicode"),
    ):
        with pytest.raises(ValueError, match=said):
            classifier(photo(), labels)
    assert classifier._known == {}


def test_ten_thousand_labels_are_labels():
    names = check_labels([f"label {i}" for i in range(10_000)])
    assert len(names) == 10_000
    with pytest.raises(ValueError, match="'label 7' is there twice"):
        check_labels([*names, "label 7"])


def test_a_long_label_is_cut_on_request_and_keeps_its_end(published, classifier):
    labels = ["a cat", "the sea " * 40]
    found = classifier.encode_labels(labels, templates=["{}"], truncate=True)
    ids = TOKENIZER.encode(labels[1])
    ids = torch.tensor([[*ids[: LENGTH - 1], TOKENIZER.end]])
    with torch.no_grad():
        wanted = published[0].text_projection(published[0].text_model(ids).pooler_output)
    torch.testing.assert_close(found[1:], F.normalize(wanted, dim=-1), atol=1e-10, rtol=0)
    assert classifier.tokenizer.cut == 1
    with pytest.raises(ValueError, match="the model takes 24"):
        classifier.encode_labels(labels, templates=["{}"])


def test_labels_of_which_nothing_is_left_are_not_told_apart_by_chance(classifier):
    """Cut off behind a long template, they all got the same share."""
    long, labels = "the sea " * 20, ["a cat", "a dog"]
    with pytest.raises(ValueError, match="'a cat' and 'a dog' are the same to the model, where their ends are cut off"):
        classifier(photo(), labels, templates=[long + "{}"], truncate=True)
    with pytest.raises(ValueError, match="are the same to the model, where"):
        classifier(photo(), ["the sea " * 20 + each for each in labels], templates=["{}", "a {}"], truncate=True)
    assert classifier.tokenizer.cut == 0
    assert len(classifier(photo(), labels, templates=[long + "{}", "{}"], truncate=True)) == 2, "told by one of them"
    room = " ".join(["cat"] * (LENGTH - 3))  # a label that just fits, and one of which one token is cut
    assert len(TOKENIZER.encode(f"{room} cat")) == LENGTH
    with pytest.raises(ValueError, match="are the same to the model, where"):
        classifier(photo(), [f"{room} cat", f"{room} cat dog"], templates="{}", truncate=True)
    assert len(classifier(photo(), [room, f"{room} cat"], templates="{}", truncate=True)) == 2


def test_shares_that_are_no_numbers_are_no_answer(published):
    for tower in ("image", "text"):
        broken = sf.ZeroShotClassifier.from_pretrained(published[1])
        getattr(broken.model, tower).project.weight.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match="not finite"):
            broken(photo(), LABELS)


def test_templates_come_from_a_list_a_file_or_one_text(tmp_path):
    path = tmp_path / "meine Vorlagen.txt"
    path.write_bytes("﻿a photo of {}.\r\n\r\n  größer: {}\r\n".encode())
    assert read_templates(path) == read_templates(str(path)) == ("a photo of {}.", "größer: {}")
    assert read_templates(["{}"]) == read_templates("{}") == ("{}",)
    assert read_templates(None) is TEMPLATES
    path.write_text("", encoding="utf-8")
    for given, said in (
        (["a photo of"], "The template 'a photo of' has not one slot for a label: expected {} once in it"),
        (["{} and {}"], "expected {} once"),
        (["{}", 3], "The template 3 has not one slot"),
        ([], "There are no templates"),
        (path, "There are no templates"),
    ):
        with pytest.raises(ValueError, match=said):
            read_templates(given)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist: expected a file with a template a line"):
        read_templates("nowhere.txt")
    path.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_templates(path)


def test_braces_of_labels_and_templates_are_signs_like_others(classifier):
    found = classifier.encode_labels(["{}", "{0}"], templates=["a {} of {c}"])
    wanted = classifier.text_features(["a {} of {c}", "a {0} of {c}"])
    torch.testing.assert_close(found, F.normalize(wanted, dim=-1), atol=1e-12, rtol=0)


def test_the_templates_of_imagenet_are_open_clips(monkeypatch):
    found = read_templates(IMAGENET)
    assert len(found) == 80
    assert list(found) == [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "open_clip" else real(name))
    with pytest.raises(ValueError, match="read from open_clip, which is not installed: pip install open_clip_torch"):
        read_templates(IMAGENET)


def test_a_model_that_compares_nothing_is_refused_in_a_sentence(tmp_path, published):
    vit_folder(tmp_path / "vit")
    for kind in (sf.ZeroShotClassifier, sf.DualEncoder):
        with pytest.raises(ValueError, match="ViT does not compare pictures with texts: expected a CLIP"):
            kind.from_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="CLIP has no labels of its own: say which it is to choose from, by --labels"):
        sf.ImageClassifier.from_pretrained(published[1])


def test_a_tokeniser_that_ends_texts_elsewhere_is_refused(classifier):
    other = characters(["abc"])
    with pytest.raises(ValueError, match="ends a text with the id None and the model reads it at 699"):
        sf.ZeroShotClassifier(classifier.model, other, PREPROCESS)


def test_what_is_no_picture_is_refused_by_its_name(classifier, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.jpg is no picture"):
        classifier([photo(), tmp_path / "a.jpg"], LABELS)


# --- vectors


def test_vectors_are_the_towers_normalised_unless_told(published):
    encoder = sf.DualEncoder.from_pretrained(published[1])
    images = [photo(i) for i in range(pictures.BATCH + 2)]
    with torch.no_grad():
        seen = encoder.model.encode_image(torch.stack([PREPROCESS(each) for each in images]))
        read = torch.cat([encoder.model.encode_text(torch.tensor([TOKENIZER.encode(each)])) for each in LABELS])
    for encode, given, wanted in ((encoder.encode_images, images, seen), (encoder.encode_texts, LABELS, read)):
        raw, unit = encode(given, normalize=False), encode(given)
        assert raw.dtype == unit.dtype == np.float32
        np.testing.assert_allclose(raw, wanted.numpy(), atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(unit, F.normalize(wanted, dim=-1).numpy(), atol=2e-6)
        np.testing.assert_allclose(encode(given[0]), unit[0], atol=2e-6)
        assert encode([]).shape == (0, clip_reference.DIM)
        assert encode(each for each in given).shape == unit.shape


def test_vectors_of_many_texts_come_in_their_order(published, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK_TEXTS", 4)
    encoder = sf.DualEncoder.from_pretrained(published[1])
    texts, shown = [f"{label} {i}" for i in range(3) for label in LABELS], []
    track = lambda items, total: shown.append(total) or items  # noqa: E731
    assert encoder.write(texts, tmp_path / "v.npy", track=track) == 18
    found = np.load(tmp_path / "v.npy")
    assert (found.dtype, found.shape, shown) == (np.float32, (18, clip_reference.DIM), [5])
    np.testing.assert_allclose(found, np.stack([encoder.encode_texts(each) for each in texts]), atol=2e-6)
    assert encoder.write(iter(texts[:5]), tmp_path / "v.npy", normalize=False) == 5, "any number, gone through once"
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), encoder.encode_texts(texts[:5], normalize=False), atol=2e-5)


def test_weights_that_are_not_finite_are_no_vectors(published):
    encoder = sf.DualEncoder.from_pretrained(published[1])
    encoder.model.image.project.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="The vectors are not finite"):
        encoder.encode_images(photo())


# --- pictures are read ahead


def test_what_is_made_ahead_comes_in_order_and_an_error_at_its_turn():
    def make(i):
        if i == 40:
            raise ValueError("the fortieth")
        return i * i

    found = read_ahead(make, range(100))
    assert [next(found) for _ in range(40)] == [i * i for i in range(40)]
    with pytest.raises(ValueError, match="the fortieth"):
        next(found)
    assert list(read_ahead(make, range(3))) == [0, 1, 4]
    assert list(read_ahead(make, [])) == []


def test_frames_of_one_animated_picture_are_several(classifier, tmp_path):
    """They are one object, which is wound on while the frames before are prepared."""
    frames = [Image.new("RGB", (21, 21), color) for color in ("red", "green", "blue", "white") * 8]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=9)
    with Image.open(tmp_path / "a.gif") as image:
        found = classifier.encode_images(ImageSequence.Iterator(image))
    with Image.open(tmp_path / "a.gif") as image:
        wanted = np.stack([classifier.encode_images(frame.copy()) for frame in ImageSequence.Iterator(image)])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len({tuple(row.round(4)) for row in found}) == 4
    photo().save(tmp_path / "b.png")
    image = Image.open(tmp_path / "b.png")  # not decoded yet
    wanted = [classifier.encode_images(photo())] * 20
    np.testing.assert_allclose(classifier.encode_images([image] * 20), wanted, atol=1e-6)


# --- looking for pictures


def planted(encoder, rows=50):
    """An index in which picture 7 is where the text points, longer than it, 3 next, and all others point elsewhere."""
    target = encoder.encode_texts("a red tractor on a field", normalize=False)
    vectors = np.random.RandomState(0).standard_normal((rows, len(target))).astype(np.float32)
    along = np.linspace(-0.3, 0.3, rows) - vectors @ target / (target @ target)
    vectors += np.outer(along, target).astype(np.float32)
    vectors[7] = 3 * target
    vectors[3] += 4 * target
    vectors[11] -= 5 * target
    return sf.PictureIndex(vectors, [f"{i:02}.jpg" for i in range(rows)], encoder.fingerprint())


@pytest.mark.parametrize("rows", [3, 8, 2**16])
def test_a_text_finds_its_picture(published, monkeypatch, rows):
    monkeypatch.setattr(pairs, "ROWS", rows)
    encoder = sf.DualEncoder.from_pretrained(published[1])
    index = planted(encoder)
    found = encoder.search(index, "a red tractor on a field", top=50)
    assert [each.picture for each in found][:2] == ["07.jpg", "03.jpg"]
    assert found[-1].picture == "11.jpg"
    assert found[0] == sf.Match("07.jpg", pytest.approx(1, abs=1e-6))
    assert len(found) == 50
    several = encoder.search(index, ["a cat", "a red tractor on a field"], top=3)
    assert several[1] == [sf.Match(each.picture, pytest.approx(each.score, abs=1e-6)) for each in found[:3]]
    cosines = F.normalize(torch.from_numpy(index.vectors), dim=-1) @ torch.from_numpy(encoder.encode_texts("a cat"))
    assert [int(each.picture[:2]) for each in several[0]] == cosines.argsort(descending=True)[:3].tolist()


def test_of_equal_pictures_the_earlier_comes_first(monkeypatch):
    monkeypatch.setattr(pairs, "ROWS", 90)
    vectors = np.tile(np.float32([[1, 0], [0, 1]]), (100, 1))
    index = sf.PictureIndex(vectors, [f"{i:03}" for i in range(200)], "")
    (found,) = index.search(np.float32([[1, 0]]), top=120)
    assert [int(each.picture) for each in found] == [*range(0, 200, 2), *range(1, 41, 2)]


def cosines_of_raw_vectors(patch):
    patch.setattr(pairs, "_unit", lambda vectors: np.asarray(vectors))


def the_last_rows_only(patch):
    real = pairs.PictureIndex.search

    def search(self, queries, *, top):
        return real(pairs.PictureIndex(self.vectors[8:], self.names[8:], self.model), queries, top=top)

    patch.setattr(pairs.PictureIndex, "search", search)


def the_farthest_first(patch):
    real = pairs.PictureIndex.search
    patch.setattr(pairs.PictureIndex, "search", lambda self, queries, *, top: real(self, -queries, top=top))


@pytest.mark.parametrize("plant", [cosines_of_raw_vectors, the_last_rows_only, the_farthest_first])
def test_a_search_that_goes_wrong_is_noticed(published, plant):
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            test_a_text_finds_its_picture(published, patch, 2**16)


def named(count):
    return [(f"größe/{i:02}.jpg", photo(i, (30, 21))) for i in range(count)]


@pytest.mark.parametrize("normalize", [True, False])
def test_an_index_is_a_npy_file_and_names_in_order(published, tmp_path, normalize):
    encoder = sf.DualEncoder.from_pretrained(published[1])
    given = named(pictures.BATCH + 5)
    index = encoder.index(iter(given), tmp_path / "photos.npy", normalize=normalize)
    vectors, said = np.load(tmp_path / "photos.npy"), json.loads((tmp_path / "photos.npy.json").read_text("utf-8"))
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(given), clip_reference.DIM))
    np.testing.assert_allclose(vectors, encoder.encode_images([x for _, x in given], normalize=normalize), atol=2e-5)
    assert said["pictures"] == [name for name, _ in given]
    assert said["normalized"] is normalize
    assert isinstance(index.vectors, np.memmap)
    read = sf.PictureIndex.read(tmp_path / "photos.npy")
    assert list(read.names) == said["pictures"]
    memory = encoder.index(given, normalize=normalize)
    for each in (index, read, memory):
        found = encoder.search(each, LABELS, top=4)
        assert [[x.picture for x in row] for row in found] == [
            [x.picture for x in encoder.search(encoder.index(given), label, top=4)] for label in LABELS
        ], "of raw vectors too, cosines are compared"


def test_an_index_is_never_half_written(published, tmp_path):
    encoder = sf.DualEncoder.from_pretrained(published[1])
    path = tmp_path / "photos.npy"

    def broken():
        yield from named(40)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        encoder.index(broken(), path)
    assert not [*tmp_path.iterdir()]
    encoder.index(named(3), path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(OSError, match="the disk is gone"):
        encoder.index(broken(), path)
    with pytest.raises(ValueError, match="There are no pictures to index"):
        encoder.index([], path)
    with pytest.raises(ValueError, match="There are no pictures to index"):
        encoder.index([])
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_an_index_that_does_not_fit_is_refused_in_a_sentence(published, tmp_path):
    encoder, path = sf.DualEncoder.from_pretrained(published[1]), tmp_path / "photos.npy"
    index = encoder.index(named(3), path)
    with pytest.raises(ValueError, match="A query is empty"):
        encoder.search(index, " ")
    with pytest.raises(ValueError, match="top is 0"):
        encoder.search(index, "a cat", top=0)
    with pytest.raises(ValueError, match="the model takes 24"):
        encoder.search(index, "the sea " * 40)
    assert encoder.search(index, "the sea " * 40, truncate=True)
    _, other = save(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="The index holds vectors of another model"):
        sf.DualEncoder.from_pretrained(other).search(index, "a cat")
    with torch.no_grad():
        encoder.model.text.project.weight.mul_(2)
    with pytest.raises(ValueError, match="The index holds vectors of another model"):
        encoder.search(index, "a cat")
    np.save(path, np.zeros((2, clip_reference.DIM), np.float32))
    with pytest.raises(ValueError, match=r"photos\.npy and photos\.npy\.json do not belong together: index anew"):
        sf.PictureIndex.read(path)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ValueError, match=r"photos\.npy cannot be read as \.npy"):
        sf.PictureIndex.read(path)
    (tmp_path / "photos.npy.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"photos\.npy\.json does not exist: expected an index"):
        sf.PictureIndex.read(path)


# --- measured


def captioned(folder, count=9):
    """Pictures of two classes, and a list with captions: two of each, one of which three pictures share."""
    rows = ["path\tcaption"]
    for i in range(count):
        name = f"{'cat' if i % 2 else 'dog'}/{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(folder / name)
        rows += [f"{name}\ta photo of number {i}", f"{name}\t{LABELS[i % 3]}"]
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def check_retrieval(published, folder):
    encoder = sf.DualEncoder.from_pretrained(published[1], dtype=torch.float64)
    names = sorted({line.partition("\t")[0] for line in lines(folder)})
    texts = [*dict.fromkeys(line.partition("\t")[2] for line in lines(folder))]
    own = {(a, b) for a, _, b in (line.partition("\t") for line in lines(folder))}
    image = encoder.encode_images([folder / name for name in names]).astype(np.float64)
    text = encoder.encode_texts(texts).astype(np.float64)
    cosines = text @ image.T
    wanted = {}
    for way, rows, fits in (
        ("text_to_image", cosines, lambda i, j: (names[j], texts[i]) in own),
        ("image_to_text", cosines.T, lambda i, j: (names[i], texts[j]) in own),
    ):
        for k in (1, 5, 10):
            hits = [any(fits(i, j) for j in np.argsort(-row)[:k]) for i, row in enumerate(rows)]
            wanted[f"{way}_at_{k}"] = pytest.approx(np.mean(hits))
    assert len({each.expected for each in wanted.values()}) > 3, "else anything would pass"
    for batch in (2, 32):
        found = vars(evaluate_retrieval(encoder, read_pairs(folder), batch=batch))
        assert found == {**wanted, "pictures": 9, "texts": len(texts)}


def lines(folder):
    return (folder / "captions.tsv").read_text(encoding="utf-8").splitlines()[1:]


def test_retrieval_is_counted_as_written_out(published, tmp_path):
    check_retrieval(published, captioned(tmp_path))


def every_text_fits_one_picture(patch):
    from scratchformers import evaluation

    patch.setattr(evaluation, "fits", lambda table, some, texts: table[some][:, :1] == texts)


def ways_are_confused(patch):
    from scratchformers import evaluation

    real = evaluation.ranks
    patch.setattr(evaluation, "ranks", lambda a, b, right: real(a, -b, right))


@pytest.mark.parametrize("plant", [every_text_fits_one_picture, ways_are_confused])
def test_retrieval_counted_wrongly_is_noticed(published, tmp_path, monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_retrieval_is_counted_as_written_out(published, tmp_path)


def test_zero_shot_accuracy_is_that_of_the_classifier(published, classifier, tmp_path):
    folder = captioned(tmp_path)
    (folder / "captions.tsv").unlink()
    data = read_pictures(folder)
    assert data.labels == ("cat", "dog")
    for names in (["cat", "dog"], ["the sea", "two dogs"]):
        shares = by_hand(published[0], [data.image(i) for i in range(9)], names, ["{}"])
        truth = torch.tensor(data.targets)
        found = evaluate_zero_shot(classifier, data, labels=names, templates=["{}"], batch=4)
        assert found.loss == pytest.approx(F.nll_loss(shares.log(), truth).item(), abs=1e-8)
        assert found.accuracy == pytest.approx((shares.argmax(-1) == truth).double().mean().item())
        assert (found.top5, found.pictures) == (None, 9)
    assert evaluate_zero_shot(classifier, data) == evaluate_zero_shot(classifier, data, labels=["cat", "dog"])
    spaced = evaluate_zero_shot(classifier, data.renamed(["two_dogs", "the_sea"]))
    assert spaced == evaluate_zero_shot(classifier, data, labels=["two dogs", "the sea"])
    with pytest.raises(ValueError, match="There are 3 labels and 2 classes: expected one for each"):
        evaluate_zero_shot(classifier, data, labels=LABELS[:3])
