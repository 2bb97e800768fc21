"""Two processes that train as one: real ones, of gloo, forked by benchmarks/survival.py's nursery."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import survival
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_loop import caught

from scratchformers.training import processes, state

EXACT = """
import torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
from scratchformers.images import Preprocess
pixels = Preprocess.__call__
Preprocess.__call__ = lambda self, image: pixels(self, image).double()
"""
PLAIN = {"dropout": 0.0, "autocast": "off", "eval_every": 10, "save_every": 10, "steps": 20, "warmup": 3, "keep": 5}
SMALL = {
    "gpt2": {},
    "bert": {},
    "vit": {"mixup": 0.0, "drop_path": 0.0},
    "mae": {},
    "clip": {"micro_batch": 0},
    "encoder-decoder": {"micro_batch": 0},
}
KINDS = {"alike": "false", "in parts": "true"}


def settings(name, **changed):
    own = {key: value for key, value in PLAIN.items() if key != "dropout" or name not in ("vit", "mae", "clip")}
    return {**own, **SMALL[name], **changed}


def started(nursery, arguments, *, count=2, first=""):
    """`count` processes that were told of each other as torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    made = []
    for rank in range(count):
        environment = {key: str(value) for key, value in {**told, "RANK": rank, "LOCAL_RANK": rank}.items()}
        environment = environment if count > 1 else {}
        made.append(nursery.start(arguments, first=f"import os; os.environ.update({environment!r})\n{first}"))
    return made


def trained(nursery, paths, name, out, *more, count=2, first=EXACT, **changed):
    """The folder of a run, and what each of its processes said."""
    path = paths[survival.RUNS[name][0]]
    arguments = survival.command(name, path, out, *more, **settings(name, **changed))
    ended = [child.wait() for child in started(nursery, arguments, count=count, first=first)]
    assert not any(status for status, _ in ended), "\n".join(said for _, said in ended)
    return out, [said for _, said in ended]


@pytest.fixture(scope="module")
def alone(nursery, paths, tmp_path_factory):
    """The folder of a run of one process."""
    made = {}

    def of(name):
        if name not in made:
            made[name], _ = trained(nursery, paths, name, tmp_path_factory.mktemp("alone") / name, count=1)
        return made[name]

    return of


def records(folder):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in survival.TIMES} for line in lines]


def same(a, b, *, within=1e-9):
    """Whether two runs say the same, step by step, and end with the same weights."""
    ours, theirs = records(a), records(b)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        for key, value in one.items():
            if isinstance(value, float) and key != "lr":
                assert value == pytest.approx(other[key], abs=within, rel=within), (one["step"], key)
            elif key != "sample":
                assert value == other[key], (one["step"], key)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (a, b)]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SMALL)
def test_two_processes_train_as_one(nursery, paths, alone, tmp_path, name, kind):
    """To 1e-9 after 20 steps in float64, gradients' norms and validation among it; the second one says nothing."""
    run, said = trained(nursery, paths, name, tmp_path / "run", shard=KINDS[kind])
    same(run, alone(name))
    assert said[0]
    assert said[1] == ""
    (parts,) = {len([*path.glob("*.safetensors")]) for path in (run / "checkpoints").iterdir()}
    assert parts == (2 if kind == "in parts" else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "changed"), [
    ("gpt2", {"micro_batch": 1, "checkpointing": "true", "ema": 0.9, "optimizer": "muon"}),
    ("bert", {"batch": 5, "micro_batch": 1, "ema": 0.9}),
    ("clip", {"micro_batch": 2, "ema": 0.9}),
    ("encoder-decoder", {"tokens": 60, "micro_batch": 1, "optimizer": "muon"}),
])  # fmt: skip
def test_so_they_do_in_micro_batches_with_an_average_and_muon(nursery, paths, tmp_path, name, changed, kind):
    """Also where they have unequally many examples."""
    one, _ = trained(nursery, paths, name, tmp_path / "one", count=1, **changed)
    two, _ = trained(nursery, paths, name, tmp_path / "two", shard=KINDS[kind], **changed)
    same(two, one)


GRADIENTS = """
import torch
from scratchformers.training import processes
clip = processes.Shared.clip
def noted(self, limit):
    found = {name: processes.whole(p.grad).clone() for name, p in self.model.named_parameters() if p.grad is not None}
    if processes.leads():
        torch.save(found, PATH)
    processes.Shared.clip = clip
    return clip(self, limit)
processes.Shared.clip = noted
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SMALL)
def test_first_gradients_are_those_of_one_process(nursery, paths, tmp_path, name, kind):
    """In float32, to 1e-5 of the largest of each parameter."""
    found = []
    for count in (1, 2):
        path = tmp_path / f"{count}.pt"
        first = f"PATH = {str(path)!r}\n{GRADIENTS}"
        more = {"steps": 1, "shard": KINDS[kind]}
        trained(nursery, paths, name, tmp_path / f"run-{count}", count=count, first=first, **more)
        found.append(torch.load(path))
    assert found[0].keys() == found[1].keys()
    scale = max(float(grad.abs().max()) for grad in found[0].values())
    for key, grad in found[0].items():
        largest = max(float(grad.abs().max()), 1e-4 * scale)  # of a bias of keys, which changes nothing, all is noise
        assert float((grad - found[1][key]).abs().max()) <= 1e-5 * largest, key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "changed"), [
    ("gpt2", {}),
    ("clip", {"ema": 0.9}),
    ("encoder-decoder", {"optimizer": "muon"}),
])  # fmt: skip
def test_a_run_goes_on_in_another_number_of_processes(nursery, paths, tmp_path, name, changed, kind):
    """From two to one, from one to two, and from parts to alike; to 1e-9 the run that was never stopped."""
    whole, _ = trained(nursery, paths, name, tmp_path / "whole", count=1, **changed)
    for before, after, shard in ((2, 1, kind), (1, 2, kind), (2, 2, "alike" if kind == "in parts" else "in parts")):
        out = tmp_path / f"{before}-{after}-{shard}"
        trained(nursery, paths, name, out, count=before, shard=KINDS[kind], **changed)
        shutil.rmtree(out / "checkpoints" / "step-20")
        _, said = trained(nursery, paths, name, out, count=after, shard=KINDS[shard], **changed)
        assert "Resuming at step 10" in said[0]
        assert (f"Begun with {before} processes, resumed with {after}" in said[0]) == (before != after)
        same(out, whole)


def test_dropout_differs_between_processes_and_not_after_a_stop(nursery, paths, tmp_path):
    changed = {"dropout": 0.3, "autocast": "off"}
    whole, _ = trained(nursery, paths, "gpt2", tmp_path / "whole", **changed)
    shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-20")
    again, _ = trained(nursery, paths, "gpt2", tmp_path / "again", **changed)
    assert records(again) == records(whole)
    draws = "from scratchformers.training import processes\nprocesses.draw_anew = lambda seed, step: None\n"
    alike, _ = trained(nursery, paths, "gpt2", tmp_path / "alike", first=EXACT + draws, **changed)
    assert records(alike)[0]["loss"] != records(whole)[0]["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_part_is_noticed(nursery, paths, tmp_path, kind):
    run, _ = trained(nursery, paths, "gpt2", tmp_path / "run", shard=KINDS[kind])
    *_, last = sorted((run / "checkpoints" / "step-20").glob("*.safetensors"))
    content = bytearray(last.read_bytes())
    content[-5] ^= 1
    last.write_bytes(content)
    _, said = trained(nursery, paths, "gpt2", run, shard=KINDS[kind])
    assert f"{last.parent} is damaged, and passed over: {last.name} is not what was written." in said[0]
    assert "Resuming at step 10" in said[0]
    last.unlink()
    with pytest.raises(ValueError, match=f"{last.name} is not what was written"):
        state._read(last.parent, set())


def test_a_signal_to_one_process_stops_both_at_one_step(nursery, paths, tmp_path):
    out = tmp_path / "run"
    given = settings("gpt2", steps=100000, save_every=100000, eval_every=100000)
    children = started(nursery, survival.command("gpt2", paths["text"], out, **given))
    until(lambda: (out / "log.jsonl").is_file() and (out / "log.jsonl").stat().st_size > 5000)
    children[1].send(signal.SIGTERM)
    ended = [child.wait() for child in children]
    assert [status for status, _ in ended] == [128 + signal.SIGTERM] * 2
    assert "and saved" in ended[0][1]
    assert ended[1][1] == ""
    (step,) = state.steps(out / "checkpoints")
    assert step == records(out)[-1]["step"]


def until(true, *, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


NOT_A_NUMBER = """
from scratchformers.training import language, processes
batch = language.NextToken.loss
def loss(self, model, given):
    found = batch(self, model, given)
    self.calls = getattr(self, "calls", 0) + 1
    return found * (float("nan") if processes.rank() == 1 and self.calls == 4 else 1)
language.NextToken.loss = loss
"""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_in_one_process_is_skipped_by_both(nursery, paths, tmp_path, kind):
    run, _ = trained(nursery, paths, "gpt2", tmp_path / "run", first=EXACT + NOT_A_NUMBER, shard=KINDS[kind])
    assert [record["step"] for record in records(run) if "skipped" in record] == [4]
    assert sorted(path.name for path in (run / "faults").iterdir()) == ["step-4.json", "step-4.safetensors"]
    written = json.loads((run / "faults" / "step-4.json").read_text(encoding="utf-8"))
    rows = sum(len(value) for name, value in load_file(run / "faults" / "step-4.safetensors").items() if "ids" in name)
    assert rows == len(written["examples"]) == 4
    assert records(run)[-1]["step"] == 20


LIMITED = """
import resource
from scratchformers.training import state
write = state._write_parts
def limited(*given):
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    write(*given)
state._write_parts = limited
"""


@pytest.mark.unhooked
def test_a_full_disk_is_said_by_those_who_write_parts(nursery, paths, tmp_path):
    arguments = survival.command(
        "gpt2", paths["text"], tmp_path / "run", **settings("gpt2", shard="true", save_every=5)
    )
    ended = [child.wait() for child in started(nursery, arguments, first=LIMITED)]
    assert [status for status, _ in ended] == [2, 2]
    for _, said in ended:
        assert f"{tmp_path / 'run'} takes no more (" in said
        assert "Traceback" not in said
    assert not [*(tmp_path / "run" / "checkpoints").iterdir()]


LATE = """
import threading
from scratchformers.training import language, state
saving, write, plain, computing = state.saving, state._write, language.NextToken.loss, threading.Event()
def cleared(folder, step, *given, **more):
    computing.clear()
    if step == 20:  # the last one, which no step follows
        computing.set()
    return saving(folder, step, *given, **more)
def late(*given):
    assert computing.wait(60), "no step was computed meanwhile"
    write(*given)
def loss(self, model, given):
    computing.set()
    return plain(self, model, given)
state.saving, state._write, language.NextToken.loss = cleared, late, loss
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_written_while_the_next_step_computes(nursery, paths, alone, tmp_path, kind):
    out, _ = trained(nursery, paths, "gpt2", tmp_path / "run", first=EXACT + LATE, shard=KINDS[kind])
    same(out, alone("gpt2"))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-10", "step-20"]


def test_a_run_takes_other_threads_in_another_number_of_processes(nursery, paths, tmp_path):
    out, _ = trained(nursery, paths, "gpt2", tmp_path / "run", threads=2, count=1)
    shutil.rmtree(out / "checkpoints" / "step-20")
    _, said = trained(nursery, paths, "gpt2", out, threads=1)
    assert "1 threads" in said[0]


LEAP = """
from scratchformers.training import language
plain = language.NextToken.loss
def loss(self, model, given):
    self.calls = getattr(self, "calls", 0) + 1
    return plain(self, model, given) * (50 if self.calls == 24 else 1)
language.NextToken.loss = loss
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_leap_takes_both_back(nursery, paths, tmp_path, kind):
    changed = {"steps": 30, "save_every": 5, "eval_every": 30, "spike": 8}
    one, _ = trained(nursery, paths, "gpt2", tmp_path / "one", count=1, first=EXACT + LEAP, **changed)
    two, _ = trained(nursery, paths, "gpt2", tmp_path / "two", first=EXACT + LEAP, shard=KINDS[kind], **changed)
    assert [(each["step"], each["from_step"]) for each in records(two) if "rolled_back" in each] == [(21, 24)]
    same(two, one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [("--lora", "rank=2"), ("--freeze", "blocks.0", "--freeze", "token")])
def test_what_is_frozen_is_in_no_part(nursery, paths, alone, tmp_path, kind, more):
    """And what learnt by adapters is merged, by one process or by two, and gone on with by one. A source is
    float32."""
    given = ("--from", str(alone("gpt2") / "model"), *more)
    one, _ = trained(nursery, paths, "gpt2", tmp_path / "one", *given, count=1)
    two, _ = trained(nursery, paths, "gpt2", tmp_path / "two", *given, shard=KINDS[kind])
    same(two, one, within=1e-5)
    held = {name for path in (two / "checkpoints" / "step-20").glob("*.safetensors") for name in load_file(path)}
    assert "model.token.weight" not in held
    shutil.rmtree(two / "checkpoints" / "step-20")
    trained(nursery, paths, "gpt2", two, *given, count=1, shard=KINDS[kind])
    same(two, one, within=1e-5)


@pytest.mark.parametrize(("changed", "said"), [
    ({"batch": 7}, "batch is 7: expected a multiple of 2, the processes, for each takes as many pairs."),
    ({"autocast": "fp16", "shard": "true"}, "A CLIP has numbers that cannot be parted, and fp16 scales all alike"),
])  # fmt: skip
def test_what_many_processes_cannot_do_is_said(nursery, paths, tmp_path, changed, said):
    arguments = survival.command("clip", paths["captions"], tmp_path / "run", **settings("clip", **changed))
    children = started(nursery, arguments)
    status, first = children[0].wait()
    children[1].send(signal.SIGKILL)  # as torchrun ends the others
    children[1].wait()
    assert status == 2
    assert f"scratchformers: {said}" in first
    assert not (tmp_path / "run" / "config.json").exists()


PLANTED = {
    "gradients are averaged": """
from scratchformers.training import loop, processes
processes.total = lambda value: value
""",
    "each reads what the others read": """
from scratchformers.training import processes
share = processes.share
processes.share = lambda examples, size, number: share(examples, size, 0)
""",
    "no gradient for what the others sent": """
import torch.distributed as dist
from scratchformers.training import contrastive
contrastive._Gather.backward = staticmethod(
    lambda ctx, *grads: grads[0].chunk(dist.get_world_size())[dist.get_rank()] * 1
)
""",
    "gradients of micro-batches stay where they are": """
from scratchformers.training import processes
processes.Shared.finish = lambda self: None
""",
    "Muon moves each part by itself": """
from scratchformers.training import muon
class Apart:
    whole = staticmethod(lambda x: x.to_local() if hasattr(x, "to_local") else x)
    parted_like = staticmethod(lambda like, x: x)
    local = staticmethod(whole)
muon.processes = Apart
""",
}


@pytest.mark.parametrize(("planted", "name", "shard"), [
    ("gradients are averaged", "bert", "false"),
    ("gradients are averaged", "encoder-decoder", "true"),
    ("each reads what the others read", "vit", "false"),
    ("no gradient for what the others sent", "clip", "false"),
    ("gradients of micro-batches stay where they are", "clip", "false"),
    ("gradients of micro-batches stay where they are", "clip", "true"),  # of the scale, which lies in no parts
    ("Muon moves each part by itself", "gpt2", "true"),
])  # fmt: skip
def test_a_planted_bug_is_caught(nursery, paths, tmp_path, planted, name, shard):
    changed = {"micro_batch": 2} if name == "clip" else {"optimizer": "muon"} if name == "gpt2" else {}
    one, _ = trained(nursery, paths, name, tmp_path / "one", count=1, **changed)
    with caught():
        two, _ = trained(nursery, paths, name, tmp_path / "two", first=EXACT + PLANTED[planted], shard=shard, **changed)
        same(two, one)


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(0, 9), st.integers(1, 8))
def test_shares_hold_each_example_once(examples, size, count):
    """In as many parts everywhere, of at most `size`; nobody has nothing to compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "count", lambda: count)
        shares = [processes.share(examples, size, number) for number in range(count)]
    assert len({len(parts) for parts, _ in shares}) == 1
    assert all(part for parts, _ in shares for part in parts)
    held = [example for parts, idle in shares for part in parts[: len(parts) - idle] for example in part]
    assert sorted(held) == sorted(examples)
    assert all(len(part) <= (size or len(examples)) for parts, _ in shares for part in parts)


@pytest.mark.unhooked
def test_torchrun_starts_them(paths, tmp_path):
    given = settings("gpt2", steps=3, shard="true")
    arguments = survival.command("gpt2", paths["text"], tmp_path / "run", **given)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*program, "-m", "scratchformers", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Best validation") == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["processes"] == 2
    assert load_file(tmp_path / "run" / "model" / "model.safetensors")


@pytest.mark.unhooked
def test_what_is_wrong_is_said_once(tmp_path):
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = ["train", "gpt2", "--data", "nowhere.txt", "--out", str(tmp_path / "run")]
    ended = subprocess.run(
        [*program, "-m", "scratchformers", *given], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode
    assert ended.stderr.count("nowhere.txt does not exist") == 1
