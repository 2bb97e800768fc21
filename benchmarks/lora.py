"""Adapters beside full fine-tuning: a MiniLM that labels sentences, a GPT-2 that goes on with plays.

    python benchmarks/lora.py bert SST2_FOLDER --model sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/lora.py base ENGLISH_NOVELS --model BASE            # a small GPT-2, with which the next begins
    python benchmarks/lora.py gpt2 TINYSHAKESPEARE --model BASE/model     # or published weights: --model gpt2

The folders are what labels.py, novels.py and tinyshakespeare.py take. Both ways take the same steps, each at the best
of its own learning rates by dev: they are a factor of two apart, and more are tried until the best is neither the
lowest nor the highest. Each is then measured on test, the mean over other seeds than the one that chose. Of the plays
the last tenth is test, as nanoGPT has it, and the last tenth of the rest dev. About 15 minutes for the base, 25 for
each of the others, on one core. Writes results/lora-bert.json, lora-base.json and lora-gpt2.json: figures, what learns,
the bytes of what a user keeps of it, and the milliseconds of a step.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path

import labels
import novels
import runs

SHARED = {"threads": 1, "save_every": 10000}
SETTINGS = {
    "bert": {"steps": 150, "batch": 32, "warmup": 15, "eval_every": 50, **SHARED},
    "gpt2": {"steps": 300, "batch": 8, "length": 128, "warmup": 30, "eval_every": 50, **SHARED},
}
RATES = {
    "bert": {"full": [4e-5, 8e-5, 1.6e-4], "rank 8": [4e-4, 8e-4, 1.6e-3]},
    "gpt2": {"full": [5e-4, 1e-3, 2e-3], "rank 8": [2e-3, 4e-3, 8e-3]},
}
FACTOR = 2  # from one rate to the next
WAYS = {"full": [], "rank 8": ["--lora", "rank=8"]}
QUICK = {"steps": 4, "eval_every": 2, "warmup": 1}
BASE = {"dim": 256, "depth": 4, "heads": 4, "dropout": 0.0, "length": 128, "batch": 16, "steps": 2200, "lr": 2e-3}
BASE |= {"warmup": 100, "eval_every": 220, "autocast": "bf16", **SHARED}
TOKENIZER = ("--tokenizer", "bpe", "--vocab", 8000)


def plays(source, target):
    text = (source / "input.txt").read_text(encoding="utf-8")
    end = int(0.9 * len(text))
    parts = {"train": text[: int(0.9 * end)], "dev": text[int(0.9 * end) : end], "test": text[end:]}
    for part, body in parts.items():
        (target / f"{part}.txt").write_text(body, encoding="utf-8", newline="\n")


def figure(recipe, model, data):
    """Of sentences with labels the share told right; of a text the nats a token."""
    found = runs.score(model, data)
    return found["accuracy"] if recipe == "bert" else found["loss"]


def trained(recipe, data, model, settings, seed, folder, lora):
    """The figure on dev, that on test, and the seconds of a step."""
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


def searched(rates, figure_at, better):
    """The figures of these rates and of others beyond, until the best is within; and that one. Of one rate, its own."""
    tried = {rate: figure_at(rate) for rate in rates}
    while (best := better(tried, key=tried.__getitem__)) in (min(tried), max(tried)) and len(tried) > 1:
        beyond = best * FACTOR if best == max(tried) else best / FACTOR
        tried[beyond] = figure_at(beyond)
    return dict(sorted(tried.items())), best


def compared(recipe, way, data, model, settings, seeds, folder, *, quick):
    """Of one way the figures by rate, and by seed those at the best one."""

    def run(rate, seed):
        place = folder / f"{rate:g}-{seed}"
        got = trained(recipe, data, model, {**settings, "lr": rate}, seed, place, WAYS[way])
        print(f"{recipe}, {way}, lr {rate:g}, seed {seed}: {got[0]:.4f} on dev", flush=True)
        return got

    rates = RATES[recipe][way][: 1 if quick else None]
    better = max if recipe == "bert" else min
    tried, best = searched(rates, lambda rate: run(rate, seeds[0])[0], better)
    rest = [run(best, seed) for seed in seeds[1:]]
    found = {
        "dev by rate": tried,
        "rate": best,
        "test by seed": {seed: test for seed, (_, test, _) in zip(seeds[1:], rest)},
        "mean": round(statistics.mean(test for _, test, _ in rest), 4),
        "milliseconds a step": round(1000 * statistics.median(seconds for *_, seconds in rest), 1),
        **learnt(folder / f"{best:g}-{seeds[-1]}"),
    }
    print(f"{recipe}, {way}: {found}", flush=True)
    return found


def measure(recipe, source, model, seeds, out, *, quick):
    settings = {**SETTINGS[recipe], **(QUICK if quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        {"bert": labels.sst2, "gpt2": plays}[recipe](source, data)
        before = {} if recipe == "bert" else {"before": figure(recipe, model, data / "test.txt")}
        found = {
            way: compared(recipe, way, data, model, settings, seeds, Path(folder, way), quick=quick) for way in WAYS
        }
        facts = runs.facts(next(Path(folder, "full").iterdir()))
    named = {"bert": "bert SST2_FOLDER --model MINILM", "gpt2": "gpt2 TINYSHAKESPEARE --model BASE/model"}
    results = {
        "command": f"python benchmarks/lora.py {named[recipe]}" + " --quick" * quick,
        "figure": "accuracy" if recipe == "bert" else "nats a token",
        **{name: facts[name] for name in ("data", "valid", "source", "parameters")},
        "settings": settings,
        "seed that chose": seeds[0],
        **before,
        "found": found,
        **runs.where("cpu"),
    }
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def base(source, run, out, *, quick):
    """A GPT-2 from nothing on novels, where published weights are not at hand."""
    from scratchformers import load
    from scratchformers.checkpoints.pretrained import fingerprint

    settings = {**BASE, **(QUICK if quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        parts = novels.unpack(source, Path(folder))
        runs.train("gpt2", parts["train"], run, settings, 0, "--valid", parts["valid"], *TOKENIZER)
        scores = {part: runs.score(run / "model", parts[part]) for part in ("valid", "test")}
    facts = runs.facts(run)
    results = {
        "command": "python benchmarks/lora.py base ENGLISH_NOVELS --model BASE" + " --quick" * quick,
        **{name: facts[name] for name in ("data", "valid", "tokenizer", "parameters")},
        "settings": settings,
        "arguments": [*map(str, TOKENIZER)],
        "minutes of training": runs.minutes(runs.records(run / "log.jsonl")),
        "whole novels": scores,
        "model": {"sha256": fingerprint(load(run / "model"))},
        **runs.where("cpu"),
    }
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("base", *SETTINGS))
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, help="a hub id, or a folder; of base the folder of its run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one chooses the rate")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    place = given.out or runs.HERE / "results" / f"lora-{given.what}.json"
    if given.what == "base":
        base(given.data, Path(given.model), place, quick=given.quick)
    else:
        measure(given.what, given.data, given.model, given.seeds, place, quick=given.quick)
