"""What recording costs: GPT-2 124M with random weights, a forward recorded and one as it is, in turns.

python benchmarks/recording.py --out benchmarks/results/recording.json
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import harness


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    harness.threads(min(2, os.cpu_count() or 1))
    import torch

    import scratchformers as sf

    model = sf.GPT2.from_preset("gpt2").eval()

    def recorded(ids):
        with sf.record(model):
            return model(ids)

    results = {"machine": harness.machine("cpu"), "versions": harness.versions("torch"), "recorded / plain": {}}
    with torch.no_grad():
        for tokens in (128, 512):
            ids = torch.arange(tokens)[None]
            torch.testing.assert_close(recorded(ids), model(ids), rtol=0, atol=1e-5)
            seconds = {"plain": [], "recorded": []}
            for _ in range(arguments.rounds):
                for name, work in (("plain", model), ("recorded", recorded)):
                    began = time.perf_counter()
                    work(ids)
                    seconds[name].append(time.perf_counter() - began)
            best, median = (f(seconds["recorded"]) / f(seconds["plain"]) for f in (min, statistics.median))
            found = {"best": round(best, 3), "median": round(median, 3)}
            results["recorded / plain"][f"1 x {tokens} tokens"] = found
            print(tokens, found)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
