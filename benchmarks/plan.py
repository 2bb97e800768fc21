"""Does `plan` say what training takes? Configurations of all models, each trained in a process of its own until
it holds no more than before, beside what was planned.

python benchmarks/plan.py --out benchmarks/results/plan.json

What is trained are the recipes' own tasks in the recipes' own loop and environment, on examples that are drawn; one row
of a text is a token shorter than the others, so that batches are packed as most are. Memory is the most that the
process held (VmHWM, Linux) less what it held when everything was imported, after steps of which the last three added
less than 1 %; time the median of all but the first.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import harness

CONFIGURATIONS = {  # recipe, preset, batch, micro-batch, length, autocast, checkpointing; optimiser, adapters
    "gpt2 124M": ("gpt2", "gpt2", 4, 4, 256, "off", False),
    "gpt2 124M, checkpointed, in micro-batches": ("gpt2", "gpt2", 8, 4, 384, "off", True),
    "bert minilm": ("bert", "minilm", 32, 32, 128, "off", False),
    "bert base, bf16": ("bert", "base", 8, 8, 128, "bf16", False),
    "vit small": ("vit", "small-16", 16, 16, None, "off", False),
    "vit base, checkpointed": ("vit", "base-16", 8, 8, None, "off", True),
    "mae base": ("mae", "base", 16, 16, None, "off", False),
    "mae base, in micro-batches": ("mae", "base", 24, 8, None, "off", False),
    "clip ViT-B/32": ("clip", "ViT-B/32", 16, 16, None, "off", False),
    "clip ViT-B/32, in micro-batches": ("clip", "ViT-B/32", 32, 8, None, "off", False),
    "encoder-decoder bart-base": ("encoder-decoder", "bart-base", 4, 4, 128, "off", False),
    "encoder-decoder small": ("encoder-decoder", "small", 24, 24, 128, "off", False),
    "gpt2 124M, LoRA": ("gpt2", "gpt2", 4, 4, 256, "off", False, "adamw", {"rank": 8}),
    "gpt2 124M, Muon": ("gpt2", "gpt2", 2, 2, 128, "off", False, "muon"),
    "vit base, LoRA": ("vit", "base-16", 8, 8, None, "off", False, "adamw", {"rank": 8}),
    "vit base, LoRA, checkpointed": ("vit", "base-16", 8, 8, None, "off", True, "adamw", {"rank": 8}),
    "vit base, LoRA, checkpointed, more rows": ("vit", "base-16", 32, 32, None, "off", True, "adamw", {"rank": 8}),
}
LEAST, MOST, STILL, SAME = 4, 24, 3, 1.01  # steps; of them the last ones, and by what the peak may grow in them
TRAINED = """
import json, statistics, tempfile, torch, harness, plan
harness.threads({threads})
print(json.dumps(plan.trained(*{configuration!r})))
"""
PLANNED = """
import json, torch, harness, plan
harness.threads({threads})
print(json.dumps(plan.planned(*{configuration!r})))
"""


def planned(recipe, preset, batch, micro_batch, length, autocast, checkpointing, optimizer="adamw", adapters=None):
    from scratchformers.cli import way_of
    from scratchformers.insight.plan import Asked, plan
    from scratchformers.training.loop import Settings

    way = way_of(Settings(optimizer=optimizer, checkpointing=checkpointing), adapters)
    return plan(recipe, Asked(preset, batch, micro_batch, length, autocast), way=way).to_json()


def trained(recipe, preset, batch, micro_batch, length, autocast, checkpointing, optimizer="adamw", adapters=None):
    """(bytes above what was held before, after each step, and its seconds) of the recipe's own task."""
    import dataclasses

    import torch

    from scratchformers import lora
    from scratchformers.training.loop import Run
    from scratchformers.training.memory import keep_freed_memory
    from scratchformers.training.recipes import RECIPES

    keep_freed_memory()
    before = memory("VmRSS")
    found = RECIPES[recipe]
    config = found.model.preset(preset)
    config = config if length is None else dataclasses.replace(config, length=length)
    own = {"batch": batch, "micro_batch": micro_batch, "steps": MOST + 1, "checkpointing": checkpointing}
    settings = found.settings(**own, autocast=autocast, optimizer=optimizer)
    torch.manual_seed(0)
    model = found.model(config)
    if adapters:
        lora.add(model, **adapters)
    task = task_of(recipe, model, settings)
    with tempfile.TemporaryDirectory() as folder:
        run, seconds, held = Run(task, settings, Path(folder)), [], []
        while len(held) < LEAST or (held[-1] > SAME * held[-1 - STILL] and len(held) < MOST):
            run.step += 1
            seconds.append(run._train()["seconds"])
            held.append(memory("VmHWM") - before)
    return held, seconds


def as_train_does(threads):
    """The environment that `train` computes in, for the processes to come."""
    from scratchformers.cli import fix_threads
    from scratchformers.training.memory import TUNABLES, UNCACHED

    fix_threads(threads)
    names = ("MKL_DYNAMIC", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    harness.CHILD.update({name: os.environ[name] for name in names}, OMP_WAIT_POLICY="PASSIVE", **{TUNABLES: UNCACHED})


def memory(name):
    """Of this process, in bytes, as the kernel counts it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def task_of(recipe, model, settings):
    """The recipe's task with all that learning asks of it, and no data but what is drawn here."""
    import torch

    from scratchformers.training.contrastive import Contrastive, fits
    from scratchformers.training.language import Masked, NextToken
    from scratchformers.training.translation import Translation
    from scratchformers.training.vision import Classes, Painting

    kinds = {"gpt2": NextToken, "bert": Masked, "vit": Classes, "mae": Painting}
    kinds |= {"clip": Contrastive, "encoder-decoder": Translation}
    task = object.__new__(kinds[recipe])
    every = {
        "model": model,
        "settings": settings,
        "rows": settings.batch,
        "trivial": 0.0,
        "expect": lambda examples: None,
    }
    every |= {"batch": lambda examples: batch_of(recipe, model.config, len(examples)), "device": torch.device("cpu")}
    vars(task).update(every)
    if recipe == "clip":
        table = torch.arange(settings.batch)[:, None]
        vars(task).update(table=table, fits=lambda rows, texts: fits(table, rows, texts), duplicates=0)
    return task


def batch_of(recipe, config, rows):
    import torch

    from scratchformers.grid import count, height_width

    if hasattr(config, "image"):
        images = torch.randn(rows, config.channels, *height_width(config.image))
    if recipe == "vit":
        return {"images": images, "targets": torch.rand(rows, config.classes).softmax(1)}
    if recipe == "mae":
        return {"images": images, "noise": torch.rand(rows, count(config.image, config.patch))}
    ids = torch.randint(1, config.vocab - 1, (rows, config.length))
    if recipe == "clip":
        ids[:, -1] = config.vocab - 1
        return {"images": images, "ids": ids, "rows": torch.arange(rows), "texts": torch.arange(rows)}
    if recipe == "gpt2":
        return {"ids": ids, "targets": ids}
    if recipe == "bert":
        return {"ids": ids, "labels": ids, "chosen": torch.rand(ids.shape) < 0.15}
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[0, -1] = False
    return {"source": ids, "source_keep": keep, "read": ids, "labels": ids, "keep": keep}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measured", type=Path, help="an earlier result, beside whose memory it is planned anew")
    parser.add_argument("--only", help="configurations whose name has this in it")
    arguments = parser.parse_args()
    threads = min(2, os.cpu_count() or 1)
    as_train_does(threads)
    earlier = json.loads(arguments.measured.read_text(encoding="utf-8")) if arguments.measured else None
    results = {"command": " ".join(["python benchmarks/plan.py", *sys.argv[1:]]), "machine": harness.machine("cpu")}
    results |= {"versions": harness.versions("torch"), "configurations": {}}
    for name, configuration in CONFIGURATIONS.items():
        if arguments.only and arguments.only not in name:
            continue
        same = {"configuration": configuration, "threads": threads}
        said = harness.child(PLANNED, **same)
        seconds_planned = round(said["seconds"], 3)
        if earlier is None:
            held, seconds = harness.child(TRAINED, **same)
            measured = {
                "MiB": [round(each / 2**20) for each in held],
                "seconds": round(statistics.median(seconds[1:]), 3),
            }
        else:
            measured = earlier["configurations"][name]["measured"]
            seconds_planned = earlier["configurations"][name]["planned"]["seconds"]  # at the speed of then
        estimate = round(said["memory"]["peak"] / 2**20)
        planned = {"MiB": estimate, "seconds": seconds_planned}
        found = {"ratio": round(estimate / measured["MiB"][-1], 3), "planned": planned, "measured": measured}
        found |= {"memory": said["memory"], "flops": said["flops"]}
        results["configurations"][name] = found
        print(name, found["ratio"], planned, measured, flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    every = results["configurations"].values()
    times = [round(each["planned"]["seconds"] / each["measured"]["seconds"], 3) for each in every]
    for name, ratios in (("ratio", [each["ratio"] for each in every]), ("ratio of seconds", times)):
        results[name] = {"least": min(ratios), "most": max(ratios)}
        print(name, results[name])
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
