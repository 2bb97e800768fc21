"""Adapters beside full fine-tuning: a MiniLM that labels texts, a GPT-2 that goes on with one text.

    python benchmarks/lora.py bert FOLDER --model sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/lora.py gpt2 FOLDER --model gpt2

For bert FOLDER holds train.tsv, dev.tsv and test.tsv with the columns `text` and `label`; for gpt2 train.txt, dev.txt
and test.txt. Both ways take the same steps, each at the best of its own learning rates by dev, and are then measured on
test, the mean over the seeds. Writes results/lora-bert.json or results/lora-gpt2.json: figures, what learns, the bytes
of a checkpoint of what learns, and the milliseconds of a step.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path

import runs

SHARED = {"threads": 2, "save_every": 10000}
SETTINGS = {
    "bert": {"steps": 600, "batch": 32, "length": 128, "eval_every": 100, **SHARED},
    "gpt2": {"steps": 300, "batch": 4, "length": 256, "eval_every": 100, **SHARED},
}
WAYS = {
    "full": ([], [2e-5, 8e-5, 3e-4]),
    "rank 8": (["--lora", "rank=8"], [2e-4, 8e-4, 3e-3]),
    "rank 8, q and kv": (["--lora", "rank=8", "--lora", "linears=q,kv"], [2e-4, 8e-4, 3e-3]),
}
QUICK = {"steps": 4, "eval_every": 2, "length": 16, "warmup": 1}


def figure(recipe, model, data):
    """Of texts with labels the share told right; of a text the nats a token."""
    found = runs.score(model, data)
    return found["accuracy"] if recipe == "bert" else found["loss"]


def trained(recipe, data, model, settings, seed, folder, lora):
    """The figure on dev, and what the run says of itself."""
    ending = "tsv" if recipe == "bert" else "txt"
    more = ["--from", model, "--valid", data / f"dev.{ending}", *(["--task", "classify"] if recipe == "bert" else [])]
    runs.train(recipe, data / f"train.{ending}", folder, settings, seed, *more, *lora)
    log = runs.records(folder / "log.jsonl")
    figures = [record["valid_accuracy" if recipe == "bert" else "valid_loss"] for record in log if "best" in record]
    seconds = statistics.median(record["seconds"] for record in log if "seconds" in record)
    best = max(figures) if recipe == "bert" else min(figures)
    return best, figure(recipe, folder / "model", data / f"test.{ending}"), seconds


def learnt(folder):
    """Parameters that learn, and the bytes of what a user keeps of them."""
    from safetensors import safe_open

    adapter = folder / "adapter" / "adapter_model.safetensors"
    kept = adapter if adapter.is_file() else folder / "model" / "model.safetensors"
    (checkpoint,) = (folder / "checkpoints").glob("step-*/state.safetensors")
    with safe_open(checkpoint, framework="numpy") as file:
        moments = [file.get_slice(name).get_shape() for name in file.keys() if name.endswith(".exp_avg")]  # noqa: SIM118
    return {"parameters that learn": sum(map(math.prod, moments)), "bytes kept": kept.stat().st_size}


def measure(recipe, data, model, seeds, out, *, quick):
    settings, found = {**SETTINGS[recipe], **(QUICK if quick else {})}, {}
    better = max if recipe == "bert" else min
    for way, (lora, rates) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            tried = {}
            for rate in rates[:1] if quick else rates:
                given = {**settings, "lr": rate}
                tried[rate] = trained(recipe, data, model, given, seeds[0], Path(folder, f"{rate}"), lora)
                print(f"{recipe}, {way}, lr {rate:g}: {tried[rate][0]:.4f} on dev", flush=True)
            best = better(tried, key=lambda rate: tried[rate][0])
            given = {**settings, "lr": best}
            rest = [trained(recipe, data, model, given, seed, Path(folder, f"seed-{seed}"), lora) for seed in seeds[1:]]
            scores = [test for _, test, _ in (tried[best], *rest)]
            found[way] = {
                "dev by rate": {rate: dev for rate, (dev, _, _) in tried.items()},
                "rate": best,
                "test": scores,
                "mean": round(statistics.mean(scores), 4),
                "milliseconds a step": round(1000 * statistics.median(x for *_, x in (tried[best], *rest)), 1),
                **learnt(Path(folder, f"{best}")),
            }
        print(f"{recipe}, {way}: {found[way]}", flush=True)
    results = {
        "command": f"python benchmarks/lora.py {recipe} FOLDER" + " --quick" * quick,
        "figure": "accuracy" if recipe == "bert" else "nats a token",
        "settings": settings,
        "seeds": seeds,
        "found": found,
        **runs.where("cpu"),
    }
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=SETTINGS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, help="a hub id, or a folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    place = given.out or runs.HERE / "results" / f"lora-{given.recipe}.json"
    measure(given.recipe, given.data, given.model, given.seeds, place, quick=given.quick)
