"""What a model of pictures knows before it is asked anything: its features, and how well classes are told from them,
by the nearest neighbours (Caron et al. 2021, DINO) or by a linear probe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scratchformers.generate import evaluating
from scratchformers.images import Preprocess
from scratchformers.models.clip import CLIP
from scratchformers.models.mae import MAE
from scratchformers.models.vit import ViT
from scratchformers.training.pictures import Pictures
from scratchformers.training.reading import LeftOut, Track, class_numbers, prepared

BATCH = 32  # pictures computed at once
ENTRIES = 2**24  # numbers of a table (some rows, all columns) that is computed at once: 64 MiB of float32
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # L2 of a probe, from which one is chosen
ITERATIONS = 100  # of L-BFGS

Vectors = np.ndarray | Tensor  # (n, dim)
Numbers = np.ndarray | Tensor | Sequence[int]  # (n,) of classes, from 0
Pool = Literal["class", "mean"]


@dataclass(frozen=True)
class Ranked:
    """Shares of the rows whose class stands first, and among the first five; None where there are five or fewer."""

    accuracy: float
    top5: float | None


@dataclass(frozen=True)
class Probed(Ranked):
    """`l2` is the penalty that was chosen."""

    l2: float


@dataclass(frozen=True)
class FeatureScore:
    """`train_pictures` is how many labelled pictures the features were judged by."""

    pictures: int
    accuracy: float
    top5: float | None
    train_pictures: int


def features(
    model: Any,
    pictures: Pictures,
    preprocess: Preprocess,
    *,
    pool: Pool | None = None,
    batch: int = BATCH,
    track: Track = lambda items, total: items,
    left_out: LeftOut | None = None,
) -> np.ndarray:
    """One vector a picture, float32 (n, dim), in their order: of a ViT what its head would read, of an MAE the mean of
    its patches' states, nothing hidden; or, as `pool` says, the class token's state or the mean of the patches'. Of a
    CLIP that which it compares with texts.

    Pictures that cannot be decoded have no row, and are named in `left_out`; without one they are a ValueError.
    """
    pooled = _pooled(model, pool)
    found, filled = np.empty((len(pictures), model.config.dim), np.float32), 0
    for rows, images in prepared(model, pictures, preprocess, batch=batch, track=track, left_out=left_out):
        with evaluating(model):
            found[filled : filled + len(rows)] = pooled(images).float().cpu().numpy()
        filled += len(rows)
    if not np.isfinite(found[:filled]).all():
        raise ValueError("The features are not finite: the model's weights hold NaN, or overflow.")
    return found[:filled]


def _pooled(model: Any, pool: Pool | None) -> Callable[[Tensor], Tensor]:
    """From pictures to a vector each."""
    if not isinstance(model, ViT | MAE | CLIP):
        raise ValueError(f"{type(model).__name__} reads no pictures: expected a ViT or an MAE, or a CLIP.")
    if pool not in (None, "class", "mean"):
        raise ValueError(f"pool is {pool!r}: expected class or mean.")
    if isinstance(model, CLIP):
        if pool is not None:
            raise ValueError(f"pool is {pool}: a CLIP has one vector of a picture, so leave it out (--pool).")
        return model.encode_image
    if pool is None and isinstance(model, ViT):
        states = model.states if model.config.pool == "patches" else model.encode
        return lambda images: model.pool(states(images))
    before = int(model.class_token is not None)
    if pool == "class":
        if not before:
            raise ValueError("pool is class: this model has no class token, expected mean.")
        return lambda images: model.encode(images)[:, 0]
    return lambda images: model.encode(images)[:, before:].mean(1)


def evaluate_features(
    model: Any,
    pictures: Pictures,
    preprocess: Preprocess,
    *,
    train: Pictures,
    judge: Callable[[Vectors, Numbers, Vectors, Numbers], Ranked],
    pool: Pool | None = None,
    batch: int = BATCH,
    track: Track = lambda items, total: items,
    left_out: tuple[LeftOut, LeftOut] | None = None,
) -> FeatureScore:
    """How well the classes of `pictures` are told by their features, from those of the labelled `train`: `judge` is
    `knn`, or `linear_probe` with its seed. Classes are matched by their names.

    Pictures of the two that cannot be decoded go into `left_out`. ValueError for a class that `train` has not.
    """
    numbers = class_numbers(pictures, train.labels, "those to compare with")
    known = class_numbers(train, train.labels, "those to compare with")
    lost, train_lost = left_out or (None, None)
    how: Any = {"pool": pool, "batch": batch, "track": track}
    learnt = features(model, train, preprocess, **how, left_out=train_lost)
    asked = features(model, pictures, preprocess, **how, left_out=lost)
    found = judge(learnt, _without(known, train_lost), asked, _without(numbers, lost))
    return FeatureScore(len(asked), found.accuracy, found.top5, len(learnt))


def _without(numbers: Tensor, left_out: LeftOut | None) -> Tensor:
    return numbers[[row for row in range(len(numbers)) if row not in (left_out or {})]]


def knn(
    train: Vectors, labels: Numbers, test: Vectors, test_labels: Numbers, *, k: int = 20, temperature: float = 0.07
) -> Ranked:
    """Each row of `test` (m, dim) is given the class for which most of its `k` nearest rows of `train` (n, dim) vote,
    all rows where there are fewer: nearest by the cosine, and a vote weighs exp(cosine / temperature). At a temperature
    of infinity all weigh the same.

    Of classes with equal votes the one of the smaller number stands first; one without a vote is never right.
    ValueError for arrays that do not fit each other.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"k is {k} and temperature {temperature}: expected at least 1, and more than 0.")
    given, classes = _checked(train, labels, test, test_labels)
    learnt, numbers, asked, truth = given
    learnt, places = F.normalize(learnt), []
    step = max(1, ENTRIES // max(len(learnt), classes))
    for some, right in zip(asked.split(step), truth.split(step)):
        cosines, nearest = (F.normalize(some) @ learnt.T).topk(min(k, len(learnt)))
        # Divided by the largest, so that none overflows: shares of the votes stay what they are.
        weights = ((cosines - cosines[:, :1]).double() / temperature).exp()
        votes = torch.zeros(len(some), classes, dtype=torch.double).scatter_add_(1, numbers[nearest], weights)
        unnamed = votes.gather(1, right[:, None])[:, 0] == 0
        places.append(_places(votes, right).masked_fill(unnamed, classes))
    return Ranked(*_shares(torch.cat(places), classes))


def linear_probe(train: Vectors, labels: Numbers, test: Vectors, test_labels: Numbers, *, seed: int) -> Probed:
    """Each row of `test` (m, dim) is given the class that a multinomial logistic regression says, which was fitted to
    `train` (n, dim) by L-BFGS.

    Features are standardised by the mean and deviation of what is fitted to. The L2 penalty is that of PENALTIES whose
    fit to nine tenths of `train` costs least on the last tenth, drawn by `seed` from each class by its size; then all
    of `train` is fitted to. `test` chooses nothing. ValueError for arrays that do not fit each other, or one class.
    """
    given, classes = _checked(train, labels, test, test_labels)
    learnt, numbers, asked, truth = given
    if len(numbers.unique()) < 2:
        raise ValueError("The rows to learn from are all of one class: expected two or more.")
    l2 = _chosen(learnt, numbers, classes, torch.Generator().manual_seed(seed))
    scores = _fitted(learnt, numbers, classes, [l2])[0]
    step = max(1, ENTRIES // max(classes, learnt.shape[1]))
    places = [_places(scores(some), right) for some, right in zip(asked.split(step), truth.split(step))]
    return Probed(*_shares(torch.cat(places), classes), l2)


def _chosen(x: Tensor, numbers: Tensor, classes: int, draw: torch.Generator) -> float:
    """The penalty with which rows are told best that the fit has not seen."""
    order = torch.randperm(len(x), generator=draw)
    order = order[numbers[order].argsort(stable=True)]  # class by class, at random within: every tenth is some of each
    held_out = torch.zeros(len(x), dtype=torch.bool)
    held_out[order[::10]] = True
    fits = _fitted(x[~held_out], numbers[~held_out], classes, PENALTIES)
    costs = [float(F.cross_entropy(scores(x[held_out]), numbers[held_out])) for scores in fits]
    return PENALTIES[costs.index(min(costs))]


def _fitted(x: Tensor, numbers: Tensor, classes: int, penalties: Sequence[float]) -> list[Callable[[Tensor], Tensor]]:
    """For each penalty what gives scores (b, classes) of features (b, dim). A fit begins where the one before ended."""
    mean, std = x.mean(0), x.std(0, correction=0)
    scale = std.where(std > 1e-6 * mean.abs(), 1)  # of a feature that is always the same, what is left is rounding
    x, weights = (x - mean) / scale, torch.zeros(x.shape[1] + 1, classes)
    found = []
    for penalty in penalties:
        weights = _minimised(x, numbers, weights, penalty)
        found.append(partial(_scores, mean, scale, weights))
    return found


def _scores(mean: Tensor, scale: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    return torch.addmm(weights[-1], (x - mean) / scale, weights[:-1])


def _minimised(x: Tensor, numbers: Tensor, start: Tensor, penalty: float) -> Tensor:
    """(dim + 1, classes), the last row the bias, which is not penalised: mean cross-entropy + penalty / 2 |weights|^2
    is least there. From `start`."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )
    step = max(1, ENTRIES // weights.shape[1])

    def cost() -> Tensor:
        optimizer.zero_grad()
        total = penalty / 2 * weights[:-1].square().sum()
        total.backward()
        for some, right in zip(x.split(step), numbers.split(step)):
            scores = torch.addmm(weights[-1], some, weights[:-1])
            part = F.cross_entropy(scores, right, reduction="sum") / len(x)
            part.backward()
            total = total.detach() + part.detach()
        return total

    optimizer.step(cost)
    return weights.detach()


def _checked(
    train: Vectors, labels: Numbers, test: Vectors, test_labels: Numbers
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int]:
    """As float32 and int64, and how many classes there are."""
    x, asked = (torch.as_tensor(each).float() for each in (train, test))
    numbers, truth = (torch.as_tensor(each).long() for each in (labels, test_labels))
    for name, vectors, own in (("train", x, numbers), ("test", asked, truth)):
        if vectors.ndim != 2 or not len(vectors) or own.shape != vectors.shape[:1]:
            raise ValueError(
                f"{name} is of shape {tuple(vectors.shape)} and its labels of {tuple(own.shape)}: expected (n, dim) "
                "and (n,), and a row or more."
            )
        if not vectors.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity: expected finite features.")
    if x.shape[1] != asked.shape[1]:
        raise ValueError(f"train has {x.shape[1]} features and test {asked.shape[1]}: expected as many.")
    classes = int(numbers.max()) + 1
    for number in (int(numbers.min()), int(truth.min()), int(truth.max())):
        if not 0 <= number < classes:
            raise ValueError(f"A label is {number}: expected 0 to {classes - 1}, the largest of train.")
    return (x, numbers, asked, truth), classes


def _places(scores: Tensor, truth: Tensor) -> Tensor:
    """How many classes stand before the true one: of equal scores that of the smaller number stands first."""
    own = scores.gather(1, truth[:, None])
    smaller = torch.arange(scores.shape[1]) < truth[:, None]
    return (~(scores <= own) | ((scores == own) & smaller)).sum(1)  # so that NaN is never right


def _shares(places: Tensor, classes: int) -> tuple[float, float | None]:
    return float((places == 0).double().mean()), float((places < 5).double().mean()) if classes > 5 else None
