"""The two matrix libraries of torch's CPU build on this machine: `scratchformers.linear` by oneDNN beside torch's own.

python benchmarks/linear.py --out benchmarks/results/linear-cpu.json

Products of the models here in float32, forward alone and with the backward, in turns: torch's time to oneDNN's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import harness

# rows, from, to: a token, eight and 32 beams through a Marian, the scores of its vocabulary, ViT-B and GPT-2 in batches
SHAPES = [
    (1, 768, 3072),
    (8, 512, 2048),
    (32, 512, 2048),
    (1, 512, 58101),
    (32, 512, 58101),
    (197, 768, 768),
    (1576, 768, 3072),
    (1576, 3072, 768),
    (1024, 768, 50257),
]


def turns(work, rounds):
    """Seconds of each side in each round; every round repeats the work for a tenth of a second or so."""
    first = {}
    for side, run in work.items():
        run()
        began = time.perf_counter()
        run()
        first[side] = time.perf_counter() - began
    times = {side: [] for side in work}
    repeat = max(1, round(0.1 / max(first.values())))
    for _ in range(rounds):
        for side, run in work.items():
            began = time.perf_counter()
            for _ in range(repeat):
                run()
            times[side].append((time.perf_counter() - began) / repeat)
    return times


def measure(rows, inner, outer, rounds):
    import torch
    import torch.nn.functional as F

    from scratchformers.linear import linear

    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=draw).requires_grad_() for shape in ((rows, inner), (outer, inner), (outer,))
    )
    grad, found = torch.randn(rows, outer, generator=draw), {}

    def forward(f):
        with torch.no_grad():
            return f(x, weight, bias)

    def both(f):
        return torch.autograd.grad(f(x, weight, bias), (x, weight, bias), grad)

    for name, work in (("forward", forward), ("forward and backward", both)):
        ours, theirs = work(linear), work(F.linear)
        pairs = zip(ours, theirs) if isinstance(ours, tuple) else [(ours, theirs)]
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        if apart > 1e-4:
            raise SystemExit(f"{rows} x {inner} x {outer}: the answers are {apart:.0e} apart.")
        times = turns({"oneDNN": lambda work=work: work(linear), "torch": lambda work=work: work(F.linear)}, rounds)
        best, median = ({side: reduce(each) for side, each in times.items()} for reduce in (min, statistics.median))
        products = rows * inner * outer * (1 if name == "forward" else 3)
        found[name] = {
            "best": round(best["torch"] / best["oneDNN"], 3),
            "median": round(median["torch"] / median["oneDNN"], 3),
            "GFLOP/s": {side: round(2e-9 * products / seconds) for side, seconds in best.items()},
            "apart": apart,
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/linear.json"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    from scratchformers import linear

    harness.threads(arguments.threads)
    chosen, linear.ONEDNN = linear.ONEDNN, True  # measured where it is not chosen, too
    results = {
        "command": f"python benchmarks/linear.py --out {arguments.out}",
        "rounds": arguments.rounds,
        "machine": harness.machine("cpu"),
        "versions": harness.versions("torch"),
        "chosen here": "oneDNN" if chosen else "torch",
        "products": {},
    }
    for shape in SHAPES:
        name = " x ".join(map(str, shape))
        results["products"][name] = measure(*shape, arguments.rounds)
        print(name, results["products"][name], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {arguments.out}.")


if __name__ == "__main__":
    main()
