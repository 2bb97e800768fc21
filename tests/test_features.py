"""What features of pictures are, and what k-NN and a linear probe say of them: by hand, by loops, by scikit-learn.

Each check is a function of the module, so that it can be shown to fail on one with a planted bug.
"""

import inspect
import math
import types

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import scratchformers as sf
from scratchformers import features as ours
from scratchformers.images import Preprocess
from scratchformers.training.pictures import read_pictures
from scratchformers.training.reading import prepared

SIZE = (8, 12)
PREPROCESS = Preprocess(SIZE, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
VIT = sf.ViTConfig(image=SIZE, patch=4, dim=12, depth=2, heads=3, classes=7, dropout=0.3)
MAE = sf.MAEConfig(SIZE, 4, dim=12, depth=2, heads=3, decoder_dim=8, decoder_depth=1, decoder_heads=2)


def scrambled(model):
    """In float64 and in training mode, every parameter drawn anew."""
    draw = torch.Generator().manual_seed(0)
    model = model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.double) * 0.3)
    return model


def mutant(old, new):
    """The module with one place of its text changed."""
    text = inspect.getsource(ours)
    assert text.count(old) == 1, f"{text.count(old)} places say {old!r}"
    module = types.ModuleType("mutant")
    exec(compile(text.replace(old, new), "mutant", "exec"), vars(module))
    return module


def fails(check, module, *given):
    with pytest.raises((AssertionError, ValueError, RuntimeError, IndexError)):
        check(module, *given)


@pytest.fixture
def pictures(tmp_path):
    """Eleven of noise, of a size that has to be changed, with four classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 9, 14, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=pixels, labels=np.arange(11) % 4)
    return read_pictures(tmp_path / "noise.npz")


# --- features


def by_hand(pictures, *makes):
    """Of each picture alone, prepared here."""
    images = [PREPROCESS(pictures.image(i)).double()[None] for i in range(len(pictures))]
    with torch.no_grad():
        return [torch.cat([make(image) for image in images]).numpy() for make in makes]


def check_vit(module, pictures):
    """The head makes of the features what the model says, whatever its pool."""
    for pool in ("class", "mean", "patches"):
        model = scrambled(sf.ViT(sf.ViTConfig(**{**vars(VIT), "pool": pool})))
        found = module.features(model, pictures, PREPROCESS, batch=4)
        assert model.training, "as it was before"
        model.eval()
        (scores,) = by_hand(pictures, model)
        with torch.no_grad():
            said = model.head.out(torch.from_numpy(found).double()).numpy()
        assert found.dtype == np.float32
        assert found.shape == (11, 12)
        np.testing.assert_allclose(said, scores, atol=1e-5)


def check_mae(module, pictures):
    """Nothing is hidden; the class token is not in the mean of the patches."""
    for class_token in (True, False):
        model = scrambled(sf.MAE(sf.MAEConfig(**{**vars(MAE), "class_token": class_token}))).eval()
        (states,) = by_hand(pictures, model.encode)
        for pool in (None, "mean"):
            found = module.features(model, pictures, PREPROCESS, pool=pool, batch=4)
            np.testing.assert_allclose(found, states[:, -6:].mean(1), atol=1e-5)
        if class_token:
            found = module.features(model, pictures, PREPROCESS, pool="class", batch=4)
            np.testing.assert_allclose(found, states[:, 0], atol=1e-5)


def test_features_are_what_the_head_reads(pictures):
    check_vit(ours, pictures)


def test_features_of_an_autoencoder_are_of_all_patches(pictures):
    check_mae(ours, pictures)


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (check_vit, "with evaluating(model):", "with torch.no_grad():"),  # dropout
        (check_vit, 'model.states if model.config.pool == "patches" else model.encode', "model.encode"),
        (check_vit, "model.pool(states(images))", "states(images)[:, 0]"),
        (check_vit, "filled += len(rows)", "filled += 0"),
        (check_vit, "preprocess, batch=batch", "Preprocess((8, 12)), batch=batch"),
        (check_mae, "before = int(model.class_token is not None)", "before = 0"),
        (check_mae, "encode(images)[:, before:]", "encode(images, shown=torch.zeros(len(images), 1).long())"),
        (check_mae, "model.encode(images)[:, 0]", "model.encode(images)[:, 1]"),
    ],
)  # fmt: skip
def test_wrong_features_are_noticed(pictures, check, old, new):
    fails(check, mutant(old, new), pictures)


def test_the_mean_of_a_vits_patches_and_its_class_token(pictures):
    model = scrambled(sf.ViT(VIT)).eval()
    mean, first = by_hand(pictures, lambda x: model.encode(x)[:, 1:].mean(1), lambda x: model.encode(x)[:, 0])
    for pool, expected in (("mean", mean), ("class", first), (None, first)):
        np.testing.assert_allclose(ours.features(model, pictures, PREPROCESS, pool=pool), expected, atol=1e-5)


@pytest.mark.parametrize("model", [sf.ViT(VIT), sf.MAE(MAE)], ids=["vit", "mae"])
def test_features_do_not_depend_on_the_batch_nor_on_chance(pictures, model):
    model = scrambled(model)
    found = ours.features(model, pictures, PREPROCESS, batch=4)
    assert (ours.features(model, pictures, PREPROCESS, batch=4) == found).all()
    for batch in (1, 3, 11, 100):
        np.testing.assert_allclose(ours.features(model, pictures, PREPROCESS, batch=batch), found, atol=1e-6)


def test_a_model_without_head_has_features_too(pictures):
    model = scrambled(sf.ViT(sf.ViTConfig(**{**vars(VIT), "classes": None})))
    (expected,) = by_hand(pictures, lambda x: model.eval().encode(x)[:, 0])
    np.testing.assert_allclose(ours.features(model, pictures, PREPROCESS), expected, atol=1e-5)


def test_no_more_than_two_batches_are_read_ahead():
    class Counting:
        begun = 0

        def __len__(self):
            return 40

        def image(self, i):
            Counting.begun += 1
            return PREPROCESS.picture(torch.zeros(3, *SIZE))

    for batches, _ in enumerate(prepared(sf.ViT(VIT), Counting(), PREPROCESS, batch=4), start=1):
        assert Counting.begun <= 4 * (batches + 1)
    assert (batches, Counting.begun) == (10, 40)


def test_features_that_cannot_be_are_refused(pictures):
    vit, simple = sf.ViT(VIT), sf.ViT(sf.ViTConfig(**{**vars(VIT), "pool": "mean"}))
    for model, said, how in (
        (sf.GPT2.from_preset("tiny"), "GPT2 reads no pictures: expected a ViT or an MAE", {}),
        (vit, "pool is 'first': expected class or mean", {"pool": "first"}),
        (simple, "no class token, expected mean", {"pool": "class"}),
        (vit, "batch is 0: expected at least 1", {"batch": 0}),
        (vit, r"this model reads \(batch, 3, 8, 12\)", {"preprocess": Preprocess((8, 8))}),
        (vit, r"this model reads \(batch, 3, 8, 12\)", {"preprocess": Preprocess((8, 8)), "left_out": {}}),
    ):
        with pytest.raises(ValueError, match=said):
            ours.features(model, pictures, **{"preprocess": PREPROCESS, **how})
    with torch.no_grad():
        vit.norm.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="The features are not finite"):
        ours.features(vit, pictures, PREPROCESS)


# --- nearest neighbours


def clouds(classes, rows, *, seed, dim=5, spread=1.0):
    """Points around a centre for each class, some nearer to another's, of unlike lengths."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    labels[:classes] = np.arange(classes)
    centres = np.random.default_rng(classes).normal(size=(classes, dim))
    points = centres[labels] + spread * draw.normal(size=(rows, dim))
    return (points * draw.uniform(0.1, 3, (rows, 1))).astype(np.float32), labels


def plain_knn(train, labels, test, truth, k, temperature):
    """One row and one neighbour after the other."""
    first, five, classes = 0, 0, max(labels) + 1
    for point, right in zip(test.astype(np.float64), truth):
        cosines = [float(point @ other) / math.hypot(*point) / math.hypot(*other) for other in train.astype(np.float64)]
        votes = dict.fromkeys(range(classes), 0.0)
        for place in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
            votes[labels[place]] += math.exp(cosines[place] / temperature)
        order = sorted((each for each in votes if votes[each]), key=lambda each: (-votes[each], each))
        first, five = first + (order[0] == right), five + (right in order[:5])
    return first / len(test), five / len(test) if classes > 5 else None


def check_knn(module):
    for classes, k, temperature in (
        (3, 1, 0.07),
        (3, 7, 0.07),
        (9, 20, 0.07),
        (9, 4, 0.5),
        (9, 30, 0.02),
        (8, 200, 0.1),
    ):
        train, labels = clouds(classes, 97, seed=k)
        test, truth = clouds(classes, 61, seed=k + 1)
        first, five = plain_knn(train, labels, test, truth, k, temperature)
        assert 0.2 < first < 0.95, "neither nothing nor all"
        found = module.knn(train, labels, test, truth, k=k, temperature=temperature)
        assert (found.accuracy, found.top5) == (pytest.approx(first), five if five is None else pytest.approx(five))
        by_default = plain_knn(train, labels, test, truth, 20, 0.07)[0]
        assert module.knn(train, labels, test, truth).accuracy == pytest.approx(by_default)


def check_knn_by_another_library(module):
    """That every answer is scikit-learn's: its answers are given for the truth, and all are right."""
    for classes, k in ((2, 4), (4, 10), (9, 6)):
        train, labels = clouds(classes, 97, seed=k, spread=2.0)
        test, _ = clouds(classes, 61, seed=k + 1, spread=2.0)
        votes = {math.inf: "uniform", 0.07: lambda distances: np.exp((1 - distances) / 0.07)}
        for temperature, weights in votes.items():
            theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights).fit(train, labels)
            answers = theirs.predict(test)
            assert module.knn(train, labels, test, answers, k=k, temperature=temperature).accuracy == 1


def test_knn_is_the_plain_loop():
    check_knn(ours)


def test_knn_is_scikit_learns():
    check_knn_by_another_library(ours)


def test_knn_in_blocks_is_the_same(monkeypatch):
    for entries in (1, 97 * 7, 97 * 60):
        monkeypatch.setattr(ours, "ENTRIES", entries)
        check_knn(ours)


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (check_knn, "(F.normalize(some) @", "(some @"),
        (check_knn, "F.normalize(learnt), []", "learnt, []"),
        (check_knn, "double() / temperature", "double() * temperature"),
        (check_knn, "double() / temperature", "double() / 0.07"),
        (check_knn, "temperature: float = 0.07", "temperature: float = 1e9"),
        (check_knn, "k: int = 20", "k: int = 10"),
        (check_knn, "min(k, len(learnt))", "min(k + 1, len(learnt))"),
        (check_knn, "min(k, len(learnt)))", "min(k, len(learnt)), largest=False)"),
        (check_knn, "numbers[nearest]", "nearest % classes"),
        (check_knn, ".masked_fill(unnamed, classes)", ""),
        (check_knn, "(places < 5)", "(places <= 5)"),
        (check_knn, "classes > 5", "classes > 9"),
        (check_knn, "scores.shape[1]) < truth", "scores.shape[1]) >= truth"),
        (check_knn_by_another_library, "((scores == own) & smaller)", "((scores == own) & ~smaller)"),
        (check_knn_by_another_library, "double() / temperature", "double() / 0.07"),
    ],
)  # fmt: skip
def test_a_wrong_knn_is_noticed(check, old, new):
    fails(check, mutant(old, new))


def test_knn_at_the_edge():
    x, labels = clouds(3, 12, seed=0)
    assert ours.knn(x, labels, x, labels, k=1).accuracy == 1, "each is its own nearest"
    assert ours.knn(x, labels, x * 1e-3, labels, k=1, temperature=1e-9).accuracy == 1
    assert ours.knn(torch.from_numpy(x), labels.tolist(), x, labels, k=1).accuracy == 1
    assert ours.knn(x, labels, np.zeros((1, 5)), [0], k=12, temperature=math.inf).top5 is None
    for said, given, how in (
        ("k is 0", (x, labels, x, labels), {"k": 0}),
        ("temperature 0.0", (x, labels, x, labels), {"temperature": 0.0}),
        (r"train is of shape \(12, 5\) and its labels of \(11,\)", (x, labels[1:], x, labels), {}),
        (r"test is of shape \(0, 5\)", (x, labels, x[:0], labels[:0]), {}),
        ("train has 5 features and test 4", (x, labels, x[:, 1:], labels), {}),
        ("A label is 3: expected 0 to 2", (x, labels, x, labels + 1), {}),
        ("A label is -1: expected 0 to 2", (x, labels, x, labels - 1), {}),
        ("test holds NaN", (x, labels, x * math.nan, labels), {}),
    ):
        with pytest.raises(ValueError, match=said):
            ours.knn(*given, **how)


# --- linear probe


def digits():
    x, y = load_digits(return_X_y=True)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def check_probe(module):
    """Within a point of scikit-learn's on its digits, and all where classes lie apart."""
    train, labels, test, truth = digits()
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(max_iter=1000).fit(scaler.transform(train), labels)
    accuracy = theirs.score(scaler.transform(test), truth)
    found = module.linear_probe(train, labels, test, truth, seed=0)
    assert found.accuracy >= accuracy - 0.01
    assert 0.98 < found.top5 <= 1
    corners = np.eye(4)[np.arange(80) % 4] * 50 + np.random.default_rng(0).normal(size=(80, 4))
    assert module.linear_probe(corners[:40], np.arange(40) % 4, corners[40:], np.arange(40) % 4, seed=0).accuracy == 1


def check_fit(module):
    """The probabilities are scikit-learn's, of the same penalty, also where one class has most of the rows."""
    train, labels, test, _ = digits()
    rows = (labels < 3) & ((labels == 0) | (np.arange(1200) % 5 == 0))
    train, labels = train[rows], labels[rows]
    for penalty in (1.0, 1e-2):
        (scores,) = module._fitted(torch.tensor(train).float(), torch.tensor(labels), 3, [penalty])
        scaler = StandardScaler().fit(train)
        theirs = LogisticRegression(C=1 / len(train) / penalty, tol=1e-8, max_iter=5000)
        expected = theirs.fit(scaler.transform(train), labels).predict_proba(scaler.transform(test))
        found = scores(torch.tensor(test).float()).softmax(-1).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3)


def check_no_leak(module):
    """Test labels choose nothing, and rows of the test do not change each other's answers."""
    train, labels = clouds(3, 60, seed=0, dim=20, spread=2.0)
    test, truth = clouds(3, 40, seed=1, dim=20, spread=2.0)
    ask = lambda rows, wanted: module.linear_probe(train, labels, test[rows], wanted, seed=0)  # noqa: E731
    found = ask(slice(None), truth)
    assert 0.3 < found.accuracy < 1
    others = [ask(slice(None), np.full(40, label)) for label in range(3)]
    assert sum(each.accuracy for each in others) == pytest.approx(1), "each row has one answer, whatever is said of it"
    chance = ask(slice(None), np.random.default_rng(0).permutation(truth))
    assert {each.l2 for each in (*others, chance)} == {found.l2}
    alone = [ask(slice(i, i + 1), truth[i : i + 1]).accuracy for i in range(4)]
    assert np.mean(alone) == ask(slice(4), truth[:4]).accuracy


def check_choice(module):
    """Where labels are chance, the strongest penalty is best on rows that were held out; where there is no noise, one
    that lets the fit be sure."""
    noise = np.random.default_rng(0).normal(size=(80, 60))
    assert module.linear_probe(noise, np.arange(80) % 2, noise, np.arange(80) % 2, seed=0).l2 == max(ours.PENALTIES)
    corners = np.eye(4)[np.arange(80) % 4]
    assert module.linear_probe(corners, np.arange(80) % 4, corners, np.arange(80) % 4, seed=0).l2 == min(ours.PENALTIES)


CHECKS = [check_probe, check_fit, check_no_leak, check_choice]


@pytest.mark.parametrize("check", CHECKS)
def test_the_probe_is_a_logistic_regression(check):
    check(ours)


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (check_probe, "max_iter=ITERATIONS", "max_iter=2"),
        (check_probe, "zip(x.split(step), numbers.split(step))", "zip(x.split(step), numbers.flip(0).split(step))"),
        (check_fit, "penalty / 2 * weights[:-1].square()", "penalty / 2 * weights.square()"),
        (check_fit, "penalty / 2 *", "penalty *"),
        (check_fit, "/ scale, torch.zeros", ", torch.zeros"),
        (check_fit, 'reduction="sum") / len(x)', 'reduction="sum")'),
        (check_no_leak, "_chosen(learnt, numbers,", "_chosen(asked, truth,"),
        (check_no_leak, "(x - mean) / scale, weights[:-1]", "(x - x.mean(0)) / scale, weights[:-1]"),
        (check_choice, "_fitted(x[~held_out], numbers[~held_out],", "_fitted(x, numbers,"),
        (check_choice, "costs.index(min(costs))", "costs.index(max(costs))"),
    ],
)  # fmt: skip
def test_a_wrong_probe_is_noticed(check, old, new):
    fails(check, mutant(old, new))


def test_the_probe_in_blocks_is_the_same(monkeypatch):
    train, labels = clouds(7, 90, seed=0)
    test, truth = clouds(7, 50, seed=1)
    found = ours.linear_probe(train, labels, test, truth, seed=3)
    assert found == ours.linear_probe(train, labels, test, truth, seed=3), "deterministic"
    monkeypatch.setattr(ours, "ENTRIES", 7 * 4)
    again = ours.linear_probe(train, labels, test, truth, seed=3)
    assert again.l2 == found.l2
    assert (again.accuracy, again.top5) == (pytest.approx(found.accuracy), pytest.approx(found.top5))


def test_a_feature_that_says_nothing_changes_nothing():
    """A constant, as large as it may be, and the scale of the others."""
    train, labels, test, truth = digits()
    train, test = train[:300], test[:200]
    labels, truth = labels[:300], truth[:200]
    found = ours.linear_probe(train, labels, test, truth, seed=0)
    wider = [np.hstack([x * 1000 - 7, np.full((len(x), 1), 12345.678)]) for x in (train, test)]
    again = ours.linear_probe(wider[0], labels, wider[1], truth, seed=0)
    assert again.l2 == found.l2
    assert again.accuracy == pytest.approx(found.accuracy, abs=0.006)


def test_every_class_is_learnt_from_and_held_out(monkeypatch):
    """The tenth is drawn from each class by its size."""
    seen = []
    monkeypatch.setattr(ours, "_fitted", lambda x, numbers, classes, penalties: seen.append(numbers) or [lambda x: x])
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    ours._chosen(torch.eye(100)[:, :3], labels, 3, torch.Generator().manual_seed(0))
    assert seen[0].bincount().tolist() == [63, 18, 9]


def test_a_probe_that_cannot_be_is_refused():
    x, labels = clouds(3, 12, seed=0)
    with pytest.raises(ValueError, match="all of one class: expected two or more"):
        ours.linear_probe(x, labels * 0 + 2, x, labels, seed=0)
    with pytest.raises(ValueError, match="A label is 3: expected 0 to 2"):
        ours.linear_probe(x, labels, x, labels + 1, seed=0)
    assert ours.linear_probe(x[:2], [0, 1], x[:2], [0, 1], seed=0).accuracy == 1, "as few as can be"
