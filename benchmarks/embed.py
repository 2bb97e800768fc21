"""10,000 sentences of English novels to vectors with all-MiniLM-L6-v2, beside sentence-transformers, end to end.

    python benchmarks/embed.py ENGLISH_NOVELS --out benchmarks/results/embed-cpu.json     # needs the `bench` extra

Tokenising, batching, encoding, pooling and normalising, in one process, in turns, with the same threads, after the
vectors were found equal. sentence-transformers works at the batch size that is its fastest on a sample of the same
sentences. Memory is that of a process of ours for 2,000 sentences and for all there are, written to a file.
ENGLISH_NOVELS is as for novels.py: the sentences are those of its valid and test novels.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import harness
import novels

BATCHES = (8, 16, 32, 64, 128)
SAMPLE = 1000
MEMORY = """
import json, harness
from scratchformers import SentenceEncoder
harness.threads({threads})
from scratchformers.cli import Lines
from pathlib import Path
encoder = SentenceEncoder.from_pretrained({model!r})
before = harness.peak("cpu")
encoder.write(Lines(Path({texts!r})), Path({out!r}), truncate=True)
print(json.dumps([before, harness.peak("cpu")]))
"""


def sentences(source):
    """The sentences of novels, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        parts = novels.unpack(source, Path(folder))
        texts = [
            path.read_text(encoding="utf-8") for part in ("valid", "test") for path in sorted(parts[part].iterdir())
        ]
    found = (re.sub(r"\s+", " ", each).strip() for text in texts for each in re.split(r"(?<=[.!?])[\"'”’]?\s+", text))
    return [each for each in found if each]


def fastest(theirs, texts):
    """Seconds of the peer at each batch size, best of two."""
    found = {}
    for _ in range(2):
        for size in BATCHES:
            began = time.perf_counter()
            theirs.encode(texts, batch_size=size)
            found[size] = min(found.get(size, 1e9), time.perf_counter() - began)
    return found


def memory(model, texts, threads):
    """The most memory of a process, in MiB, before it begins and at its end, by the number of texts."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (2000, len(texts)):
            path = Path(folder, f"{count}.txt")
            path.write_text("\n".join(texts[:count]) + "\n", encoding="utf-8")
            same = {"model": model, "texts": str(path), "out": str(path.with_suffix(".npy")), "threads": threads}
            found[count] = [round(size) for size in harness.child(MEMORY, **same)]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="a hub id, or a folder")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("build/embed.json"))
    arguments = parser.parse_args()
    sys.modules["torchvision"] = None  # as in harness.HIDE
    harness.threads(arguments.threads)
    from sentence_transformers import SentenceTransformer

    import scratchformers as sf

    every = sentences(arguments.data)
    texts = every[: arguments.count]
    ours = sf.SentenceEncoder.from_pretrained(arguments.model)
    theirs = SentenceTransformer(arguments.model, device="cpu")
    batches = fastest(theirs, texts[:: max(1, len(texts) // SAMPLE)])
    size = min(batches, key=batches.get)
    a, b = ours(texts[:SAMPLE], truncate=True), theirs.encode(texts[:SAMPLE], batch_size=size)
    apart = float(abs(a - b).max())
    if apart > 1e-5:
        raise SystemExit(f"The vectors differ by {apart}: there is nothing to time.")
    work = {"ours": lambda: ours(texts, truncate=True), "theirs": lambda: theirs.encode(texts, batch_size=size)}
    seconds = {side: [] for side in work}
    for i in range(arguments.rounds):
        for side in list(work)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            work[side]()
            seconds[side].append(time.perf_counter() - began)
        print({side: round(values[-1], 1) for side, values in seconds.items()}, flush=True)
    results = {
        "command": f"python benchmarks/embed.py ENGLISH_NOVELS --rounds {arguments.rounds}",
        "sentences": len(texts),
        "tokens": sum(len(ids) for ids, _ in ours.tokenizer.encode_batch(texts, limit=ours.limit, truncate=True)),
        "largest difference": apart,
        "their seconds on a sample by batch size": {size: round(value, 2) for size, value in batches.items()},
        "their batch size": size,
        "theirs / ours": harness.ratio(seconds),
        "peak MiB of ours by sentences: loaded, at the end": memory(arguments.model, every, arguments.threads),
        "machine": harness.machine("cpu"),
        "versions": harness.versions("torch", "sentence-transformers", "transformers"),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results["theirs / ours"]))


if __name__ == "__main__":
    main()
