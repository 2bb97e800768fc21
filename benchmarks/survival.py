"""Runs of every model killed at random moments, again and again, and resumed: are their losses, weights and states, to
the last bit, those of runs that never stopped?

    python benchmarks/survival.py --kills 200 --out benchmarks/results/survival.json

A nursery, a process that has loaded everything and computed nothing, forks one that runs a command of the program, so
that a start takes no seconds; what is killed is that process, by SIGKILL, wherever it is: reading, computing, writing.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

TIMES = ("seconds", "waited")  # of a record, in which two runs that do the same differ
STEPS, AT_MOST = 22, 6  # of a run; kills of one run, so that some of them come to their end
SHARED = {"steps": STEPS, "eval_every": 9, "save_every": 5, "warmup": 3, "threads": 1, "keep_best": "true"}
PIXELS = {"image": 8, "patch": 4, "workers": 2, "crop": 0.6, "batch": 8}
RUNS = {  # what each trains on, and how: averages, fp16's scaler, workers, cached features, roll-backs among it
    "gpt2": ("text", {"batch": 4, "length": 16, "dim": 16, "depth": 1, "heads": 2, "dropout": 0.2, "autocast": "fp16"}),
    "bert": ("text", {"batch": 4, "length": 16, "dim": 16, "depth": 1, "heads": 2, "dropout": 0.2, "ema": 0.9}),
    "vit": ("pictures", {**PIXELS, "dim": 16, "depth": 1, "heads": 2, "mixup": 0.5, "drop_path": 0.2, "ema": 0.9}),
    "mae": ("pictures", {**PIXELS, "dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1,
                         "decoder_heads": 2, "autocast": "fp16"}),
    "clip": ("captions", {**PIXELS, "micro_batch": 4, "image_dim": 16, "image_depth": 1, "image_heads": 2,
                          "text_dim": 16, "text_depth": 1, "text_heads": 2, "dim": 12, "ema": 0.9}),
    "encoder-decoder": ("pairs", {"tokens": 200, "length": 32, "dim": 16, "depth": 1, "heads": 2, "dropout": 0.2,
                                  "schedule": "noam", "ema": 0.9, "scored": 4, "micro_batch": 3}),
}  # fmt: skip


def data(folder):
    """The path of each kind of data, made in the folder."""
    import numpy as np

    text = "".join(f"{i} times {j} is {i * j}.\n" for i in range(12) for j in range(12))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    pairs = "".join(f"{' '.join(str(i * i))}\t{' '.join(str(i * i)[::-1])}\n" for i in range(90))
    (folder / "pairs.tsv").write_text("source\ttarget\n" + pairs, encoding="utf-8")
    draw, labels = np.random.default_rng(0), np.arange(30) % 3
    images = (draw.integers(0, 60, (30, 12, 12, 3)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "pictures.npz", images=images, labels=labels, names=np.array(["dark", "grey", "light"]))
    captions = np.array([[f"number {i} of many", f"the {i % 7}th of a kind"] for i in range(30)])
    np.savez(folder / "captions.npz", images=images, captions=captions)
    return {path.stem: path for path in folder.iterdir()}


def command(name, path, out, *more, **changed):
    """Arguments of `scratchformers` that train it, or go on with the run in `out`."""
    settings = {**SHARED, **RUNS[name][1], **changed}
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["train", name, "--data", str(path), "--out", str(out), "--resume", *more, *pairs]


class Child:
    def __init__(self, nursery, pid, said):
        self.nursery, self.pid, self.said = nursery, pid, said

    def ended(self):
        """Whether it has."""
        return self.nursery.ask(ended=self.pid)

    def wait(self):
        """Its exit status, negative where it was killed, and what it printed."""
        return self.nursery.ask(wait=self.pid), self.said.read_text(encoding="utf-8")

    def send(self, number):
        os.kill(self.pid, number)


class Nursery:
    def __init__(self, folder):
        alone = {"MKL_DYNAMIC": "FALSE", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen([sys.executable, __file__, "--nursery"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env={**os.environ, **alone})  # fmt: skip

    def start(self, arguments, *, first=""):
        """A child that runs the program, after what `first` says in Python."""
        self.count += 1
        said = self.folder / f"said-{self.count}.txt"
        return Child(self, self.ask(arguments=arguments, said=str(said), first=first), said)

    def run(self, arguments, *, first=""):
        return self.start(arguments, first=first).wait()

    def ask(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def nurse():
    """The nursery's side: a line of JSON is asked, a line answered."""
    import matplotlib.figure  # noqa: F401 (loaded once, for all children)
    import rich.progress  # noqa: F401

    from scratchformers.cli import main
    from scratchformers.training import runs  # noqa: F401

    statuses = {}
    for line in sys.stdin:
        what = json.loads(line)
        if "arguments" in what:
            answer = os.fork() or _child(main, what)
        else:
            pid = what.get("wait") or what["ended"]
            if pid not in statuses:
                found, status = os.waitpid(pid, 0 if "wait" in what else os.WNOHANG)
                statuses |= {pid: os.waitstatus_to_exitcode(status)} if found else {}
            answer = statuses.get(pid) if "wait" in what else pid in statuses
        print(json.dumps(answer), flush=True)


def _child(main, what):
    status = 1
    try:
        said = os.open(what["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (1, 2):
            os.dup2(said, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        exec(what["first"], {})
        status = main(what["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def logged(out):
    text = (out / "log.jsonl").read_text(encoding="utf-8")
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in text.splitlines()]


def lost(whole, cut):
    """Steps of the whole run that the other lacks, or has otherwise."""
    found = {record["step"]: record for record in logged(cut) if "loss" in record}
    return [record["step"] for record in logged(whole) if "loss" in record and found.get(record["step"]) != record]


def same(whole, cut):
    """Whether the logs are, evaluations and samples included, the best model, and all checkpoints with their states."""
    names, found = ({path.relative_to(out) for path in out.rglob("*.safetensors")} for out in (whole, cut))
    equal = logged(whole) == logged(cut) and names <= found  # killed after its last save, a run has an old one left
    return equal and all((whole / name).read_bytes() == (cut / name).read_bytes() for name in names)


def killed(nursery, arguments, seconds, draw, most):
    """Runs it, killed up to so many times, to its end; at which steps it was killed."""
    steps, out = [], Path(arguments[arguments.index("--out") + 1])
    while True:
        child, end = nursery.start(arguments), time.monotonic() + draw.uniform(0, seconds)
        while time.monotonic() < end and len(steps) < most and not child.ended():
            time.sleep(0.002)
        if len(steps) < most and not child.ended():
            child.send(signal.SIGKILL)
        status, said = child.wait()
        if status == 0:
            return steps
        if status != -signal.SIGKILL:
            raise SystemExit(said)
        log = out / "log.jsonl"
        steps.append(log.read_text(encoding="utf-8").count('"loss"') if log.is_file() else 0)


def measure(nursery, folder, kills, seed):
    paths, draw, found = data(folder), random.Random(seed), {}
    wholes = {}
    for name, (kind, _) in RUNS.items():
        began = time.monotonic()
        status, said = nursery.run(command(name, paths[kind], folder / f"{name}-whole"))
        if status:
            raise SystemExit(said)
        wholes[name] = time.monotonic() - began
        found[name] = {"runs": 0, "kills": 0, "lost_steps": 0, "differing_runs": 0, "killed_at": []}
    for number in range(10**9):
        for name, (kind, _) in RUNS.items():
            left = kills - sum(each["kills"] for each in found.values())
            if left <= 0:
                return found
            out, whole, sums = folder / f"{name}-{number}", folder / f"{name}-whole", found[name]
            steps = killed(nursery, command(name, paths[kind], out), wholes[name], draw, min(left, AT_MOST))
            sums["runs"] += 1
            sums["kills"] += len(steps)
            sums["lost_steps"] += len(lost(whole, out))
            sums["differing_runs"] += not same(whole, out)
            sums["killed_at"] += steps
            print(name, {key: value for key, value in sums.items() if key != "killed_at"}, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.nursery:
        return nurse()
    results = {"command": " ".join(["python benchmarks/survival.py", *sys.argv[1:]]), "steps": STEPS}
    results |= {"machine": harness.machine("cpu"), "versions": harness.versions("torch")}
    with tempfile.TemporaryDirectory() as folder:
        nursery = Nursery(Path(folder))
        (Path(folder) / "work").mkdir()
        results["runs"] = measure(nursery, Path(folder) / "work", arguments.kills, arguments.seed)
        nursery.close()
    for name in ("kills", "lost_steps", "differing_runs"):
        results[name] = sum(each[name] for each in results["runs"].values())
        print(f"{name}: {results[name]}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results["lost_steps"] + results["differing_runs"]


if __name__ == "__main__":
    sys.exit(main())
