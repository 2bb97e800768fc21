"""The README's table of models, and what `verify` finds for each at its published size, on random weights.

python benchmarks/table.py --measure benchmarks/results/verify.json --readme README.md  # half a minute
python benchmarks/table.py --results benchmarks/results/verify.json --readme README.md  # the table alone
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

import harness
import report

# What a reader wants to know of each model; the last column is written from what was measured.
WORDS = {
    "gpt2": (
        "GPT-2",
        "[`gpt2.py`](src/scratchformers/models/gpt2.py)",
        "Hugging Face folders and hub ids, `.safetensors` or `.bin`",
        "on text, from nothing or a checkpoint; by characters, a BPE of its own, or a tokeniser",
        "[`lessons/gpt2.py`](lessons/gpt2.py): from nothing to the published weights",
    ),
    "bert": (
        "BERT",
        "[`bert.py`](src/scratchformers/models/bert.py)",
        "the same, all published forms, sentence-transformers' too; WordPiece cased and uncased",
        "on text with hidden tokens, on labels of texts and of words; from nothing or a checkpoint",
        "[`lessons/bert.py`](lessons/bert.py): from masking to a filled mask",
    ),
    "vit": (
        "ViT",
        "[`vit.py`](src/scratchformers/models/vit.py)",
        "the same, timm's and DeiT's files, an MAE's encoder ([which is what](docs/pictures.md))",
        "on folders of classes, lists, `.npz`, idx; from nothing, a ViT, or an MAE's encoder",
        "[`lessons/vit.py`](lessons/vit.py): a picture read as text",
    ),
    "mae": (
        "ViT-MAE",
        "[`mae.py`](src/scratchformers/models/mae.py)",
        "the same, facebook's `.pth` files, encoders alone",
        "on pictures without classes",
        "[`lessons/mae.py`](lessons/mae.py): what is hidden, painted",
    ),
    "clip": (
        "CLIP",
        "[`clip.py`](src/scratchformers/models/clip.py)",
        "OpenAI's `.pt` files, of which nothing is run, Hugging Face's, open_clip's",
        "on pictures with captions, or with classes and templates; from nothing or a checkpoint",
        "[`lessons/clip.py`](lessons/clip.py): pictures and texts in one space",
    ),
    "encoder_decoder": (
        "Transformer (BART, Marian)",
        "[`encoder_decoder.py`](src/scratchformers/models/encoder_decoder.py)",
        "BART, mBART and Marian (OPUS-MT): Hugging Face folders and hub ids; SentencePiece, byte-level BPE",
        "on pairs of texts, from nothing or a checkpoint; by characters, or a BPE for both sides or each",
        "[`lessons/encoder_decoder.py`](lessons/encoder_decoder.py): a source read, a target written",
    ),
}
OTHERS = "| | | | | [einops](lessons/einops.py): the one tool all pages use | |"


def measure(name):
    """The largest differences anywhere, of a checkpoint that the peer wrote in its published size."""
    from scratchformers.insight.verify import verify

    with tempfile.TemporaryDirectory() as folder:
        harness.child(importlib.import_module(name).MAKE, folder=folder)
        began = time.perf_counter()
        found = verify(Path(folder), name=name)
        seconds = time.perf_counter() - began
    if not found.passes:
        raise SystemExit(f"{name}: ours and theirs differ, first at {found.diverges}. {' '.join(found.problems)}")
    relative = {
        dtype: max(place.largest[dtype] / max(1.0, place.scale) for place in found.places)
        for dtype in ("float64", "float32")
    }
    return {"against": found.against, "relative": relative, "seconds": round(seconds, 1), "report": found.to_json()}


def table(results):
    lines = ["| model | page | loads | trains | lesson | [verified](#prove-it) |", "|---|---|---|---|---|---|"]
    for name, words in WORDS.items():
        found = results["models"][name]
        apart = ", ".join(f"{value:.0e} in {dtype}" for dtype, value in found["relative"].items())
        lines.append("| " + " | ".join([*words, f"within {apart} of {found['against'].partition(',')[0]}"]) + " |")
    return "\n".join([*lines, OTHERS])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, help="where to write what is found")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--readme", type=Path)
    arguments = parser.parse_args()
    path = arguments.measure or arguments.results
    if path is None:
        parser.error("pass --measure or --results.")
    if arguments.measure:
        sys.modules["torchvision"] = None
        results = {
            "command": " ".join(["python benchmarks/table.py", *sys.argv[1:]]),
            "models": {name: measure(name) for name in WORDS},
            "machine": harness.machine("cpu"),
            "versions": harness.versions("torch", "transformers"),
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    if arguments.readme:
        text = arguments.readme.read_text(encoding="utf-8")
        arguments.readme.write_text(report.replaced(text, "models", table(results)), encoding="utf-8")
    else:
        print(table(results))


if __name__ == "__main__":
    main()
