"""The benchmarks' own rules. What they measure is not a test's business: no test here reads a clock."""

import importlib
import json

import bench
import gpt2
import harness
import pytest
import reference
import report
import table

from scratchformers import nn as bricks


def row(answers, log):
    """Work that notes who does it, and whose answers are given."""

    def work(folder, side, device, quick):
        return lambda: log.append(side), lambda: answers[side]

    return harness.Row("planted", "nothing", work=work)


def test_sides_take_turns_and_one_round_is_not_counted():
    log = []
    seconds = harness.in_turns(row({"ours": [1], "theirs": [1]}, log), "", rounds=3)
    assert {side: len(values) for side, values in seconds.items()} == {"ours": 3, "theirs": 3}
    assert log == ["theirs", "ours", "ours", "theirs"] * 2 or log == ["ours", "theirs", "theirs", "ours"] * 2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([[1, 2, 3]], [[1, 2, 4]]),
        ([[1, 2, 3]], [[1, 2]]),
        (2.0, 2.0001),
        ([2.0, 3.0], [2.0, 3.1]),
        (float("nan"), float("nan")),
        (float("nan"), 1.0),
        ("a", "b"),
    ],
)
def test_unequal_answers_are_never_timed(ours, theirs):
    log = []
    with pytest.raises(SystemExit, match="planted: the answers differ"):
        harness.in_turns(row({"ours": ours, "theirs": theirs}, log), "", rounds=3)
    assert not log


def test_equal_answers():
    assert harness.equal([[1, 2], [3, 4]], [[1, 2], [3, 4]])
    assert harness.equal([1.0, -2.0], [1.000001, -2.000001])
    assert harness.equal(None, None)


@pytest.mark.unhooked
def test_unequal_answers_of_processes_are_never_reported():
    with pytest.raises(SystemExit, match="planted: the answers differ"):
        harness.in_processes(
            harness.Row("planted", "", code={"ours": "answer = 1.0", "theirs": "answer = 1.1"}), "", rounds=1
        )
    seconds, memory = harness.in_processes(
        harness.Row("same", "", code={"ours": "answer = 1.0", "theirs": "answer = 1.0"}), "", rounds=2
    )
    assert [len(values) for values in seconds.values()] == [2, 2]
    assert set(memory) == {"ours", "theirs"}


PLANTED = """
def work(folder, side, device, quick):
    def note():
        with open(folder + "/log", "a", encoding="utf-8") as log:
            log.write(side + " ")
    return note, lambda: [1.0, side if quick else "same"]

def fails(folder, side, device, quick):
    raise ValueError("nothing to do")
"""


@pytest.mark.unhooked
def test_sides_apart_take_turns_too(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(PLANTED, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    planted = importlib.import_module("planted")
    row = harness.Row("planted", "", work=planted.work, apart=True)
    seconds, memory = harness.apart("planted", row, str(tmp_path), rounds=3, count=1)
    assert {side: len(values) for side, values in seconds.items()} == {"ours": 3, "theirs": 3}
    log = (tmp_path / "log").read_text(encoding="utf-8").split()
    assert log == ["ours", "theirs", "theirs", "ours"] * 2
    assert set(memory) == {"ours", "theirs"}
    with pytest.raises(SystemExit, match="planted: the answers differ"):
        harness.apart("planted", row, str(tmp_path), rounds=1, count=1, quick=True)
    with pytest.raises(SystemExit, match="nothing to do"):
        harness.apart("planted", harness.Row("f", "", work=planted.fails), str(tmp_path), rounds=1, count=1)


def small(folder, side, device, quick):
    """The row `greedy` on a small model."""
    torch, library, model = gpt2.models(folder, side, device)
    ids = reference.ids(2, 11)
    return gpt2._greedy(library, model, side, ids, torch.ones_like(ids).bool(), 20)


@pytest.mark.unhooked
def test_a_wrong_model_is_refused(tmp_path, monkeypatch):
    reference.scrambled().float().save_pretrained(tmp_path)
    assert harness.in_turns(harness.Row("greedy", "", work=small), str(tmp_path), rounds=1)
    made = bricks.Attention.__init__

    def unscaled(self, *arguments, **settings):
        made(self, *arguments, **settings)
        self.attend = lambda q, *rest, **more: bricks.attend(q * q.shape[-1] ** 0.5, *rest, **more)

    monkeypatch.setattr(bricks.Attention, "__init__", unscaled)
    with pytest.raises(SystemExit, match="greedy: the answers differ"):
        harness.in_turns(harness.Row("greedy", "", work=small), str(tmp_path), rounds=1)


SPEED = ("onednn-cpu.json", "bert-cpu.json", "vision-cpu.json", "clip-cpu.json")  # of the README's tables
RESULTS = {
    "command": "python benchmarks/bench.py",
    "rounds": 7,
    "machine": {"device": "a", "threads": 2, "bandwidth GB/s": 20.0, "float32 GEMM GFLOP/s": 200.0},
    "versions": {"torch": "1", "transformers": "2"},
    "rows": [
        {
            "model": "gpt2",
            "row": "greedy",
            "what": "w",
            "best": 1.25,
            "median": 1.2,
            "peak MiB": {"ours": 1, "theirs": 2},
        }
    ],
}


def test_the_report(tmp_path):
    table = report.table(RESULTS)
    assert "| gpt2, greedy | w | 1.25x | 1.20x | 1 | 2 |" in table
    text = report.replaced("a\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nb\n", "speed", table)
    assert text == f"a\n<!-- speed:begin -->\n{table}\n<!-- speed:end -->\nb\n"
    with pytest.raises(SystemExit, match="found 0"):
        report.replaced("nothing", "speed", table)
    for name in ("a.svg", "b.svg"):
        report.picture(RESULTS, tmp_path / name)
    report.picture(
        {**RESULTS, "rows": [*RESULTS["rows"], {"model": "b", "row": "r", "best": 9, "median": 9}]},
        tmp_path / "c.svg",
        "gpt2",
    )
    assert (tmp_path / "c.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_model_at_a_time():
    """Rows join those of other models that the same machine gave before, and nothing else does."""
    before = {**RESULTS, "quick": False, "linears": "torch"}
    found = {**before, "rows": [{"model": "bert", "row": "import", "best": 2.0}]}
    assert [row["model"] for row in bench.joined(found, before, "x.json")["rows"]] == ["gpt2", "bert"]
    again = {**before, "rows": [{"model": "gpt2", "row": "greedy", "best": 3.0}]}
    assert bench.joined(again, bench.joined(found, before, "x.json"), "x.json")["rows"][0]["best"] == 3.0
    for changed in ({"rounds": 3}, {"linears": "oneDNN"}, {"machine": {**before["machine"], "device": "b"}}):
        with pytest.raises(SystemExit, match="--join"):
            bench.joined({**found, **changed}, before, "x.json")


def test_how_far_two_runs_are_apart():
    other = json.loads(json.dumps(RESULTS))
    other["rows"][0]["best"] = 1.0
    assert report.differences(RESULTS, other) == {"gpt2, greedy": 0.25}
    assert "do not all agree within 15%" in report.agreement({"gpt2, greedy": 0.25})
    assert "machine, agree within 15%" in report.agreement({"gpt2, greedy": 0.149})
    other["rows"][0]["row"] = "else"
    with pytest.raises(SystemExit, match="different rows"):
        report.differences(RESULTS, other)


def test_the_readmes_figures_are_what_the_scripts_write():
    """From the committed results, and for as many models as there are pages."""
    from test_house import PAGES, ROOT

    read = lambda name: json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))  # noqa: E731
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    speed = [read(name) for name in SPEED]
    assert report.replaced(readme, "speed", report.tables(speed)) == readme
    assert report.replaced(readme, "embed", report.embedded(read("embed-cpu.json"))) == readme
    assert report.replaced(readme, "learnt", report.learnt(ROOT / "benchmarks" / "results")) == readme
    assert report.replaced(readme, "trusted", report.trusted(ROOT / "benchmarks" / "results")) == readme
    apart = report.differences(read("quick-1.json"), read("quick-2.json"))
    assert report.replaced(readme, "agreement", report.agreement(apart)) == readme
    assert report.replaced(readme, "models", table.table(read("verify.json"))) == readme
    assert table.WORDS.keys() == {page.stem for page in PAGES}
    assert (ROOT / "benchmarks" / "results" / "cpu.svg").is_file()
