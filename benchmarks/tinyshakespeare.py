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
import statistics
import tempfile
from pathlib import Path

import runs

SETTINGS = {
    "cpu": {"depth": 4, "heads": 4, "dim": 128, "length": 64, "dropout": 0.0, "batch": 12, "steps": 2000}
    | {"lr": 4e-3, "lr_end": 0.0, "warmup": 200, "weight_decay": 0.3, "eval_every": 250, "save_every": 2000}
    | {"threads": 1},
    "gpu": {"depth": 6, "heads": 6, "dim": 384, "length": 256, "dropout": 0.2, "batch": 64, "steps": 5000}
    | {"lr": 1e-3, "lr_end": 0.1, "warmup": 100, "eval_every": 250, "save_every": 2500},
}
THEIRS = {"cpu": 1.88, "gpu": 1.4697}
REPLAYED = 20  # steps


def measure(data, setting, seeds, out):
    settings, text = SETTINGS[setting], data.read_text(encoding="utf-8")
    found = {}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        held_out = Path(folder, "validation.txt")
        held_out.write_text(text[len(text) * 9 // 10 :], encoding="utf-8")
        for seed in seeds:
            run = Path(folder, str(seed))
            runs.train("gpt2", data, run, settings, seed)
            windows = ("--length", settings["length"], "--stride", settings["length"])
            found[seed] = runs.score(run / "model", held_out, *windows)
            (out / f"seed-{seed}.jsonl").write_bytes((run / "log.jsonl").read_bytes())
            facts = runs.facts(run)
            print(f"seed {seed}: {found[seed]['loss']:.4f} nats a character", flush=True)
    mean = statistics.mean(score["loss"] for score in found.values())
    results = {
        "command": f"python benchmarks/tinyshakespeare.py input.txt --setting {setting}",
        "data": facts["data"],
        "settings": settings,
        "parameters": facts["parameters"],
        "mean loss": round(mean, 4),
        "nanoGPT": THEIRS[setting],
        "seeds": found,
        **runs.where(facts["device"]),
    }
    runs.write(out, results)
    title = f"tinyshakespeare, mean of the seeds {mean:.3f}"
    runs.draw(out, lines={"nanoGPT, validation": THEIRS[setting]}, title=title, unit="character", limits=(1.2, 3))
    print(f"mean of {len(found)} seeds: {mean:.4f} (nanoGPT says {THEIRS[setting]})")


def replay(data, out):
    """The first steps of every committed run again."""
    settings = {**json.loads((out / "results.json").read_text(encoding="utf-8"))["settings"]}
    for log in sorted(out.glob("seed-*.jsonl")):
        expected = [record["loss"] for record in runs.records(log)[:REPLAYED]]
        with tempfile.TemporaryDirectory() as folder:
            losses = first_losses(data, Path(folder, "run"), settings, log.stem.removeprefix("seed-"))
        runs.compare(log.stem, losses, expected)


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
    folder = runs.HERE / "results" / f"tinyshakespeare-{given.setting}"
    if given.replay:
        replay(given.data, folder)
    else:
        measure(given.data, given.setting, given.seeds, folder)
