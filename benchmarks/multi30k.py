"""German to English from nothing, on 29,000 captions of Multi30k, scored by sacreBLEU.

    python benchmarks/multi30k.py MULTI30K            # the folder of task 1: train.de.gz, train.en.gz, val.de.gz, ...
    python benchmarks/multi30k.py MULTI30K --replay   # the first steps of the committed run, compared

A tokeniser is made of the training pairs; val chooses the best step, and test_2016_flickr and test_2017_flickr are
translated once, at the end: greedily and with 5 beams. The run stays in --work and is gone on with if it was stopped.
The committed run was limited by its length: the loss on val still fell when the learning rate was nearly 0, though ever
more slowly (1.789, 1.773, 1.763, 1.757 over the last 1,500 of 6,500 steps). More steps were not tried, nor was a larger
model.
Writes results.json, log.jsonl and curve.png to results/multi30k; the captions may not be published, so neither samples
nor weights are kept.
"""

import argparse
import gzip
import tempfile
from pathlib import Path

import runs

REPLAYED = 20  # steps
TESTS = ("test_2016_flickr", "test_2017_flickr")
BEAMS = (1, 5)
VOCAB = 6000
SETTINGS = {
    "threads": 1,
    "dim": 192,
    "depth": 3,
    "heads": 6,
    "hidden": 512,
    "tokens": 4096,
    "steps": 6500,
    "lr": 3e-3,
    "lr_end": 0.02,
    "warmup": 500,
    "dropout": 0.3,
    "smoothing": 0.1,
    "ema": 0.999,
    "autocast": "bf16",
    "eval_every": 500,
    "save_every": 250,
}
PUBLISHED = "36.52 on lower-cased tokens, 9.04 M parameters (bentrevett/pytorch-seq2seq)"


def unpack(source, target):
    """`train`, `val` and the tests, each a pair of files as `train` takes it."""
    found = {}
    for part in ("train", "val", *TESTS):
        sides = [target / f"{part}.{side}" for side in ("de", "en")]
        for side in sides:
            side.write_bytes(gzip.decompress((source / f"{side.name}.gz").read_bytes()))
        found[part] = ",".join(map(str, sides))
    return found


def measure(source, work, out):
    out.mkdir(parents=True, exist_ok=True)
    place = work / "de-en"
    resume = ["--resume"] if (place / "config.json").is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        data = unpack(source, Path(folder))
        how = ["--valid", data["val"], "--preset", "small", "--tokenizer", "bpe", "--vocab", VOCAB]
        runs.train("encoder-decoder", data["train"], place, SETTINGS, 0, *how, *resume)
        tests = {
            part: {
                f"{n} beams" if n > 1 else "greedy": runs.score(place / "model", data[part], "--beams", n)
                for n in BEAMS
            }
            for part in TESTS
        }
    log = [{k: v for k, v in record.items() if k != "sample"} for record in runs.records(place / "log.jsonl")]
    facts = runs.facts(place)
    runs.write_records(out / "log.jsonl", log)
    results = {
        "command": "python benchmarks/multi30k.py FOLDER",
        "data": {name: facts[name] for name in ("data", "valid", "tokenizer")},
        "tests": tests,
        "published": PUBLISHED,
        "target tokens": sum(record.get("targets", 0) for record in log),
        "minutes": runs.minutes(log),
        "parameters": facts["parameters"],
        "settings": {**SETTINGS, "vocab": VOCAB},
        **runs.where(facts["device"]),
    }
    runs.write(out, results)
    draw(out, log)
    print(tests)


def draw(out, log):
    """The loss, and beside it BLEU of the validation sources that are translated as it learns."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss = [record["loss"] for record in log if "loss" in record]
    smooth = [sum(loss[max(0, i - 49) : i + 1]) / min(50, i + 1) for i in range(len(loss))]
    left.plot(range(1, len(loss) + 1), smooth, linewidth=0.8, label="training, labels smoothed")
    for axes, key, label in ((left, "valid_loss", "validation"), (right, "valid_bleu", "greedy")):
        axes.plot(*zip(*[(r["step"], r[key]) for r in log if key in r]), "o-", markersize=3, label=label)
        axes.legend(fontsize=8)
    left.set(xlabel="step", ylabel="nats a token", title="Multi30k, German to English")
    right.set(xlabel="step", ylabel="BLEU", title="200 validation sources")
    figure.savefig(out / "curve.png", dpi=120)


def replay(source, out):
    expected = [r["loss"] for r in runs.records(out / "log.jsonl") if "loss" in r][:REPLAYED]
    with tempfile.TemporaryDirectory() as folder:
        data = unpack(source, Path(folder))
        more = {"valid": data["val"], "preset": "small", "tokenizer": "bpe", "vocab": VOCAB}
        found = runs.first_losses("encoder-decoder", data["train"], SETTINGS, REPLAYED, **more)
    runs.compare("multi30k", found, expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/multi30k"), help="where the run lies")
    parser.add_argument("--replay", action="store_true")
    given = parser.parse_args()
    place = runs.HERE / "results" / "multi30k"
    if given.replay:
        replay(given.data, place)
    else:
        measure(given.data, given.work, place)
