"""Pairs of a source and its target, as translation is learnt from: a table with both, or two files line by line."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scratchformers.training.documents import string
from scratchformers.training.labelled import read_rows

COLUMNS = {"source": "source", "target": "target"}  # what a column is to us, and its name unless told
TABLES = (".tsv", ".csv", ".jsonl")
FORMS = f"a {', '.join(TABLES[:-1])} or {TABLES[-1]} file of pairs, or two files of lines, SOURCE,TARGET"

Pair = tuple[str, str]  # a source and its target


def read_parallel(given: Path | str, columns: Mapping[str, str] | None = None) -> list[Pair]:
    """A table whose columns (keys) are `source` and `target`, or those that `columns` names instead; a .tsv without
    such a first line, known by two fields with a space in one, which no name of a column has; or two UTF-8 files, a
    comma between their paths, of which each line of the one belongs to that line of the other.

    FileNotFoundError, or ValueError with file and line for what is empty or does not fit.
    """
    columns, paths = columns or {}, parallel_paths(given)
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"There is no column for {', '.join(unknown)}: expected source or target.")
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is no file: expected {FORMS}.")
    if len(paths) == 2 and columns:
        raise ValueError("--column names a column of a table, and two files have none: leave it out.")
    if len(paths) == 1 and paths[0].suffix not in TABLES:
        raise ValueError(f"{given} alone holds no pairs: expected {FORMS}.")
    found = _aligned(*paths) if len(paths) == 2 else _table(paths[0], columns)
    pairs = [_checked(pair, wheres) for pair, wheres in found]
    if not pairs:
        raise ValueError(f"{given} holds no pairs: expected {FORMS}.")
    return pairs


def parallel_paths(given: Path | str) -> list[Path]:
    """The file that is meant, or the two whose paths a comma parts."""
    parts = str(given).split(",")
    return (
        [Path(part) for part in parts]
        if len(parts) == 2 and all(parts) and not os.path.exists(given)
        else [Path(given)]
    )


def digest(pairs: Iterable[Pair]) -> str:
    """sha256 by which a resumed run knows its data again."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(json.dumps(pair).encode() + b"\n")
    return found.hexdigest()


def _checked(pair: Pair, wheres: Iterable[str]) -> Pair:
    """`wheres` say where each half stands."""
    for text, where in zip(pair, wheres):
        if not text.strip():
            raise ValueError(f"{where}, is empty: every pair needs a source and a target, so leave this one out.")
    return pair


def _aligned(source: Path, target: Path) -> Iterator[tuple[Pair, list[str]]]:
    halves = _lines(source), _lines(target)
    if len(halves[0]) != len(halves[1]):
        counts = f"{source} has {len(halves[0])} lines and {target} {len(halves[1])}"
        raise ValueError(f"{counts}: expected a line of the one for each line of the other.")
    for number, pair in enumerate(zip(*halves), 1):
        yield pair, [f"{path}, line {number}" for path in (source, target)]


def _table(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[Pair, list[str]]]:
    if path.suffix == ".tsv" and not columns and _begins_with_a_pair(path):
        for number, line in enumerate(_lines(path), 1):
            fields = line.split("\t")
            if len(fields) != 2:
                raise ValueError(
                    f"{path}, line {number}, has {len(fields)} fields: expected a source, a tab, a target."
                )
            yield (fields[0], fields[1]), [f"{path}, line {number}, {each}" for each in COLUMNS]
        return
    names = {**COLUMNS, **columns}
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        source, target = (_text(row, what, name, where) for what, name in names.items())
        yield (source, target), [f"{where}, {name}" for name in names.values()]


def _begins_with_a_pair(path: Path) -> bool:
    fields = (_lines(path) or [""])[0].split("\t")
    return len(fields) == 2 and any(" " in field.strip() for field in fields)


def _text(row: Mapping[str, Any], what: str, name: str, where: str) -> str:
    if name not in row:
        held = ", ".join(map(repr, row))
        raise ValueError(
            f"{where}, has no column {name!r}: it has {held}. Say which it is: --column {what}=NAME; in a table the "
            "first line names them."
        )
    return string(row, name, where)


def _lines(path: Path) -> list[str]:
    """Without their ends; nothing but a line feed, a return before it or not, ends one."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    return lines if lines[-1] else lines[:-1]
