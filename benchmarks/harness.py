"""What every benchmark shares: rows, turns, equal answers first, memory, and what the machine itself can do.

A row is work that ours and the peer both do. Figures are ratios of their time to ours: above 1 we are faster.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDES = ("ours", "theirs")
# torchvision, which the tests need, is hidden from transformers: it would only slow its import down.
HIDE = f"import sys; sys.modules['torchvision'] = None; sys.path.append({str(Path(__file__).parent)!r})\n"
CHILD = {
    **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}
TIMED = """
import time, json, harness; began = time.perf_counter()
{code}
seconds = time.perf_counter() - began
print(json.dumps([seconds, harness.peak("cpu"), answer]))
"""
PEAK = """
import json, harness, {module}
harness.threads({threads})
work = getattr({module}, {name!r})({folder!r}, {side!r}, {device!r}, {quick!r})[0]
work(); print(json.dumps(harness.peak({device!r})))
"""


TURNS = """
import sys, time, json, harness, {module}
harness.threads({threads})
work, answer = getattr({module}, {name!r})({folder!r}, {side!r}, {device!r}, {quick!r})
print(json.dumps(answer()), flush=True)
for _ in sys.stdin:
    harness.wait({device!r}); began = time.perf_counter()
    work()
    harness.wait({device!r}); print(json.dumps([time.perf_counter() - began, harness.peak({device!r})]), flush=True)
"""


@dataclass(frozen=True)
class Row:
    """Work done in one process, ours and theirs in turns: `work(folder, side, device, quick)` gives a function that is
    timed and one that gives the answer to compare; `apart`, each side in a process that stays, where the process itself
    is part of the work, as how it holds memory. Or, if there is `code`, work of a new process for each round: a
    program for each side, which may leave an `answer`."""

    name: str
    what: str  # and, where `quick` does less, what that is
    quick: str = ""
    work: Callable[..., tuple[Callable[[], Any], Callable[[], Any]]] | None = None
    code: dict[str, str] | None = None
    apart: bool = False


def threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def wait(device: str) -> None:
    """Until the device has done what it was given; a CPU is always done."""
    import torch

    if device != "cpu":
        getattr(torch, device).synchronize()


def peak(device: str) -> float:
    """The most memory this process held, in MiB: on the GPU, or on the CPU, files it mapped included (Linux only)."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 1024


def equal(ours: Any, theirs: Any) -> bool:
    """Whole numbers and texts: the same. Other numbers: within 1e-5 of theirs. Lists: of equal length, each equal."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(equal(*pair) for pair in zip(ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= 1e-5 * abs(theirs)
    return ours == theirs


def demand_equal(name: str, ours: Any, theirs: Any) -> None:
    if not equal(ours, theirs):
        raise SystemExit(
            f"{name}: the answers differ, so there is nothing to time. Ours {ours!s:.80}, theirs {theirs!s:.80}."
        )


def in_turns(row: Row, folder: str, *, rounds: int, device: str = "cpu", quick: bool = False) -> dict[str, list[float]]:
    """Seconds of each round, the two sides in alternating order; one uncounted round before, answers compared first."""
    assert row.work is not None
    (ours, answer), (theirs, expected) = (row.work(folder, side, device, quick) for side in SIDES)
    demand_equal(row.name, answer(), expected())
    seconds = {side: [] for side in SIDES}
    pairs = list(zip(SIDES, (ours, theirs)))
    for i in range(-1, rounds):
        for side, work in pairs[:: 1 if i % 2 else -1]:
            wait(device)
            began = time.perf_counter()
            work()
            wait(device)
            seconds[side] += [time.perf_counter() - began] if i >= 0 else []
    return seconds


def apart(
    module: str, row: Row, folder: str, *, rounds: int, count: int, device: str = "cpu", quick: bool = False
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """What `in_turns` does, each side in a process of its own that waits for its turn; and the most memory it held."""
    assert row.work is not None
    same = {"module": module, "name": row.work.__name__, "folder": folder, "device": device, "quick": quick}
    sides = {side: _python(filled(TURNS, side=side, threads=count, **same), stdin=subprocess.PIPE) for side in SIDES}
    try:
        demand_equal(row.name, *(_said(sides[side]) for side in SIDES))
        seconds, memory = {side: [] for side in SIDES}, {}
        for i in range(-1, rounds):
            for side in SIDES[:: 1 if i % 2 else -1]:
                sides[side].stdin.write("\n")
                sides[side].stdin.flush()
                took, memory[side] = _said(sides[side])
                seconds[side] += [took] if i >= 0 else []
    finally:
        for process in sides.values():
            process.kill()
            process.communicate()
    return seconds, memory


def _said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise SystemExit(process.communicate()[1])
    return json.loads(line)


def in_processes(row: Row, folder: str, *, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds that each program took within its process, and the most memory it held."""
    assert row.code is not None
    found = {side: [] for side in SIDES}
    for i in range(rounds):
        for side in SIDES[:: 1 if i % 2 else -1]:
            code = "answer = None\n" + row.code[side]
            found[side].append(child(TIMED.replace("{code}", code), folder=folder))
        demand_equal(row.name, *(found[side][-1][2] for side in SIDES))
    seconds = {side: [one[0] for one in runs] for side, runs in found.items()}
    return seconds, {side: max(one[1] for one in runs) for side, runs in found.items()}


def peaks(module: str, row: Row, folder: str, *, device: str, quick: bool, count: int) -> dict[str, float]:
    """The most memory each side holds for a round, alone in a process."""
    assert row.work is not None
    same = {"module": module, "name": row.work.__name__, "folder": folder, "device": device, "quick": quick}
    return {side: child(PEAK, side=side, threads=count, **same) for side in SIDES}


def child(code: str, **values: Any) -> Any:
    """What a new Python prints, read as JSON."""
    process = _python(filled(code, **values))
    printed, complaint = process.communicate()
    if process.returncode:
        raise SystemExit(complaint)
    return json.loads(printed) if printed else None


def filled(code: str, **values: Any) -> str:
    """{name} and {name!r} in the code stand for the values."""
    for key, value in values.items():
        code = code.replace("{" + key + "!r}", repr(value)).replace("{" + key + "}", str(value))
    return code


def _python(code: str, **pipes: Any) -> subprocess.Popen[str]:
    same = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", HIDE + code], env=CHILD, **same, **pipes)


def ratio(seconds: dict[str, list[float]]) -> dict[str, Any]:
    ours, theirs = seconds["ours"], seconds["theirs"]
    return {
        "best": round(min(theirs) / min(ours), 3),
        "median": round(statistics.median(theirs) / statistics.median(ours), 3),
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }


def machine(device: str) -> dict[str, Any]:
    """What it is, and the best of 7 of what it can do: read a matrix from memory, multiply two in float32."""
    import torch

    big, vector = torch.randn(2**14, 2**13, device=device), torch.randn(2**13, device=device)
    square = torch.randn(2048, 2048, device=device)
    read = _best(lambda: big @ vector, device)
    multiply = _best(lambda: square @ square, device)
    name = torch.cuda.get_device_name() if device == "cuda" else cpu()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bandwidth GB/s": round(big.nbytes / read / 1e9, 1),
        "float32 GEMM GFLOP/s": round(2 * 2048**3 / multiply / 1e9, 1),
    }


def _best(work: Callable[[], Any], device: str) -> float:
    seconds = []
    for _ in range(8):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def cpu() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in names}}
