"""What share of a training step is spent waiting for its pictures: JPEGs of 500 x 375, decoded anew for every step.

    python benchmarks/loading.py --out benchmarks/results/loading.json

The program trains as a user would call it, on photographs of scikit-learn's (the `demo` extra) cut in 256 ways, with
random resized crops and flips; its log says how long each step waited for its batch. The first step, which nothing
could be read ahead of, is left out.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import harness
import runs

PICTURES, SIZE = 256, (500, 375)
RECIPES = {  # preset, batch, steps
    "vit of 5.5 M parameters, 224 pixels": ("vit", "tiny-16", 32, 25),
    "vit of 86 M parameters, 224 pixels": ("vit", "base-16", 16, 9),
    "vit of 0.8 M parameters, 32 pixels": ("vit", "tiny", 64, 41),
    "mae of 112 M parameters, 224 pixels": ("mae", "base", 16, 9),
}


def photographs(folder):
    """In two classes, and no two alike."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    draw, images = np.random.default_rng(0), load_sample_images().images
    for i in range(PICTURES):
        pixels = images[i % 2]
        top, left = draw.integers(0, pixels.shape[0] - SIZE[1]), draw.integers(0, pixels.shape[1] - SIZE[0])
        place = folder / ("china", "flower")[i % 2] / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[top : top + SIZE[1], left : left + SIZE[0]]).save(place, quality=90)


def waited(recipe, preset, batch, steps, data, out):
    """Of the steps after the first: the share of their time, and the seconds of the median one."""
    settings = {"batch": batch, "steps": steps, "warmup": 1, "eval_every": steps, "save_every": steps}
    runs.train(recipe, data, out, settings, 0, "--preset", preset)
    log = [record for record in runs.records(out / "log.jsonl") if "waited" in record][1:]
    seconds = [record["seconds"] for record in log]
    share = sum(record["waited"] for record in log) / sum(seconds)
    return {"share": round(share, 4), "pictures a second": round(batch / statistics.median(seconds), 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    harness.threads(min(2, os.cpu_count() or 1))
    results = {"command": " ".join(["python benchmarks/loading.py", *sys.argv[1:]]), "pictures": [PICTURES, *SIZE]}
    results |= {"machine": harness.machine("cpu"), "versions": harness.versions("torch", "pillow"), "waited": {}}
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder) / "photographs")
        for i, (name, work) in enumerate(RECIPES.items()):
            results["waited"][name] = waited(*work, Path(folder) / "photographs", Path(folder) / str(i))
            print(name, results["waited"][name], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
