"""Characters of tinyshakespeare at nanoGPT's settings, three seeds, measured on the whole validation split.

    python benchmarks/tinyshakespeare.py input.txt                   # the CPU setting (nanoGPT: 1.88)
    python benchmarks/tinyshakespeare.py input.txt --setting gpu     # the GPU setting (nanoGPT: 1.4697)
    make replay DATA=input.txt                                       # the first steps of the committed runs, compared

input.txt is karpathy/char-rnn's, 1,115,394 characters, of which the last tenth is the validation split. It is measured
by `scratchformers eval` in windows of the model's length, side by side. Writes results.json, logs and a picture.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = {
    "cpu": {"depth": 4, "heads": 4, "dim": 128, "length": 64, "dropout": 0.0, "batch": 12, "steps": 2000}
    | {"lr": 4e-3, "lr_end": 0.0, "warmup": 200, "weight_decay": 0.3, "eval_every": 250, "save_every": 2000}
    | {"threads": 1},
    "gpu": {"depth": 6, "heads": 6, "dim": 384, "length": 256, "dropout": 0.2, "batch": 64, "steps": 5000}
    | {"lr": 1e-3, "lr_end": 0.1, "warmup": 100, "eval_every": 250, "save_every": 2500},
}
THEIRS = {"cpu": 1.88, "gpu": 1.4697}
REPLAYED = 20  # steps


def program(*arguments):
    done = subprocess.run([sys.executable, "-m", "scratchformers", *map(str, arguments)], check=False,
                          stdout=subprocess.PIPE, text=True, encoding="utf-8")  # fmt: skip
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def train(data, out, settings, seed):
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    program("train", "gpt2", "--data", data, "--out", out, "--seed", seed, *pairs)


def measure(data, setting, seeds, out):
    settings, text = SETTINGS[setting], data.read_text(encoding="utf-8")
    found = {}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        held_out = Path(folder, "validation.txt")
        held_out.write_text(text[len(text) * 9 // 10 :], encoding="utf-8")
        for seed in seeds:
            run = Path(folder, str(seed))
            train(data, run, settings, seed)
            windows = ("--length", settings["length"], "--stride", settings["length"])
            score = program("eval", "--model", run / "model", "--data", held_out, *windows, "--json")
            found[seed] = {key: value for key, value in json.loads(score).items() if key not in ("model", "data")}
            (out / f"seed-{seed}.jsonl").write_bytes((run / "log.jsonl").read_bytes())
            facts = json.loads((run / "config.json").read_text(encoding="utf-8"))
            print(f"seed {seed}: {found[seed]['loss']:.4f} nats a character", flush=True)
    mean = statistics.mean(score["loss"] for score in found.values())
    results = {
        "command": f"python benchmarks/tinyshakespeare.py input.txt --setting {setting}",
        "commit": commit(),
        "data": facts["data"],
        "settings": settings,
        "parameters": facts["parameters"],
        "mean loss": round(mean, 4),
        "nanoGPT": THEIRS[setting],
        "seeds": found,
        "device": facts["device"],
        "machine": {"cpu": cpu(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "tokenizers")} | {"python": platform.python_version()},
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(out, setting, mean)
    print(f"mean of {len(found)} seeds: {mean:.4f} (nanoGPT says {THEIRS[setting]})")


def commit():
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def cpu():
    info = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in info.read_text(encoding="utf-8").splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def draw(out, setting, mean):
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for path in sorted(out.glob("seed-*.jsonl")):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        loss = [record["loss"] for record in records if "loss" in record]
        smooth = [statistics.mean(loss[max(0, i - 24) : i + 1]) for i in range(len(loss))]
        line = axes.plot(range(1, len(loss) + 1), smooth, alpha=0.5, linewidth=0.8, label=f"{path.stem}, training")[0]
        valid = [(r["step"], r["valid_loss"]) for r in records if "valid_loss" in r]
        axes.plot(*zip(*valid), "o-", markersize=3, color=line.get_color(), label=f"{path.stem}, validation")
    axes.axhline(THEIRS[setting], color="grey", linestyle=":", label=f"nanoGPT, validation: {THEIRS[setting]}")
    axes.set(
        xlabel="step", ylabel="nats a character", ylim=(1.2, 3), title=f"tinyshakespeare, mean of the seeds {mean:.3f}"
    )
    axes.legend(fontsize=8)
    figure.savefig(out / "loss.png", dpi=120)


def replay(data, out):
    """The first steps of every committed run again. On the machine that made them they are equal; elsewhere rounding
    differs, and grows."""
    settings = {**json.loads((out / "results.json").read_text(encoding="utf-8"))["settings"]}
    for log in sorted(out.glob("seed-*.jsonl")):
        expected = [json.loads(line)["loss"] for line in log.read_text(encoding="utf-8").splitlines()[:REPLAYED]]
        with tempfile.TemporaryDirectory() as folder:
            losses = first_losses(data, Path(folder, "run"), settings, log.stem.removeprefix("seed-"))
        worst = max(abs(a - b) for a, b in zip(losses, expected))
        print(f"{log.stem}: the first {REPLAYED} losses differ by at most {worst:.1e}")
        if worst > 1e-3:
            raise SystemExit(f"{log.stem}: {losses} instead of {expected}")


def first_losses(data, out, settings, seed):
    os.environ.update(MKL_DYNAMIC="FALSE", OMP_NUM_THREADS=str(settings.get("threads", 1)))
    from scratchformers.training.request import Request
    from scratchformers.training.runs import open_run

    given = {key: str(value) for key, value in {**settings, "seed": seed}.items()}
    run, _ = open_run(Request("gpt2", out, data, given=given))
    return [record["loss"] for record, _ in zip(run, range(REPLAYED))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--replay", action="store_true")
    given = parser.parse_args()
    folder = HERE / "results" / f"tinyshakespeare-{given.setting}"
    if given.replay:
        replay(given.data, folder)
    else:
        measure(given.data, given.setting, given.seeds, folder)
