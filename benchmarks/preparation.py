"""What it takes to make ids of a long text, by `scratchformers train`: memory, time, a kill and what is gone on with,
and how long training on it waits for data.

    python benchmarks/preparation.py --out benchmarks/results/preparation.json

Memory is what is not mapped from files (RssAnon, which Linux says), above that of a process which has imported all
there is to import. The text is made of Python's help texts, in an order that is drawn, with words that are made up; it
and the ids are deleted afterwards.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import harness

PARAGRAPHS, WORDS = 4000, 40  # that the text is drawn from; made-up words in each
SETTINGS = {
    "steps": 40,
    "batch": 4,
    "dim": 48,
    "threads": 1,
    "eval_every": 40,
    "save_every": 40,
}  # of what is trained on it
ROWS = {  # of how many bytes of text, and how; whether it is killed on the way, and made again to compare
    "characters": (5_000_000_000, [], True, False),
    "characters, made again": (250_000_000, [], True, True),
    "bpe": (100_000_000, ["--tokenizer", "bpe", "--vocab", "8000"], False, False),
}


def write_text(path, size):
    """A text of at least so many bytes."""
    from pydoc_data.topics import topics

    draw = random.Random(0)
    words = [word for text in topics.values() for word in text.split()]
    letters = [word for word in set(words) if word.isalpha() and len(word) > 5]
    pool = []
    for _ in range(PARAGRAPHS):
        start = draw.randrange(len(words) - 600)
        some = words[start : start + 600]
        for _ in range(WORDS):
            one, other = draw.choices(letters, k=2)
            some[draw.randrange(600)] = one[: draw.randint(2, 5)] + other[draw.randint(1, 4) :]
        pool.append(" ".join(some) + "\n")
    written = number = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while written < size:
            block = "".join(f"{(number := number + 1):x}: {each}" for each in draw.choices(pool, k=500))
            written += file.write(block)


def child(arguments, out):
    """Runs the program here, and prints what memory it took."""
    import matplotlib.figure  # noqa: F401
    import rich.progress  # noqa: F401

    from scratchformers.cli import fix_threads, main

    fix_threads(None)
    import torch._dynamo  # noqa: F401 (of which torch's optimisers make use)

    from scratchformers.training import runs  # noqa: F401

    before, peaks, began, ready = anonymous(), [0.0, 0.0], time.monotonic(), []

    def look():
        while True:
            if not ready and (out / "log.jsonl").is_file():
                ready.append(time.monotonic() - began)
            peaks[len(ready)] = max(peaks[len(ready)], anonymous() - before)
            time.sleep(0.005)

    threading.Thread(target=look, daemon=True).start()
    status = main(arguments)
    found = {"preparing_mib": round(peaks[0], 1), "training_mib": round(peaks[1], 1), "seconds": round(ready[0], 1)}
    print(json.dumps(found), flush=True)
    return status


def anonymous():
    """Of this process, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def start(text, out, more):
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, __file__, "--child", str(out)]
    command += ["train", "gpt2", "--data", str(text), "--out", str(out), *settings, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process):
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(said)
    return json.loads(said.splitlines()[-1])


def kill(process, out, size):
    """As soon as a third is there; how much of it was noted."""
    journal = out / "tokens" / "train.json"
    while not journal.is_file() or json.loads(journal.read_text(encoding="utf-8"))["bytes"] < size / 3:
        if process.poll() is not None:
            raise SystemExit("It ended before it was killed.")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return json.loads(journal.read_text(encoding="utf-8"))["bytes"]


def digests(out):
    found = {}
    for path in sorted((out / "tokens").glob("*.ids")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def waiting(out):
    """The share of the steps' time that was waited for batches, the first one's aside."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [each for each in map(json.loads, lines) if "waited" in each and each["step"] > 1]
    return round(sum(each["waited"] for each in records) / sum(each["seconds"] for each in records), 5)


def measure(folder, size, more, killed, again):
    text, out, found = folder / "text.txt", folder / "run", {}
    write_text(text, size)
    found["text_bytes"] = text.stat().st_size
    if killed:
        began = time.monotonic()
        found["killed"] = {"ids_bytes": kill(start(text, out, more), out, size * 2)}
        found["killed"]["seconds"] = round(time.monotonic() - began, 1)
    found |= {**finish(start(text, out, more)), "waiting_share": waiting(out)}
    facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
    found["tokens"] = facts["data"]["tokens"] + facts["valid"]["tokens"]
    interrupted = digests(out)
    shutil.rmtree(out)
    if again:
        found |= {"uninterrupted": finish(start(text, out, more))}
        found["killed"]["equal_to_the_byte"] = interrupted == digests(out)
        shutil.rmtree(out)
    text.unlink()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of each row's text, to try it")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    result = {"command": "python benchmarks/preparation.py", "share": asked.share, "settings": SETTINGS, "rows": {}}
    result |= {"machine": harness.machine("cpu"), "versions": harness.versions("torch", "tokenizers")}
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, *how) in ROWS.items():
            result["rows"][name] = measure(Path(folder), int(size * asked.share), *how)
            print(name, json.dumps(result["rows"][name]), flush=True)
            if asked.out is not None:
                asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[3:], Path(sys.argv[2])))
    main()
