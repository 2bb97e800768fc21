"""Pictures and what is said of them: captions from a list or an .npz file, or classes, of which templates make them.

What stands for one picture is joined, so that a picture comes once, with all of its captions.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from scratchformers.clip_text import SLOT
from scratchformers.training.documents import string
from scratchformers.training.labelled import read_rows
from scratchformers.training.pictures import LISTS, SHOWN, Pictures, listed_pictures, read_pictures, split

LISTED = ("captions.tsv", "captions.csv", "captions.jsonl")  # in a folder of pictures
COLUMNS = {"path": "path", "caption": "caption"}  # what a column is to us, and its name unless told
CAPTIONS = "captions"  # what an .npz file calls them
TEMPLATE = "a photo of a {}."  # section 3.1.4 of CLIP's paper
FORMS = (
    f"a folder of pictures with {', '.join(LISTED[:-1])} or {LISTED[-1]}, such a list, an .npz file with pictures and "
    f"{CAPTIONS}, or pictures with classes"
)

Lines = Annotated[str, "lines"]  # a setting of several lines, which a file may hold
Unreadable = Literal["stop", "skip"]


def read_lines(text: str) -> str:
    """Lines of a UTF-8 file, where there is one of this name, or what `|` parts; without the empty ones."""
    content = Path(text).read_text(encoding="utf-8-sig") if os.path.isfile(text) else text.replace("|", "\n")
    return "\n".join(line.strip() for line in content.splitlines() if line.strip())


@dataclass(frozen=True)
class Pairs:
    """Pictures, each with its captions. Where those were made of classes, `pictures` has these, and `prompts` are the
    captions of each. `skipped` names pictures that could not be read and were left out."""

    pictures: Pictures
    captions: Sequence[tuple[str, ...]]
    prompts: Sequence[tuple[str, ...]] = ()
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.captions)

    def part(self, rows: Sequence[int]) -> "Pairs":
        return Pairs(self.pictures.part(rows), [self.captions[row] for row in rows], self.prompts)

    def digest(self) -> str:
        """sha256 by which a resumed run knows its data again."""
        found = hashlib.sha256(f"{self.pictures.digest()} {json.dumps(self.prompts)}".encode())
        for captions in self.captions:
            found.update(b"\n" + json.dumps(captions).encode())
        return found.hexdigest()


def read_pairs(
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    templates: Sequence[str] = (),
    names: Sequence[str] = (),
    unreadable: Unreadable = "stop",
) -> Pairs:
    """The pictures at `path` and their captions.

    A .tsv, .csv or .jsonl list with the columns (keys) `path`, from its own folder, and `caption`, or those that
    `columns` names instead; lines of one path are one picture with several captions, and in JSON lines a caption may be
    a list of them. A folder that holds such a list, named captions. An .npz file of pictures as `read_pictures` takes
    it, with `captions`: a row of texts, or (n, captions of each), where an empty one is none. Else pictures with
    classes as `read_pictures` takes them: their captions are the `templates` with the name of the class in the place of
    {}; `names` takes the place of the classes' names, or of their numbers, in their order.

    FileNotFoundError, or ValueError for all that does not fit.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected {FORMS}.")
    columns = columns or {}
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"There is no column for {', '.join(unknown)}: expected {' or '.join(COLUMNS)}.")
    listed, packed = _list(path, columns), path.suffix == ".npz" and _holds_captions(path)
    if listed is None and columns:
        raise ValueError(f"--column names a column of a list of captions, and {path} is none: leave it out.")
    if listed is None and not packed:
        return _of_classes(path, templates, names, unreadable)
    if templates and not names:
        raise ValueError(f"A template makes captions of classes, and {path} has captions of its own: leave it out.")
    return _packed(path, unreadable) if listed is None else _listed(listed, {**COLUMNS, **columns}, unreadable)


def prompts_of(names: Sequence[str], templates: Sequence[str]) -> list[tuple[str, ...]]:
    """The captions of each class, one of each template."""
    return [tuple(each.replace(SLOT, spoken(name)) for each in templates or (TEMPLATE,)) for name in names]


def spoken(label: str) -> str:
    """The name of a class in a text: folders often have `_` for a space."""
    return label.replace("_", " ")


def split_pairs(pairs: Pairs, *, seed: int) -> tuple[Pairs, Pairs]:
    """Those to learn from and a tenth held out, as `split` draws it."""
    places = {pairs.pictures.number(i): i for i in range(len(pairs))}
    train, held_out = ([places[part.number(i)] for i in range(len(part))] for part in split(pairs.pictures, seed=seed))
    return pairs.part(train), pairs.part(held_out)


def mentioned(captions: Sequence[str], names: Sequence[str]) -> int:
    """The number of the only one among `names` that stands in these captions as a word; -1 for none or several."""
    text = "\n".join(captions)
    found = [i for i, name in enumerate(names) if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else -1


# --- captions in a list


def _list(path: Path, columns: Mapping[str, str]) -> Path | None:
    """The list of captions that is meant by `path`; None where there is none."""
    if path.is_dir():
        found = [path / name for name in LISTED if (path / name).is_file()]
        if len(found) > 1:
            raise ValueError(f"{path} holds {' and '.join(file.name for file in found)}: pass one of them.")
        return found[0] if found else None
    if path.suffix == ".jsonl" or (path.suffix in LISTS and columns):
        return path
    if path.suffix not in LISTS:
        return None
    first = next((row for _, row in read_rows(path)), {})
    return None if "label" in first and "caption" not in first else path


def _listed(file: Path, names: Mapping[str, str], unreadable: Unreadable) -> Pairs:
    found: dict[str, tuple[str, dict[str, None]]] = {}
    for line, row in read_rows(file):
        where = f"{file}, line {line}"
        path, captions = _text(row, "path", names, where), _captions(row, names, where)
        found.setdefault(os.path.normpath(path), (path, {}))[1].update(dict.fromkeys(captions))
    if not found:
        raise ValueError(f"{file} lists no pictures: expected a path and a caption a line.")
    pictures = listed_pictures(file, [path for path, _ in found.values()], unreadable=unreadable)
    captions = [tuple(each) for _, each in found.values()]
    return Pairs(pictures, [captions[pictures.number(i)] for i in range(len(pictures))], (), pictures.skipped)


def _text(row: Mapping[str, Any], what: str, names: Mapping[str, str], where: str) -> str:
    if names[what] not in row:
        held = ", ".join(repr(name) for name in row)
        raise ValueError(f"{where}, has no {names[what]!r}: it has {held}. Say which it is: --column {what}=NAME.")
    text = string(row, names[what], where)
    if not text.strip():
        raise ValueError(f"{where}, has an empty {names[what]}: every picture needs a path and a caption.")
    return text


def _captions(row: Mapping[str, Any], names: Mapping[str, str], where: str) -> Iterator[str]:
    said = row.get(names["caption"])
    if isinstance(said, list) and not said:
        raise ValueError(f"{where}, has no {names['caption']}: every picture needs one.")
    for each in said if isinstance(said, list) else [said]:
        yield _text(row if each is said else {names["caption"]: each}, "caption", names, where)


# --- captions in an .npz file


def _holds_captions(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as held:
            return f"{CAPTIONS}.npy" in held.namelist()
    except (zipfile.BadZipFile, OSError):  # which is said where its pictures are read
        return False


def _packed(path: Path, unreadable: Unreadable) -> Pairs:
    pictures = read_pictures(path, labelled=False, unreadable=unreadable)
    rows, count = _read_captions(path), len(pictures) + len(pictures.skipped)
    if len(rows) != count:
        raise ValueError(f"{path} has {count} pictures and captions of {len(rows)}: expected some for each.")
    found: dict[str, tuple[int, dict[str, None]]] = {}
    for i in range(len(pictures)):
        captions = [text for text in rows[pictures.number(i)] if text.strip()]
        if not captions:
            raise ValueError(f"{pictures.name(i)} has no caption: every picture needs one.")
        found.setdefault(pictures.mark(i), (i, {}))[1].update(dict.fromkeys(captions))
    kept = [i for i, _ in found.values()]
    return Pairs(pictures.part(kept), [tuple(each) for _, each in found.values()], (), pictures.skipped)


def _read_captions(path: Path) -> list[list[str]]:
    """Of each picture of the file."""
    try:
        with np.load(path, allow_pickle=False) as held:
            array = held[CAPTIONS]
    except Exception as error:  # zipfile's, zlib's and numpy's
        raise ValueError(
            f"{path} has {CAPTIONS} that cannot be read ({' '.join(str(error).split())}): write them as "
            "np.array([...]) of texts."
        ) from None
    if array.ndim not in (1, 2) or array.dtype.kind not in "US":
        raise ValueError(
            f"{path} has {CAPTIONS} of shape {array.shape}, {array.dtype}: expected texts, (n,) or (n, captions)."
        )
    rows = array.reshape(len(array), -1).tolist()
    return [[text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in row] for row in rows]


# --- captions made of classes


def _of_classes(path: Path, templates: Sequence[str], names: Sequence[str], unreadable: Unreadable) -> Pairs:
    pictures = read_pictures(path, labelled=True, unreadable=unreadable)
    skipped, labels = pictures.skipped, _named(path, pictures.labels, names)
    pictures = pictures.renamed(labels)
    prompts = prompts_of(labels, templates)
    return Pairs(pictures, [prompts[target] for target in pictures.targets], prompts, skipped)


def _named(path: Path, labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """The classes' own names, by their numbers where the data has numbers, else in its order."""
    if not names:
        return [*labels]
    numbers = [int(label) for label in labels] if all(label.isdecimal() for label in labels) else range(len(labels))
    if max(numbers) >= len(names) or (len(names) != len(labels) and isinstance(numbers, range)):
        shown = ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
        raise ValueError(f"There are {len(names)} names for the classes of {path}, {shown}: expected one for each.")
    return [names[number] for number in numbers]
