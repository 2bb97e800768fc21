"""Our models beside transformers' on this machine: `make bench`, or `python benchmarks/bench.py --quick`.

Ours and theirs take turns, with the same threads, in one process or each round in a new one, after their answers were
found equal. What it finds is printed, and written to --out as JSON; `benchmarks/report.py` makes the README's table and
picture of it. Needs the `refs` extra.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import harness

MODELS = ("gpt2", "bert", "vit", "mae", "clip", "encoder_decoder")  # files beside this one, each with MAKE and ROWS


def measure(model, arguments):
    """A dictionary for each row of the model."""
    module, found = importlib.import_module(model), []
    with tempfile.TemporaryDirectory() as folder:
        harness.child(module.MAKE, folder=folder)
        for row in module.ROWS:
            if arguments.only and row.name not in arguments.only:
                continue
            if row.code:
                if arguments.device != "cpu":
                    continue
                seconds, memory = harness.in_processes(row, folder, rounds=arguments.rounds)
            else:
                same = {"device": arguments.device, "quick": arguments.quick}
                alone = {"count": arguments.threads, **same}
                if row.apart:
                    seconds, memory = harness.apart(model, row, folder, rounds=arguments.rounds, **alone)
                else:
                    seconds = harness.in_turns(row, folder, rounds=arguments.rounds, **same)
                    memory = {} if arguments.quick else harness.peaks(model, row, folder, **alone)
            memory = {"peak MiB": {side: round(size) for side, size in memory.items()}} if memory else {}
            what = row.quick if arguments.quick and row.quick else row.what
            found.append({"model": model, "row": row.name, "what": what, **harness.ratio(seconds), **memory})
            print({k: v for k, v in found[-1].items() if k not in ("what", "seconds")}, flush=True)
    return found


def joined(found, before, out):
    """The rows found, and those of other names that were found before on the same machine in the same way."""
    for name in ("rounds", "quick", "device", "linears", "versions"):
        if _name(before, name) != _name(found, name):
            raise SystemExit(f"--join: {name} was {_name(before, name)!r} and is {_name(found, name)!r}.")
    new = {(row["model"], row["row"]) for row in found["rows"]}
    rows = [row for row in before["rows"] if (row["model"], row["row"]) not in new] + found["rows"]
    command = f"python benchmarks/bench.py --models MODEL --join --out {out}"
    return {**found, "command": command, "rows": sorted(rows, key=lambda row: MODELS.index(row["model"]))}


def _name(results, name):
    return results["machine"][name] if name == "device" else results.get(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--quick", action="store_true", help="shorter work, no memory: about eight minutes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--only", nargs="*", help="rows, by name")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--join", action="store_true", help="keep the rows of other names that --out holds")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}: expected at least 1.")
    sys.modules["torchvision"] = None  # as in harness.HIDE
    harness.threads(arguments.threads)
    from scratchformers.linear import ONEDNN

    results = {
        "command": " ".join(["python benchmarks/bench.py", *sys.argv[1:]]),
        "rounds": arguments.rounds,
        "quick": arguments.quick,
        "machine": harness.machine(arguments.device),
        "linears": "oneDNN" if ONEDNN else "torch",
        "versions": harness.versions("torch", "transformers"),
        "rows": [row for model in arguments.models for row in measure(model, arguments)],
    }
    if arguments.join and arguments.out.exists():
        results = joined(results, json.loads(arguments.out.read_text(encoding="utf-8")), arguments.out)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {arguments.out}.")


if __name__ == "__main__":
    main()
