"""Small CLIPs: from nothing on emoji, prompts of Fashion-MNIST and photographs, and fine-tuned in three precisions.

    python benchmarks/clip_runs.py emoji EMOJI_FOLDER         # images.npz and captions.jsonl of Noto emoji
    python benchmarks/clip_runs.py fashion FASHION_FOLDER     # Fashion-MNIST's four idx files
    python benchmarks/clip_runs.py flickr8k FLICKR_FOLDER     # images.npz and captions.tsv; for a GPU
    python benchmarks/clip_runs.py steady                     # scikit-learn's digits: 1,000 steps in fp32, bf16, fp16
    python benchmarks/clip_runs.py emoji EMOJI_FOLDER --replay        # the first steps of the committed run, compared

A tenth of the training part is drawn to choose the best step by; what is held out beside it is measured once, at the
end. The runs stay in --work and are gone on with if they were stopped. Writes results.json, log.jsonl and curve.png to
results/clip-NAME; of Flickr8k, which may not be published, neither captions nor pictures nor weights are kept.
"""

import argparse
import csv
import json
import math
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import runs

REPLAYED = 20  # steps
NAMES = "T-shirt|trouser|pullover|dress|coat|sandal|shirt|sneaker|bag|ankle boot"  # Fashion-MNIST's, by their numbers
PROMPTS = "a photo of a {}.|a grey picture of a {}.|a small photo of a {}.|one {}, worn by nobody."
WORDS = 6  # keywords of an emoji that are said
DIGITS = "zero|one|two|three|four|five|six|seven|eight|nine"
SHARED = {"threads": 1, "lr_end": 0.01, "warmup": 200, "beta2": 0.98}
TOWERS = {"image_depth": 4, "image_heads": 4, "text_depth": 2, "text_heads": 4, "dim": 64}
SMALL = {**TOWERS, "image_dim": 64, "text_dim": 64, "image_heads": 2, "text_heads": 2}
EMOJI = {
    **TOWERS,
    "image": 64,
    "patch": 8,
    "image_dim": 128,
    "text_dim": 128,
    "length": 77,  # those held out may be longer than all that are learnt from
    "batch": 256,
    "lr": 1e-3,
    "weight_decay": 0.2,
    "crop": 0.5,
    "flip": "true",
    "autocast": "bf16",
}
FASHION = {
    **SMALL,
    "image": 28,
    "channels": 1,
    "batch": 128,
    "lr": 2e-3,
    "weight_decay": 0.05,
    "shift": 1,
    "crop": 1.0,
    "flip": "true",
    "names": NAMES,
    "template": PROMPTS,
    "autocast": "bf16",
}
PHOTOGRAPHS = {
    "image": 160,
    "patch": 16,
    "image_dim": 256,
    "image_depth": 6,
    "image_heads": 4,
    "text_dim": 256,
    "text_depth": 4,
    "text_heads": 4,
    "dim": 128,
    "length": 77,
    "batch": 450,
    "lr": 5e-4,
    "weight_decay": 0.2,
    "crop": 0.4,
    "flip": "true",
    "autocast": "bf16",
    "threads": 8,
}
DIGIT = {
    **SMALL,
    "image": 16,
    "channels": 1,
    "batch": 64,
    "lr": 2e-3,
    "crop": 1.0,
    "names": DIGITS,
    "template": "a photo of the digit {}.|{}",
}
OF_A_MODEL = ("image_", "text_", "image", "channels", "dim")  # which a checkpoint has of its own


@dataclass(frozen=True)
class Training:
    """One run: how, for so many steps, evaluated every so many, beginning with the model of which other."""

    settings: dict[str, Any]
    steps: int
    every: int
    source: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def all_settings(self):
        own = {k: v for k, v in self.settings.items() if not (self.source and k.startswith(OF_A_MODEL))}
        return {**SHARED, **own, "steps": self.steps, "eval_every": self.every, "save_every": self.every, **self.more}


EXPERIMENTS = {
    "emoji": {"scratch": Training(EMOJI, 2000, 100)},
    "fashion": {"scratch": Training(FASHION, 15 * 54000 // 128, 54000 // 128)},
    "flickr8k": {"scratch": Training(PHOTOGRAPHS, 1500, 50)},
    "steady": {
        "pretrained": Training(DIGIT, 200, 100),
        **{
            f"fine-tuned-{kind}": Training(DIGIT, 1000, 100, "pretrained", {"lr": 1e-3, "autocast": kind})
            for kind in ("off", "bf16", "fp16")
        },
    },
}


def parts_of(name, source, target):
    """The data as `train` and `eval` take it: the training part, and the part that is measured at the end."""
    if name == "fashion":
        return source / "train-images-idx3-ubyte.gz", source / "t10k-images-idx3-ubyte.gz"
    if name == "steady":
        return digits(target)
    return (emoji if name == "emoji" else photographs)(source, target)


def emoji(source, target):
    """Noto emoji on white. To learn from, each with its name, and its name with some keywords; a tenth of all, drawn,
    is held out, each with the latter."""
    import numpy as np

    said = runs.records(source / "captions.jsonl")
    images = np.stack([np.asarray(image) for image in runs.on_white(source)])
    words = [", ".join(word.replace("_", " ") for word in each["keywords"][1 : 1 + WORDS]) for each in said]
    whole = [f"{each['name']}: {more}" for each, more in zip(said, words)]
    held_out = set(random.Random(0).sample(range(len(said)), len(said) // 10))
    train = [i for i in range(len(said)) if i not in held_out]
    test = sorted(held_out)
    captions = np.array([[said[i]["name"], whole[i]] for i in train])
    np.savez(target / "train.npz", images=images[train], captions=captions)
    np.savez(target / "test.npz", images=images[test], captions=np.array([whole[i] for i in test]))
    return target / "train.npz", target / "test.npz"


def photographs(source, target):
    """The first 900 of 1,000 photographs, and the others."""
    import numpy as np

    names = np.load(source / "images.npz")["names"].tolist()
    said = {name: [] for name in names}
    with (source / "captions.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            said[row["image"]].append(row["caption"])
    images = runs.on_white(source)
    for part, some in (("train", names[:900]), ("test", names[900:])):
        (target / part).mkdir()
        lines = "".join(json.dumps({"path": name, "caption": said[name]}) + "\n" for name in some)
        (target / part / "captions.jsonl").write_text(lines, encoding="utf-8")
        for name, image in zip(some, images):
            image.save(target / part / name, quality=95)
    return target / "train", target / "test"


def digits(target):
    """Scikit-learn's 1,797 digits; the last 297 are measured at the end."""
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (found.images * 255 / 16).round().astype(np.uint8)
    for part, rows in (("train", slice(1500)), ("test", slice(1500, None))):
        np.savez(target / f"{part}.npz", images=pixels[rows], labels=found.target[rows])
    return target / "train.npz", target / "test.npz"


def measure(name, source, work, out):
    out.mkdir(parents=True, exist_ok=True)
    found, logs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        train, test = parts_of(name, source, Path(folder))
        for run, training in EXPERIMENTS[name].items():
            place = work / name / run
            begin = ["--from", work / name / training.source / "model"] if training.source else []
            resume = ["--resume"] if (place / "config.json").is_file() else []
            runs.train("clip", train, place, training.all_settings(), 0, *begin, *resume)
            log = [{k: v for k, v in record.items() if k != "sample"} for record in runs.records(place / "log.jsonl")]
            logs[run] = log
            facts = runs.facts(place)
            found[run] = {
                **scores(training, place / "model", test),
                **figures(log),
                "parameters": facts["parameters"],
                "settings": training.all_settings(),
            }
            print(f"{name}, {run}: {found[run]}", flush=True)
    runs.write_records(out / "log.jsonl", [{"run": run, **record} for run, log in logs.items() for record in log])
    results = {
        "command": f"python benchmarks/clip_runs.py {name}{' FOLDER' if source else ''}",
        "data": {key: facts[key] for key in ("data", "valid")},
        "runs": found,
        **runs.where(facts["device"]),
    }
    runs.write(out, results)
    draw(name, out, logs)


def scores(training, model, test):
    """What the part held out says: zero-shot where there are classes, else recall."""
    if "names" not in training.settings:
        found = runs.score(model, test, "--task", "retrieval")
        return {"test": found, "test by chance": by_chance(found["pictures"], found["texts"])}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / each for each in ("names.txt", "templates.txt")]
        for file, key in zip(files, ("names", "template")):
            file.write_text(training.settings[key].replace("|", "\n") + "\n", encoding="utf-8")
        how = ["--labels-file", files[0], "--templates", files[1]]
        return {"test": runs.score(model, test, "--task", "zero-shot", *how)}


def by_chance(pictures, texts):
    """Recall of pictures with as many texts each, in a random order."""
    from scratchformers.training.contrastive import AT, chance

    ways = {"text_to_image": (1, pictures), "image_to_text": (texts // pictures, texts)}
    return {f"{way}_at_{k}": chance([right], count, k) for way, (right, count) in ways.items() for k in AT}


def figures(log):
    """Of a run's log: how long it took, what it reached on the pairs that chose the best step, and whether anything in
    it was no number."""
    valid = [record for record in log if "valid_loss" in record]
    steps = [record for record in log if "loss" in record]
    best = next(record for record in reversed(valid) if record["best"])
    skipped = sum(record["grad_norm"] is None for record in steps)  # as fp16 does where its gradient overflows
    finite = all(math.isfinite(record["loss"]) for record in steps) and all(r["valid_loss"] is not None for r in valid)
    return {
        "minutes": runs.minutes(log),
        "finite": finite,
        "steps skipped": skipped,
        "scale": steps[-1]["scale"],
        "chance": {key.removeprefix("chance_"): value for key, value in log[0].items() if key.startswith("chance_")},
        "validation": {key.removeprefix("valid_"): v for key, v in best.items() if key.startswith("valid_")},
    }


def draw(name, out, logs):
    """The loss, and beside it what is measured on held-out pairs."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    key = (
        "valid_accuracy" if any("valid_accuracy" in record for record in next(iter(logs.values()))) else "valid_recall"
    )
    for run, log in logs.items():
        loss = [record["loss"] for record in log if "loss" in record]
        smooth = [sum(loss[max(0, i - 24) : i + 1]) / min(25, i + 1) for i in range(len(loss))]
        line = left.plot(range(1, len(loss) + 1), smooth, linewidth=0.8, label=f"{run}, training")[0]
        for axes, what, label in ((left, "valid_loss", f"{run}, validation"), (right, key, run)):
            points = [(record["step"], record[what]) for record in log if record.get(what) is not None]
            axes.plot(*zip(*points), "o-", markersize=2, color=line.get_color(), label=label)
    chance = log[0][key.replace("valid_", "chance_")]
    right.axhline(chance, color="grey", linestyle=":", label=f"chance: {chance:.3f}")
    left.set(xlabel="step", ylabel="nats a pair", title=name)
    right.set(xlabel="step", ylabel=key.replace("valid_", ""), title="held-out pairs")
    for axes in (left, right):
        axes.legend(fontsize=7)
    figure.savefig(out / "curve.png", dpi=120)


def replay(name, source, out):
    """The first steps of the committed runs again; those that begin with another's model need that model."""
    committed = runs.records(out / "log.jsonl")
    for run, training in EXPERIMENTS[name].items():
        if training.source:
            continue
        expected = [r["loss"] for r in committed if r["run"] == run and "loss" in r][:REPLAYED]
        with tempfile.TemporaryDirectory() as data:
            train, _ = parts_of(name, source, Path(data))
            runs.compare(run, runs.first_losses("clip", train, training.all_settings(), REPLAYED), expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("data", type=Path, nargs="?", help="steady needs none")
    parser.add_argument("--work", type=Path, default=Path("build/clip"), help="where the runs lie")
    parser.add_argument("--replay", action="store_true")
    given = parser.parse_args()
    if given.data is None and given.name != "steady":
        parser.error(f"{given.name} needs the folder of its data")
    place = runs.HERE / "results" / f"clip-{given.name}"
    if given.replay:
        replay(given.name, given.data, place)
    else:
        measure(given.name, given.data, given.work, place)
