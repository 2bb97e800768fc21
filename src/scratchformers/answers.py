"""Files in, files out: a prompt a line, an answer a line. Memory holds one batch; a run that was stopped goes on.

An answers file is JSON lines in the order of the prompts. Each says by which settings it was made, so that a file is
never continued with others. It is cut back to whole batches, so that it ends up as if it had not been interrupted.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_prompts(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file without their ends, empty ones left out; of a .jsonl file the `prompt` of each."""
    try:
        file = path.open(encoding="utf-8-sig", newline="\n" if path.suffix == ".jsonl" else None)
    except OSError as error:
        raise _said(error, f"{path} cannot be read") from None
    with file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip("\r\n"):
                    yield _prompt(path, number, line) if path.suffix == ".jsonl" else line.removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error.reason}): convert it.") from None


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not valid JSON ({error}).") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{path}, line {number} has no text called "prompt": expected {{"prompt": "..."}}.')
    return record["prompt"]


def _said(error: OSError, what: str) -> OSError:
    return type(error)(f"{what}: {(error.strerror or str(error)).lower()}.")


def _line(record: Record) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        return (json.dumps(record) + "\n").encode("utf-8")


def check_files(prompts: Path, path: Path) -> None:
    """Raises ValueError or OSError if prompts are missing or can be read but once, or `path` takes no answers."""
    if prompts.exists() and not prompts.is_file() and not prompts.is_dir():  # a folder is an error of opening it
        raise ValueError(f"{prompts} cannot be read twice, which going on needs: write the prompts into a file.")
    if next(read_prompts(prompts), None) is None:
        raise ValueError(f"{prompts} holds no prompts: write one a line.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} cannot be written: it is no regular file.")
    if path.exists() and path.samefile(prompts):
        raise ValueError(f"{path} holds the prompts: choose another file for the answers.")


class Answers:
    """The answers to the prompts of a file, `batch` at a time. Opening it finds out how many there are already.

    settings: everything an answer depends on, as JSON. Raises ValueError if the file answers other prompts or was made
    by other settings, OSError if it cannot be written.
    """

    def __init__(self, prompts: Path, path: Path, settings: Mapping[str, Any], *, batch: int):
        if batch < 1:
            raise ValueError(f"batch is {batch}: expected at least 1.")
        check_files(prompts, path)
        self.prompts, self.path, self.batch = prompts, path, batch
        said = json.dumps({**settings, "batch": batch}, sort_keys=True, default=str)
        self.settings = hashlib.sha256(said.encode("utf-8")).hexdigest()[:12]
        self.failed = 0
        self.done = self._cut()

    def _cut(self) -> int:
        """How many answers of whole batches there are; what follows them is removed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                file.seek(0)
                done, end = self._whole(file, read_prompts(self.prompts))
                file.truncate(end)
        except OSError as error:
            raise _said(error, f"{self.path} cannot be written") from None
        return done

    def _whole(self, lines: Any, prompts: Iterator[str]) -> tuple[int, int]:
        done = end = size = failed = number = 0
        for number, line in enumerate(lines, 1):
            begun = b'{"prompt": '
            if not line.endswith(b"\n") and line[: len(begun)] == begun[: len(line)]:
                break  # torn: the process was stopped while it wrote
            record = self._checked(line, next(prompts, None), number)
            size += len(line)
            failed += "error" in record
            if number % self.batch == 0:
                done, end, self.failed = number, size, failed
        else:
            if next(prompts, None) is None:  # all are answered, the last batch too, however small
                done, end, self.failed = number, size, failed
        return done, end

    def _checked(self, line: bytes, prompt: str | None, number: int) -> Record:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        what = ""
        if not isinstance(record, dict) or not {"prompt", "settings"} <= record.keys():
            what, record = "is no answer of this program", {}
        elif record["prompt"] != prompt:
            what = f"answers another prompt than line {number} of {self.prompts}"
        elif record["settings"] != self.settings:
            what = "was made with another model or other settings"
        if what:
            raise ValueError(f"{self.path}, line {number} {what}: choose another file, or delete it to begin anew.")
        return record

    def run(self, answer: Callable[[int, list[str]], list[Record]]) -> Iterator[int]:
        """Calls `answer` with the number of the first prompt (from 0) and the prompts of each batch, writes what it
        gives, on disk before the next, and yields how many are answered. A record with "error" counts as failed."""
        left = itertools.islice(read_prompts(self.prompts), self.done, None)
        with self.path.open("ab") as file:
            while batch := list(itertools.islice(left, self.batch)):
                records = answer(self.done, batch)
                lines = [
                    _line({"prompt": prompt, **record, "settings": self.settings})
                    for prompt, record in zip(batch, records)
                ]
                try:
                    file.write(b"".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise _said(error, f"{self.path} cannot be written") from None
                self.done += len(batch)
                self.failed += sum("error" in record for record in records)
                yield self.done
