"""However a step is cut into micro-batches, its gradient is the same: for every loss, in its recipe's own task."""

import pytest
import test_contrastive
import test_labelled
import test_translation_training
import test_vision_training
import torch
from test_bert_training import SMALL
from test_bert_training import TEXT as WORDS
from test_loop import caught

from scratchformers.training.loop import Arithmetic
from scratchformers.training.processes import Shared
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

ROWS, CUTS = 32, (8, (13, 9, 7, 3))  # of a step; its parts, by their sizes
LOSSES = {  # recipe, task, settings
    "next token": ("gpt2", None, {}),
    "masked tokens": ("bert", None, {}),
    "text labels": ("bert", "classify", {}),
    "word labels": ("bert", "tokens", {}),
    "picture classes": ("vit", None, {}),
    "picture classes, soft": ("vit", None, {"mixup": "0.4", "label_smoothing": "0.1"}),
    "picture classes, pasted": ("vit", None, {"cutmix": "1", "erasing": "0.5"}),
    "painting": ("mae", None, {}),
    "painting, normed": ("mae", None, {"norm_pix_loss": "true"}),
    "pairs": ("clip", None, {}),
    "translation": ("encoder-decoder", None, {}),
    "translation, smoothed": ("encoder-decoder", None, {"smoothing": "0.1"}),
}
GIVEN = {  # of each recipe, beside SMALL
    "gpt2": {"length": "12", "dim": "16", "depth": "1", "heads": "2", "dropout": "0"},
    "bert": {"length": "40", "dim": "16", "depth": "1", "heads": "2", "dropout": "0"},
    "vit": test_vision_training.TINY,
    "mae": {**test_vision_training.TINY, **test_vision_training.DECODER},
    "clip": test_contrastive.SIZES,
    "encoder-decoder": {**test_translation_training.SIZES, "tokens": "0", "smoothing": "0", "dropout": "0"},
}


def written(recipe, kind, folder):
    """Data of which 32 rows can be drawn."""
    if recipe in ("vit", "mae"):
        return test_vision_training.made(folder / "pictures.npz", 60)
    if recipe == "clip":
        return test_contrastive.made(folder / "pairs.npz", 60)
    if kind == "classify":
        return test_labelled.tsv(folder / "labels.tsv", test_labelled.TEXTS * 2)
    if kind == "tokens":
        words, lengths = test_labelled.WORDS, test_labelled.LENGTHS * 5
        return test_labelled.conll(folder / "words.txt", [words[i % 3 : i % 3 + n] for i, n in enumerate(lengths)])
    if recipe == "encoder-decoder":
        rows = (f"{source}\t{target}\n" for source, target in test_translation_training.PAIRS)
        return test_translation_training.write(folder / "pairs.tsv", "".join(["source\ttarget\n", *rows]))
    return test_translation_training.write(folder / "text.txt", WORDS)


@pytest.fixture(params=LOSSES, scope="module")
def learning(request, tmp_path_factory):
    """The name of a loss, its task in float64 on scrambled weights, and a batch of its own."""
    (recipe, kind, more), folder = LOSSES[request.param], tmp_path_factory.mktemp("data")
    given = {name: str(value) for name, value in {**SMALL, **GIVEN[recipe], **more}.items()}
    asked = Request(recipe, folder / "run", written(recipe, kind, folder), task=kind, given=given)
    task = open_run(asked)[0].task
    draw = torch.Generator().manual_seed(0)
    for parameter in task.model.double().parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    task.model.train()
    batch = task.batch([(0, row) for row in range(ROWS)])
    return request.param, task, {k: x.double() if x.is_floating_point() else x for k, x in batch.items()}


def learnt(task, batch, sizes):
    """The loss of a step that is cut so, and its gradient by parameter."""
    task.model.zero_grad()
    parts = [dict(zip(batch, cut)) for cut in zip(*(value.split(sizes) for value in batch.values()))]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss = task.learn(parts, Arithmetic(torch.device("cpu"), "off", scaler, Shared(task.model)))
    return loss, {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}


def check(task, batch, sizes):
    (whole, truth), (parts, found) = (learnt(task, batch, each) for each in (ROWS, sizes))
    assert parts == pytest.approx(whole, abs=1e-9)
    assert found.keys() == truth.keys()
    assert max(float((found[name] - truth[name]).abs().max()) for name in truth) < 1e-9
    assert max(float(grad.abs().max()) for grad in truth.values()) > 1e-3


@pytest.fixture(autouse=True)
def exactly(monkeypatch):
    """What losses compute in float32, also where models do not, in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("sizes", CUTS, ids=["four of eight", "ragged"])
def test_a_step_is_the_same_in_parts(learning, sizes):
    _, task, batch = learning
    check(task, batch, sizes)


def mean_of_means(self, batches, arithmetic):
    """The famous mistake: each micro-batch weighs the same, whatever it holds."""
    loss = 0.0
    for batch in batches:
        part = self.loss(self.model, batch) / self.targets(batch) / len(batches)
        arithmetic.backward(part)
        loss += float(part.detach())
    return loss


def test_a_mean_of_means_is_caught(learning, monkeypatch):
    name, task, batch = learning
    monkeypatch.setattr(type(task), "learn", mean_of_means)
    with caught():
        check(task, batch, CUTS[1])
    if name.startswith(("word", "pairs", "translation")):  # as many rows have other targets here
        with caught():
            check(task, batch, CUTS[0])
