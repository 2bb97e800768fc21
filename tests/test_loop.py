"""What the loop can do for every model: averaged weights, rates by layer, frozen parts, looking ahead, pictures."""

import contextlib
import dataclasses
import json
import math

import matplotlib.figure
import pytest
import torch
from safetensors.torch import load_file
from test_cli import refused
from test_cli import run as program
from test_training import SMALL, TEXT, Ragged, data, losses  # noqa: F401 (a fixture)
from torch import nn

import scratchformers as sf
from scratchformers.text import BERT as SPECIAL
from scratchformers.text import characters
from scratchformers.training import log, loop, runs, state
from scratchformers.training.data import Sampler
from scratchformers.training.loop import Average, Run, Settings, at_rest, freeze, layer_factors, make_optimizer
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

FINE = {name: value for name, value in SMALL.items() if name not in ("dim", "depth", "heads", "length")}


@contextlib.contextmanager
def caught():
    """What is checked within fails: a bug was planted."""
    with pytest.raises(AssertionError):
        yield


def gpt2(**sizes):
    torch.manual_seed(0)
    return sf.GPT2(sf.GPT2Config(**{"vocab": 11, "length": 9, "dim": 8, "depth": 2, "heads": 2, **sizes}))


@pytest.fixture
def source(tmp_path):
    """A GPT-2 of two blocks that has something to keep."""
    tokenizer = characters([TEXT])
    model = gpt2(vocab=tokenizer.vocab, length=16, dim=16, dropout=0.3)
    model.assets = tokenizer.files
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def encoder(tmp_path):
    """A BERT of two blocks with a pooler, and texts with labels."""
    tokenizer = characters(["good bad 0123456789"], special=tuple(SPECIAL.values()))
    torch.manual_seed(0)
    sizes = {"length": 16, "dim": 16, "depth": 2, "heads": 2, "dropout": 0.3}
    model = sf.BERT(sf.BERTConfig(vocab=tokenizer.vocab, **sizes))
    model.head, model.pooler, model.assets = None, nn.Linear(16, 16), tokenizer.files
    model.save_pretrained(tmp_path / "encoder")
    rows = [f"{'good' if i % 2 else 'bad'} {i}\t{'up' if i % 2 else 'down'}\n" for i in range(20)]
    (tmp_path / "labels.tsv").write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")
    return tmp_path / "encoder", tmp_path / "labels.tsv"


def request(data, out, source=None, frozen=(), **given):  # noqa: F811
    settings = {**(SMALL if source is None else FINE), **{name: str(value) for name, value in given.items()}}
    return Request("gpt2", out, data, source=source, given=settings, freeze=frozen)


def probe(encoder, out, frozen=("encoder",), **given):
    settings = {**FINE, **{name: str(value) for name, value in given.items()}}
    return Request("bert", out, encoder[1], source=encoder[0], task="classify", given=settings, freeze=frozen)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# --- the average


def trained(tmp_path, *, ema, steps=4, task=None):
    """A run of so many steps, and the weights before the first and after each."""
    run = Run(task or Ragged(), Settings(steps=9, batch=3, lr=0.02, warmup=2, ema=ema), tmp_path)
    seen = [weights(run.task.model)]
    for step in range(1, steps + 1):
        run.step = step
        run._train()
        seen.append(weights(run.task.model))
    return run, seen


def check_average(tmp_path):
    """4 steps are all within the warm-up of the one, and not of the other."""
    for ema in (0.999, 0.25):
        run, seen = trained(tmp_path, ema=ema)
        assert run.average.values.keys() == seen[0].keys()
        for name, average in run.average.values.items():
            expected = seen[0][name]
            for step in (1, 2, 3, 4):
                keep = min(ema, (1 + step) / (10 + step))
                expected = keep * expected + (1 - keep) * seen[step][name]
            assert torch.allclose(average, expected, atol=1e-14, rtol=0)
        assert not same(run.average.values, seen[4])


def moved(average, keep):
    torch._foreach_lerp_([*average.values.values()], [w.detach() for w in average._weights.values()], 1 - keep)


update = Average.update
PLANTED = {
    "no warm-up": lambda self, step: moved(self, self.decay),
    "warm-up without an end": lambda self, step: moved(self, (1 + step) / (10 + step)),
    "a step late": lambda self, step: update(self, step + 1),
    "the first step left out": lambda self, step: update(self, step) if step > 1 else None,
    "the share of the average taken for that of the weights": lambda self, step: moved(
        self, 1 - min(self.decay, (1 + step) / (10 + step))
    ),
}


def test_the_average_is_the_one_by_hand(tmp_path):
    check_average(tmp_path)


@pytest.mark.parametrize("planted", PLANTED)
def test_another_average_is_noticed(tmp_path, monkeypatch, planted):
    monkeypatch.setattr(Average, "update", PLANTED[planted])
    with caught():
        check_average(tmp_path)


def test_training_goes_on_with_the_plain_weights(data, tmp_path):  # noqa: F811
    """The losses are those of a run without an average, evaluations in between or not."""
    for name, ema in (("plain", 0.0), ("averaged", 0.9)):
        list(open_run(request(data, tmp_path / name, ema=ema))[0])
    assert losses(tmp_path / "plain") == losses(tmp_path / "averaged")
    records = {name: log.read(tmp_path / name / "log.jsonl") for name in ("plain", "averaged")}
    valid = {name: [r["valid_loss"] for r in found if "valid_loss" in r] for name, found in records.items()}
    assert valid["plain"] != valid["averaged"]


class Seen(Ragged):
    """It notes the weights that it is asked to look at, and where they lie in memory."""

    def __init__(self, failing=False):
        super().__init__()
        self.seen, self.failing = [], failing

    def note(self, what):
        value = self.model.token.weight
        self.seen.append((what, value.data_ptr(), value.detach().clone()))

    def valid(self):
        self.note("valid")
        return iter([self.batch([(0, 0), (0, 1)])])

    def sample(self, model):
        self.note("sample")
        if self.failing:
            raise RuntimeError("planted")
        return ""

    def draw(self, model):
        self.note("draw")


def check_looked_at(tmp_path):
    task = Seen()
    run = Run(task, Settings(steps=4, batch=3, lr=0.02, warmup=0, eval_every=4, ema=0.9), tmp_path)
    list(run)
    average = run.average.values["token.weight"]
    assert {what for what, *_ in task.seen} == {"valid", "sample", "draw"}
    for _, place, value in task.seen:
        assert torch.equal(value, average)
        assert place == average.data_ptr(), "nothing was copied"
    assert not torch.equal(task.model.token.weight, average)
    saved = sf.load(tmp_path / "model", dtype=torch.float64)
    assert same(weights(saved), run.average.values)


def test_it_is_the_average_that_is_evaluated_looked_at_and_saved(tmp_path, monkeypatch):
    check_looked_at(tmp_path / "good")
    monkeypatch.setattr(Average, "in_place", lambda self: contextlib.nullcontext())
    with caught():
        check_looked_at(tmp_path / "bad")


def test_a_failing_evaluation_leaves_the_plain_weights(tmp_path):
    task = Seen(failing=True)
    run = Run(task, Settings(steps=4, batch=3, lr=0.02, warmup=0, eval_every=2, ema=0.9), tmp_path)
    place = task.model.token.weight.data_ptr()
    with pytest.raises(RuntimeError, match="planted"):
        list(run)
    assert task.model.token.weight.data_ptr() == place
    twin = Run(Ragged(), Settings(steps=4, batch=3, lr=0.02, warmup=0, eval_every=2), tmp_path / "twin")
    for step in (1, 2):
        twin.step = step
        twin._train()
    assert same(weights(task.model), weights(twin.task.model))
    task.failing = False
    assert [r["step"] for r in run if "loss" in r] == [3, 4], "and it can go on"


def test_without_an_average_nothing_is_kept_of_it(data, tmp_path):  # noqa: F811
    assert not Average(gpt2(), 0.0).values
    for ema, extra in ((0.0, set()), (0.9, {"average"})):
        list(open_run(request(data, tmp_path / str(ema), ema=ema))[0])
        names = load_file(tmp_path / str(ema) / "checkpoints" / "step-6" / "state.safetensors")
        assert {name.partition(".")[0] for name in names} == {"model", "optimizer", "random"} | extra
        assert [name for name in names if name.startswith("average.blocks.0.mlp.up")] == (
            ["average.blocks.0.mlp.up.bias", "average.blocks.0.mlp.up.weight"] if ema else []
        )


def test_what_does_not_move_is_not_averaged_and_buffers_are():
    model = nn.ModuleDict({"frozen": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    model["frozen"].requires_grad_(False)
    average = Average(model, 0.5)
    assert {*average.values} == {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    model["norm"](torch.randn(5, 2))
    mean = model["norm"].running_mean.clone()
    average.update(1)
    torch.testing.assert_close(average.values["norm.running_mean"], mean * (1 - 2 / 11))
    with average.in_place():
        torch.testing.assert_close(model["norm"].running_mean, mean * (1 - 2 / 11))
    assert torch.equal(model["norm"].running_mean, mean)


# --- resuming


FULL = {"ema": 0.9, "layer_decay": 0.7, "dropout": 0.3}


def check_resumed(text, source, place, stop):
    """With everything on: an average, rates by layer, a part that is frozen."""
    frozen = ("blocks.0", "position")
    list(open_run(request(text, place / "whole", source, frozen, **FULL))[0])
    run, _ = open_run(request(text, place / "cut", source, frozen, **FULL))
    for record in run:
        if record["step"] > stop:
            break
    torch.manual_seed(99)
    run, notes = open_run(Request("gpt2", place / "cut"), resume=True)
    assert notes[-1] == f"Resuming at step {stop // 2 * 2} of 6."
    list(run)
    a, b = ([{k: v for k, v in r.items() if k not in log.TIMES} for r in log.read(place / name / "log.jsonl")]
            for name in ("whole", "cut"))  # fmt: skip
    assert a == b
    for file in ("model/model.safetensors", "checkpoints/step-6/state.safetensors"):
        assert same(*(load_file(place / name / file) for name in ("whole", "cut")))


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_with_everything_on_is_the_uninterrupted_one(data, source, tmp_path, stop):  # noqa: F811
    check_resumed(data, source, tmp_path, stop)


@pytest.mark.parametrize("planted", ["the average is forgotten", "the frozen part learns"])
def test_a_resumed_run_that_forgets_is_noticed(data, source, tmp_path, monkeypatch, planted):  # noqa: F811
    restore, again = state.restore, runs._same_request
    if planted == "the average is forgotten":
        monkeypatch.setattr(state, "restore", lambda *given, average: restore(*given, average={}))
        with caught():
            check_resumed(data, source, tmp_path, 3)
    else:
        monkeypatch.setattr(runs, "_same_request", lambda *given: dataclasses.replace(again(*given), freeze=()))
        with pytest.raises(ValueError, match=r"holds another model: it differs in .*position"):  # it has none of it
            check_resumed(data, source, tmp_path, 3)


# --- rates by layer


def expected_factors(model, groups):
    """By the first name that fits."""
    return {
        name: next(factor for begin, factor in groups.items() if name.startswith(begin))
        for name, _ in model.named_parameters()
    }


class HeadFirst(nn.Module):
    """Made in another order, with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.head, self.class_token = nn.Linear(2, 2), nn.Parameter(torch.zeros(2))
        self.patches, self.blocks = nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(11))
        self.norm = nn.LayerNorm(2)


BLOCKS = {"blocks.0.": 0.25, "blocks.1.": 0.5}
LAYERS = {
    "gpt2": (gpt2, {"token": 0.125, "position": 0.125, **BLOCKS, "norm": 1.0}),
    "bert": (
        lambda: sf.BERT(sf.BERTConfig(vocab=11, length=9, dim=8, depth=2, heads=2)),
        {"token": 0.125, "position": 0.125, "segment": 0.125, "embedding_norm": 0.125, **BLOCKS, "head": 1.0},
    ),
    "head first": (
        HeadFirst,
        {"head": 1.0, "class_token": 0.5**12, "patches": 0.5**12, "norm": 1.0}
        | {f"blocks.{i}.": 0.5 ** (11 - i) for i in range(11)},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_block_learns_at_a_share_of_the_rate_of_the_next(name):
    make, groups = LAYERS[name]
    model = make()
    expected = expected_factors(model, groups)
    assert layer_factors(model, 0.5) == expected
    assert set(layer_factors(model, 1.0).values()) == {1.0}
    optimizer = make_optimizer(model, Settings(layer_decay=0.5))
    groups = optimizer.param_groups
    found = {id(p): (group["factor"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(expected)
    for key, parameter in model.named_parameters():
        assert found[id(parameter)] == (expected[key], 0.1 if parameter.ndim >= 2 else 0.0)


def test_with_equal_rates_the_groups_are_the_two_there_were():
    model = gpt2()
    first, second = make_optimizer(model, Settings()).param_groups
    assert [id(p) for p in first["params"]] == [id(p) for p in model.parameters() if p.ndim >= 2]
    assert [id(p) for p in second["params"]] == [id(p) for p in model.parameters() if p.ndim < 2]


def test_layers_of_a_model_without_blocks_are_refused():
    with pytest.raises(ValueError, match=r"layer_decay is 0.5: expected 1 for a Linear, which has no `blocks`"):
        make_optimizer(nn.Linear(2, 2), Settings(layer_decay=0.5))
    assert make_optimizer(nn.Linear(2, 2), Settings()).param_groups


def check_first_step(tmp_path):
    """Adam's first step is the rate itself, whatever the gradient."""
    settings = Settings(steps=5, batch=3, lr=0.01, warmup=2, weight_decay=0.0, clip=0.0, layer_decay=0.5)
    task = Ragged()
    run, before = Run(task, settings, tmp_path), weights(task.model)
    run.step = 1
    assert run._train()["lr"] == 0.005
    for name, factor in layer_factors(task.model, 0.5).items():
        moved = float((task.model.state_dict()[name] - before[name]).abs().max())
        assert moved == pytest.approx(0.005 * factor, rel=0.01), name  # eps beside small gradients


def test_the_schedule_multiplies_the_factor(tmp_path, monkeypatch):
    check_first_step(tmp_path)
    monkeypatch.setattr(loop, "layer_factors", lambda model, decay: dict.fromkeys(layer_factors(model, 0.5), 1.0))
    with caught():
        check_first_step(tmp_path)


# --- frozen parts


def check_frozen(tmp_path, encoder):
    """The head moves, all else is as it came, bit for bit, and nothing is computed or kept for it."""
    run, notes = open_run(probe(encoder, tmp_path / "run", ema=0.9, weight_decay=0.5))
    model, graphs, states = run.task.model, [], []
    assert notes[-1] == f"{16 * 2 + 2} of {sum(p.numel() for p in model.parameters()):,} parameters learn."
    before = weights(model)
    model.head.register_forward_pre_hook(lambda module, inputs: graphs.append(inputs[0].requires_grad))
    for module in (model, model.blocks[0], model.blocks[1].dropout, model.dropout, model.pooler, model.head):
        module.register_forward_hook(lambda module, *_: states.append((module, module.training)))
    record = next(iter(run))
    assert math.isfinite(record["grad_norm"])
    assert graphs == [False], "no graph reaches below the head"
    assert {module for module, training in states if training} == {model.head}
    list(run)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("head."), name
    assert {name.split(".")[0] for name in run.average.values} == {"head"}
    tensors = load_file(tmp_path / "run" / "checkpoints" / "step-6" / "state.safetensors")
    parts = {tuple(name.split(".")[:2]) for name in tensors if name.startswith(("optimizer.", "average."))}
    assert parts == {("optimizer", "head"), ("average", "head")}
    saved = sf.load(tmp_path / "run" / "model")
    assert torch.equal(saved.blocks[1].mlp.up.weight, before["blocks.1.mlp.up.weight"])


def test_a_linear_probe_moves_the_head_and_nothing_else(encoder, tmp_path):
    check_frozen(tmp_path, encoder)


@pytest.mark.parametrize("planted", ["nothing is frozen", "dropout acts in what is frozen"])
def test_a_probe_that_is_none_is_noticed(encoder, tmp_path, monkeypatch, planted):
    if planted == "nothing is frozen":
        said = lambda model: f"34 of {sum(p.numel() for p in model.parameters()):,} parameters learn."  # noqa: E731
        monkeypatch.setattr(runs, "freeze", lambda model, parts, **_: [said(model)])
    else:
        monkeypatch.setattr(loop, "at_rest", lambda model: [])
    with caught():
        check_frozen(tmp_path, encoder)


def test_what_rests():
    model = gpt2(dropout=0.5)
    assert at_rest(model) == []
    freeze(model, ["blocks.0", "token"])
    assert {*at_rest(model)} == {*model.blocks[0].modules(), *model.token.modules()}
    freeze(model, ["blocks"])
    assert {*at_rest(model)} == {*model.blocks.modules(), model.token}
    model = gpt2()
    model.position.requires_grad_(False)  # as sinusoids are
    assert at_rest(model) == [model.position]


@pytest.mark.parametrize(
    ("parts", "frozen"),
    [
        (["blocks.1"], ["blocks.1."]),
        (["blocks"], ["blocks."]),
        (["token", "blocks.10.mlp.up.weight"], ["token.", "blocks.10.mlp.up.weight"]),
        (["encoder"], ["token.", "position.", "blocks.", "norm."]),
    ],
)
def test_a_part_is_the_beginning_of_a_name_up_to_a_dot(parts, frozen):
    model = gpt2(depth=11)
    model.head = nn.Linear(8, 2)
    freeze(model, parts)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name


def test_a_part_called_encoder_is_that_part():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    freeze(model, ["encoder"])
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["encoder.weight", "encoder.bias"]


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        (("blok",), "--freeze 'blok' names nothing in this GPT2: expected token, position, blocks.0, blocks.1, norm"),
        (("",), "--freeze '' names nothing in this GPT2"),
        (("blocks.2",), "--freeze 'blocks.2' names nothing"),
        (("tok",), "--freeze 'tok' names nothing"),
        (("encoder",), "--freeze encoder leaves nothing to learn: leave out some of token, position, blocks.0, blocks"),
        (("token", "position", "blocks", "norm"), "--freeze token position blocks norm leaves nothing to learn"),
    ],
)
def test_parts_that_cannot_be_frozen_are_refused_and_nothing_is_written(data, source, tmp_path, frozen, said):  # noqa: F811
    with pytest.raises(ValueError, match=said):
        open_run(request(data, tmp_path / "run", source, frozen))
    assert not (tmp_path / "run").exists()
    model = sf.load(source)
    with pytest.raises(ValueError, match=said):
        freeze(model, frozen)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_encoder_is_a_part_only_where_there_is_a_head(encoder, tmp_path):
    with pytest.raises(ValueError, match="in this BERT: expected encoder, token, position, segment, embedding_"):
        open_run(probe(encoder, tmp_path / "run", ("body",)))


def test_a_new_model_has_nothing_to_keep(data, tmp_path, capsys):  # noqa: F811
    with pytest.raises(ValueError, match="--freeze token goes with --from: in a new model there is nothing learnt to"):
        open_run(request(data, tmp_path / "run", frozen=("token",)))
    error = refused(capsys, "train", "gpt2", "--data", data, "--out", tmp_path / "run", "--freeze", "token")
    assert "--freeze token goes with --from" in error
    assert not (tmp_path / "run").exists()


def test_what_is_frozen_is_recorded_and_kept(data, source, tmp_path, capsys):  # noqa: F811
    out, settings = tmp_path / "run", [part for pair in FINE.items() for part in ("--set", "=".join(pair))]
    command = ("train", "gpt2", "--out", out, "--data", data, "--from", source)
    code, said, error = program(capsys, *command, "--freeze", "token", "--freeze", "blocks.0", *settings)
    assert code == 0, error
    assert "parameters learn." in said
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["freeze"] == ["blocks.0", "token"]
    error = refused(capsys, *command, "--resume", "--freeze", "token")
    assert "has freeze ['blocks.0', 'token'], not ['token']: resume it as it is" in error
    for frozen in ((), ("token", "blocks.0"), ("blocks.0", "token", "token")):
        run, _ = open_run(request(data, out, source, frozen), resume=True)
        names = [name for name, p in run.task.model.named_parameters() if not p.requires_grad]
        assert {name.partition(".")[0] for name in names} == {"token", "blocks"}
        assert not any(name.startswith("blocks.1") for name in names)
    list(open_run(request(data, tmp_path / "free", source))[0])
    with pytest.raises(ValueError, match=r"has freeze \[\], not \['token'\]"):
        open_run(request(data, tmp_path / "free", source, ("token",)), resume=True)


def test_parameters_that_never_learn_are_carried_along(tmp_path):
    """As the sinusoids of an autoencoder: no gradient, no state, no average; saved and restored all the same."""

    def task():
        made = Ragged()
        made.model.position.weight.requires_grad_(False)
        made.valid = lambda: iter([made.batch([(0, 1)])])
        return made

    settings = Settings(steps=6, batch=3, lr=0.02, warmup=0, save_every=2, eval_every=3, ema=0.9, layer_decay=0.5)
    whole = Run(task(), settings, tmp_path / "whole")
    table = whole.task.model.position.weight.clone()
    list(whole)
    assert torch.equal(whole.task.model.position.weight, table)
    for record in Run(task(), settings, tmp_path / "cut"):
        if record["step"] == 5:
            break
    again = Run(task(), settings, tmp_path / "cut", resume=True)
    assert again.step == 4
    list(again)
    assert same(weights(whole.task.model), weights(again.task.model))
    assert same(whole.average.values, again.average.values)
    assert "position.weight" not in again.average.values


# --- looking ahead


def check_peek(kind):
    sampler, twin = kind(7, seed=3), Sampler(7, seed=3)
    for count in (3, 3, 3, 7, 1, 20, 14, 2, 5):  # within an epoch, to its end, over one end, over several
        coming = sampler.peek(count)
        assert sampler.state() == twin.state()
        assert coming == sampler.peek(count) == sampler.take(count) == twin.take(count)
        assert sampler.state() == twin.state()


def test_what_is_peeked_at_is_what_is_taken():
    check_peek(Sampler)

    class Moving(Sampler):
        peek = Sampler.take

    class Within(Sampler):
        """It does not see past the end of an epoch."""

        def peek(self, count):
            return super().peek(min(count, self.rows - self.seen) or count)

    for planted in (Moving, Within):
        with caught():
            check_peek(planted)


class Told(Ragged):
    def __init__(self):
        super().__init__()
        self.events = []

    def batch(self, examples):
        self.events.append(("batch", [*examples]))
        return super().batch(examples)

    def expect(self, examples):
        self.events.append(("expect", [*examples]))

    def loss(self, model, batch):
        self.events.append(("loss", []))
        return super().loss(model, batch)


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_task_is_told_the_next_examples_while_these_are_learnt(tmp_path, micro_batch):
    task = Told()
    run = Run(task, Settings(steps=4, batch=3, micro_batch=micro_batch, warmup=0), tmp_path)
    sampler = Sampler(5, seed=0)
    for step in range(1, 5):
        run.step, task.events = step, []
        run._train()
        kinds = [kind for kind, _ in task.events]
        parts = 2 if micro_batch else 1
        assert kinds == ["batch"] * parts + ["expect"] * (step < 4) + ["loss"] * parts
        assert [each for kind, some in task.events if kind == "batch" for each in some] == sampler.take(3)
        assert [some for kind, some in task.events if kind == "expect"] == ([sampler.peek(3)] if step < 4 else [])


# --- pictures


class Drawn(Ragged):
    def valid(self):
        return iter([self.batch([(0, 1)])])

    def draw(self, model):
        figure = matplotlib.figure.Figure(figsize=(1, 1))
        figure.add_subplot().imshow(model.token.weight.detach().numpy())
        return figure


def test_a_figure_is_written_at_every_evaluation(tmp_path, monkeypatch):
    settings = Settings(steps=5, batch=3, warmup=0, eval_every=2)
    list(Run(Drawn(), settings, tmp_path / "run"))
    pictures = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step-2.png", "step-4.png", "step-5.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert len({path.read_bytes() for path in pictures}) == 3
    saved = matplotlib.figure.Figure.savefig

    def torn(self, file, **settings):
        saved(self, file, **settings)
        if "pictures" in str(file):
            raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        list(Run(Drawn(), settings, tmp_path / "torn"))
    assert not [*(tmp_path / "torn" / "pictures").iterdir()], "never half a picture"


# --- settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ema": 1}, "ema is 1.0: expected less than 1"),
        ({"ema": -0.1}, "ema is -0.1: expected at least 0"),
        ({"ema": "nan"}, "ema is nan"),
        ({"layer_decay": 0}, "layer_decay is 0.0: expected more than 0, and at most 1"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1: expected more than 0, and at most 1"),
        ({"workers": -1}, "workers is -1: expected at least 0"),
        ({"workers": 257}, "workers is 257: expected less than 257"),
    ],
)
def test_settings_that_cannot_be_are_refused(data, tmp_path, given, said):  # noqa: F811
    with pytest.raises(ValueError, match=said):
        open_run(request(data, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_nothing_is_on_unless_asked_for():
    settings = Settings()
    assert (settings.ema, settings.layer_decay, settings.workers) == (0.0, 1.0, 0)


def test_a_run_of_before_these_settings_is_resumed_and_one_that_lost_others_is_not(data, tmp_path):  # noqa: F811
    list(open_run(request(data, tmp_path / "whole"))[0])
    out = tmp_path / "cut"
    for record in open_run(request(data, out))[0]:
        if record["step"] == 5:
            break
    facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
    del facts["freeze"]
    for name in ("ema", "layer_decay", "workers"):
        del facts["settings"][name]
    (out / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    list(open_run(Request("gpt2", out), resume=True)[0])
    assert losses(out) == losses(tmp_path / "whole")
    del facts["settings"]["lr"]
    (out / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged, or of another version of this program"):
        open_run(Request("gpt2", out), resume=True)
