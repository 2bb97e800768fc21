"""What the long trainings share: the program as a user calls it, and what their results say of where they ran."""

import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

HERE = Path(__file__).parent


def program(*arguments):
    """What `scratchformers` prints, given these arguments."""
    done = subprocess.run([sys.executable, "-m", "scratchformers", *map(str, arguments)], check=False,
                          stdout=subprocess.PIPE, text=True, encoding="utf-8")  # fmt: skip
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def train(recipe, data, out, settings, seed, *more):
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    program("train", recipe, "--data", data, "--out", out, "--seed", seed, *more, *pairs)


def score(model, data, *more):
    """What `eval` finds, without the paths."""
    found = json.loads(program("eval", "--model", model, "--data", data, *more, "--json"))
    return {key: value for key, value in found.items() if key not in ("model", "data", "train")}


def facts(run):
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


def records(log):
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def write_records(log, found):
    log.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8", newline="\n")


def minutes(log):
    """Of training, by the median step, for these machines are shared."""
    seconds = [record["seconds"] for record in log if "seconds" in record]
    return round(statistics.median(seconds) * len(seconds) / 60, 1)


def on_white(source):
    """The pictures packed in images.npz: `data`, their encoded bytes, and `offsets`. What is transparent is white."""
    import numpy as np
    from PIL import Image

    packed = np.load(source / "images.npz")
    data, offsets = packed["data"], packed["offsets"]
    for start, stop in itertools.pairwise(offsets):
        image = Image.open(io.BytesIO(data[start:stop].tobytes())).convert("RGBA")
        plain = Image.new("RGBA", image.size, "white")
        yield Image.alpha_composite(plain, image).convert("RGB")


def first_losses(recipe, data, settings, count, **more):
    """Of a run begun anew, here and now. Threads are fixed before torch is loaded, as `train` does."""
    os.environ.update(MKL_DYNAMIC="FALSE", OMP_NUM_THREADS=str(settings["threads"]))
    from scratchformers.training.request import Request
    from scratchformers.training.runs import open_run

    with tempfile.TemporaryDirectory() as folder:
        given = {key: str(value) for key, value in {**settings, "seed": 0}.items()}
        opened, _ = open_run(Request(recipe, Path(folder) / "run", data, given=given, **more))
        return [record["loss"] for record, _ in zip((r for r in opened if "loss" in r), range(count))]


def compare(name, losses, expected, *, bound=1e-3):
    """The first losses of a run done again. On the machine that made them they are equal; elsewhere rounding differs,
    and grows."""
    worst = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    print(f"{name}: the first {len(losses)} losses differ by at most {worst:.1e}")
    if worst > bound:
        raise SystemExit(f"{name}: {losses} instead of {expected}")


def where(device):
    """The commit, the machine and the versions."""
    return {
        "commit": commit(),
        "device": device,
        "machine": {"cpu": harness.cpu(), "cores": os.cpu_count()},
        "versions": harness.versions("torch", "tokenizers"),
    }


def commit():
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def write(out, results):
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def draw(out, *, lines, title, unit, limits):
    """The losses of every log in the folder; `lines` are levels to compare with, by name."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for path in sorted(out.glob("seed-*.jsonl")):
        found = records(path)
        loss = [record["loss"] for record in found if "loss" in record]
        smooth = [statistics.mean(loss[max(0, i - 24) : i + 1]) for i in range(len(loss))]
        line = axes.plot(range(1, len(loss) + 1), smooth, alpha=0.5, linewidth=0.8, label=f"{path.stem}, training")[0]
        valid = [(r["step"], r["valid_loss"]) for r in found if "valid_loss" in r]
        axes.plot(*zip(*valid), "o-", markersize=3, color=line.get_color(), label=f"{path.stem}, validation")
    for name, level in lines.items():
        axes.axhline(level, color="grey", linestyle=":")
        axes.annotate(f"{name}: {level:.2f}", (0, level), fontsize=8, color="grey", va="bottom")
    axes.set(xlabel="step", ylabel=f"nats a {unit}", ylim=limits, title=title)
    axes.legend(fontsize=8)
    figure.savefig(out / "loss.png", dpi=120)
