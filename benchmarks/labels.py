"""MiniLM fine-tuned to label texts, three seeds, and the same model from random weights for contrast.

    python benchmarks/labels.py sst2 SST2_FOLDER --model sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/labels.py trec TREC_FOLDER --model sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/labels.py sst2 SST2_FOLDER --replay     # the first steps of the committed runs, compared

SST2_FOLDER holds train.tsv, dev.tsv and test.tsv of clairett/pytorch-sentiment-classification (a sentence, a tab, 0 or
1); TREC_FOLDER holds TREC.train.all and TREC.test.all of harvardnlp/sent-conv-torch. TREC has no part to validate on:
a tenth of the training part is drawn. Writes results.json, logs and a picture; the data's licences are unclear, so no
text of theirs and no weights are kept.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import runs

TREC = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
SETTINGS = {
    "sst2": {"steps": 600, "lr": 8e-5, "eval_every": 50, "save_every": 600, "threads": 1},
    "trec": {"steps": 700, "lr": 2e-4, "eval_every": 70, "save_every": 700, "threads": 1},
}
SCRATCH = {"lr": 5e-4, "length": 128}  # what the random weights have instead
REPLAYED = 20  # steps


def sst2(source, target):
    for part in ("train", "dev", "test"):
        lines = (source / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
        _write(target / f"{part}.tsv", (line.rsplit("\t", 1) for line in lines))


def trec(source, target):
    for part in ("train", "test"):
        lines = (source / f"TREC.{part}.all").read_text(encoding="latin-1").rstrip("\n").split("\n")
        pairs = (line.split(" ", 1) for line in lines)
        _write(target / f"{part}.tsv", ((text, TREC[int(label)]) for label, text in pairs))


def _write(path, rows):
    body = "".join(f"{text}\t{label}\n" for text, label in rows)
    path.write_text("text\tlabel\n" + body, encoding="utf-8", newline="\n")


def arguments_of(name, folder, kind, model):
    """What `train` is told beside data, settings and seed."""
    valid = ["--valid", folder / "dev.tsv"] if name == "sst2" else []
    begin = ["--from", model] if kind == "fine-tuned" else ["--preset", "minilm", "--tokenizer", model]
    return ["--task", "classify", *begin, *valid]


def settings_of(name, kind):
    return SETTINGS[name] if kind == "fine-tuned" else {**SETTINGS[name], **SCRATCH}


def measure(name, source, model, seeds, out):
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        {"sst2": sst2, "trec": trec}[name](source, parts)
        for kind in ("fine-tuned", "random"):
            for seed in seeds if kind == "fine-tuned" else seeds[:1]:
                run, settings = parts / f"{kind}-{seed}", settings_of(name, kind)
                runs.train("bert", parts / "train.tsv", run, settings, seed, *arguments_of(name, parts, kind, model))
                scores = {part: runs.score(run / "model", parts / f"{part}.tsv", "--batch", 32)
                          for part in ("dev", "test") if (parts / f"{part}.tsv").is_file()}  # fmt: skip
                log = [{k: v for k, v in record.items() if k != "sample"} for record in runs.records(run / "log.jsonl")]
                best = max(record["valid_accuracy"] for record in log if "valid_accuracy" in record)
                scores |= {"validation": best, "minutes of training": runs.minutes(log)}
                found.setdefault(kind, {})[seed] = scores
                name_of_log = f"seed-{seed}.jsonl" if kind == "fine-tuned" else f"random-{seed}.jsonl"
                runs.write_records(out / name_of_log, log)
                facts = runs.facts(run)
                print(f"{name}, {kind}, seed {seed}: {scores}", flush=True)
    means = {
        kind: round(statistics.mean(scores["test"]["accuracy"] for scores in by_seed.values()), 4)
        for kind, by_seed in found.items()
    }
    results = {
        "command": f"python benchmarks/labels.py {name} {name.upper()}_FOLDER",
        "data": facts["data"],
        "settings": SETTINGS[name],
        "settings of random weights": settings_of(name, "random"),
        "parameters": facts["parameters"],
        "mean test accuracy": means,
        "runs": found,
        **runs.where(facts["device"]),
    }
    runs.write(out, results)
    title = f"{name}: {means['fine-tuned']:.1%} of the test right; from random weights {means['random']:.1%}"
    levels = {"knowing nothing": log[0]["trivial_loss"]}
    runs.draw(out, lines=levels, title=title, unit="label", limits=(0, 1.3 * levels["knowing nothing"]))
    print(means)


def replay(name, source, model, out):
    """The first steps of the committed runs again, from the same weights."""
    os.environ.update(MKL_DYNAMIC="FALSE", OMP_NUM_THREADS="1")
    from scratchformers.training.request import Request
    from scratchformers.training.runs import open_run

    for log in sorted(out.glob("seed-*.jsonl")):
        expected = [record["loss"] for record in runs.records(log) if "loss" in record][:REPLAYED]
        with tempfile.TemporaryDirectory() as folder:
            parts = Path(folder)
            {"sst2": sst2, "trec": trec}[name](source, parts)
            given = {key: str(value) for key, value in {**SETTINGS[name], "seed": log.stem[5:]}.items()}
            valid = parts / "dev.tsv" if name == "sst2" else None
            request = Request(
                "bert", parts / "run", parts / "train.tsv", valid, source=model, given=given, task="classify"
            )
            run, _ = open_run(request)
            losses = [record["loss"] for record, _ in zip((r for r in run if "loss" in r), range(REPLAYED))]
        runs.compare(log.stem, losses, expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="a hub id, or a folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--replay", action="store_true")
    given = parser.parse_args()
    place = runs.HERE / "results" / f"{given.name}-minilm"
    if given.replay:
        replay(given.name, given.data, given.model, place)
    else:
        measure(given.name, given.data, given.model, given.seeds, place)
