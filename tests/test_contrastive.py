"""Training of CLIP: the loss, large batches in small memory, several processes, what is measured, and whole runs."""

import contextlib
import copy
import dataclasses
import json
import math
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reference  # noqa: F401 (before anything imports transformers)
import torch
import torch.nn.functional as F
from contrastive_process import CPU, Towers, cached, encode
from open_clip.loss import ClipLoss
from PIL import Image
from test_cli import refused
from test_cli import run as program
from torch import nn

import scratchformers as sf
from scratchformers.clip_text import train_clip_bpe
from scratchformers.evaluation import evaluate_zero_shot
from scratchformers.training import contrastive, log
from scratchformers.training.contrastive import (
    HEAD,
    HOTTEST,
    Contrastive,
    PairSettings,
    chance,
    contrastive_loss,
    fits,
    prepare_pairs,
    ranks,
)
from scratchformers.training.loop import Arithmetic, evaluate, freeze, make_optimizer
from scratchformers.training.pictures import read_pictures
from scratchformers.training.processes import Shared
from scratchformers.training.recipes import RECIPES
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

SIZES = {"image": 8, "patch": 4, "image_dim": 16, "image_depth": 2, "image_heads": 2}
SIZES |= {"text_dim": 16, "text_depth": 2, "text_heads": 2, "dim": 12}
SMALL = {"steps": "6", "batch": "8", "eval_every": "3", "save_every": "3", "warmup": "2", "threads": "1"}
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (250, 250, 250)}


def made(path, count=40, *, seed=0, several=True):
    """Pictures of one colour over another, with captions that say so; no two pictures are the same."""
    draw = np.random.RandomState(seed)
    images, captions, names = np.zeros((count, 8, 8, 3), np.uint8), [], [*COLOURS]
    for image in images:
        over, under = (names[i] for i in draw.randint(0, len(names), 2))
        image[:4], image[4:] = COLOURS[over], COLOURS[under]
        image[:] = image // 5 * 4 + draw.randint(0, 50, 3)
        captions.append([f"{over} over {under}", f"{under} under {over}", ""][: 3 if several else 1])
    np.savez(path, images=images, captions=np.array(captions))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made(tmp_path_factory.mktemp("pairs") / "pairs.npz")


def begun(data, out, *, resume=False, source=None, given=None, **more):
    given = {**SMALL, **({} if source or resume else {k: str(v) for k, v in SIZES.items()}), **(given or {})}
    return open_run(Request("clip", out, data, given=given, source=source, **more), resume=resume)


def trained(data, out, **more):
    run, _ = begun(data, out, **more)
    return [*run], run


def task_of(data, out, **settings):
    how = PairSettings(**{"batch": 8, "threads": 1, **settings})
    fields = {**dataclasses.asdict(sf.CLIP.preset("tiny")), **SIZES, "length": 0}
    return prepare_pairs(Request("clip", out, data), how, fields)[0]


def lines(out):
    return log.read(out / "log.jsonl")


def weights(source):
    return {name: value.clone() for name, value in sf.load(source).state_dict().items()}


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory):
    """A model to go on from."""
    out = tmp_path_factory.mktemp("learnt") / "run"
    trained(data, out)
    return out / "model"


# --- the loss


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def of_pairs(texts):
    """`fits` for pictures in a row, each with one of these texts."""
    return partial(fits, torch.tensor(texts)[:, None])


def loss_of(image, text, scale, texts):
    numbers = torch.tensor(texts)
    return contrastive_loss(image, text, scale, torch.arange(len(texts)), numbers, of_pairs(texts))


def test_the_loss_is_that_of_open_clip():
    image, text, scale = unit(7, 5), unit(7, 5, seed=1), torch.tensor(2.0).double()
    expected = ClipLoss()(image, text, scale.exp())
    assert float(loss_of(image, text, scale, range(7))) == pytest.approx(float(expected), abs=1e-12)


def test_captions_that_are_the_same_are_not_each_others_negatives():
    """Written out: every right one has the same share, in either direction."""
    texts, scale = [0, 1, 0, 2, 1, 0], torch.tensor(1.5).double()
    image, text = unit(6, 5), unit(3, 5, seed=1)[texts]
    scores, expected = scale.exp() * image @ text.T, 0.0
    for rows in (scores, scores.T):
        for i in range(6):
            right = [j for j in range(6) if texts[i] == texts[j]]
            expected -= sum(float(rows[i].log_softmax(0)[j]) for j in right) / len(right) / 12
    assert float(loss_of(image, text, scale, texts)) == pytest.approx(expected, abs=1e-12)


def test_captions_that_are_the_same_cost_what_one_hot_targets_would():
    """Their features are the same: it is with other right texts that the two losses part."""
    texts, scale = [0, 1, 0, 2, 1, 0], torch.tensor(1.5).double()
    image, text = unit(6, 5), unit(3, 5, seed=1)[texts]
    assert float(loss_of(image, text, scale, texts)) == pytest.approx(float(ClipLoss()(image, text, scale.exp())))


def test_two_prompts_of_a_class_are_not_each_others_negatives():
    """Two pictures of a class, between its two prompts: nothing is to be mended. One-hot targets would part them."""
    angles = torch.tensor([0.0, 0.0, 2.0, 0.3, -0.3, 2.0]).double()
    image, text = torch.stack([angles.cos(), angles.sin()], dim=1).split(3)
    image.requires_grad_()
    scale, rows, table = torch.tensor(3.0).double(), torch.arange(3), torch.tensor([[0, 1], [0, 1], [2, -1]])
    ours = contrastive_loss(image, text, scale, rows, rows, partial(fits, table))
    assert float(torch.autograd.grad(ours, image)[0].abs().max()) < 1e-5
    theirs = ClipLoss()(image, text, scale.exp())
    assert float(torch.autograd.grad(theirs, image)[0].abs().max()) > 0.1


def test_a_picture_with_two_captions_in_a_batch_has_both():
    table = torch.tensor([[0, 1], [2, -1], [3, 1]])
    found = fits(table, torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 3]))
    assert found.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]]


# --- large batches in small memory


def costs(model, texts):
    return lambda image, text: loss_of(image, text, model.scale, texts)


def whole(model, x, y, size, texts):
    """The same with all graphs in memory."""
    model.zero_grad()
    a, b = (torch.cat([encode(tower, rows) for rows in part.split(size)])
            for tower, part in ((model.image, x), (model.text, y)))  # fmt: skip
    loss = loss_of(a, b, model.scale, texts)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def worst(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture
def towers():
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(13, width, generator=draw, dtype=torch.float64) for width in (7, 11))
    return Towers().double(), x, y, [0, 1, 2, 0, 3, 4, 5, 6, 1, 7, 8, 9, 10]


@pytest.mark.parametrize("size", [1, 3, 4, 13])
def test_micro_batches_give_the_gradient_of_the_large_batch(towers, size):
    model, x, y, texts = towers
    model.eval()
    expected, truth = whole(model, x, y, 13, texts)
    loss, found = cached(model, x, y, size, costs(model, texts))
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    assert worst(found, truth) < 1e-9


@pytest.mark.parametrize("size", [1, 5])
def test_what_is_dropped_is_dropped_alike_both_times(towers, size, monkeypatch):
    model, x, y, texts = towers
    torch.manual_seed(5)
    expected, truth = whole(model, x, y, size, texts)
    torch.manual_seed(5)
    loss, found = cached(model, x, y, size, costs(model, texts))
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    assert worst(found, truth) < 1e-9
    state = torch.get_rng_state()
    monkeypatch.setattr(contrastive.Replay, "again", lambda self: contextlib.nullcontext())
    torch.manual_seed(5)
    assert worst(cached(model, x, y, size, costs(model, texts))[1], truth) > 1e-3, "drawn anew, it is another gradient"
    assert not torch.equal(state, torch.get_rng_state()), "and the replay had left torch's generator alone"


def test_micro_batches_by_themselves_are_another_loss(towers):
    """What accumulation without cached features would do."""
    model, x, y, texts = towers
    model.eval()
    _, truth = whole(model, x, y, 13, texts)
    model.zero_grad()
    for rows in torch.arange(13).split(5):
        some = [texts[row] for row in rows]
        part = loss_of(encode(model.image, x[rows]), encode(model.text, y[rows]), model.scale,
                       [sorted({*some}).index(text) for text in some])  # fmt: skip
        (part * len(rows) / 13).backward()
    assert worst({name: p.grad for name, p in model.named_parameters()}, truth) > 1e-3


def test_the_graph_of_one_micro_batch_is_in_memory_at_a_time(towers):
    model, x, y, texts = towers
    most = {}
    for name, learn, given in (("whole", whole, texts), ("cached", cached, costs(model, texts))):
        alive, peak = weakref.WeakSet(), [0]

        def pack(x, alive=alive, peak=peak):
            held = Held(x.detach())
            alive.add(held)
            peak[0] = max(peak[0], sum(each.x.numel() for each in alive))
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.x):
            learn(model, x, y, 1, given)
        most[name] = peak[0]
    assert most["cached"] < most["whole"] / 3


class Held:
    def __init__(self, x):
        self.x = x


def plainly(task):
    return Arithmetic(CPU, "off", torch.amp.GradScaler("cpu", enabled=False), Shared(task.model))


@pytest.mark.parametrize("frozen", [(), ("image",), ("text",), ("encoder",)])
def test_a_task_learns_from_micro_batches_as_from_one(data, tmp_path, frozen):
    grads, losses = [], []
    for sizes in ((8,), (3, 3, 2)):
        task = task_of(data, tmp_path)
        task.model.double()
        freeze(task.model, frozen, head=task.head)
        examples = [(0, i) for i in range(8)]
        batches = [task.batch(examples[sum(sizes[:i]) :][:size]) for i, size in enumerate(sizes)]
        batches = [{k: v.double() if v.is_floating_point() else v for k, v in batch.items()} for batch in batches]
        losses.append(task.learn(batches, plainly(task)))
        grads.append({name: p.grad for name, p in task.model.named_parameters() if p.grad is not None})
        learning = {name for name, p in task.model.named_parameters() if p.requires_grad}
        assert {name for name, grad in grads[-1].items() if grad.abs().max() > 0} == learning
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert worst(*grads) < 1e-9


@pytest.mark.parametrize("micro", [0, 3])
@pytest.mark.parametrize("autocast", ["off", "bf16", "fp16"])
def test_every_parameter_gets_a_gradient(data, tmp_path, micro, autocast):
    """Also where weights cast without a graph could be found again in autocast's cache."""
    task = task_of(data, tmp_path, batch=12, micro_batch=micro)
    examples = [(0, i) for i in range(12)]
    batches = [task.batch(examples[i : i + (micro or 12)]) for i in range(0, 12, micro or 12)]
    scaler = torch.amp.GradScaler("cpu", enabled=autocast == "fp16")
    task.learn(batches, Arithmetic(CPU, autocast, scaler, Shared(task.model)))
    for name, parameter in task.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype == torch.float32
        if name == "text.token.weight":
            used = {int(i) for batch in batches for row in batch["ids"] for i in row[: int(row.argmax()) + 1]}
            assert {int(i) for i in parameter.grad.abs().amax(1).nonzero()} == used
        elif name != "text.position.weight" and not name.endswith("kv.bias"):
            assert (parameter.grad != 0).float().mean() > 0.9, name


def test_cosines_are_compared_in_full_precision(data, tmp_path):
    """Times 100, bfloat16 would round them to what differs by a half."""
    task, image, text = task_of(data, tmp_path), unit(8, 12).float(), unit(8, 12, seed=1).float()
    own = {"rows": torch.arange(8), "texts": task.table[:8, 0]}
    expected = task._cost(image, text, **own)
    assert bool(expected.isfinite())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task._cost(image, text, **own), expected)


# --- several processes


@pytest.mark.unhooked
def test_two_processes_learn_as_one_does(towers, tmp_path):
    """Negatives of the other process count, and their gradients too: without these it is another gradient."""
    model, x, y, texts = towers
    x, y, texts = x[:12], y[:12], texts[:12]
    torch.save({"x": x, "y": y, "texts": torch.tensor(texts)}, tmp_path / "given.pt")
    script = Path(__file__).with_name("contrastive_process.py")
    started = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for each in started:
        _, error = each.communicate(timeout=300)
        assert each.returncode == 0, error[-3000:]
    loss, truth = whole(model.eval(), x, y, 12, texts)
    expected, found = [loss, *truth.values()], torch.load(tmp_path / "found.pt")
    for size in (6, 2):
        for a, b in zip(found["ours", size], expected):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
        assert max(float((a - b).abs().max()) for a, b in zip(found["plain", size], expected)) > 1e-3


# --- the scale, and what decays


def test_the_temperature_is_clamped_after_each_step(data, tmp_path):
    task = task_of(data, tmp_path)
    task.model.scale.data.fill_(9.0)
    assert task.stepped()["scale"] == pytest.approx(100, rel=1e-5)
    assert float(task.model.scale.detach()) == pytest.approx(HOTTEST)
    task.model.scale.data.fill_(9.0)
    freeze(task.model, ["scale"], head=task.head)
    task.stepped()
    assert float(task.model.scale.detach()) == 9.0, "what is frozen stays"
    records, run = trained(data, tmp_path / "run", given={"steps": "3", "lr": "3.0", "warmup": "0", "clip": "0"})
    assert max(record["scale"] for record in records if "scale" in record) <= 100.001
    assert float(run.task.model.scale.detach()) <= HOTTEST + 1e-6


def test_norms_biases_and_the_scale_do_not_decay(data, tmp_path):
    task = task_of(data, tmp_path, weight_decay=0.3)
    decays = {id(p): group["weight_decay"] for group in make_optimizer(task.model, task.settings).param_groups
              for p in group["params"]}  # fmt: skip
    for name, parameter in task.model.named_parameters():
        plain = name == "scale" or name.endswith("bias") or "norm" in name
        assert decays[id(parameter)] == (0.0 if plain else 0.3), name


# --- what is measured


def test_recall_of_a_hand_made_case():
    """Three pictures, four texts; the second and the fourth text are both the second picture's."""
    text = torch.eye(4)
    image = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.0, 0.2, 0.9, 0.3], [0.5, 0.6, 0.1, 0.0]])
    right = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]).bool()
    assert ranks(image, text, lambda rows: right[rows]).tolist() == [0, 1, 2]
    assert ranks(text, image, lambda rows: right.T[rows]).tolist() == [0, 1, 1, 0]


def test_those_that_score_alike_are_no_hit():
    """Features that have all become the same find nothing, whatever the order."""
    right = torch.eye(5).bool()
    same = torch.ones(5, 3) / 3**0.5
    assert ranks(same, same, lambda rows: right[rows]).tolist() == [4] * 5
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert ranks(text, text, lambda rows: torch.eye(3)[rows].bool()).tolist() == [1, 1, 0]


def test_ranks_are_the_same_by_pieces(monkeypatch):
    image, text = unit(20, 4).float(), unit(31, 4, seed=1).float()
    right = torch.rand(20, 31, generator=torch.Generator().manual_seed(0)) < 0.1
    right[:, 0] |= ~right.any(1)
    expected = ranks(image, text, lambda rows: right[rows])
    seen = []
    monkeypatch.setattr(contrastive, "CHUNK", 7)
    found = ranks(image, text, lambda rows: (seen.append(len(rows)), right[rows])[1])
    assert torch.equal(found, expected)
    assert seen == [7, 7, 6], "never all at once"


@pytest.mark.parametrize(("right", "count", "k"), [([1], 10, 1), ([3], 10, 5), ([1, 2, 4, 4], 7, 3), ([2], 4, 10)])
def test_chance_is_what_random_orders_give(right, count, k):
    draw, hits, tries = np.random.RandomState(0), 0, 4000
    for i in range(tries):
        hits += draw.permutation(count)[:k].min() < right[i % len(right)]
    assert chance(right, count, k) == pytest.approx(hits / tries, abs=0.025)


def test_figures_of_a_run_are_those_of_the_features(data, tmp_path):
    """Counted once more, by a loop over all texts and pictures."""
    task = task_of(data, tmp_path, micro_batch=3)
    found = evaluate(task, CPU)
    model, valid = task.model, task.valid_table.tolist()
    with torch.no_grad():
        pictures = [model.encode_image(task.preprocess(task.valid_pictures.image(i))[None]) for i in range(len(valid))]
        numbers = sorted({number for row in valid for number in row} - {-1})
        texts = [model.encode_text(task.captions.padded([number])) for number in numbers]
    scores = F.normalize(torch.cat(pictures), dim=-1) @ F.normalize(torch.cat(texts), dim=-1).T
    right = torch.tensor([[number in row for number in numbers] for row in valid])
    for way, score, good in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        for k in (1, 5, 10):
            first = score.topk(min(k, score.shape[1])).indices
            hits = [bool(good[i, some].any()) for i, some in enumerate(first)]
            assert found[f"{way}@{k}"] == pytest.approx(sum(hits) / len(hits)), (way, k)
    assert found["recall"] == pytest.approx(sum(value for name, value in found.items() if "@" in name) / 6)


def test_a_model_that_knows_nothing_is_at_chance(data, tmp_path):
    """The mean over many that were drawn."""
    task = task_of(data, tmp_path)
    recalls, losses = [], []
    for seed in range(30):
        torch.manual_seed(seed)
        task.model.load_state_dict(sf.CLIP(task.model.config).state_dict())
        for tower in (task.model.image, task.model.text):
            nn.init.normal_(tower.project.weight)
        task.model.scale.data.fill_(0.0)
        found = evaluate(task, CPU)
        recalls.append(found["image_to_text@1"])
        losses.append(found["loss"])
    assert np.mean(recalls) == pytest.approx(task.baselines["chance_image_to_text@1"], abs=0.12)
    assert np.mean(losses) == pytest.approx(math.log(task.group), rel=0.1)
    assert task.trivial == pytest.approx(math.log(8))


def test_the_loss_of_held_out_pairs_is_of_groups_as_large_as_a_batch(tmp_path):
    task = task_of(made(tmp_path / "x.npz", 200), tmp_path, batch=6)
    found, seen = evaluate(task, CPU), task.measured
    assert (len(seen.rows), task.group) == (20, 6)
    assert math.isfinite(found["loss"])
    again = evaluate(task, CPU)
    assert again == found, "the same pairs each time"


# --- runs


def test_a_run_leaves_what_was_promised(data, tmp_path):
    records, run = trained(data, tmp_path / "run")
    out = tmp_path / "run"
    names = {"config.json", "log.jsonl", "loss.png", "checkpoints", "model", "pictures"}
    assert names <= {path.name for path in out.iterdir()}
    assert all(Image.open(out / "pictures" / f"step-{n}.png").size[0] > 100 for n in (3, 6))
    first, valid = records[0], [record for record in records if "valid_loss" in record]
    assert first["trivial_loss"] == pytest.approx(math.log(8))
    assert {f"chance_{way}@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} <= first.keys()
    assert first["duplicates"] > 0
    assert valid[0]["valid_recall"] > 0
    assert "over" in valid[0]["sample"] or "under" in valid[0]["sample"]
    model, tokenizer = sf.load(out / "model"), sf.load_tokenizer(out / "model")
    assert isinstance(model, sf.CLIP)
    assert (model.config.vocab, model.config.end) == (tokenizer.vocab, tokenizer.end)
    assert model.config.length == max(len(tokenizer.encode(text)) for text in run.task.captions.texts)
    assert sf.load_preprocess(out / "model")(Image.new("RGB", (50, 30), "red")).shape == (3, 8, 8)
    saved = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert saved["data"]["pictures"] + saved["valid"]["pictures"] == 40


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"micro_batch": "3"},
        {"ema": "0.9", "crop": "0.6", "flip": "true"},
        {"autocast": "bf16", "length": "30"},
    ],
)
def test_a_resumed_run_is_one_that_never_stopped(more, data, tmp_path):
    trained(data, tmp_path / "whole", given=more)
    half, _ = begun(data, tmp_path / "cut", given=more)
    for record in half:
        if record["step"] == 4:
            break
    again, said = open_run(Request("clip", tmp_path / "cut"), resume=True)
    assert "Resuming at step 3 of 6." in said
    list(again)
    a, b = ([{k: v for k, v in r.items() if k not in log.TIMES} for r in lines(tmp_path / n)] for n in ("whole", "cut"))
    assert a == b
    whole, cut = weights(tmp_path / "whole" / "model"), weights(tmp_path / "cut" / "model")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_resumes_without_the_files_of_its_settings(data, tmp_path):
    (tmp_path / "names.txt").write_text("red\nblue\n", encoding="utf-8")
    trained(data, tmp_path / "run", given={"names": str(tmp_path / "names.txt")})
    (tmp_path / "names.txt").unlink()
    _, said = open_run(Request("clip", tmp_path / "run"), resume=True)
    assert "finished" in said[-1]


def test_other_captions_are_other_data(tmp_path):
    data = made(tmp_path / "x.npz")
    trained(data, tmp_path / "run")
    made(tmp_path / "x.npz", seed=1)
    with pytest.raises(ValueError, match="not what the run"):
        open_run(Request("clip", tmp_path / "run"), resume=True)


@pytest.mark.parametrize("autocast", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("micro", ["0", "4"])
def test_twenty_steps_stay_finite(autocast, micro, data, tmp_path):
    given = {"steps": "20", "eval_every": "20", "autocast": autocast, "micro_batch": micro, "lr": "0.003"}
    records, run = trained(data, tmp_path / "run", given=given)
    losses = [record["loss"] for record in records if "loss" in record]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[:5])
    for name, value in run.task.model.state_dict().items():
        assert value.dtype == torch.float32, name
        assert bool(value.isfinite().all()), name


def test_one_batch_can_be_learnt_by_heart(tmp_path):
    """Each caption with its picture, as well as captions that come twice allow."""
    task = task_of(made(tmp_path / "x.npz", 20, several=False), tmp_path, batch=12, lr=3e-3)
    batch = task.batch([(0, i) for i in range(12)])
    optimizer = make_optimizer(task.model, task.settings)
    share = fits(task.table, batch["rows"], batch["texts"]).double()
    least = sum(float(each.sum(1).log().mean()) for each in (share, share.T)) / 2
    for _ in range(120):
        optimizer.zero_grad()
        loss = task.loss(task.model, batch) / 12
        loss.backward()
        optimizer.step()
    assert 0 < least < float(loss.detach()) < least + 0.05


def test_what_is_learnt_is_found_on_pictures_never_seen(tmp_path):
    data = made(tmp_path / "x.npz", 200)
    given = {"steps": "120", "batch": "32", "lr": "0.003", "eval_every": "120", "warmup": "10"}
    records, _ = trained(data, tmp_path / "run", given=given)
    assert records[-1]["valid_recall"] > records[0]["chance_recall"] + 0.2
    assert records[-1]["valid_loss"] < math.log(20) - 1


def test_captions_are_drawn_anew_for_each_epoch_and_follow_from_the_row(data, tmp_path):
    task = task_of(data, tmp_path)
    drawn = [task.batch([(epoch, row) for row in range(16)])["texts"] for epoch in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert all(int(text) in task.table[row] for row, text in enumerate(drawn[2]))


def test_pictures_are_not_mirrored_unless_asked(tmp_path):
    """A caption may say left or right."""
    images = np.random.RandomState(0).randint(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, captions=np.array([f"number {i}" for i in range(30)]))
    for given in ({}, {"flip": True}):
        task = task_of(tmp_path / "x.npz", tmp_path, **given)
        batch = task.batch([(0, row) for row in range(12)])
        plain = [task.preprocess(task.train_pictures.image(int(row))) for row in batch["rows"]]
        same = sum(torch.allclose(image, each, atol=1e-6) for image, each in zip(batch["images"], plain))
        assert (same == 12) is (not given)


def test_captions_that_stand_with_several_pictures_are_counted(data, tmp_path):
    run, said = begun(data, tmp_path / "run")
    assert any("captions stand with several pictures" in line for line in said)
    task, examples = run.task, [(0, i) for i in range(24)]
    batch = task.batch(examples)
    task.learn([batch], plainly(task))
    captions = [{*task.table[int(row)].tolist()} for row in batch["rows"]]
    expected = sum(sum(int(text) in each for each in captions) > 1 for text in batch["texts"])
    assert task.stepped()["duplicates"] == expected > 0


# --- what is frozen


@pytest.mark.parametrize("part", ["image", "text"])
def test_a_frozen_tower_stays_bit_for_bit(part, data, learnt, tmp_path):
    trained(data, tmp_path / "run", source=learnt, freeze=(part,), given={"micro_batch": "4", "lr": "0.01"})
    before, after = weights(learnt), weights(tmp_path / "run" / "model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    other = {"image": "text", "text": "image"}[part]
    assert moved
    assert {name.partition(".")[0] for name in moved} == {other, "scale"}


def test_a_linear_probe_moves_the_projections_and_the_scale(data, learnt, tmp_path):
    run, said = begun(data, tmp_path / "run", source=learnt, freeze=("encoder",), given={"lr": "0.01"})
    assert any("parameters learn" in line for line in said)
    list(run)
    before, after = weights(learnt), weights(tmp_path / "run" / "model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"image.project.weight", "text.project.weight", "scale"}
    assert all(name.startswith(HEAD) for name in moved)


def test_a_part_there_is_not_is_named(data, learnt, tmp_path):
    with pytest.raises(ValueError, match="expected encoder, scale, image, text"):
        begun(data, tmp_path / "run", source=learnt, freeze=("vision",))
    with pytest.raises(ValueError, match="goes with --from"):
        begun(data, tmp_path / "run", freeze=("image",))


# --- fine-tuning


def test_fine_tuning_goes_on_with_the_checkpoints_tokeniser(learnt, tmp_path):
    other = made(tmp_path / "x.npz", seed=3)
    _, run = trained(other, tmp_path / "run", source=learnt)
    had, has = sf.load_tokenizer(learnt), sf.load_tokenizer(tmp_path / "run" / "model")
    assert had.encode("red over unseen") == has.encode("red over unseen")
    assert run.task.model.config == sf.load(learnt).config
    for more, sentence in (
        ({"vocab": 600}, "leave out it or --tokenizer"),
        ({"tokenizer": "bpe"}, "is not that of"),
        ({"given": {"length": "70"}}, "length is 70: expected at most"),
        ({"given": {"dim": "8"}}, "dim 12, not 8"),
    ):
        with pytest.raises(ValueError, match=sentence):
            begun(other, tmp_path / "no", source=learnt, **more)


def test_positions_are_interpolated_for_another_size(data, learnt, tmp_path):
    _, run = trained(data, tmp_path / "run", source=learnt, given={"image": "16"})
    assert run.task.batch([(0, 0)])["images"].shape[-2:] == (16, 16)
    assert sf.load(tmp_path / "run" / "model").config.image == 16


def test_a_tokeniser_of_ones_own(data, tmp_path):
    tokenizer = train_clip_bpe(["red over green under blue"] * 9, 530)
    (tmp_path / "own").mkdir()
    for name, content in tokenizer.files.items():
        (tmp_path / "own" / name).write_bytes(content)
    run, _ = begun(data, tmp_path / "run", tokenizer=str(tmp_path / "own"))
    assert run.task.model.config.vocab == tokenizer.vocab
    for name, sentence in (("characters", "is not for clip: expected bpe"), ("wordpiece", "is not for clip")):
        with pytest.raises(ValueError, match=sentence):
            begun(data, tmp_path / "no", tokenizer=name)


def test_the_vocabulary_is_learnt_from_what_is_trained_on(data, tmp_path):
    """Of captions that are held out it knows nothing but their letters."""
    valid = tmp_path / "valid.npz"
    np.savez(valid, images=np.zeros((2, 8, 8, 3), np.uint8) + np.arange(2, dtype=np.uint8)[:, None, None, None],
             captions=np.array(["zyzzyva zyzzyva zyzzyva", "red"]))  # fmt: skip
    run, _ = begun(data, tmp_path / "run", valid=valid)
    tokenizer = run.task.captions.tokenizer
    assert len(tokenizer.encode("zyzzyva")) == 2 + 7
    assert len(tokenizer.encode("green")) == 3
    small, _ = begun(data, tmp_path / "small", vocab=516)
    assert small.task.model.config.vocab == 516


# --- classes


def classes(path, count=60, seed=0):
    draw = np.random.RandomState(seed)
    labels = np.arange(count) % 3
    pixels = draw.randint(0, 60, (count, 8, 8)) + labels[:, None, None] * 80
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return path


def test_classes_are_told_by_their_prompts(tmp_path):
    given = {"steps": "60", "batch": "30", "lr": "0.003", "eval_every": "30", "channels": "1"}
    given |= {"names": "dark|grey|light", "template": "a photo of a {}.|the {} one"}
    records, run = trained(classes(tmp_path / "x.npz"), tmp_path / "run", given=given)
    assert records[0]["chance_accuracy"] == pytest.approx(1 / 3)
    assert records[-1]["valid_accuracy"] == 1.0
    assert run.task.best == "accuracy"
    assert run.achieved == "accuracy 1.0000"
    model, task = sf.load(tmp_path / "run" / "model"), run.task
    other = classes(tmp_path / "y.npz", 12, seed=1)
    tokenizer, preprocess = (each(tmp_path / "run" / "model") for each in (sf.load_tokenizer, sf.load_preprocess))
    ids = [tokenizer.encode(f"the {name} one") for name in ("dark", "grey", "light")]
    with torch.no_grad():
        text = F.normalize(torch.cat([model.encode_text(torch.tensor([each])) for each in ids]), dim=-1)
        images = [preprocess(Image.fromarray(each)) for each in np.load(other)["images"]]
        guesses = (F.normalize(model.encode_image(torch.stack(images)), dim=-1) @ text.T).argmax(1)
    assert guesses.tolist() == [0, 1, 2] * 4
    assert {*task.captions.texts} == {f"{a}{name}{b}" for name in ("dark", "grey", "light")
                                      for a, b in (("a photo of a ", "."), ("the ", " one"))}  # fmt: skip


def test_a_model_asks_as_it_was_taught(data, learnt, tmp_path):
    """By templates of its own, which are the only ones it has read, and, `_` for a space, by the names it has read."""
    folder = tmp_path / "data"
    with np.load(classes(tmp_path / "x.npz")) as held:
        for i, (image, label) in enumerate(zip(held["images"], held["labels"])):
            place = folder / ("very_dark", "rather_grey", "quite_light")[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.png")
    given = {"steps": "6", "batch": "30", "channels": "1", "template": "this is {}|{} it is, or so they say"}
    records, _ = trained(folder, tmp_path / "run", given=given, valid=folder)
    own = sf.ZeroShotClassifier.from_pretrained(tmp_path / "run" / "model")
    assert own.model.config.length < 30, "too few for templates of other words"
    pictures, templates = read_pictures(folder), ["this is {}", "{} it is, or so they say"]
    found = evaluate_zero_shot(own, pictures)
    best = [record for record in records if record.get("best")][-1]
    assert 0 < found.accuracy == pytest.approx(best["valid_accuracy"])
    labels = ["very dark", "rather grey", "quite light"]
    assert torch.equal(own.encode_labels(labels), own.encode_labels(labels, templates=templates))
    assert not torch.equal(own.encode_labels(labels), own.encode_labels(labels, templates="this is {}"))
    assert "templates" not in sf.load(learnt).published["scratchformers"], "captions are not made of classes"
    own.model.published["scratchformers"] = {"templates": "a file {}"}
    with pytest.raises(ValueError, match="in the template 'a "):
        own.encode_labels(labels)


def test_prompts_of_a_class_are_one_mean(tmp_path):
    """Not each by itself: the mean of two prompts may be nearest where neither is."""
    given = {"names": "dark|grey|light", "channels": "1", "template": "{}|a {}"}
    run, _ = begun(classes(tmp_path / "x.npz"), tmp_path / "run", given=given)
    task = run.task
    numbers, angles = torch.cat([*task.prompts]).sort().values, torch.tensor([0.4, -0.4, 0.2, 0.3, 2.0, 2.2])
    angles = angles[torch.cat([*task.prompts]).argsort()]
    text = torch.stack([angles.cos(), angles.sin()], dim=1)
    image = torch.tensor([[math.cos(0.1), math.sin(0.1)]])
    seen = contrastive.Measured(torch.tensor([0]), image, numbers, text)
    assert int(numbers[(text @ image[0]).argmax()]) in task.prompts[1], "the nearest prompt is another class's"
    assert task._classified(image, seen).tolist() == [0]


def test_names_that_captions_mention_are_told_too(data, tmp_path):
    records, run = trained(data, tmp_path / "run", given={"names": "red|blue", "template": "something {}"})
    assert "valid_accuracy" in records[-1]
    assert run.task.best == "recall"
    truth = [-1 if ("red" in c[0]) == ("blue" in c[0]) else int("blue" in c[0]) for c in valid_captions(run)]
    assert run.task.truth.tolist() == truth
    with pytest.raises(ValueError, match="No validation picture has captions that mention just one of cat, dog"):
        begun(data, tmp_path / "no", given={"names": "cat|dog"})


def valid_captions(run):
    texts, table = run.task.captions.texts, run.task.valid_table.tolist()
    return [[texts[number] for number in row if number != contrastive.NONE] for row in table]


# --- bad input


@pytest.mark.unhooked  # which checks the types of fields itself
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"data": None}, "nothing to train on: pass --data"),
        ({"given": {"batch": "1"}}, "batch is 1: expected at least 2 pairs"),
        ({"given": {"template": "a photo"}}, "has not one slot for a label: expected {} once"),
        ({"given": {"template": "{} {}"}}, "has not one slot for a label: expected {} once"),
        ({"given": {"template": "a {}"}}, "has captions of its own: leave it out"),
        ({"given": {"names": "red"}}, "There is one name, 'red'"),
        ({"given": {"names": "red|red"}}, "Two names are 'red'"),
        ({"given": {"length": "3"}}, "has .* tokens and the model takes 3"),
        ({"given": {"end": "3"}}, "no setting 'end'"),
        ({"given": {"layer_decay": "0.5"}}, "layer_decay is 0.5: expected 1 for a CLIP"),
        ({"given": {"image": "9"}}, "multiple of the patch"),
        ({"given": {"activation": "swish"}}, "activation is 'swish'"),
        ({"columns": {"caption": "text"}}, "--column names a column of a list"),
        ({"task": "classify"}, "clip has no task 'classify': leave --task out"),
        ({"preset": "vit"}, "clip has no preset 'vit': expected one of tiny, ViT-B/32"),
        ({"vocab": 100}, "vocab is 100: expected at least 514"),
    ],
)
def test_bad_input_is_a_sentence(more, sentence, data, tmp_path):
    with pytest.raises(ValueError, match=sentence) as error:
        begun(more.pop("data", data), tmp_path / "run", **more)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_one_held_out_picture_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="one picture to validate on"):
        begun(made(tmp_path / "x.npz", 10), tmp_path / "run")


def test_a_caption_that_is_too_long_is_cut_on_request(tmp_path):
    data = made(tmp_path / "x.npz")
    run, said = begun(data, tmp_path / "run", given={"length": "4", "truncate": "true"})
    cut = sum(len(run.task.captions.tokenizer.encode(text)) > 4 for text in run.task.captions.numbers)
    assert cut
    assert f"{cut} captions were too long, and cut." in said
    records = [*run]
    assert run.task.model.config.length == run.task.captions.longest == 4
    assert all(ids[-1] == run.task.model.config.end for ids in run.task.captions.ids)
    assert math.isfinite(records[-1]["valid_loss"])


def test_torn_pictures_are_left_out_with_their_captions(tmp_path):
    """One of those to train on, whose place another takes with captions of its own, and one of those held out."""
    draw = np.random.RandomState(0)
    for part, count in (("train", 12), ("valid", 4)):
        (tmp_path / part).mkdir()
        rows = []
        for i in range(count):
            name = f"{i}.jpg"
            Image.fromarray(draw.randint(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / part / name)
            rows.append({"path": name, "caption": [f"number {i}", f"{i} of them"]})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / part / "captions.jsonl").write_text(text, encoding="utf-8")
        torn = tmp_path / part / "1.jpg"
        torn.write_bytes(torn.read_bytes()[:-200])
    where = {"data": tmp_path / "train", "valid": tmp_path / "valid"}
    with pytest.raises(ValueError, match=r"1\.jpg.*--skip-unreadable"):
        trained(where["data"], tmp_path / "stopped", valid=where["valid"])
    records, run = trained(where["data"], tmp_path / "run", valid=where["valid"], given={"skip_unreadable": "true"})
    assert "1.jpg" in records[-1]["sample"]
    assert run.task.measured.rows.tolist() == [0, 2, 3]
    texts = [run.task.captions.texts[number] for number in run.task._said(run.task.measured)]
    assert {*texts} == {text for i in (0, 2, 3) for text in (f"number {i}", f"{i} of them")}, "what can be found"
    batch = run.task.batch([(0, 1)])
    assert batch["rows"].tolist() == [2]
    assert int(batch["texts"][0]) in run.task.table[2]


# --- the program


def test_the_program_trains_on_a_folder_with_captions(capsys, tmp_path):
    packed = np.load(made(tmp_path / "x.npz"))
    (tmp_path / "data").mkdir()
    rows = ["image\tsaid"]
    for i, (image, captions) in enumerate(zip(packed["images"], packed["captions"])):
        Image.fromarray(image).save(tmp_path / "data" / f"{i}.png")
        rows += [f"{i}.png\t{caption}" for caption in captions if caption]
    (tmp_path / "data" / "captions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    sizes = {**SMALL, **{key: str(value) for key, value in SIZES.items()}}
    pairs = [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    given = ["train", "clip", "--data", tmp_path / "data", "--out", tmp_path / "run", *pairs]
    columns = ["--column", "path=image", "--column", "caption=said", "--truncate", "--device", "cpu"]
    code, out, _ = program(capsys, *given, *columns)
    assert code == 0
    assert "recall" in out
    assert "chance image to text@1" in out
    assert "has no 'path'" in refused(capsys, *given[: -len(pairs) - 1], tmp_path / "no", *pairs)


def test_every_preset_can_be_made_and_trained(data, tmp_path):
    for name in RECIPES["clip"].presets:
        assert name in sf.CLIP.presets
    assert RECIPES["clip"].presets["tiny"]["steps"] == 400
    given = {"steps": "1", "batch": "2", "threads": "1"}
    run, _ = open_run(Request("clip", tmp_path / "run", data, given=given))
    assert run.task.model.config.image == sf.CLIP.preset("tiny").image
    assert len([*run]) == 2


def test_a_task_is_one_that_was_never_evaluated(data, tmp_path):
    task = task_of(data, tmp_path)
    assert isinstance(task, Contrastive)
    assert (task.sample(task.model), task.draw(task.model)) == ("", None)
    assert copy.deepcopy(task.baselines) == task.baselines
