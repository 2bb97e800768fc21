"""Whether a loss is normal: other seeds lie within the band, and planted faults are told."""

import dataclasses
import importlib
import itertools
import json
import math
import random

import pytest
from test_cli import refused
from test_cli import run as program
from test_training import TEXT

from scratchformers.checkpoints import files
from scratchformers.training import compare as comparing
from scratchformers.training.compare import (
    FOLDER,
    Curve,
    band_of,
    compare,
    find_reference,
    make_reference,
    name_of,
    read_reference,
    read_run,
    stretches,
)
from scratchformers.training.recipes import RECIPES
from scratchformers.training.request import Request
from scratchformers.training.runs import open_run

SETTINGS = {"steps": "120", "batch": "16", "length": "24", "dim": "48", "depth": "2", "heads": "2", "lr": "0.006"}
SETTINGS |= {"warmup": "20", "eval_every": "30", "save_every": "1000", "threads": "1"}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare")
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    return path


def learn(where, name, plant=lambda run: None, **changes):
    run, _ = open_run(Request("gpt2", where / name, where / "text.txt", given={**SETTINGS, **changes}))
    plant(run)
    for _ in run:
        pass
    return read_run(where / name)


@pytest.fixture(scope="module")
def runs(where):
    """Six that differ by their seeds."""
    return [learn(where, f"seed-{seed}", seed=str(seed)) for seed in range(6)]


@pytest.fixture(scope="module")
def reference(runs):
    return make_reference(runs[:5])


# --- what is normal and what is not


def test_a_seed_that_is_in_no_band_lies_within(runs):
    """Each of the six, beside the other five."""
    for run in runs:
        standing = compare(run, make_reference([other for other in runs if other is not run]))
        assert (standing.left, standing.where) == (None, "within"), run.folder
        assert standing.to_json()["validation"]["where"] == "within", run.folder


def leaking(run):
    """Targets shifted by one too few: what is asked for is there to be seen."""
    whole = run.task.batch
    run.task.batch = lambda examples: {"ids": whole(examples)["ids"], "targets": whole(examples)["ids"]}


def ahead(run):
    """Shifted by one too many."""
    whole = run.task.batch
    run.task.batch = lambda examples: {
        "ids": whole(examples)["ids"][:, :-1],
        "targets": whole(examples)["targets"][:, 1:],
    }


def frozen(run):
    """Half of the model, its blocks, does not learn."""
    for parameter in run.task.model.blocks.parameters():
        parameter.requires_grad_(False)


# What is planted, how the run ends, and the step at which it has left the band.
FAULTS = {
    "rate": (lambda run: None, {"lr": "0.06"}, "above", 20),
    "warm-up": (lambda run: None, {"warmup": "0"}, "within", 20),  # in the end; it was not at its beginning
    "leaking": (leaking, {}, "below", 20),
    "ahead": (ahead, {}, "above", 120),  # in this text what is after the next letter is nearly as plain
    "frozen": (frozen, {}, "above", 20),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_told(where, reference, fault):
    plant, changes, ends, latest = FAULTS[fault]
    standing = compare(learn(where, fault, plant, **changes), reference)
    assert standing.left is not None
    assert standing.left <= latest, "it is told early"
    assert standing.where == ends
    assert f"which it left at step {standing.left}" in standing.sentence()
    assert ("and came back to" in standing.sentence()) == (ends == "within")
    assert standing.settings == [f"{name} {value}, not {SETTINGS[name]}" for name, value in changes.items()]


def test_one_leap_is_no_leaving_and_two_are(runs, reference):
    (first, last), (_, after) = [*stretches(120)][20:22]

    def leapt(until):
        raw = [loss * 4 if first <= step <= until else loss for step, loss in zip(runs[5].steps, runs[5].raw)]
        return compare(dataclasses.replace(runs[5], raw=raw), reference).left

    assert leapt(last) is None
    assert leapt(after) == last


def test_a_run_that_goes_on_is_compared_as_far_as_it_is(where, runs, reference):
    folder = where / "going on"
    folder.mkdir()
    (folder / "config.json").write_bytes((runs[5].folder / "config.json").read_bytes())
    lines = (runs[5].folder / "log.jsonl").read_text(encoding="utf-8").split("\n")
    (folder / "log.jsonl").write_text("\n".join([*lines[:41], '{"step": 41, "lo']), encoding="utf-8")
    standing = compare(read_run(folder), reference)
    last = max(last for _, last in stretches(40))
    assert (standing.run.step, standing.curve.steps[-1]) == (40, last)
    assert standing.valid.steps == [30]
    assert f"At step {last} (the run is at 40) the training loss" in standing.sentence()
    assert "lies within the band of 5 runs of gpt2 tiny" in standing.sentence()
    assert "; the validation loss" in standing.sentence()


def test_a_run_that_is_longer_is_compared_as_far_as_the_reference_goes(where, runs):
    short = [_cut(run, 60) for run in runs[:5]]
    standing = compare(runs[5], make_reference(short))
    assert standing.curve.steps[-1] == max(last for _, last in stretches(60))
    assert standing.valid.steps == [30, 60]


def _cut(run, step):
    count = run.steps.index(step) + 1
    valid = Curve(*([*zip(*((s, loss) for s, loss in zip(run.valid.steps, run.valid.losses) if s <= step))]))
    return dataclasses.replace(run, steps=run.steps[:count], raw=run.raw[:count], valid=valid)


# --- what is other


def test_other_data_is_compared_by_shape_alone(where, reference):
    other = where / "letters.txt"
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=4000)
    other.write_text("".join(letter * 3 for letter in letters), encoding="utf-8")
    run, _ = open_run(Request("gpt2", where / "other data", other, given={**SETTINGS, "steps": "40"}))
    for _ in run:
        pass
    standing = compare(read_run(where / "other data"), reference)
    assert standing.shares
    assert standing.settings == ["steps 40, not 120"]
    assert standing.curve.losses[0] == pytest.approx(1, abs=0.2), "what knowing nothing costs"
    assert standing.training.mean[0] == pytest.approx(1, abs=0.1)
    assert "only the curves' shapes" in standing.sentence()
    assert "of what knowing nothing costs lies" in standing.sentence()
    assert standing.to_json()["unit"] == "share of the trivial loss"


def test_other_versions_and_machines_are_said(runs, reference):
    facts = {
        **runs[5].facts,
        "device": "cuda",
        "versions": {**runs[5].facts["versions"], "torch": "1.0", "python": "3"},
    }
    standing = compare(dataclasses.replace(runs[5], facts=facts), reference)
    assert standing.machine == ["cuda", "torch 1.0"]
    assert "it ran on cuda, torch 1.0, which changes the last digits and not the band." in standing.sentence()
    assert compare(runs[5], reference).machine == []


def test_what_changes_nothing_that_is_learnt_is_no_other_setting(where, runs):
    run = learn(where, "other ways", steps="120", keep="1", micro_batch="8", save_every="60", seed="9")
    assert comparing.differences(run.facts, runs[0].facts) == []


# --- the band


def test_the_band_is_the_means_and_their_deviations():
    draw = random.Random(0)
    curves = [Curve([1, 2, 3, 4], [2 + draw.gauss(0, 0.02) for _ in range(4)]) for _ in range(50)]
    band = band_of(curves, 4.0)
    for mean, low, high in zip(band.mean, band.low, band.high):
        assert mean == pytest.approx(2, abs=0.01)
        assert high - mean == pytest.approx(4 * 0.02 * math.sqrt(1 + 1 / 50), rel=0.15)
        assert low * high == pytest.approx(mean**2, rel=1e-2), "as wide below as above, by ratios"


def test_runs_that_agree_to_the_last_digit_have_a_band_of_some_width():
    band = band_of([Curve([1], [2.0])] * 3, 4.0)
    assert band.low[0] < 1.99 < 2.0 < 2.01 < band.high[0]


def test_what_is_small_differs_by_what_is_left():
    """By ratios, a thousandth and a millionth of the first loss would make a band up to that loss."""
    curves = [Curve([1, 2], [4.0, loss]) for loss in (4e-3, 4e-6, 1e-3, 2e-4, 3e-3)]
    band = band_of(curves, 5.0)
    assert band.low[1] == 0
    assert 4e-3 < band.high[1] < 0.05


def test_stretches_follow_each_other():
    found = [*stretches(1000)]
    assert found[0] == (1, 1)
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(found))
    assert all(last - first + 1 <= max(1, first / 16) for first, last in found)
    assert found == [*stretches(2000)][: len(found)], "of runs of any length they are the same"


def test_a_loss_is_a_mean_of_its_stretch(runs):
    curve = runs[0].curve()
    first, last = next((a, b) for a, b in stretches(120) if b > a)
    wanted = sum(runs[0].raw[first - 1 : last]) / (last - first + 1)
    assert curve.losses[curve.steps.index(last)] == pytest.approx(wanted)


# --- the committed references


@pytest.mark.parametrize("name", RECIPES)
def test_a_committed_reference_is_whole(name):
    path = FOLDER / f"{name.replace(' ', '-')}.json"
    found = read_reference(path)
    assert name_of(found) == f"{name} tiny"
    assert path.stat().st_size < 30_000
    assert find_reference(found) == found
    assert len(found["seeds"]) == 5
    assert found["left out"]["seed"] not in found["seeds"]
    assert found["left out"]["within"]["training"] >= 0.98
    assert found["left out"]["left"] is None
    assert found["command"].startswith("python benchmarks/reference_runs.py")
    assert {"cpu", "cores"} <= found["machine"].keys()
    assert found["trivial_loss"] > 0
    assert found["data"]["sha256"]


def test_the_references_learn_what_the_demo_learns(tmp_path):
    """The data of a run that anyone can make is that of the committed ones; Python's own texts change with Python."""
    script = importlib.import_module("reference_runs")
    asked = script.requests(tmp_path)
    assert asked.keys() == RECIPES.keys()
    for recipe in ("encoder-decoder", "bert classify", "bert tokens"):
        out = tmp_path / "run" / recipe
        run, _ = open_run(dataclasses.replace(asked[recipe], out=out, given={**asked[recipe].given}))
        facts, found = files.read_json(out / "config.json"), find_reference(files.read_json(out / "config.json"))
        assert not comparing.other_data(facts, found), recipe
        assert comparing.differences(facts, found) == [], recipe
        assert run.step == 0


def test_a_committed_reference_is_found(capsys, where, runs):
    """Other sizes and other data than its: the sentence says so."""
    code, out, error = program(capsys, "compare", runs[0].folder, "--out", where / "found.png")
    assert (code, error) == (0, "")
    assert "of gpt2 tiny" in out
    assert "the data is not the reference's" in out
    assert "dim 48, not 192, " in out


# --- the command


def against(runs):
    return [part for run in runs for part in ("--against", run.folder)]


def test_the_command_says_a_sentence_and_draws(capsys, where, runs):
    code, out, error = program(capsys, "compare", runs[5].folder, *against(runs[:5]), "--save", where / "own.json")
    assert (code, error) == (0, "")
    assert out.count("\n") == 1
    assert "lies within the band of 5 runs of gpt2 tiny (" in out
    assert (runs[5].folder / "compare.png").read_bytes()[:4] == b"\x89PNG"
    code, again, _ = program(capsys, "compare", runs[5].folder, "--reference", where / "own.json", "--json")
    found = json.loads(again)
    assert (code, found["sentence"] + "\n") == (0, out)
    assert (found["where"], found["left"], found["reached"], found["other_data"]) == ("within", None, 120, False)
    assert found["band"][0] < found["loss"] < found["band"][1]
    assert found["picture"] == str(runs[5].folder / "compare.png")


def test_a_run_beside_the_picture(capsys, where, runs):
    code, _, _ = program(capsys, "compare", runs[5].folder, *against(runs[:2]), "--out", where / "drawn.png")
    assert code == 0
    assert (where / "drawn.png").is_file()


@pytest.fixture
def copy(tmp_path, runs):
    """A run's folder, to be damaged."""
    for name in ("config.json", "log.jsonl"):
        (tmp_path / name).write_bytes((runs[0].folder / name).read_bytes())
    return tmp_path


def lines(path, number, line):
    found = path.read_text(encoding="utf-8").split("\n")
    found[number - 1] = line
    path.write_text("\n".join(found), encoding="utf-8")


def test_what_is_no_run_is_refused(capsys, tmp_path):
    assert "holds no run: expected a folder that `train` wrote" in refused(capsys, "compare", tmp_path)
    assert "holds no run" in refused(capsys, "compare", tmp_path / "no")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert "is not valid JSON" in refused(capsys, "compare", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert "says of no run what it is" in refused(capsys, "compare", tmp_path)


def test_a_log_that_says_nothing_is_refused(capsys, copy):
    (copy / "log.jsonl").write_text("", encoding="utf-8")
    assert "holds no step yet" in refused(capsys, "compare", copy)
    (copy / "log.jsonl").unlink()
    assert "the run has not begun" in refused(capsys, "compare", copy)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 7, "loss": 2.', "Line 7 of"),
        ('{"loss": 2.0}', "Line 7 of"),
        ("[7, 2.0]", "Line 7 of"),
        ('{"step": 7, "loss": NaN}', "has the loss nan at step 7"),
        ('{"step": 7, "loss": null}', "has the loss None at step 7"),
        ('{"step": 7, "loss": "low"}', "has the loss low at step 7"),
        ('{"step": 7, "valid_loss": Infinity}', "has the loss inf at step 7"),
    ],
)
def test_a_damaged_log_is_refused(capsys, copy, line, said):
    lines(copy / "log.jsonl", 7, line)
    assert said in refused(capsys, "compare", copy)


def test_a_recipe_without_a_reference_is_refused(capsys, copy):
    facts = files.read_json(copy / "config.json")
    files.write_json(copy / "config.json", {**facts, "preset": "mini"})
    error = refused(capsys, "compare", copy)
    assert "There is no reference for gpt2 mini, but for " in error
    assert "gpt2 tiny" in error
    assert "--against" in error


def test_references_that_do_not_fit_are_refused(capsys, copy, where, runs, tmp_path):
    other = tmp_path / "other.json"
    assert "is not valid JSON" in _damaged(capsys, copy, other, "{")
    assert "is no reference: expected a file that `compare --save` wrote" in _damaged(capsys, copy, other, "{}")
    whole = make_reference(runs[:5])
    for changed in (
        {"seeds": []},
        {"training": {**whole["training"], "low": [1.0]}},
        {"validation": 3},
        {"trivial_loss": "x"},
    ):
        assert "is no reference" in _damaged(capsys, copy, other, json.dumps({**whole, **changed}))
    assert "The reference is of bert tiny" in _damaged(capsys, copy, other, json.dumps({**whole, "recipe": "bert"}))
    moved = {**whole, "training": {**whole["training"], "steps": [s + 1000 for s in whole["training"]["steps"]]}}
    assert "no step in common" in _damaged(capsys, copy, other, json.dumps(moved))


def _damaged(capsys, run, path, text):
    path.write_text(text, encoding="utf-8")
    return refused(capsys, "compare", run, "--reference", path)


def test_runs_that_make_no_band_are_refused(capsys, copy, where, runs):
    own = ("compare", copy)
    assert "There is 1 run to make a band of" in refused(capsys, *own, *against(runs[:1]))
    assert "is in the band it is compared with" in refused(capsys, "compare", runs[0].folder, *against(runs[:2]))
    assert "holds no run" in refused(capsys, *own, *against(runs[:2]), "--against", where / "no")
    slow = learn(where, "slow", steps="120", lr="0.0006")
    assert "(lr 0.0006, not 0.006): a band is of runs that are" in refused(capsys, *own, *against([runs[1], slow]))
    facts = files.read_json(copy / "config.json")
    (where / "elsewhere").mkdir()
    (where / "elsewhere" / "log.jsonl").write_bytes((copy / "log.jsonl").read_bytes())
    files.write_json(where / "elsewhere" / "config.json", {**facts, "data": {"sha256": "0"}})
    error = refused(capsys, *own, *against([runs[1]]), "--against", where / "elsewhere")
    assert "(other data): a band is of runs that are" in error


def test_flags_that_do_not_go_together_are_refused(capsys, copy, where, runs):
    both = ("--reference", where / "x.json", *against(runs[:2]))
    assert "--reference and --against are two references" in refused(capsys, "compare", copy, *both)
    assert "--save writes what --against makes" in refused(capsys, "compare", copy, "--save", where / "x.json")
    assert "Is a directory" in refused(capsys, "compare", copy, *against(runs[:2]), "--out", where)
