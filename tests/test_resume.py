"""Real processes, really killed: `kill -9`, and the losses go on bit for bit. Of every model: test_survival.py."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from test_training import SMALL, TEXT

from scratchformers.training import log

pytestmark = pytest.mark.unhooked
SETTINGS = {**SMALL, "steps": "40", "eval_every": "10", "save_every": "7", "dropout": "0.2", "threads": "2"}


def train(data, out, *extra, **popen):
    command = [sys.executable, "-m", "scratchformers", "train", "gpt2", "--data", str(data), "--out", str(out)]
    for name, value in SETTINGS.items():
        command += ["--set", f"{name}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # must not matter: the run fixes its own
    return subprocess.Popen(
        [*command, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def logged(path):
    return [{k: v for k, v in record.items() if k not in log.TIMES} for record in log.read(path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    code, _, error = finish(train(folder / "text.txt", folder / "run"))
    assert code == 0, error
    return folder / "text.txt", folder / "run"


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)


def steps(out):
    path = out / "log.jsonl"
    return path.read_text("utf-8").count('"loss"') if path.is_file() else 0


@pytest.mark.parametrize("when", ["while it starts", "a checkpoint is being written"])
def test_killed_and_resumed_is_the_uninterrupted_run(whole, tmp_path, when):
    data, reference = whole
    out = tmp_path / "run"
    process = train(data, out)
    if when == "while it starts":
        wait_for((out / "config.json").is_file, process)
    else:
        wait_for(lambda: any((out / "checkpoints").glob(".step-*")) or steps(out) >= 30, process)
    time.sleep(random.random() * 0.02)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    code, said, error = finish(train(data, out, "--resume"))
    assert code == 0, error
    assert "Resuming at step" in said or "starting anew" in said
    assert logged(out / "log.jsonl") == logged(reference / "log.jsonl")
    a, b = (load_file(run / "model" / "model.safetensors") for run in (out, reference))
    assert all(a[name].equal(b[name]) for name in a)


def test_the_threads_of_the_run_are_kept(whole):
    assert json.loads((whole[1] / "config.json").read_text())["settings"]["threads"] == 2


def test_threads_and_mkl_are_fixed_before_torch_loads():
    code = "import os, sys; from scratchformers.cli import fix_threads; assert fix_threads('3') == 3\n"
    code += "assert 'torch' not in sys.modules; import torch\n"
    code += "assert torch.get_num_threads() == 3 and os.environ['MKL_DYNAMIC'] == 'FALSE'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_finished_run_says_so_and_exits_0(whole):
    code, said, _ = finish(train(*whole, "--resume"))
    assert code == 0
    assert "is finished (40 steps)" in said
