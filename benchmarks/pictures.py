"""Small Vision Transformers from nothing, and what a masked autoencoder's pre-training is worth.

    python benchmarks/pictures.py fashion FASHION_FOLDER      # Fashion-MNIST's four idx files
    python benchmarks/pictures.py cifar10 CIFAR_FOLDER        # train_0.npz to train_4.npz, test.npz
    python benchmarks/pictures.py mae-cifar10 CIFAR_FOLDER
    python benchmarks/pictures.py emoji EMOJI_FOLDER          # images.npz and captions.jsonl of Noto emoji
    python benchmarks/pictures.py fashion FASHION_FOLDER --replay     # the first steps of the committed runs, compared

A tenth of the training part is drawn to choose the best step by; the test part is measured once, at the end. The runs
stay in --work and are gone on with if they were stopped. Writes results.json, logs and a picture of the losses; of
CIFAR-10, whose licence is unclear, neither pictures nor weights are kept.
"""

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runs

REPLAYED = 20  # steps
SHARED = {"batch": 128, "threads": 1, "autocast": "bf16", "lr_end": 0.01, "weight_decay": 0.05}
FASHION = {
    "image": 28,
    "channels": 1,
    "dim": 64,
    "depth": 4,
    "heads": 4,
    "pool": "mean",
    "lr": 3e-3,
    "warmup": 400,
    "beta2": 0.98,
    "shift": 1,
    "label_smoothing": 0.1,
}
ENCODER = {"image": 32, "patch": 4, "dim": 128, "depth": 3, "heads": 4}
CIFAR = {**ENCODER, "pool": "mean", "lr": 2e-3, "warmup": 400, "beta2": 0.98, "shift": 4}
PRETRAIN = {
    **ENCODER,
    "class_token": "false",
    "decoder_dim": 96,
    "decoder_depth": 1,
    "decoder_heads": 3,
    "norm_pix_loss": "true",
    "lr": 2e-3,
    "warmup": 400,
    "beta2": 0.95,
    "crop": 0.5,
}
FINETUNE = {
    "lr": 1e-3,
    "warmup": 200,
    "beta2": 0.98,
    "layer_decay": 0.8,
    "shift": 4,
    "crop": 1.0,
    "drop_path": 0.0,
    "label_smoothing": 0.0,
}
EMOJI = {
    "image": 72,
    "patch": 6,
    "dim": 128,
    "depth": 4,
    "heads": 4,
    "decoder_dim": 96,
    "decoder_depth": 2,
    "decoder_heads": 3,
    "lr": 1.5e-3,
    "warmup": 200,
    "beta2": 0.95,
    "crop": 0.6,
    "batch": 64,
}


@dataclass(frozen=True)
class Training:
    """One run: what is trained, how, on so many epochs of so many pictures, beginning with the model of which other."""

    recipe: str
    settings: dict[str, Any]
    epochs: int
    pictures: int  # of the training part that are learnt from, all but a tenth
    source: str | None = None

    def all_settings(self):
        batch = self.settings.get("batch", SHARED["batch"])
        steps, epoch = self.epochs * self.pictures // batch, self.pictures // batch
        return {**SHARED, **self.settings, "steps": steps, "eval_every": epoch, "save_every": epoch}


EXPERIMENTS = {
    "fashion": {"scratch": Training("vit", FASHION, 50, 54000)},
    "cifar10": {"scratch": Training("vit", CIFAR, 30, 45000)},
    "mae-cifar10": {
        "pretrained": Training("mae", PRETRAIN, 16, 45000),
        "fine-tuned-5": Training("vit", FINETUNE, 5, 45000, "pretrained"),
        "fine-tuned-20": Training("vit", FINETUNE, 20, 45000, "pretrained"),
        "scratch-5": Training("vit", CIFAR, 5, 45000),
        "scratch-20": Training("vit", CIFAR, 20, 45000),
        "scratch-30": Training("vit", CIFAR, 30, 45000),
    },
    "emoji": {"pretrained": Training("mae", EMOJI, 1000, 144)},
}
ANIMALS = "Animals & Nature"  # the group of emoji that the mission's example paints


def parts_of(name, source, target):
    """The data as `train` and `eval` take it: the training part, and the test part where there is one."""
    if name == "emoji":
        return animals(source, target), None
    if name == "fashion":
        return source / "train-images-idx3-ubyte.gz", source / "t10k-images-idx3-ubyte.gz"
    for path in sorted(source.glob("train_*.npz")):
        shutil.copy(path, target / path.name)
    return target, source / "test.npz"


def animals(source, target):
    """Noto emoji of animals, on white."""
    for i, (each, image) in enumerate(zip(runs.records(source / "captions.jsonl"), runs.on_white(source))):
        if each["group"] == ANIMALS:
            image.save(target / f"{i:04}.png")
    return target


def shared_by(name, run):
    """The experiment whose run this is: scratch runs that two experiments share are done, and kept, once."""
    own = EXPERIMENTS["cifar10"]["scratch"]
    return ("cifar10", "scratch") if name == "mae-cifar10" and EXPERIMENTS[name][run] == own else (name, run)


def log_of(out, name, run):
    """Where the log of a run is kept."""
    kept, as_run = shared_by(name, run)
    return out.parent / kept / f"{as_run}.jsonl"


def measure(name, source, work, out):
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        train, test = parts_of(name, source, Path(folder))
        for run, training in EXPERIMENTS[name].items():
            place = work.joinpath(*shared_by(name, run))
            begin = ["--from", work / name / training.source / "model"] if training.source else []
            resume = ["--resume"] if (place / "config.json").is_file() else []
            runs.train(training.recipe, train, place, training.all_settings(), 0, *begin, *resume)
            log = [{k: v for k, v in record.items() if k != "sample"} for record in runs.records(place / "log.jsonl")]
            runs.write_records(log_of(out, name, run), log)
            found[run] = scores(training, place / "model", train, test, log)
            facts = runs.facts(place)
            found[run] |= {"parameters": facts["parameters"], "settings": training.all_settings()}
            print(f"{name}, {run}: {found[run]}", flush=True)
        if name == "emoji":
            panels(train, place, out)
    results = {
        "command": f"python benchmarks/pictures.py {name} FOLDER",
        "data": facts["data"],
        "runs": found,
        **runs.where(facts["device"]),
    }
    runs.write(out, results)
    draw(name, out, found)


def scores(training, model, train, test, log):
    """What the test part says, of an encoder by a linear probe and its neighbours too, beside random features."""
    best = max((r["valid_accuracy"] for r in log if "valid_accuracy" in r), default=None)
    found = {"epochs": training.epochs, "validation": best, "minutes": runs.minutes(log)}
    if training.recipe == "vit":
        return found | {"test": runs.score(model, test)}
    if test is None:
        return found | {"validation loss": min(r["valid_loss"] for r in log if "valid_loss" in r)}
    with tempfile.TemporaryDirectory() as folder:
        random_encoder(model, Path(folder))
        for kind, source in (("learnt", model), ("random", folder)):
            found[kind] = {
                task: runs.score(source, test, "--task", task, "--train", train) for task in ("probe", "knn")
            }
    return found


def random_encoder(model, folder):
    """The same model, not trained."""
    import scratchformers as sf

    learnt = sf.load(model)
    new = type(learnt)(learnt.config)
    new.assets = learnt.assets
    new.save_pretrained(folder)


def draw(name, out, found):
    """The validation part's figures, epoch by epoch."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for run, facts in found.items():
        log = runs.records(log_of(out, name, run))
        key = "valid_accuracy" if facts["validation"] is not None else "valid_loss"
        points = [(record["step"], record[key]) for record in log if key in record]
        if key == "valid_loss" and len(found) > 1:
            continue  # another unit
        steps, values = zip(*points)
        axes.plot([facts["epochs"] * step / steps[-1] for step in steps], values, "o-", markersize=2, label=run)
    axes.set(xlabel="epoch", ylabel=key.replace("valid_", "validation "), title=name)
    axes.legend(fontsize=8)
    figure.savefig(out / "curve.png", dpi=120)


def panels(train, run, out):
    """What the autoencoder paints of emoji it has not learnt from, and of some it has."""
    import scratchformers as sf
    from scratchformers.training.pictures import read_pictures, split

    painter = sf.Reconstructor.from_pretrained(run / "model")
    for part, pictures in zip(("learnt", "held-out"), split(read_pictures(train, labelled=False), seed=0)):
        some = [pictures.image(i * len(pictures) // 6) for i in range(6)]
        painter.panel(some).savefig(out / f"panel-{part}.png", dpi=110)


def replay(name, source, out):
    """The first steps of the committed runs again; those that begin with another's model need that model."""
    for run, training in EXPERIMENTS[name].items():
        if training.source:
            continue
        log = runs.records(log_of(out, name, run))
        expected = [record["loss"] for record in log if "loss" in record][:REPLAYED]
        with tempfile.TemporaryDirectory() as data:
            train, _ = parts_of(name, source, Path(data))
            found = runs.first_losses(training.recipe, train, training.all_settings(), REPLAYED)
        runs.compare(run, found, expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/pictures"), help="where the runs lie")
    parser.add_argument("--replay", action="store_true")
    given = parser.parse_args()
    place = runs.HERE / "results" / given.name
    if given.replay:
        replay(given.name, given.data, place)
    else:
        measure(given.name, given.data, given.work, place)
