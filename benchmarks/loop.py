"""What the loop itself costs: beside a bare loop of the same computation, compiled, and what a checkpoint and going on
cost.

    python benchmarks/loop.py --out benchmarks/results/loop.json

A GPT-2 that takes about 50 ms a step trains in turns in the program's loop, with its log, and in one written out here
(forward, backward, clip, fused AdamW) on the same batches, whose losses must agree; and likewise beside itself with
`compile=true`, where torch has a compiler for it. Then a GPT-2 of 124M parameters
takes steps of 4 rows of 256 tokens: what a step after which a checkpoint is written takes longer, together with the
next, than two that no checkpoint follows; and how long going on with the run takes, from its files to the end of its
first step, beside loading the checkpoint's weights and a step. Best and median of the rounds.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness

CHUNK = 20  # steps of a turn
SIZES = {"vocab": 256, "length": 128, "dim": 256, "depth": 4, "heads": 4, "dropout": 0.0}
MORE = 0.02  # of a step, asked


def run_of(config, folder, *, batch, model=None, resume=False, **settings):
    """A run on drawn text, with nothing evaluated within its steps."""
    import torch

    import scratchformers as sf
    from scratchformers.text import characters
    from scratchformers.training.language import NextToken
    from scratchformers.training.loop import Run, Settings

    torch.manual_seed(0)
    model = sf.GPT2(config) if model is None else model
    ids = torch.randint(config.vocab, (200_000,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    shared = {"batch": batch, "length": config.length, "eval_every": 10**6, "save_every": 10**6, "steps": 10**6}
    made = Settings(**{**shared, **settings})
    return Run(NextToken(model, characters(["ab"]), ids, ids[:1000], made), made, folder, resume=resume)


def bare(run):
    """The same computation on a model of its own, written out; gives what takes so many steps, and their losses."""
    import torch
    import torch.nn.functional as F

    from scratchformers.training.loop import learning_rate

    task, settings = run.task, run.settings
    model, sampler = task.model, task.sampler(settings)[0]
    model.train()
    groups = [[p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]]
    decays = ({"params": p, "weight_decay": d} for p, d in zip(groups, (settings.weight_decay, 0.0)))
    optimizer = torch.optim.AdamW(decays, betas=(settings.beta1, settings.beta2), fused=True)
    step = 0

    def take(count):
        nonlocal step
        losses = []
        for _ in range(count):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            batch = task.batch(sampler.take(settings.batch))
            scores = model(batch["ids"]).flatten(0, 1)
            loss = F.cross_entropy(scores, batch["targets"].flatten(), reduction="sum") / batch["targets"].numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
        return losses

    return take


def overhead(folder, rounds, *, steps=CHUNK):
    import scratchformers as sf

    config = sf.GPT2Config(**SIZES)
    ours, theirs = (run_of(config, folder / name, batch=5) for name in ("ours", "bare"))
    records, take = iter(ours), bare(theirs)
    sides = {"ours": lambda: [next(records)["loss"] for _ in range(steps)], "bare": lambda: take(steps)}
    return in_turns(sides, rounds, steps)


def in_turns(sides, rounds, steps):
    """Milliseconds a step of both sides, and how much more the first one takes. Each gives the losses of some steps,
    which must agree."""
    first = {name: work() for name, work in sides.items()}
    if max(abs(a - b) for a, b in zip(*first.values())) > 1e-4:
        raise SystemExit("The losses differ, so there is nothing to time.")
    seconds = {name: [] for name in sides}
    for i in range(rounds):
        for name in [*sides][:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            sides[name]()
            seconds[name].append((time.perf_counter() - began) / steps)
    one, other = seconds.values()
    said = {
        f"milliseconds a step, {name}": round(1000 * statistics.median(times), 2) for name, times in seconds.items()
    }
    median = statistics.median(a / b - 1 for a, b in zip(one, other))
    return {**said, "more": {"best": round(min(one) / min(other) - 1, 4), "median": round(median, 4)}}


def compiled(folder, rounds, *, steps=CHUNK):
    """Compiled beside uncompiled, as `in_turns` says it, and the seconds of the first step, in which it is compiled;
    or why it is not."""
    import scratchformers as sf

    config = sf.GPT2Config(**SIZES)
    runs = {name: run_of(config, folder / name, batch=5, compile=name == "compiled") for name in ("compiled", "plain")}
    records = {name: iter(run) for name, run in runs.items()}
    began = time.perf_counter()
    record = next(records["compiled"])
    seconds = time.perf_counter() - began
    next(records["plain"])
    if "uncompiled" in record:
        return {"uncompiled": record["uncompiled"]}
    sides = {name: lambda made=made: [next(made)["loss"] for _ in range(steps)] for name, made in records.items()}
    return {"seconds of the first step": round(seconds, 1), **in_turns(sides, rounds, steps)}


def checkpoints(folder, rounds, preset, batch, length):
    """Seconds."""
    import dataclasses

    import scratchformers as sf
    from scratchformers.checkpoints import files
    from scratchformers.training import state

    config = dataclasses.replace(sf.GPT2.preset(preset), dropout=0.0, length=length)
    run = run_of(config, folder / "run", batch=batch, save_every=3)
    records, began, times = iter(run), time.perf_counter(), []
    for _ in range(3 * rounds + 4):
        next(records)
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    steps = times[4:]  # the first of each three is the one that a checkpoint is written beside
    saved, plain = steps[2::3], [*steps[0::3], *steps[1::3]]
    records.close()
    del records, run
    found = {"step": statistics.median(plain), "a checkpoint beside it": statistics.median(saved)}
    found["blocks for"] = {"best": min(saved) - min(plain), "median": found["a checkpoint beside it"] - found["step"]}
    resumed, loaded = [], []
    for _ in range(max(2, rounds // 2)):
        model = sf.GPT2(config)
        began = time.perf_counter()
        (step, *_), place = sorted(state.steps(folder / "run" / "checkpoints"), reverse=True), folder / "run"
        tensors = files.read_tensors(place / "checkpoints" / f"step-{step}" / state.TENSORS)
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        del tensors
        loaded.append(time.perf_counter() - began)
        began = time.perf_counter()
        records = iter(run_of(config, place, batch=batch, model=model, resume=True, save_every=10**6))
        next(records)
        resumed.append(time.perf_counter() - began)
        records.close()
        del records, model
    found |= {"loading": statistics.median(loaded), "resumed, with its first step": statistics.median(resumed)}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="that it works, in seconds")
    arguments = parser.parse_args()
    harness.threads(min(2, os.cpu_count() or 1))
    from scratchformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rounds = 2 if arguments.quick else arguments.rounds
    large = ("tiny", 2, 64) if arguments.quick else ("gpt2", 4, 256)
    with tempfile.TemporaryDirectory() as folder:
        loop = overhead(Path(folder), rounds, steps=2 if arguments.quick else CHUNK)
        compiling = compiled(Path(folder), rounds, steps=2 if arguments.quick else CHUNK)
        saving = checkpoints(Path(folder), rounds, *large)
    kept = {
        "overhead": loop["more"]["median"] < MORE,
        "saving": saving["blocks for"]["median"] < saving["step"],
        "resuming": saving["resumed, with its first step"] < saving["loading"] + 2 * saving["step"],
    }
    results = {"command": " ".join(["python benchmarks/loop.py", *sys.argv[1:]]), "machine": harness.machine("cpu")}
    results |= {
        "versions": harness.versions("torch"),
        "loop": loop,
        "compile": compiling,
        "seconds": saving,
        "kept": kept,
    }
    print(json.dumps(results, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
