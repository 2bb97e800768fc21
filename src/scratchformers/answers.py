"""Files in, files out: a prompt a line, an answer a line. Memory holds one batch; a run that was stopped goes on.

An answers file is JSON lines in the order of the prompts. Each says by which settings it was made, so that a file is
never continued with others. It is cut back to whole batches, so that it ends up as if it had not been interrupted.
Where line k is to be the answer to line k and nothing else, a file beside it says that (`LineByLine`).
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]


def read_prompts(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file without their ends, empty ones left out; of a .jsonl file the `prompt` of each."""
    for number, line in enumerate(read_lines(path, newline="\n" if path.suffix == ".jsonl" else None), 1):
        if line.strip("\r\n"):
            yield _prompt(path, number, line) if path.suffix == ".jsonl" else line


def read_lines(path: Path, *, newline: str | None = None) -> Iterator[str]:
    """The lines of a UTF-8 text file without their ends, the empty ones too."""
    try:
        file = path.open(encoding="utf-8-sig", newline=newline)
    except OSError as error:
        raise _said(error, f"{path} cannot be read") from None
    with file:
        try:
            for line in file:
                yield line.removesuffix("\n")
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


def _digest(settings: Mapping[str, Any]) -> str:
    said = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(said.encode("utf-8")).hexdigest()[:12]


def _append(file: BinaryIO, content: bytes, path: Path) -> None:
    """On disk before it returns."""
    try:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise _said(error, f"{path} cannot be written") from None


def check_files(prompts: Path, path: Path, *, what: str = "prompts") -> None:
    """Raises ValueError or OSError if prompts are missing or can be read but once, or `path` takes no answers."""
    if prompts.exists() and not prompts.is_file() and not prompts.is_dir():  # a folder is an error of opening it
        raise ValueError(f"{prompts} cannot be read twice, which going on needs: write the {what} into a file.")
    if next(read_prompts(prompts), None) is None:
        raise ValueError(f"{prompts} holds no {what}: write one a line.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} cannot be written: it is no regular file.")
    if path.exists() and path.samefile(prompts):
        raise ValueError(f"{path} holds the {what}: choose another file for the answers.")


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
        self.settings = _digest({**settings, "batch": batch})
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
                _append(file, b"".join(lines), self.path)
                self.done += len(batch)
                self.failed += sum("error" in record for record in records)
                yield self.done


class LineByLine:
    """A text file made of another: its line k of line k, `block` of them at a time. Opening it finds out how many there
    are already. PATH.json beside it says of which lines and by which settings it is made, and stays there.

    settings: everything a line depends on, as JSON. Raises ValueError if the file is of other lines, or was made by
    other settings or by something else, OSError if it cannot be written.
    """

    def __init__(self, source: Path, path: Path, settings: Mapping[str, Any], *, block: int):
        check_files(source, path, what="texts")
        self.source, self.path, self.block = source, path, block
        self.beside = path.with_name(f"{path.name}.json")
        own, self.lines = hashlib.sha256(), 0
        for self.lines, line in enumerate(read_lines(source), 1):
            own.update(f"{line}\n".encode())
        facts = {"lines": self.lines, "sha256": own.hexdigest(), "settings": _digest({**settings, "block": block})}
        try:
            self._claim(facts)
            self.done = self._cut()
        except OSError as error:
            raise _said(error, f"{path} cannot be written") from None

    def _claim(self, facts: Record) -> None:
        """Says beside the file what it is; ValueError if it is something else."""
        said, begun = _facts(self.beside), self.path.exists() and self.path.stat().st_size
        if said == facts:
            return
        if said is None and self.beside.exists():
            raise ValueError(
                f"{self.beside} is in the way, where it would be said what {self.path} is made of: move it."
            )
        if begun:
            what = "exists already, and is not said to be made here"
            if said is not None:
                same = all(said[name] == facts[name] for name in ("lines", "sha256"))
                what = "was made with another model or other settings" if same else "is of other lines than those of"
                what += "" if same else f" {self.source}"
            raise ValueError(f"{self.path} {what}: choose another file, or delete it to begin anew.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.beside.with_name(f"{self.beside.name}.{os.getpid()}")
        with written.open("wb") as file:
            _append(file, json.dumps(facts).encode("utf-8"), written)
        written.replace(self.beside)

    def _cut(self) -> int:
        """How many lines of whole blocks there are; what follows them is removed."""
        done = end = size = number = 0
        with self.path.open("ab+") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                size += len(line)
                if line.endswith(b"\n") and (number % self.block == 0 or number == self.lines):
                    done, end = number, size
            if number > self.lines:
                raise ValueError(f"{self.path} has more lines than {self.source}: delete it to begin anew.")
            file.truncate(end)
        return done

    def run(self, answer: Callable[[int, list[str]], list[str]]) -> Iterator[int]:
        """Calls `answer` with the number of the first line (from 0) and the lines of each block, writes what it gives,
        on disk before the next, and yields how many are done. A line break within an answer becomes a space."""
        left = itertools.islice(read_lines(self.source), self.done, None)
        with self.path.open("ab") as file:
            while block := list(itertools.islice(left, self.block)):
                lines = (re.sub(r"[\r\n]+", " ", line) + "\n" for line in answer(self.done, block))
                _append(file, "".join(lines).encode("utf-8", "replace"), self.path)
                self.done += len(block)
                yield self.done


def _facts(path: Path) -> Any:
    """What `LineByLine` wrote there; None where that is nothing."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(said, dict) and said.keys() == {"lines", "sha256", "settings"}
    return said if known else None
