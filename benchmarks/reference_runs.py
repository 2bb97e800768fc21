"""What `scratchformers compare` compares with: each recipe's tiny preset, learnt by several seeds.

    python benchmarks/reference_runs.py FOLDER
    python benchmarks/reference_runs.py FOLDER --only vit     # one of them

Five seeds make a band; a sixth is in none, and how it lies in it is said in the file, as is how each of the six lies in
a band of the others. The runs are the demo's own, on its data, which comes with Python and scikit-learn; for --task
classify and tokens they learn from sentences made here. They end after STEPS steps, which one thread takes in less than
a minute, but have the rates of whole runs, so that a whole one is beside them step by step. FOLDER keeps the runs: what
is there is not learnt again. Writes src/scratchformers/training/reference_runs/RECIPE.json, and of a GPT-2 whose rate
is ten times too high docs/compare.png.
"""

import argparse
import contextlib
import dataclasses
import os
import random
from pathlib import Path
from unittest import mock

import runs

SEEDS = 6
STEPS = 300
SHARED = {"threads": "1", "save_every": "100000"}
WORDS = {
    "name": ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karla", "Leo"),
    "place": ("Bonn", "Bern", "Graz", "Kiel", "Linz", "Riga", "Turin", "Ulm", "Wels", "York"),
    "month": ("January", "March", "April", "June", "August", "October", "December"),
}
SAID = {
    "travel": ("{name} went to {place} in {month}", "in {month} a train took {name} from {place} to {place}"),
    "letter": ("{name} wrote to {name} from {place}", "a letter for {name} came in {month}"),
    "trade": ("{name} sold a house in {place} to {name}", "in {place} {name} bought a horse in {month}"),
}
FAULT = "lr=0.06"  # of the README's picture
WRONG = 0.1  # of the labels of texts, so that there is a loss below which only learning by heart goes


class Begun(Exception):
    pass


def sentences(count):
    """What each is about, and its words, each with what it is."""
    draw = random.Random(0)
    for _ in range(count):
        about = draw.choice(sorted(SAID))
        kinds = [word.strip("{}") for word in draw.choice(SAID[about]).split()]
        words = [(draw.choice(WORDS[kind]), kind) if kind in WORDS else (kind, "O") for kind in kinds]
        yield draw.choice(sorted(SAID)) if draw.random() < WRONG else about, words


def labelled(folder):
    """The file of each task."""
    made = [*sentences(4000)]
    texts = "".join(f"{' '.join(word for word, _ in words)}\t{about}\n" for about, words in made)
    words = "".join("".join(f"{word}\t{label}\n" for word, label in words) + "\n" for _, words in made)
    for name, text in (("classify", f"text\tlabel\n{texts}"), ("tokens", f"word\tlabel\n{words}")):
        path = folder / "data" / f"{name}.tsv"
        path.write_text(text, encoding="utf-8", newline="\n")
        yield name, path


def requests(folder):
    """By recipe what is to be learnt: of the demo what its sections ask for, which are left there."""
    from scratchformers import demo
    from scratchformers.training.request import Request

    found = {}

    def begin(request):
        found[request.recipe] = request
        raise Begun

    with mock.patch.object(demo, "open_run", begin):
        for section in demo.SECTIONS:
            with contextlib.suppress(Begun):
                section(folder, lambda run: None)
    return found | {f"bert {task}": Request("bert", folder, path, task=task) for task, path in labelled(folder)}


def learn(request, seed, folder, steps, **changes):
    """A run up to this step, unless it is there."""
    from scratchformers.training.runs import open_run

    given = {**request.given, **SHARED, "seed": str(seed), **changes}
    run, _ = open_run(dataclasses.replace(request, out=folder, given=given, threads=1), resume=folder.exists())
    if run.step < steps:
        for record in run:
            if record["step"] == steps:
                run.stop()


def beside(run, others):
    """How a run lies in the band of others: the share of its losses that are within, and the step at which it left."""
    from scratchformers.training import compare

    found = compare.compare(run, compare.make_reference(others))
    places = {
        name: [band.where(step, loss) == "within" for step, loss in zip(curve.steps, curve.losses)]
        for name, band, curve in (
            ("training", found.training, found.curve),
            ("validation", found.validation, found.valid),
        )
    }
    return {
        "seed": run.facts["settings"]["seed"],
        "within": {name: round(sum(each) / len(each), 3) for name, each in places.items()},
        "left": found.left,
    }


def reference(folder, seeds, command):
    from scratchformers.training import compare

    found = [compare.read_run(folder / f"seed-{seed}") for seed in range(seeds)]
    *band, last = found
    return {
        **compare.make_reference(band),
        "machine": runs.where("cpu")["machine"],
        "command": command,
        "left out": beside(last, band),
        "each left out": [beside(run, [other for other in found if other is not run]) for run in found],
    }


def picture(folder, request, path):
    from scratchformers.training import compare

    learn(request, 0, folder / "gpt2" / FAULT, STEPS, lr="0.06")
    found = compare.read_run(folder / "gpt2" / FAULT)
    compare.draw(compare.compare(found, compare.find_reference(found.facts)), path)


def main(folder, only, out):
    os.environ.update(MKL_DYNAMIC="FALSE", OMP_NUM_THREADS="1")  # before torch is loaded
    from scratchformers.checkpoints import files

    folder.mkdir(parents=True, exist_ok=True)
    asked = {name: found for name, found in requests(folder).items() if only in (None, name)}
    for seed in range(SEEDS):
        for name, request in asked.items():
            learn(request, seed, folder / name.replace(" ", "-") / f"seed-{seed}", STEPS)
            print(f"{name}, seed {seed}", flush=True)
    for name in asked:
        path = out / f"{name.replace(' ', '-')}.json"
        command = f"python benchmarks/reference_runs.py FOLDER --only {name!r}"
        files.write_json(path, reference(folder / name.replace(" ", "-"), SEEDS, command))
    if "gpt2" in asked:
        picture(folder, asked["gpt2"], runs.HERE.parent / "docs" / "compare.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only")
    package = runs.HERE.parent / "src" / "scratchformers" / "training" / "reference_runs"
    parser.add_argument("--out", type=Path, default=package)
    given = parser.parse_args()
    main(given.folder, given.only, given.out)
