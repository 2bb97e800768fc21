"""What activation checkpointing saves and costs: a GPT-2 of 124M parameters with and without it, in turns.

python benchmarks/checkpointing.py --out benchmarks/results/checkpointing.json

Memory is what the blocks hold when the backward begins, counted by the tensors that are alive; time that of a forward
and backward of the whole model, its scores of the vocabulary included.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import harness

MOST, SLOWEST = 0.45, 1.45  # of the plain model's activations and time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    harness.threads(min(2, os.cpu_count() or 1))
    import torch
    import torch.nn.functional as F

    import scratchformers as sf
    from scratchformers.insight.plan import Alive
    from scratchformers.training.checkpointing import checkpoint_blocks

    models = {name: sf.GPT2.from_preset("gpt2").train() for name in ("plain", "checkpointed")}
    models["checkpointed"].load_state_dict(models["plain"].state_dict())
    checkpoint_blocks(models["checkpointed"])
    ids = torch.randint(50257, (arguments.batch, arguments.length), generator=torch.Generator().manual_seed(0))

    def step(model):
        torch.manual_seed(0)
        model.zero_grad()
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss

    def held(model):
        with Alive() as alive:
            for parameter in model.parameters():
                alive.count(parameter)
            before = alive.now
            states = model.encode(ids)
            after = alive.now
        del states
        return after - before

    losses = [float(step(model)) for model in models.values()]
    grads = zip(*(model.parameters() for model in models.values()))
    if losses[0] != losses[1] or not all(torch.equal(a.grad, b.grad) for a, b in grads):
        raise SystemExit("The losses or gradients differ, so there is nothing to time.")
    memory = {name: held(model) for name, model in models.items()}
    seconds = {name: [] for name in models}
    for i in range(arguments.rounds):
        for name in [*models][:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            step(models[name])
            seconds[name].append(time.perf_counter() - began)
    best, median = (f(seconds["checkpointed"]) / f(seconds["plain"]) for f in (min, statistics.median))
    share = memory["checkpointed"] / memory["plain"]
    results = {
        "machine": harness.machine("cpu"),
        "versions": harness.versions("torch"),
        "model": "GPT-2, 124M parameters, float32, dropout 0.1",
        "batch": [arguments.batch, arguments.length],
        "MiB held for the backward": {name: round(value / 2**20, 1) for name, value in memory.items()},
        "memory": round(share, 4),
        "time": {"best": round(best, 3), "median": round(median, 3)},
        "seconds": {name: [round(each, 3) for each in times] for name, times in seconds.items()},
        "kept": share <= MOST and best < SLOWEST,
    }
    print(json.dumps(results, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
