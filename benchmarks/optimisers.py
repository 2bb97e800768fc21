"""AdamW and Muon on a small GPT-2 and a small ViT: the same steps, each at the best of its own learning rates.

    python benchmarks/optimisers.py
    python benchmarks/optimisers.py --quick     # that it works, in seconds

GPT-2 reads Python's own manual pages (pydoc_data, which comes with Python), the ViT scikit-learn's digits. Rates are a
factor of two apart; one whose best is the highest or lowest tried says so. Choosing is by the first seed's validation
loss, and what is said is the mean over the others, so that neither gains by having been chosen. A step's time is the
median's. Writes results/optimisers.json.
"""

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import runs

RATES = [0.001 * 2**i for i in range(4)]
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


def compared(recipe, settings, rates, seeds, folder):
    data, found = DATA[recipe](folder), {}
    for optimiser in OPTIMISERS:
        tried = {}
        for rate in rates:
            given = {**settings, "optimizer": optimiser, "lr": rate}
            tried[rate] = trained(recipe, data, given, seeds[0], folder / f"{optimiser}-{rate}")[0]
            print(f"{recipe}, {optimiser}, lr {rate:g}: {tried[rate]:.4f}", flush=True)
        best = min(rates, key=tried.__getitem__)
        given = {**settings, "optimizer": optimiser, "lr": best}
        again = [trained(recipe, data, given, seed, folder / f"{optimiser}-again-{seed}") for seed in seeds[1:]]
        losses, seconds = zip(*again)
        found[optimiser] = {
            "validation loss by rate": tried,
            "rate": best,
            "the best rate is at the edge": best in (rates[0], rates[-1]),
            "validation loss of other seeds": losses,
            "mean": round(statistics.mean(losses), 4),
            "milliseconds a step": round(1000 * statistics.median(seconds), 2),
        }
        print(f"{recipe}, {optimiser}: {found[optimiser]}", flush=True)
    return found


def measure(out, *, quick):
    found, rates, seeds = {}, RATES[2:4] if quick else RATES, (0, 1) if quick else (0, 1, 2)
    settings = {recipe: {**given, **(QUICK if quick else {})} for recipe, given in SETTINGS.items()}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:  # a core each
        for recipe in settings:
            Path(folder, recipe).mkdir()
        going = {
            recipe: pool.submit(compared, recipe, given, rates, seeds, Path(folder, recipe))
            for recipe, given in settings.items()
        }
        found |= {recipe: each.result() for recipe, each in going.items()}
    said = {"command": "python benchmarks/optimisers.py" + " --quick" * quick, "settings": settings}
    results = {**said, "found": found, **runs.where("cpu")}
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=runs.HERE / "results" / "optimisers.json")
    given = parser.parse_args()
    measure(given.out, quick=given.quick)
