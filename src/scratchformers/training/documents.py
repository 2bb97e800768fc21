"""The texts a user points at: a text file, JSON lines, a folder of both, or a data set of the Hugging Face hub.

Each is a document. They are read anew whenever they are gone through, a text file piece by piece, so that of a long one
no more than a piece is in memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

READ = 1 << 20  # characters of a text file read at once
HUB = "hf:"
HUB_FORM = "hf:NAME[,config=...][,split=train][,column=text]"


Piece = tuple[int, str]  # of a document, and its number


@dataclass(frozen=True)
class Documents:
    """Texts that can be gone through again and again; `read` begins to read them: each whole, or as pieces that follow
    each other. `bytes` is how large the files are they are read from, where that is known."""

    read: Callable[[], Iterator[str | Iterable[str]]]
    bytes: int = 0

    def __iter__(self) -> Iterator[str]:
        """Each whole."""
        return (document if isinstance(document, str) else "".join(document) for document in self.read())

    def pieces(self) -> Iterator[Piece]:
        """All that is to be read, in pieces, each after the number of its document."""
        for number, document in enumerate(self.read()):
            for text in [document] if isinstance(document, str) else document:
                yield number, text

    def part(self, start: int, stop: int) -> "Documents":
        """Characters `start` to `stop`, counted over all texts: those at the ends may be cut."""
        return Documents(lambda: apart(_part(self.pieces(), start, stop)))


def apart(pieces: Iterable[Piece]) -> Iterator[Iterator[str]]:
    """The pieces of each document; those of the next one when these were gone through."""
    return ((text for _, text in group) for _, group in groupby(pieces, key=itemgetter(0)))


def _part(pieces: Iterable[Piece], start: int, stop: int) -> Iterator[Piece]:
    for number, text in pieces:
        if stop <= 0:
            return
        if piece := text[max(0, start) : stop]:
            yield number, piece
        start, stop = start - len(text), stop - len(text)


def read_texts(source: Path | str) -> Documents:
    """The documents of `source`, empty ones left out.

    A file is one document, but for a .jsonl file, each of whose lines is one: an object with a `text`. Of a folder, all
    .txt and .jsonl files below it are read, hidden ones aside, in the order of their names. `hf:NAME` is a data set of
    the hub, or a folder of one, by way of the `datasets` library: `hf:Salesforce/wikitext,config=wikitext-2-raw-v1`.
    `split` is `train` unless told, `column` is `text`, or the only one that holds text; each row is a document.
    """
    documents = _hub(str(source)) if str(source).startswith(HUB) else _files(Path(source))
    if next(documents.pieces(), None) is None:
        raise ValueError(
            f"{source} holds no text: expected a UTF-8 text or .jsonl file that is not empty, or a folder of such."
        )
    return documents


def _files(path: Path) -> Documents:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: expected a text file, a .jsonl file, a folder of them, or {HUB_FORM}."
        )
    below = (
        p
        for p in path.rglob("*")
        if p.suffix in (".txt", ".jsonl") and p.is_file() and not _hidden(p.relative_to(path))
    )
    files = [path] if path.is_file() else sorted(below)
    size = sum(file.stat().st_size for file in files)
    return Documents(lambda: (text for file in files for text in _read(file)), size)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path) -> Iterator[str | Iterator[str]]:
    """Its documents, but for empty ones."""
    if path.suffix == ".jsonl":
        yield from (text for where, row in read_json_lines(path) if (text := string(row, "text", where)))
        return
    pieces = _read_text(path)
    if (first := next(pieces, None)) is not None:
        yield chain([first], pieces)


def _read_text(path: Path) -> Iterator[str]:
    """The text of a file in pieces."""
    try:
        with path.open("rb") as held:
            file = TextIOWrapper(held, encoding="utf-8-sig")
            try:
                while text := file.read(READ):
                    yield text
            except UnicodeDecodeError as error:
                place = held.tell() - len(error.object) + error.start  # what could not be read was read last
                what = f"byte {place} is {error.object[error.start]:#04x}"
                raise ValueError(f"{path} is not UTF-8 ({what}): convert it.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that holds one a line, each after the words that say where it stands; empty lines do not
    count. ValueError for what is no object."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield (where := f"{path}, line {number}"), _object(line, where)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}, is no JSON ({error}): expected one object a line, in UTF-8.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}, holds a {type(row).__name__}: expected an object, {{...}}.")
    return row


def string(row: Mapping[str, Any], name: str, where: str) -> str:
    """The text under `name`. ValueError if there is none, or if it is no valid Unicode, as JSON allows."""
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where}, has no text under {name!r}: its names are {', '.join(map(repr, row)) or 'none'}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where}, is no valid Unicode (it holds half of a surrogate pair).") from None
    return value


def hub_parts(source: str) -> tuple[str, dict[str, str]]:
    """`hf:NAME,key=value,...` as the name and the rest."""
    name, *options = source.removeprefix(HUB).split(",")
    given = {key: value for key, _, value in (option.partition("=") for option in options)}
    if not name or not all(given.values()) or not given.keys() <= {"config", "split", "column"}:
        raise ValueError(f"{source} names no data set: expected {HUB_FORM}.")
    return name, given


def _hub(source: str) -> Documents:
    name, given = hub_parts(source)
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{source} needs the library `datasets`: pip install datasets.") from None
    try:
        rows: Any = load_dataset(name, given.get("config"), split=given.get("split", "train"))
    except Exception as error:  # of the library, of the hub's and of the network
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source} cannot be read ({said}): check the name, the split and the network.") from None
    column = _column(rows.features, given.get("column"), source)
    batches = rows.select_columns([column])
    return Documents(lambda: (text for batch in batches.iter(batch_size=1000) for text in batch[column] if text))


def _column(features: Any, asked: str | None, source: str) -> str:
    texts = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    chosen = asked or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if chosen is None or chosen not in texts:
        what = f"has no text in a column {asked!r}" if asked else "does not say which column is the text"
        raise ValueError(f"{source} {what}: add ,column=... with one of {', '.join(texts) or '(it has none)'}.")
    return chosen


def digest(texts: Iterable[str]) -> str:
    """sha256 over the texts, so that a run can tell whether its data is still the data it began with."""
    documents = texts if isinstance(texts, Documents) else Documents(lambda: iter(texts))
    return survey(documents.pieces()).sha256


class Survey:
    """What pieces of documents come to, as they are gone through: characters, bytes of UTF-8, documents, and sha256."""

    def __init__(self):
        self.size = self.bytes = self.documents = self.first = 0  # first: characters of the first document
        self._whole, self._one, self._number = hashlib.sha256(), hashlib.sha256(), -1

    def through(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for number, text in pieces:
            if number != self._number:
                self._close()
                self._number, self._one = number, hashlib.sha256()
                self.documents += 1
            self._one.update(encoded := text.encode("utf-8"))
            self.size, self.bytes = self.size + len(text), self.bytes + len(encoded)
            self.first += len(text) if self.documents == 1 else 0
            yield number, text
        self._close()

    def _close(self) -> None:
        if self.documents:
            self._whole.update(self._one.digest())

    @property
    def sha256(self) -> str:
        return self._whole.hexdigest()


def survey(pieces: Iterable[Piece]) -> Survey:
    found = Survey()
    for _ in found.through(pieces):
        pass
    return found
