"""AdamW and Muon on a small GPT-2 and a small ViT: the same steps, each at the best of its own learning rates.

    python benchmarks/optimisers.py
    python benchmarks/optimisers.py --quick     # that it works, in seconds

GPT-2 reads Python's own manual pages (pydoc_data, which comes with Python), the ViT scikit-learn's digits. Rates are a
factor of two apart, and more are tried until the best has a worse one on either side. Choosing is by the mean
validation loss of two seeds, and what is said is the mean over four others, so that neither gains by having been
chosen. A step's time is the median's. Writes results/optimisers.json.
"""

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import runs

RATES, MOST = [0.001 * 2**i for i in range(4)], 8  # to begin with; how many at most
CHOOSING, OTHERS = (0, 1), (2, 3, 4, 5)  # seeds
SHARED = {"threads": 1, "save_every": 10000}
SETTINGS = {
    "gpt2": {"steps": 400, "batch": 16, "dim": 128, "depth": 4, "heads": 4, "length": 64, "dropout": 0.0}
    | {"warmup": 40, "eval_every": 50, **SHARED},
    "vit": {"steps": 400, "batch": 64, "dim": 64, "depth": 4, "heads": 4, "image": 8, "patch": 2, "channels": 1}
    | {"flip": "false", "warmup": 40, "eval_every": 50, **SHARED},
}
QUICK = {"steps": 6, "warmup": 2, "eval_every": 3, "dim": 32, "depth": 1}
OPTIMISERS = ("adamw", "muon")


def manual(folder):
    from pydoc_data.topics import topics

    path = folder / "manual.txt"
    path.write_text("\n".join(text for _, text in sorted(topics.items())), encoding="utf-8", newline="\n")
    return path


def digits(folder):
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    np.savez(folder / "digits.npz", images=images, labels=found.target)
    return folder / "digits.npz"


DATA = {"gpt2": manual, "vit": digits}


def trained(recipe, data, settings, seed, folder):
    """The best validation loss, and the seconds of a step."""
    runs.train(recipe, data, folder, settings, seed)
    log = runs.records(folder / "log.jsonl")
    found = min(record["valid_loss"] for record in log if record.get("valid_loss") is not None)
    return found, statistics.median(record["seconds"] for record in log if "seconds" in record)


def compared(recipe, settings, rates, most, seeds, folder):
    data, found = DATA[recipe](folder), {}
    for optimiser in OPTIMISERS:
        tried = {}

        def results(rate, some, optimiser=optimiser):
            given = {**settings, "optimizer": optimiser, "lr": rate}
            return [trained(recipe, data, given, seed, folder / f"{optimiser}-{rate:g}-{seed}") for seed in some]

        def choose(rate, tried=tried, optimiser=optimiser):
            tried[rate] = statistics.mean(loss for loss, _ in results(rate, seeds[0]))
            print(f"{recipe}, {optimiser}, lr {rate:g}: {tried[rate]:.4f}", flush=True)

        for rate in rates:
            choose(rate)
        while (best := min(tried, key=tried.__getitem__)) in (edges := (min(tried), max(tried))) and len(tried) < most:
            choose(2 * best if best == edges[1] else best / 2)
        losses, seconds = zip(*results(best, seeds[1]))
        found[optimiser] = {
            "validation loss by rate": {f"{rate:g}": tried[rate] for rate in sorted(tried)},
            "rate": best,
            "the best rate is at the edge": best in edges,
            "validation loss of other seeds": losses,
            "mean": round(statistics.mean(losses), 4),
            "standard deviation": round(statistics.stdev(losses), 4),
            "milliseconds a step": round(1000 * statistics.median(seconds), 2),
        }
        print(f"{recipe}, {optimiser}: {found[optimiser]}", flush=True)
    return found


def measure(out, *, quick):
    rates, most, seeds = (RATES[2:4], 2, ((0,), (1, 2))) if quick else (RATES, MOST, (CHOOSING, OTHERS))
    found = {}
    settings = {recipe: {**given, **(QUICK if quick else {})} for recipe, given in SETTINGS.items()}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:  # a core each
        for recipe in settings:
            Path(folder, recipe).mkdir()
        going = {
            recipe: pool.submit(compared, recipe, given, rates, most, seeds, Path(folder, recipe))
            for recipe, given in settings.items()
        }
        found |= {recipe: each.result() for recipe, each in going.items()}
    said = {"command": "python benchmarks/optimisers.py" + " --quick" * quick, "settings": settings}
    said["seeds"] = dict(zip(("that chose", "of the mean"), seeds))
    results = {**said, "found": found, **runs.where("cpu")}
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=runs.HERE / "results" / "optimisers.json")
    given = parser.parse_args()
    measure(given.out, quick=given.quick)
