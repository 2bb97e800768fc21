"""A BERT from nothing on English novels: the masked loss and accuracy on novels it never saw, against the unigram's.

    python benchmarks/novels.py ENGLISH_NOVELS                  # an hour on one core
    make replay RUN=novels DATA=ENGLISH_NOVELS                  # the first steps of the committed run, compared

ENGLISH_NOVELS holds train/, valid/ and test/ with a novel in each .txt.gz. They come from computationalstylistics/
100_english_novels v1.4, all published before 1920; benchmarks/results/novels-bert/results.json names them by digest.
"""

import argparse
import gzip
import os
import tempfile
from pathlib import Path

import runs

OUT = runs.HERE / "results" / "novels-bert"
SETTINGS = {"depth": 2, "dropout": 0.0, "length": 32, "batch": 128, "steps": 5500}
SETTINGS |= {"lr": 1.5e-3, "lr_end": 0.02, "warmup": 200}
SETTINGS |= {"weight_decay": 0.05, "eval_every": 500, "save_every": 500, "threads": 1, "autocast": "bf16"}
TOKENIZER = ("--preset", "mini", "--tokenizer", "wordpiece", "--vocab", 8000)
REPLAYED = 20  # steps


def unpack(source, target):
    """Every novel as plain UTF-8 with the same line ends."""
    for part in ("train", "valid", "test"):
        (target / part).mkdir()
        for path in sorted((source / part).glob("*.txt.gz")):
            text = gzip.decompress(path.read_bytes()).decode("utf-8-sig").replace("\r\n", "\n")
            (target / part / path.stem).write_text(text, encoding="utf-8", newline="\n")
    return {part: target / part for part in ("train", "valid", "test")}


def measure(source, settings, seed, out, keep):
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        parts, run = unpack(source, Path(folder)), keep or Path(folder, "run")
        runs.train("bert", parts["train"], run, settings, seed, "--valid", parts["valid"], *TOKENIZER)
        scores = {part: runs.score(run / "model", parts[part]) for part in ("valid", "test")}
        facts, log = runs.facts(run), runs.records(run / "log.jsonl")
        (out / f"seed-{seed}.jsonl").write_bytes((run / "log.jsonl").read_bytes())
    first = log[0]
    seconds = sum(record.get("seconds", 0) for record in log)
    best = min(record["valid_loss"] for record in log if record.get("valid_loss") is not None)
    results = {
        "command": "python benchmarks/novels.py ENGLISH_NOVELS",
        "data": facts["data"],
        "valid": facts["valid"],
        "tokenizer": facts["tokenizer"],
        "settings": settings,
        "arguments": [*map(str, TOKENIZER)],
        "parameters": facts["parameters"],
        "minutes of training": round(seconds / 60, 1),
        "knowing nothing": first["trivial_loss"],
        "unigram": {"loss": first["unigram_loss"], "accuracy": first["unigram_accuracy"]},
        "best validation loss": best,
        "below the unigram": round(1 - best / first["unigram_loss"], 4),
        "whole novels": scores,
        **runs.where(facts["device"]),
    }
    runs.write(out, results)
    levels = {"knowing nothing": first["trivial_loss"], "unigram": first["unigram_loss"]}
    runs.draw(out, lines=levels, title=f"masked tokens of English novels: {best:.3f}", unit="token", limits=(2, 9.5))
    print(f"validation {best:.4f}, {results['below the unigram']:.1%} below the unigram; {scores}")


def replay(source, out):
    """The first steps of the committed run again."""
    os.environ.update(MKL_DYNAMIC="FALSE", OMP_NUM_THREADS="1")
    from scratchformers.training.request import Request
    from scratchformers.training.runs import open_run

    expected = [record["loss"] for record in runs.records(out / "seed-0.jsonl")[:REPLAYED]]
    with tempfile.TemporaryDirectory() as folder:
        parts = unpack(source, Path(folder))
        given = {key: str(value) for key, value in {**SETTINGS, "seed": 0}.items()}
        request = Request(
            "bert", Path(folder, "run"), parts["train"], parts["valid"], "mini", None, "wordpiece", 8000, given
        )
        run, _ = open_run(request)
        losses = [record["loss"] for record, _ in zip(run, range(REPLAYED))]
    runs.compare("seed-0", losses, expected, bound=1e-2)  # of 16 bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder in which the run stays")
    parser.add_argument("--replay", action="store_true")
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.data, OUT)
    else:
        measure(arguments.data, SETTINGS, arguments.seed, OUT, arguments.keep)
