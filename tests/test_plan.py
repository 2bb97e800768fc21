"""What a plan says is what a step takes. The measured configurations are benchmarks/plan.py's."""

import contextlib
import dataclasses
import json
import math
import re

import pytest
import torch
from test_cli import refused
from test_cli import run as program

import scratchformers as sf
from scratchformers import lora
from scratchformers.cli import way_of
from scratchformers.insight import heap
from scratchformers.insight import plan as planning
from scratchformers.insight.plan import AT_WORK, MODELS, Alive, Asked, Moved, Way, available, measure, plan
from scratchformers.training.checkpointing import checkpoint_blocks
from scratchformers.training.loop import Average, Settings, Task, make_optimizer

NAMES = [*MODELS]
TEXTS = ("gpt2", "bert", "clip", "encoder-decoder")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(planning, "TIMED", 0.0)


def small(name, rows=4, micro=None, **more):
    length = {"length": 32} if name in TEXTS else {}
    return Asked("tiny", rows, micro or rows, **length, **more)


def memory(name, asked, prepare=lambda model: None, **settings):
    way = dataclasses.replace(way_of(Settings(**settings)), prepare=prepare)
    return planning._memory(name, planning._config(name, asked), asked, way, asked.micro_batch)


def on_real_tensors(monkeypatch):
    monkeypatch.setattr(planning, "FakeTensorMode", contextlib.nullcontext)
    monkeypatch.setattr(planning, "Full", contextlib.nullcontext)


# --- memory


@pytest.mark.parametrize("wrap", [lambda model: None, checkpoint_blocks], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_played_takes_what_is_done(name, wrap, monkeypatch):
    """Tensors without values, and the same step with them."""
    asked = small(name)
    played = memory(name, asked, wrap)
    on_real_tensors(monkeypatch)
    done = memory(name, asked, wrap)
    assert played["activations"] == pytest.approx(done["activations"], rel=0.02)
    used = [each["peak"] - each["holes"] - AT_WORK for each in (played, done)]
    assert used[0] == pytest.approx(used[1], rel=0.03)
    assert played["peak"] - AT_WORK == pytest.approx(done["peak"] - AT_WORK, rel=0.1)  # a little changes many holes
    assert played["weights"] == done["weights"]


def adapt(model):
    lora.add(model, rank=4, dropout=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("prepare", "optimizer"),
    [(lambda model: None, "adamw"), (lambda model: None, "muon"), (adapt, "adamw")],
    ids=["adamw", "muon", "lora"],
)
def test_weights_gradients_and_averages_are_the_optimisers(name, prepare, optimizer):
    found, (kind, _) = memory(name, small(name, ema=True), prepare, optimizer=optimizer), MODELS[name]
    model = kind(planning._config(name, small(name)))
    prepare(model)
    settings = Settings(optimizer=optimizer, ema=0.9)
    made, average = make_optimizer(model, settings), Average(model, settings.ema)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    made.step()
    assert found["weights"] == sum(p.nbytes for p in model.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert found["optimizer"] == sum(x.nbytes for state in made.state.values() for x in state.values())
    constants = {name for name, _ in model.named_buffers()}
    assert found["average"] == sum(x.nbytes for key, x in average.values.items() if key not in constants)


def test_a_step_of_muon_takes_room_for_what_it_makes_orthogonal():
    """Of a wide block and a single short row it is more than the activations are."""
    config, asked = sf.GPT2Config(vocab=16, length=4, dim=512, depth=1, heads=2, dropout=0.0), Asked("", 1, 1)
    found = {
        name: planning._memory("gpt2", config, asked, way_of(Settings(optimizer=name)), 1) for name in ("adamw", "muon")
    }
    largest = 4 * 512 * 512 * 4  # bytes of the largest matrix
    assert found["muon"]["peak"] > found["adamw"]["peak"] + 2 * largest - found["adamw"]["optimizer"] / 2
    assert found["muon"]["optimizer"] < 0.55 * found["adamw"]["optimizer"]


def test_what_learns_little_takes_little():
    whole, few = memory("gpt2", small("gpt2")), memory("gpt2", small("gpt2"), adapt)
    assert few["gradients"] + few["optimizer"] < 0.2 * (whole["gradients"] + whole["optimizer"])
    assert few["peak"] < whole["peak"]
    again = memory("gpt2", small("gpt2", ema=True))
    assert again["peak"] == whole["peak"] + whole["weights"] == whole["peak"] + again["average"]


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_what_autograd_saves(name, monkeypatch):
    on_real_tensors(monkeypatch)
    asked, (kind, parts) = small(name), MODELS[name]
    config, saved = planning._config(name, asked), {}
    model = kind(config).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    (part,) = parts(model, asked.batch, asked.batch)

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = part.loss()
    bytes_saved = sum(x.untyped_storage().nbytes() for place, x in saved.items() if place not in own)
    del loss
    assert memory(name, asked)["activations"] == pytest.approx(bytes_saved, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_activations_grow_with_the_rows(name):
    two, four = (memory(name, small(name, rows))["activations"] for rows in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_to_need_less_needs_less(name):
    plain = memory(name, small(name, 64))  # so many rows, for bf16 copies the weights
    checkpointed = memory(name, small(name, 64), checkpoint_blocks)
    in_parts = memory(name, small(name, 64, 8))
    narrow = memory(name, small(name, 64, autocast="bf16"))
    for other in (checkpointed, in_parts, narrow):
        assert other["activations"] < plain["activations"]
        assert other["weights"] == plain["weights"]
    assert checkpointed["peak"] < plain["peak"]
    assert in_parts["peak"] < plain["peak"]


def test_gradients_are_held_while_the_next_micro_batch_is_computed():
    asked = Asked("tiny", 16, 8, length=96)
    one, two = (memory("gpt2", dataclasses.replace(asked, batch=batch)) for batch in (8, 16))
    assert two["peak"] > one["peak"] + one["gradients"] / 2


def test_alive_counts_a_storage_once_and_forgets_it():
    with Alive() as alive:
        x = torch.zeros(100)
        y = x.view(10, 10)
        assert alive.now == 400
        z = x + 1
        assert alive.now == 800
        del z
        assert alive.now == 400
        del x
        assert alive.now == 400
        del y
        assert alive.now == 0


def test_alive_says_what_was_made_and_freed_in_its_order():
    with Alive() as alive:
        x = torch.zeros(100)
        y = x + 1
        del x
        z = torch.zeros(50)
    assert alive.events == [(0, 400), (1, 400), (0, -400), (3, 200)]
    assert alive.now == y.nbytes + z.nbytes


def test_holes_are_what_the_heap_has_beside_its_blocks(monkeypatch):
    """Without cuttings in use there are fewer, and of what goes back to the system at once there are none."""
    found = memory("gpt2", small("gpt2", 32))
    assert 0 < found["holes"] < found["peak"] - AT_WORK
    monkeypatch.setattr(heap, "APART", 0.0)
    joined = memory("gpt2", small("gpt2", 32))
    assert joined["holes"] < found["holes"]
    assert joined["peak"] - joined["holes"] == found["peak"] - found["holes"]
    monkeypatch.setattr(heap, "KEPT", 0)
    assert memory("gpt2", small("gpt2", 32))["holes"] == 0


# --- arithmetic and time


def test_flops_are_those_of_the_matrices():
    """Six a weight and token, and twelve a layer, pair of tokens and width, as is counted everywhere."""
    found = plan("gpt2", small("gpt2"))
    config, tokens = dataclasses.replace(sf.GPT2.preset("tiny"), length=32), 4 * 32
    matrices = config.depth * 12 * config.dim**2 + config.vocab * config.dim
    assert found.flops == 6 * tokens * matrices + 12 * config.depth * tokens * 32 * config.dim


@pytest.mark.parametrize("name", NAMES)
def test_flops_do_not_depend_on_how_a_batch_is_cut_but_for_clips(name):
    whole, cut = (plan(name, small(name, 8, micro)).flops for micro in (8, 2))
    if name == "clip":  # features are computed twice
        assert 1.2 * whole < cut < 1.4 * whole
    else:
        assert cut == pytest.approx(whole, rel=0.02)  # of a BERT's tokens the share is rounded up


def test_checkpointing_computes_a_forward_more():
    whole = plan("gpt2", small("gpt2")).flops
    assert 1.2 * whole < plan("gpt2", small("gpt2"), way=Way(checkpoint_blocks)).flops <= 4 / 3 * whole


def test_speed_is_that_of_the_largest_products(monkeypatch):
    timed = {(8, 16): 1.0, (4, 2): 0.5, (2, 2): 0.25, (1, 1): 100.0}
    monkeypatch.setattr(planning, "_best", lambda x, weight, asked: timed[x.shape[0], weight.shape[0]])
    products = {(8, 4, 16): 2, (4, 2, 2): 3, (2, 2, 2): 1, (1, 1, 1): 1}  # the last is too small to matter
    done = 6 * (2 * 8 * 4 * 16 + 3 * 16 + 8)
    assert measure(products, Asked("tiny", 1, 1)) == pytest.approx(done / (2 * 1.0 + 3 * 0.5 + 0.25))


def test_a_long_product_is_timed_by_its_first_rows(monkeypatch):
    seen = []
    monkeypatch.setattr(planning, "_best", lambda x, weight, asked: seen.append(len(x)) or 1.0)
    rows = 2 * planning.ROWS
    assert measure({(rows, 3, 5): 1}, Asked("tiny", 1, 1)) == pytest.approx(6 * rows * 15 / 2)
    assert seen == [planning.ROWS]


def test_seconds_are_arithmetic_by_speed():
    found = plan("vit", small("vit"))
    assert 0 < found.flops_a_second < math.inf
    assert 0 < found.bytes_a_second < math.inf
    assert found.seconds == found.flops / found.flops_a_second + found.moved / found.bytes_a_second


def test_what_is_moved_is_given_or_made_but_by_products():
    x, y = torch.zeros(100), torch.zeros(10, 10)
    for work, moved in (
        (lambda: x + x, 1200),
        (lambda: x.view(10, 10).t(), 0),
        (lambda: y @ y, 0),
        (lambda: torch.empty(7), 0),
        (lambda: torch.zeros(7), 28),
        (lambda: x.mul_(2), 800),
    ):
        with Moved() as moving:
            work()
        assert moving.bytes == moved


@pytest.mark.parametrize("name", NAMES)
def test_more_rows_move_more_and_so_does_computing_twice(name):
    four, eight = (plan(name, small(name, rows)).moved for rows in (4, 8))
    assert 1.2 * four < eight < 2 * four, "of the update there is one"
    assert plan(name, small(name), way=Way(checkpoint_blocks)).moved > four


def test_an_update_counts():
    """AdamW is given four numbers for each; SGD is given two and makes one; Muon multiplies too."""
    found = {name: plan("gpt2", small("gpt2"), way=way_of(Settings(optimizer=name))) for name in ("adamw", "muon")}
    config = sf.GPT2.preset("tiny")
    square = 2 * config.dim**3  # FLOP of a product
    each = 5 * (4 * 3 * square + 2 * (4 * square + square + 4 * square))  # q, k, v, out; up and down are four times it
    assert found["muon"].flops - found["adamw"].flops == config.depth * each
    none = plan("gpt2", small("gpt2"), way=Way(optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.0)))
    assert found["adamw"].moved - none.moved == pytest.approx(4 * none.parameters * (4 - 3), rel=0.03)


# --- what fits


def test_the_micro_batch_is_halved_until_it_fits():
    share = 1 - planning.WRONG  # of what there is
    peaks = {rows: memory("gpt2", small("gpt2", 24, rows))["peak"] / share / 2**30 + 1e-9 for rows in (24, 12, 6, 1)}
    for limit, fits in ((peaks[24], 24), (peaks[24] - 1e-6, 12), (peaks[12] - 1e-6, 6), (peaks[1] - 1e-6, None)):
        assert plan("gpt2", small("gpt2", 24), memory=limit).fits == fits


def test_what_is_free_is_asked_of_the_machine(tmp_path, monkeypatch):
    meminfo, most = tmp_path / "meminfo", tmp_path / "memory.max"
    monkeypatch.setattr(planning, "MEMINFO", meminfo)
    monkeypatch.setattr(planning, "CGROUP", most)
    with pytest.raises(ValueError, match="--memory"):
        available("cpu")
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   5 kB\nBuffers: 1 kB\n", encoding="utf-8")
    assert available("cpu") == 5 * 1024
    most.write_text("max\n", encoding="utf-8")
    assert available("cpu") == 5 * 1024
    most.write_text("100\n", encoding="utf-8")
    assert available("cpu") == 100
    assert plan("gpt2", small("gpt2")).limit == 100


# --- what fits a run that had too little memory


def test_what_fits_a_run_is_what_is_planned(monkeypatch):
    model, asked = sf.GPT2.from_preset("tiny"), Asked("", 24, 12, length=32)
    peaks = {rows: memory("gpt2", small("gpt2", 24, rows))["peak"] for rows in (12, 6, 3, 1)}
    peaks = {rows: math.ceil(peak / (1 - planning.WRONG)) for rows, peak in peaks.items()}  # what it may be wrong by
    adapted = sf.GPT2.from_preset("tiny")
    adapt(adapted)
    for room, fits in ((2**40, 12), (peaks[12] - 1, 6), (peaks[6] - 1, 3), (peaks[1] - 1, 1)):
        monkeypatch.setattr(planning, "_room", lambda device, room=room: room)
        assert planning.fitting(model, asked, Way()) == fits
    monkeypatch.setattr(planning, "_room", lambda device: peaks[12] - 1)
    assert planning.fitting(model, dataclasses.replace(asked, length=96), Way()) < 6
    assert planning.fitting(model, asked, Way(checkpoint_blocks)) == 12
    peak = math.ceil(memory("gpt2", small("gpt2", 24, 12), adapt)["peak"] / (1 - planning.WRONG))
    monkeypatch.setattr(planning, "_room", lambda device: peak)
    assert planning.fitting(adapted, asked, Way()) == 12
    adapted.requires_grad_(True)
    assert planning.fitting(adapted, asked, Way()) < 12
    with pytest.raises(ValueError, match="no plan of a Linear: expected one of gpt2"):
        planning.fitting(torch.nn.Linear(2, 3), asked, Way())


def test_room_is_what_is_free_and_what_is_held(tmp_path, monkeypatch):
    statm, limits, page = tmp_path / "statm", tmp_path / "limits", planning.mmap.PAGESIZE
    for name, path in {"STATM": statm, "LIMITS": limits}.items():
        monkeypatch.setattr(planning, name, path)
    monkeypatch.setattr(planning, "available", lambda device: 10**9)
    statm.write_text("200000 90000 1 1 0 1 0", encoding="utf-8")
    limits.write_text(
        "Limit  Soft Limit  Hard Limit\nMax address space  unlimited  unlimited bytes\n", encoding="utf-8"
    )
    own = 90000 * page - planning.LIBRARIES
    assert planning._room("cpu") == 10**9 + own
    limits.write_text(f"Max address space {200000 * page + 77}  unlimited bytes\n", encoding="utf-8")
    assert planning._room("cpu") == 77 + own


@pytest.mark.parametrize("more", [(), ("checkpointing=true",)], ids=["plain", "checkpointed"])
def test_a_run_without_memory_is_told_what_fits(more, capsys, tmp_path, monkeypatch):
    """The figure is that of its own sizes and settings; where there is no plan, the half."""

    def none(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    text, sizes = tmp_path / "text.txt", {"dim": 32, "depth": 2, "heads": 2, "length": 64, "batch": 32, "threads": 1}
    text.write_text("What is read, and what is not. " * 100, encoding="utf-8")
    given = [*(f"{name}={value}" for name, value in sizes.items()), *more]
    arguments = ("train", "gpt2", "--data", text, *(part for each in given for part in ("--set", each)))
    config = sf.GPT2Config(vocab=15, length=64, dim=32, depth=2, heads=2, dropout=0.0)
    way = Way(checkpoint_blocks) if more else Way()
    peak = planning._memory("gpt2", config, Asked("", 32, 8), way, 8)["peak"]
    limit = int(peak / (1 - planning.WRONG)) + 2**16
    monkeypatch.setattr(Task, "learn", none)
    monkeypatch.setattr(planning, "_room", lambda device: limit)
    assert (
        "--set micro_batch=8, also with --resume, is what the plan says fits"
        in program(capsys, *arguments, "--out", tmp_path / "run")[2]
    )
    monkeypatch.setattr(planning, "available", none)
    monkeypatch.setattr(planning, "_room", none)
    said = program(capsys, *arguments, "--out", tmp_path / "other")
    assert said[0] == 2
    assert "32 rows at once: --set micro_batch=16, also with --resume, takes about half" in said[2]


# --- the command


@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_it_all_as_json(name, capsys):
    code, out, error = program(capsys, "plan", name, "--batch", 4, "--device", "cpu", "--memory", 8, "--json")
    said = json.loads(out)
    assert (code, error) == (0, "")
    model = MODELS[name][0].from_preset("tiny")
    assert said["parameters"] == sum(p.numel() for p in model.parameters())
    assert (said["fits"], said["limit"], said["checkpointing"]) == (4, 8 * 2**30, False)
    assert said["memory"].keys() == {"weights", "gradients", "optimizer", "average", "activations", "holes", "peak"}
    assert said["learning"] == sum(p.numel() for p in model.parameters() if p.requires_grad)  # a MAE's places do not
    assert (said["optimizer"], said["lora"]) == ("adamw", {})
    assert said["seconds"] > 0


def test_the_command_says_it_in_lines(capsys):
    asked = ["plan", "gpt2", "--batch", 8, "--length", 64, "--device", "cpu", "--memory", 8]
    code, out, error = program(capsys, *asked, "--micro-batch", 2, "--checkpointing")
    assert (code, error) == (0, "")
    for word in ("parameters", "8 rows a step, 2 at once", "GFLOP", "an estimate", "all rows at once fit", "optimizer"):
        assert word in out
    small = [*asked[:-1], 0.0001]
    assert "smaller model or length, or --checkpointing." in program(capsys, *small)[1]
    assert "smaller model or length." in program(capsys, *small, "--checkpointing")[1]
    long = program(capsys, "plan", "gpt2", "--preset", "gpt2", "--batch", 10**6, "--length", 8, "--micro-batch", 1)[1]
    assert re.search(r"takes about \d{1,3}(,\d{3})+ s", long)
    peak = memory("gpt2", Asked("tiny", 8, 4, 64))["peak"] / (1 - planning.WRONG) / 2**30 + 1e-9
    assert "micro_batch=4 fits" in program(capsys, *asked[:-1], peak)[1]


def test_the_command_plans_adapters_and_muon(capsys):
    asked = ("plan", "gpt2", "--batch", 8, "--length", 64, "--device", "cpu", "--memory", 8)
    plain, adapted, muon, averaged = (
        program(capsys, *asked, *more)[1]
        for more in ((), ("--lora", "rank=8", "--lora", "linears=q,kv"), ("--optimizer", "muon"), ("--ema",))
    )
    config = sf.GPT2.preset("tiny")
    learning = config.depth * 8 * (2 * config.dim + 3 * config.dim)  # of q, and of kv, which is twice as wide
    assert f"parameters, of which {learning:,} learn; 8 rows a step" in adapted
    assert "learn;" not in plain
    assert ["average" in each for each in (plain, adapted, muon, averaged)] == [False, False, False, True]
    kept = [json.loads(program(capsys, *asked, *more, "--json")[1]) for more in ((), ("--optimizer", "muon"))]
    assert kept[1]["memory"]["optimizer"] < 0.75 * kept[0]["memory"]["optimizer"]
    assert (kept[1]["optimizer"], kept[0]["asked"]["ema"]) == ("muon", False)
    assert "no matrix within a block learns" in refused(capsys, *asked, "--optimizer", "muon", "--lora", "rank=8")
    assert "--lora has no 'size'" in refused(capsys, *asked, "--lora", "size=8")


def test_the_command_refuses_what_cannot_be(capsys):
    asked = ("plan", "gpt2", "--device", "cpu")
    assert "'huge'" in refused(capsys, *asked, "--preset", "huge")
    assert "--batch is 0" in refused(capsys, *asked, "--batch", 0)
    assert "--micro-batch is 9" in refused(capsys, *asked, "--batch", 8, "--micro-batch", 9)
    assert "--memory is 0.0" in refused(capsys, *asked, "--memory", 0)
    assert "--length 8" in refused(capsys, "plan", "vit", "--length", 8, "--device", "cpu")
