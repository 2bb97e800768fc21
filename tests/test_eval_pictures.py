"""What `eval` says of models of pictures: against sums by hand, a training's own validation, and planted mistakes."""

import io
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_cli import refused, run
from test_features import MAE, PREPROCESS, SIZE, VIT, scrambled

import scratchformers as sf
from scratchformers import evaluation, features
from scratchformers.checkpoints import files
from scratchformers.evaluation import evaluate_painting, evaluate_pictures
from scratchformers.features import evaluate_features, knn, linear_probe
from scratchformers.heads import Classify
from scratchformers.training import loop, reading, vision
from scratchformers.training.data import generator as data_generator
from scratchformers.training.pictures import read_pictures

NAMES = ("ape", "bee", "cat", "dog", "eel", "fox", "gnu")
ROWS = 23


def vit(names=NAMES):
    """With labels in an order that is not the alphabet's."""
    model = scrambled(sf.ViT(sf.ViTConfig(**{**vars(VIT), "classes": len(names)}))).eval()
    images = torch.stack([PREPROCESS(Image.fromarray(each)) for each in noise()]).double()
    with torch.no_grad():  # so that it says now this, now that
        model.head.out.weight.mul_(10)
        model.head.out.bias.sub_(model(images).mean(0))
    model.head.labels = tuple(names[::2] + names[1::2])
    return model


def mae(**fields):
    return scrambled(sf.MAE(sf.MAEConfig(**{**vars(MAE), **fields}))).eval()


def saved(model, folder):
    model.assets = {files.PREPROCESSOR: files.to_json(PREPROCESS.write())}
    model.float().save_pretrained(folder)
    return folder


def noise(rows=ROWS):
    """Pictures of noise, each around a colour of its own."""
    draw = np.random.default_rng(0)
    return (draw.integers(0, 86, (rows, 9, 14, 3)) + draw.integers(0, 171, (rows, 1, 1, 3))).astype(np.uint8)


def packed(path, pixels, numbers, names):
    np.savez(path, images=pixels, labels=np.array(numbers), names=np.array(names))
    return path


@pytest.fixture
def data(tmp_path):
    """Noise with seven classes, some of which the model says itself; in the file they are numbered from the last."""
    model, names = vit(), NAMES[::-1]
    with torch.no_grad():
        said = [model(PREPROCESS(Image.fromarray(each)).double()[None]).argmax().item() for each in noise()]
    assert len({*said}) > 2, "not always the same"
    numbers = [names.index(model.head.labels[said[i]]) if i % 2 else i % 7 for i in range(ROWS)]
    return packed(tmp_path / "noise.npz", noise(), numbers, names)


def whole(tmp_path, count=12, broken=()):
    """A folder of two classes, of which the broken ones have a header and no more."""
    for i, pixels in enumerate(noise(count)):
        file = io.BytesIO()
        # One class is bright and the other dark, so that they can be told apart.
        Image.fromarray(pixels // 3 + (i % 2) * 170).save(file, "PNG")
        path = tmp_path / "pictures" / ("bright" if i % 2 else "dark") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue()[:200] if i in broken else file.getvalue())
    return tmp_path / "pictures"


# --- classes


def by_hand(model, pictures):
    """The loss, and the shares of pictures whose class is the first and among the first five: one by one, by name."""
    loss, first, five = [], 0, 0
    for i in range(len(pictures)):
        name = pictures.labels[pictures.targets[i]]
        with torch.no_grad():
            shares = model(PREPROCESS(pictures.image(i)).double()[None])[0].softmax(-1)
        order = [model.head.labels[number] for number in shares.argsort(descending=True)]
        loss.append(-math.log(shares[model.head.labels.index(name)]))
        first, five = first + (order[0] == name), five + (name in order[:5])
    return np.mean(loss), first / len(pictures), five / len(pictures)


def check_classes(path):
    """At every size of the batch."""
    model, pictures = vit(), read_pictures(path)
    loss, first, five = by_hand(model, pictures)
    assert 1 / 7 < first < five < 1
    for batch in (1, 3, 8, 100):
        found = evaluate_pictures(model.train(), pictures, PREPROCESS, batch=batch)
        assert model.training, "as it was before"
        assert found.loss == pytest.approx(loss, abs=1e-10)
        assert (found.accuracy, found.top5, found.pictures) == (pytest.approx(first), pytest.approx(five), ROWS)


def test_classes_are_counted_by_their_names(data):
    check_classes(data)


def numbers_of_the_data(patch):
    patch.setattr(evaluation, "class_numbers", lambda pictures, *_: torch.tensor(pictures.targets))


def labels_of_other_pictures(patch):
    real = evaluation.prepared

    def turned(*given, **how):
        for rows, images in real(*given, **how):
            yield rows, images.flip(0)

    patch.setattr(evaluation, "prepared", turned)


def the_last_batch_is_lost(patch):
    real = evaluation.prepared
    patch.setattr(evaluation, "prepared", lambda *given, **how: list(real(*given, **how))[: -(-ROWS // 8) - 1])


def loss_of_batches_averaged(patch):
    real = evaluation.class_figures
    patch.setattr(
        evaluation, "class_figures", lambda x, n: {**real(x, n), "loss": ROWS / 3 * float(F.cross_entropy(x, n))}
    )


@pytest.mark.parametrize(
    "plant", [numbers_of_the_data, labels_of_other_pictures, the_last_batch_is_lost, loss_of_batches_averaged]
)
def test_classes_counted_wrongly_are_noticed(data, monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_classes(data)


def test_figures_are_those_of_the_trainings_validation(data):
    model, pictures = vit().float(), read_pictures(data)
    task = vision.Classes(model, pictures, pictures, vision.ClassSettings(batch=5, threads=1), PREPROCESS)
    expected = loop.evaluate(task, torch.device("cpu"))
    found = evaluate_pictures(model, pictures, PREPROCESS, batch=5)
    assert {"loss": found.loss, "accuracy": found.accuracy, "top5": found.top5} == pytest.approx(expected, rel=1e-12)


def test_of_five_classes_or_fewer_there_is_no_top_5(tmp_path):
    path = packed(tmp_path / "five.npz", noise(10), [0, 1] * 5, ["cat", "dog"])
    assert evaluate_pictures(vit(NAMES[:5]), read_pictures(path), PREPROCESS).top5 is None
    assert evaluate_pictures(vit(NAMES[:6]), read_pictures(path), PREPROCESS).top5 is not None


def test_classes_that_cannot_be_matched_are_refused(tmp_path, data):
    unknown = read_pictures(packed(tmp_path / "other.npz", noise(4), [0, 1, 1, 0], ["cat", "unicorn"]))
    expected = (
        "The class 'unicorn' of the pictures is none of the model's classes: expected ape, cat, eel, gnu, bee and 2"
    )
    with pytest.raises(ValueError, match=expected):
        evaluate_pictures(vit(), unknown, PREPROCESS)
    twice = vit()
    twice.head.labels = ("cat", *NAMES[:-1])  # ImageNet has two cranes
    cats = read_pictures(packed(tmp_path / "cats.npz", noise(4), [0, 1, 1, 0], ["ape", "cat"]))
    with pytest.raises(ValueError, match="Two of the model's classes are called 'cat'"):
        evaluate_pictures(twice, cats, PREPROCESS)
    birds = read_pictures(packed(tmp_path / "birds.npz", noise(4), [0, 1, 1, 0], ["ape", "bee"]))
    assert evaluate_pictures(twice, birds, PREPROCESS).pictures == 4, "which is no matter, where none is asked for"
    with pytest.raises(ValueError, match="The pictures have no classes"):
        evaluate_pictures(vit(), read_pictures(data, labelled=False), PREPROCESS)
    for model in (mae(), sf.GPT2.from_preset("tiny"), sf.BERT.from_preset("tiny")):
        with pytest.raises(ValueError, match="This model has no labels for pictures"):
            evaluate_pictures(model, read_pictures(data), PREPROCESS)
    torch.nn.init.constant_(twice.head.out.bias, math.nan)
    with pytest.raises(ValueError, match="The loss is nan"):
        evaluate_pictures(twice, birds, PREPROCESS)


# --- painting


def check_painting(path):
    """At every size of the batch what each picture costs alone, some patches hidden that no other picture decides."""
    pictures = read_pictures(path, labelled=False)
    for model in (mae(), mae(norm_pix_loss=True, class_token=False)):
        task = vision.Painting(model, pictures, pictures, vision.PaintSettings(threads=1, mask_ratio=0.5), PREPROCESS)
        losses = []
        for i in range(len(pictures)):
            given = task.validation(PREPROCESS(pictures.image(i)).double()[None], [i])
            expected = torch.rand(task.patches, generator=data_generator(0, i, 5))  # written out, not asked of either
            assert torch.equal(given["noise"][0], expected)
            with torch.no_grad():
                losses.append(float(model(**given, mask_ratio=0.5).loss))
        for batch in (1, 7, 100):
            found = evaluate_painting(model, pictures, PREPROCESS, mask_ratio=0.5, batch=batch)
            assert found.loss == pytest.approx(np.mean(losses), abs=1e-10)
            assert (found.mask_ratio, found.pictures) == (0.5, ROWS)


def test_painting_costs_what_it_costs_in_a_trainings_validation(data):
    check_painting(data)


@pytest.mark.parametrize("numbers", [lambda *n: (7,), lambda seed, row, kind: (seed, row % 3, kind), lambda *n: n[:2]])
def test_patches_hidden_otherwise_are_noticed(data, monkeypatch, numbers):
    real = reading.generator
    monkeypatch.setattr(reading, "generator", lambda *given: real(*numbers(*given)))
    with pytest.raises(AssertionError):
        check_painting(data)


def test_painting_that_cannot_be_is_refused(data):
    pictures, encoder = read_pictures(data, labelled=False), mae()
    encoder.decoder = None
    for model, ratio, said in (
        (vit(), 0.75, "ViT paints no pictures"),
        (encoder, 0.75, "no decoder, so it paints nothing: choose a file that has one"),
        (mae(), 0.0, r"mask_ratio.* is 0\.0: expected a"),
        (mae(), 0.99, "one of the 6 patches left to see"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate_painting(model, pictures, PREPROCESS, mask_ratio=ratio)


# --- features


def bright_and_dark(tmp_path, model, judge, **how):
    """Both are told at once, whatever numbers the two files give them."""
    bright = np.arange(24) % 2 == 1
    pixels = noise(24) // 3 + (bright * 170).astype(np.uint8)[:, None, None, None]
    train = packed(tmp_path / "train.npz", pixels, bright * 1, ["dark", "bright"])
    test = packed(tmp_path / "test.npz", pixels[:9], ~bright[:9] * 1, ["bright", "dark"])
    return evaluate_features(
        model, read_pictures(test), PREPROCESS, train=read_pictures(train), judge=judge, **how
    )  # fmt: skip


def probe(*given):
    return linear_probe(*given, seed=0)


@pytest.mark.parametrize("judge", [knn, probe])
@pytest.mark.parametrize("make", [vit, mae])
def test_features_are_judged_by_the_names_of_classes(tmp_path, make, judge):
    for batch in (2, 50):
        found = bright_and_dark(tmp_path, make(), judge, batch=batch)
        assert vars(found) == {"pictures": 9, "accuracy": 1.0, "top5": None, "train_pictures": 24}


def test_features_judged_by_numbers_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "class_numbers", lambda pictures, *_: torch.tensor(pictures.targets))
    assert bright_and_dark(tmp_path, vit(), knn).accuracy == 0


def test_a_class_to_compare_with_is_missing(tmp_path):
    train = read_pictures(packed(tmp_path / "train.npz", noise(4), [0, 1, 0, 1], ["cat", "dog"]))
    test = read_pictures(packed(tmp_path / "test.npz", noise(4), [0, 1, 0, 1], ["cat", "eel"]))
    with pytest.raises(
        ValueError, match="The class 'eel' of the pictures is none of those to compare with: expected cat"
    ):
        evaluate_features(vit(), test, PREPROCESS, train=train, judge=knn)
    with pytest.raises(ValueError, match="The pictures have no classes"):
        evaluate_features(vit(), train, PREPROCESS, train=train.part([]), judge=knn)


# --- what cannot be decoded


def test_a_picture_that_ends_early_stops_all_or_is_left_out(tmp_path):
    pictures = read_pictures(whole(tmp_path, broken=(4, 7)))
    names = [pictures.name(i) for i in range(12)]
    model = vit(("bright", "dark", "grey"))
    for ask in (
        lambda **how: evaluate_pictures(model, pictures, PREPROCESS, **how),
        lambda **how: evaluate_painting(mae(), pictures, PREPROCESS, **how),
        lambda **how: features.features(mae(), pictures, PREPROCESS, **how),
    ):
        with pytest.raises(ValueError, match=r"07.png is truncated .* or leave it out with --skip-unreadable.$"):
            ask()
        for batch in (1, 5):
            lost = {}
            found = ask(batch=batch, left_out=lost)
            assert [names[i] for i in lost] == ["bright/07.png", "dark/04.png"]
            assert (len(found) if isinstance(found, np.ndarray) else found.pictures) == 10
    with pytest.raises(ValueError, match="None of the 2 pictures can be read"):
        evaluate_painting(mae(), pictures.part([*lost]), PREPROCESS, left_out={})


def test_left_out_pictures_change_nothing_for_the_others(tmp_path):
    """Neither which patches are hidden of them, nor which class they are of."""
    good = read_pictures(whole(tmp_path / "good"))
    bad = read_pictures(whole(tmp_path / "bad", broken=(4, 7)))
    rows = [i for i in range(12) if good.name(i) not in ("bright/07.png", "dark/04.png")]
    model, painter = vit(("bright", "dark", "grey")), mae()
    found = evaluate_pictures(model, bad, PREPROCESS, left_out={})
    assert found.loss == pytest.approx(evaluate_pictures(model, good.part(rows), PREPROCESS).loss, abs=1e-12)
    alone = 12 * evaluate_painting(painter, good, PREPROCESS).loss
    for row in set(range(12)) - set(rows):
        hidden = torch.rand(6, generator=data_generator(0, row, 5))[None]
        alone -= float(painter(PREPROCESS(good.image(row)).double()[None], noise=hidden).loss.detach())
    assert evaluate_painting(painter, bad, PREPROCESS, left_out={}).loss == pytest.approx(alone / 10, abs=1e-10)
    for judge in (knn, probe):
        found = evaluate_features(painter, good, PREPROCESS, train=bad, judge=judge, left_out=({}, {}))
        assert (found.accuracy, found.pictures, found.train_pictures) == (1, 12, 10)


def test_labels_that_stay_when_pictures_go_are_noticed(tmp_path, monkeypatch):
    bad = read_pictures(whole(tmp_path, broken=(3, 5)))
    train = read_pictures(whole(tmp_path / "good"))
    monkeypatch.setattr(features, "_without", lambda numbers, left_out: numbers[: len(numbers) - len(left_out)])
    found = evaluate_features(mae(), bad, PREPROCESS, train=train, judge=knn, left_out=({}, {}))
    assert found.accuracy < 1


def test_a_picture_too_long_to_resize_is_called_by_its_name(tmp_path):
    folder = whole(tmp_path)
    Image.new("RGB", (30000, 1)).save(folder / "dark" / "long.png")
    short = sf.images.Preprocess(8000, SIZE)
    with pytest.raises(ValueError, match=r"^dark/long.png: The picture is 30000 x 1 pixels"):
        evaluate_painting(mae(), read_pictures(folder).part([12]), short)


# --- the command


def test_eval_of_a_vit(capsys, tmp_path, data):
    folder = saved(vit(), tmp_path / "vit")
    expected = vars(evaluate_pictures(sf.load(folder), read_pictures(data), PREPROCESS))
    code, out, error = run(capsys, "eval", "--model", folder, "--data", data, "--json")
    assert (code, error) == (0, "")
    found = json.loads(out)
    assert found == {"task": "classify", "model": str(folder), "data": str(data), **found}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    said = run(capsys, "eval", "--model", folder, "--data", data, "--task", "classify", "--batch", 2)[1]
    assert [line.split() for line in said.splitlines()] == [
        ["loss", f"{expected['loss']:.4f}"], ["accuracy", f"{expected['accuracy']:.4f}"],
        ["top5", f"{expected['top5']:.4f}"], ["pictures", str(ROWS)],
    ]  # fmt: skip


def test_eval_prepares_pictures_as_the_checkpoint_says(capsys, tmp_path, data):
    """Of the model's size, by the mean and deviation beside it."""
    model = vit()
    folder = saved(model, tmp_path / "vit")
    bare = PREPROCESS.sized((80, 120))
    (folder / files.PREPROCESSOR).write_text(files.to_json(bare.write()).decode(), encoding="utf-8")
    assert bare.shape != SIZE
    found = json.loads(run(capsys, "eval", "--model", folder, "--data", data, "--json")[1])
    assert found["loss"] == pytest.approx(by_hand(vit(), read_pictures(data))[0], abs=1e-5)


def test_eval_of_an_mae(capsys, tmp_path, data):
    folder = saved(mae(), tmp_path / "mae")
    for asked, ratio in (((), 0.75), (("--task", "paint", "--mask", 0.5), 0.5)):
        expected = evaluate_painting(
            sf.load(folder), read_pictures(data, labelled=False), PREPROCESS, mask_ratio=ratio
        )  # fmt: skip
        found = json.loads(run(capsys, "eval", "--model", folder, "--data", data, "--json", *asked)[1])
        assert found["task"] == "paint"
        assert {name: found[name] for name in vars(expected)} == pytest.approx(vars(expected))


def test_eval_of_features(capsys, tmp_path):
    train, test = whole(tmp_path / "one", 30), whole(tmp_path / "two", 12)
    folders = {"vit": saved(vit(), tmp_path / "vit"), "mae": saved(mae(), tmp_path / "mae")}
    for name, folder in folders.items():
        for task, judge in (("knn", knn), ("probe", probe)):
            for pool in (None, "class", "mean"):
                how = ("--task", task, "--train", train, "--json", *(("--pool", pool) if pool else ()))
                found = json.loads(run(capsys, "eval", "--model", folder, "--data", test, *how)[1])
                expected = evaluate_features(
                    sf.load(folder), read_pictures(test), PREPROCESS, train=read_pictures(train), judge=judge, pool=pool
                )
                said = {"task": task, "model": str(folder), "data": str(test), "train": str(train)}
                assert found == {**said, **vars(expected)}, name
    said = run(capsys, "eval", "--model", folder, "--data", test, "--task", "knn", "--train", train)[1]
    assert [line.split()[:-1] for line in said.splitlines()] == [["pictures"], ["accuracy"], ["train", "pictures"]]


def test_eval_names_the_pictures_it_left_out(capsys, tmp_path):
    train, test = whole(tmp_path / "one", 12, broken=(5,)), whole(tmp_path / "two", 12, broken=(2, 9))
    (test / "dark" / "no picture.png").write_text("text", encoding="utf-8")
    folder = saved(mae(), tmp_path / "mae")
    ask = ("--model", folder, "--data", test, "--task", "knn", "--train", train)
    assert "1 of 13 pictures cannot be read" in refused(capsys, "eval", *ask)
    code, out, error = run(capsys, "eval", *ask, "--skip-unreadable", "--json")
    assert code == 0
    assert (json.loads(out)["pictures"], json.loads(out)["train_pictures"]) == (10, 11)
    assert error.splitlines() == [
        "scratchformers: 1 of 12 pictures could not be read, and were skipped:", "  bright/05.png",
        "scratchformers: 3 of 13 pictures could not be read, and were skipped:", "  dark/no picture.png",
        "  bright/09.png", "  dark/02.png",
    ]  # fmt: skip
    (test / "dark" / "no picture.png").unlink()
    assert "09.png is truncated" in refused(capsys, "eval", "--model", folder, "--data", test)


def test_eval_of_pictures_refuses_in_a_sentence(capsys, tmp_path, data):
    folders = {"vit": saved(vit(), tmp_path / "vit"), "mae": saved(mae(), tmp_path / "mae")}
    bare, encoder = vit(), mae()
    bare.head, encoder.decoder = None, None
    bare.config = sf.ViTConfig(**{**vars(bare.config), "classes": None})
    folders |= {"bare": saved(bare, tmp_path / "bare"), "encoder": saved(encoder, tmp_path / "encoder")}
    text, table = tmp_path / "text.txt", tmp_path / "table.tsv"
    text.write_text("To be, or not to be.\n", encoding="utf-8")
    table.write_text("text\tlabel\nto be\tgood\nnot to be\tbad\n", encoding="utf-8")
    ask = lambda model, data, *rest: refused(  # noqa: E731
        capsys, "eval", "--model", folders[model], "--data", data, *rest
    )
    copy = packed(tmp_path / "copy.npz", noise(4), [0, 1, 1, 0], ["ape", "bee"])
    assert "nothing that knn could learn classes from: pass labelled pictures, --train" in ask(
        "vit", data, "--task", "knn"
    )
    assert "--train and --data are both" in ask("vit", data, "--task", "probe", "--train", data)
    assert "--train is for knn and probe: leave it out for classify" in ask("vit", data, "--train", copy)
    assert "--pool is for knn and probe: leave it out for paint" in ask("mae", data, "--pool", "mean")
    assert "--mask is for paint: leave it out for classify" in ask("vit", data, "--mask", 0.5)
    assert "holds a MAE, which was not made for classify: see --task" in ask("mae", data, "--task", "classify")
    assert "holds a ViT, which was not made for paint: see --task" in ask("vit", data, "--task", "paint")
    assert "holds a ViT, which was not made for text: see --task" in ask("vit", text, "--task", "text")
    assert "holds a ViT, which was not made for lambada: see --task" in ask("vit", text, "--task", "lambada")
    assert "holds a ViT, which was not made for tokens: see --task" in ask("vit", data, "--task", "tokens")
    assert "text.txt holds no pictures, by its name" in ask("vit", text)
    assert "table.tsv has no column 'path'" in ask("vit", table)
    assert "This ViT has no head: ask what its features are worth" in ask("bare", data)
    assert "This model has no labels for pictures" in ask("bare", data, "--task", "classify")
    assert "This MAE has no decoder, so it paints nothing" in ask("encoder", data)
    assert "--length and --stride move a window over a text: leave them out for paint" in ask(
        "mae", data, "--length", 9
    )
    assert "this model reads pictures, leave them out" in ask("vit", data, "--truncate")
    assert "this model reads pictures, leave them out" in ask("vit", data, "--column", "label=name")
    assert "leave them out for knn" in ask("vit", data, "--task", "knn", "--train", copy, "--truncate")
    assert "batch is 0: expected at least 1" in ask("vit", data, "--batch", 0)
    assert "none.npz does not exist: expected a folder of pictures" in ask("vit", tmp_path / "none.npz")
    one = packed(tmp_path / "one.npz", noise(4), [0, 0, 0, 0], ["ape", "bee"])
    assert "is of the class 'ape': there is nothing to tell apart" in ask("vit", data, "--task", "knn", "--train", one)
    assert "none of those to compare with" in ask("bare", data, "--task", "probe", "--train", copy)
    for model in ("bare", "encoder"):
        asked = ("--model", folders[model], "--data", copy, "--task", "knn", "--train", data)
        assert run(capsys, "eval", *asked)[0] == 0, "features need neither head nor decoder"


def test_eval_of_texts_refuses_what_is_for_pictures(capsys, tmp_path):
    from scratchformers.text import characters

    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be.\n", encoding="utf-8")
    tokenizer = characters(["To be, or not to be.\n"])
    sizes = {"vocab": tokenizer.vocab, "length": 16, "dim": 8, "depth": 1, "heads": 2}
    model = sf.GPT2(sf.GPT2Config(**sizes))
    model.assets = tokenizer.files
    model.save_pretrained(tmp_path / "gpt2")
    ask = ("eval", "--model", tmp_path / "gpt2", "--data", text)
    assert run(capsys, *ask)[0] == 0
    for task in ("knn", "probe"):
        said = refused(capsys, *ask, "--task", task, "--train", tmp_path / "other")
        assert f"holds a GPT2, which was not made for {task}: see --task" in said
    assert "holds a GPT2, which was not made for paint" in refused(capsys, *ask, "--task", "paint")
    assert "holds a GPT2, which was not made for classify" in refused(capsys, *ask, "--task", "classify")
    assert "--skip-unreadable is for pictures" in refused(capsys, *ask, "--skip-unreadable")
    assert "--train is for knn and probe: leave it out for text" in refused(capsys, *ask, "--train", "other")


def test_the_vector_head_of_a_user_is_measured_too(data):
    """Any head with labels, not the published one alone."""
    model = vit()
    model.head = Classify(12, NAMES, pool=lambda x, keep=None: x[:, 1:].mean(1)).double()
    loss, first, _ = by_hand(model, read_pictures(data))
    found = evaluate_pictures(model, read_pictures(data), PREPROCESS, batch=4)
    assert (found.loss, found.accuracy) == (pytest.approx(loss, abs=1e-10), pytest.approx(first))
