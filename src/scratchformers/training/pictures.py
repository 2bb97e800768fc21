"""Pictures to learn from or to be measured on: folders, lists, .npz and idx files.

They stay where they are and each is decoded when it is asked for; what cannot be a picture is found when they are read.
"""

import gzip
import hashlib
import io
import json
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError

from scratchformers.images import FORMATS, open_picture
from scratchformers.training.data import generator
from scratchformers.training.labelled import read_rows

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
LISTS = (".csv", ".tsv")
IMAGES = ("images", "x", "data", "x_train", "train_images")  # what the pictures of an .npz file are called
LABELS = ("labels", "y", "targets", "y_train", "train_labels")
IDX = re.compile(r"images([-.])idx3-ubyte(\.gz)?$")  # of MNIST and those made like it
PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}  # of a data set: no classes
HELD_OUT = re.compile(r"(?<![a-z])(test|testing|val|valid|validation|dev|t10k)(?![a-z])")
CHUNK = 1 << 20  # bytes read at a time
SHOWN = 5  # names in a message


class Source(Protocol):
    """Where pictures are, by number. `name` is short, `place` is what an error says."""

    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...
    def place(self, i: int) -> str: ...
    def image(self, i: int) -> Image.Image: ...
    def fault(self, i: int) -> str | None: ...  # why it is no picture, as its first bytes tell
    def mark(self, i: int) -> list[Any]: ...  # what it is known again by


class Pictures:
    """Pictures, none of them decoded before it is asked for.

    `labels` are the names of the classes and `targets` the number of each picture's class; without classes both are
    empty. `skipped` names those that could not be read and were left out.
    """

    def __init__(
        self,
        source: Source,
        rows: Sequence[int],
        labels: Sequence[str] = (),
        targets: Sequence[int] = (),
        skipped: Sequence[str] = (),
    ):
        self._source, self._rows = source, rows
        self.labels, self.targets, self.skipped = tuple(labels), list(targets), list(skipped)

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, i: int) -> Image.Image:
        """The picture, decoded now. ValueError that names it if it cannot be."""
        return self._source.image(self._rows[i])

    def name(self, i: int) -> str:
        """Its path below the folder or as listed, or "train.npz[17]", where 17 may be its name within the file."""
        return self._source.name(self._rows[i])

    def number(self, i: int) -> int:
        """Its place among all that were found, those that were left out too."""
        return self._rows[i]

    def mark(self, i: int) -> str:
        """What it is known again by: of a file its path and size, of what is packed its content."""
        return json.dumps(self._source.mark(self._rows[i]))

    def digest(self) -> str:
        """sha256 by which a resumed run knows its data again: over the names and sizes in bytes of files, the contents
        of what is packed, and the classes."""
        found = hashlib.sha256(json.dumps(self.labels).encode())
        for i, row in enumerate(self._rows):
            line = [*self._source.mark(row), *self.targets[i : i + 1]]
            found.update(b"\n" + json.dumps(line).encode())
        return found.hexdigest()

    def part(self, rows: Sequence[int]) -> "Pictures":
        """These rows only, with the labels of all."""
        targets = [self.targets[i] for i in rows] if self.targets else []
        return Pictures(self._source, [self._rows[i] for i in rows], self.labels, targets)

    def renamed(self, labels: Sequence[str]) -> "Pictures":
        """The same, of classes that are called so."""
        return Pictures(self._source, self._rows, labels, self.targets, self.skipped)


def read_pictures(
    path: Path | str, *, labelled: bool | None = None, unreadable: Literal["stop", "skip"] = "stop"
) -> Pictures:
    """The pictures of a folder, a list, a packed file, or one picture.

    A folder with a folder for each class, deeper ones within; a folder of pictures at any depth; a .csv or .tsv list
    with the columns `path`, from its own folder, and maybe `label`; an .npz file of pixels (`images`, `x` or `data`:
    uint8, (n, height, width) or with 1, 3 or 4 channels last) or of encoded pictures (`data` uint8 and `offsets`), with
    `labels`, `y` or `targets` and their `names`, or a folder of such files; MNIST's idx files, or a folder of them. A
    folder of packed files means those to train on. What is packed and compressed is unpacked into memory; what is not
    compressed is read in its place.

    `labelled` asks for classes, or for none; None takes them where there are two or more, and in a folder where no
    picture lies outside a folder of a class. Every header is looked at: what is no picture stops the reading, or is
    left out and named in `skipped`. Raises FileNotFoundError, or ValueError for all that does not fit.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected {_forms()}.")
    found = _folder(path, labelled) if path.is_dir() else _file(path, labelled)
    if labelled and not found.targets:
        raise ValueError(found.unlabelled)
    rows, skipped = _readable(found.source, path, unreadable)
    if labelled is False or not found.targets:
        return Pictures(found.source, rows, skipped=skipped)
    targets = [found.targets[i] for i in rows]
    kept = set(targets)
    if lost := set(found.targets) - kept:
        raise ValueError(f"No picture of the class {found.labels[min(lost)]!r} can be read: {path} needs some of each.")
    if len(kept) > 1:
        return Pictures(found.source, rows, found.labels, targets, skipped)
    if labelled:
        raise ValueError(
            f"Every picture of {path} is of the class {found.labels[targets[0]]!r}: there is nothing to tell apart, "
            "expected two classes or more."
        )
    return Pictures(found.source, rows, skipped=skipped)


def listed_pictures(path: Path, names: Sequence[str], *, unreadable: Literal["stop", "skip"] = "stop") -> Pictures:
    """Those that the list `path` names, from its own folder. ValueError, which names them, if some are not there."""
    absent = [name for name in names if not (path.parent / name).is_file()]
    if absent and (unreadable == "stop" or len(absent) == len(names)):
        shown = ", ".join(absent[:SHOWN]) + (f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else "")
        raise ValueError(
            f"{path} names {len(absent)} of {len(names)} pictures that are not there ({shown}): expected paths from "
            f"{path.parent}; put them there, or leave them out with --skip-unreadable."
        )
    source = _Files(path.parent, names)
    rows, skipped = _readable(source, path, unreadable)
    return Pictures(source, rows, skipped=skipped)


def said_left_out(names: Sequence[str]) -> list[str]:
    """A sentence on pictures that could not be read, where there are some."""
    return [f"{len(names)} pictures could not be read and are left out: {', '.join(names)}."] if names else []


def split(pictures: Pictures, *, seed: int, share: float = 0.1) -> tuple[Pictures, Pictures]:
    """Those to train on and a `share` held out, at least one, drawn from each class by its size; every class keeps one
    to train on. ValueError if there are too few."""
    if not 0 < share < 1:
        raise ValueError(f"share is {share}: expected a number between 0 and 1, the part to be held out.")
    groups: dict[int, list[int]] = {}
    for row, target in enumerate(pictures.targets or [0] * len(pictures)):
        groups.setdefault(target, []).append(row)
    if len(pictures) == len(groups):
        raise ValueError(
            f"The pictures to split are {len(pictures)} (classes: {max(1, len(pictures.labels))}): expected two of a "
            "class, one to be learnt from and another to be held out."
        )
    held_out = []
    for target, count in _counts({target: len(rows) for target, rows in groups.items()}, share).items():
        order = torch.randperm(len(groups[target]), generator=generator(seed, len(pictures), target)).tolist()
        held_out += [groups[target][i] for i in order[:count]]
    chosen = set(held_out)
    return pictures.part([i for i in range(len(pictures)) if i not in chosen]), pictures.part(sorted(chosen))


def _counts(sizes: dict[int, int], share: float) -> dict[int, int]:
    """How many of each class are held out: whole numbers nearest to its share that sum up to that of all."""
    wanted = max(1, round(sum(sizes.values()) * share))
    counts = {target: int(size * share) for target, size in sizes.items()}
    # What is missing goes where most was rounded off, among equals to the smaller number of a class.
    by_rest = sorted(sizes, key=lambda target: (counts[target] - sizes[target] * share, target))
    able = [target for target in by_rest if counts[target] + 1 < sizes[target]]
    for target in able[: max(0, wanted - sum(counts.values()))]:
        counts[target] += 1
    return counts


# --- where pictures are


def _decoded(stream: Callable[[], BinaryIO], place: str) -> Image.Image:
    try:
        with stream() as file:
            return open_picture(file, name=place)
    except OSError as error:
        raise ValueError(f"{place} cannot be read: {_reason(error)}.") from None


def _fault(stream: Callable[[], BinaryIO]) -> str | None:
    try:
        with stream() as file:
            if not file.read(1):
                return "it is empty"
            Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Exception as error:  # Pillow's readers raise many kinds
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture"
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels"
    said = error.strerror.lower() if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return said or type(error).__name__


class _Files:
    """Files, by their paths from a folder."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def place(self, i: int) -> str:
        return str(self.folder / self.names[i])

    def image(self, i: int) -> Image.Image:
        return _decoded(partial(open, self.place(i), "rb"), self.place(i))

    def fault(self, i: int) -> str | None:
        return _fault(partial(open, self.place(i), "rb"))

    def mark(self, i: int) -> list[Any]:
        return [self.names[i], os.path.getsize(self.place(i))]


class _Within:
    """What a packed file calls its `count` pictures."""

    def __init__(self, file: str, count: int, names: Sequence[str] | None = None):
        self.file, self.count, self.names = file, count, names

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return f"{self.file}[{i if self.names is None else self.names[i]}]"

    def place(self, i: int) -> str:
        return f"picture {i} of {self.file}"


class _Packed(_Within):
    """Encoded pictures end to end in `data` (bytes,); number i is data[offsets[i] : offsets[i + 1]]."""

    def __init__(self, file: str, data: np.ndarray, offsets: np.ndarray, names: Sequence[str] | None):
        super().__init__(file, len(offsets) - 1, names)
        self.data, self.offsets = data, offsets

    def _bytes(self, i: int) -> bytes:
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def image(self, i: int) -> Image.Image:
        return _decoded(lambda: io.BytesIO(self._bytes(i)), self.place(i))

    def fault(self, i: int) -> str | None:
        return _fault(lambda: io.BytesIO(self._bytes(i)))

    def mark(self, i: int) -> list[Any]:
        return [hashlib.sha256(self._bytes(i)).hexdigest()]


class _Pixels(_Within):
    """Pictures as they are seen: (n, height, width) or (n, height, width, channels), uint8."""

    def __init__(self, file: str, pixels: np.ndarray):
        super().__init__(file, len(pixels))
        self.pixels = pixels

    def image(self, i: int) -> Image.Image:
        pixels = np.array(self.pixels[i])
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)

    def fault(self, i: int) -> str | None:
        return None

    def mark(self, i: int) -> list[Any]:
        return [*self.pixels.shape[1:], hashlib.sha256(self.pixels[i].tobytes()).hexdigest()]


class _Joined:
    """Sources, one after another."""

    def __init__(self, sources: Sequence[Source]):
        self.sources, self.ends = sources, [*accumulate(map(len, sources))]

    def _at(self, i: int) -> tuple[Source, int]:
        which = bisect_right(self.ends, i)
        return self.sources[which], i - self.ends[which] + len(self.sources[which])

    def __len__(self) -> int:
        return self.ends[-1]

    def name(self, i: int) -> str:
        source, row = self._at(i)
        return source.name(row)

    def place(self, i: int) -> str:
        source, row = self._at(i)
        return source.place(row)

    def image(self, i: int) -> Image.Image:
        source, row = self._at(i)
        return source.image(row)

    def fault(self, i: int) -> str | None:
        source, row = self._at(i)
        return source.fault(row)

    def mark(self, i: int) -> list[Any]:
        source, row = self._at(i)
        return source.mark(row)


def _readable(source: Source, path: Path, unreadable: str) -> tuple[Sequence[int], list[str]]:
    """The numbers of those whose header is that of a picture, and the names of the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd headers: the picture is yet to be decoded
        Image.init()  # which fills Image.OPEN
        faults = {i: fault for i in range(len(source)) if (fault := source.fault(i))}
    if not faults:
        return range(len(source)), []
    shown = "; ".join(f"{source.place(i)} ({faults[i]})" for i in [*faults][:SHOWN])
    shown += f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    if len(faults) == len(source):
        raise ValueError(f"No picture of {path} can be read: {shown}.")
    if unreadable == "stop":
        raise ValueError(
            f"{len(faults)} of {len(source)} pictures cannot be read: {shown}; mend or remove them, or leave them out "
            "with --skip-unreadable."
        )
    return [i for i in range(len(source)) if i not in faults], [source.name(i) for i in faults]


# --- what is found at a path


@dataclass(frozen=True)
class _Found:
    """Pictures with their classes, or, where they have none, what says so."""

    source: Source
    labels: Sequence[str] = ()
    targets: Sequence[int] = ()
    unlabelled: str = ""


def _forms() -> str:
    return (
        f"a folder of pictures, a list ({', '.join(LISTS)}), an .npz file, MNIST's train-images-idx3-ubyte, or a "
        f"picture ({', '.join(SUFFIXES)})"
    )


def _file(path: Path, labelled: bool | None) -> _Found:
    if path.suffix == ".npz":
        return _together([_archive(path)], labelled)
    if IDX.search(path.name):
        return _together([_idx(path)], labelled)
    if path.suffix.lower() in LISTS:
        return _listed(path, labelled)
    if path.suffix.lower() in SUFFIXES:
        return _Found(_Files(path.parent, [path.name]), unlabelled=f"{path} is one picture: expected two classes.")
    raise ValueError(f"{path} holds no pictures, by its name: expected {_forms()}.")


def _folder(path: Path, labelled: bool | None) -> _Found:
    try:
        folders, names = _below(path)
        files = sorted(each for each in path.iterdir() if _shown(each.name) and each.is_file())
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {_reason(error)}.") from None
    archives, idx = [p for p in files if p.suffix == ".npz"], [p for p in files if IDX.search(p.name)]
    if len(kinds := [kind for kind in (names, archives, idx) if kind]) > 1:
        first = ", ".join(str(kind[0] if isinstance(kind[0], str) else kind[0].name) for kind in kinds)
        raise ValueError(f"{path} holds pictures of several kinds ({first}): pass one file, or a folder of one kind.")
    if archives:
        return _together([_archive(file) for file in _to_train_on(archives)], labelled)
    if idx:
        return _together([_idx(_only(path, _to_train_on(idx)))], labelled)
    if not names:
        raise ValueError(f"{path} holds no pictures: expected {', '.join(SUFFIXES)}, .npz or idx files.")
    return _of_folders(path, folders, names, labelled)


def _of_folders(path: Path, folders: Sequence[str], names: Sequence[str], labelled: bool | None) -> _Found:
    """Pictures whose class is the first folder of their path, unless there are some without."""
    source, loose = _Files(path, names), next((name for name in names if "/" not in name), None)
    if labelled is False or loose is not None:
        return _Found(source, unlabelled=f"{path} has no classes ({loose} lies in none): expected a folder for each.")
    if {folder.lower() for folder in folders} <= PARTS:
        raise ValueError(f"{path} holds {' and '.join(folders)}, parts of a data set and no classes: pass one of them.")
    classes = [name.partition("/")[0] for name in names]
    if empty := sorted(set(folders) - set(classes)):
        raise ValueError(
            f"The class {empty[0]!r} has no pictures: put some into {path / empty[0]}, or remove that folder."
        )
    numbers = {label: i for i, label in enumerate(sorted(folders))}
    return _Found(source, tuple(numbers), [numbers[each] for each in classes])


def _below(folder: Path) -> tuple[list[str], list[str]]:
    """The names of its folders, and the paths, with "/", of all pictures below it in their order, without what is
    hidden. Links are followed, but not upwards."""

    def failed(error: OSError) -> None:
        raise error

    first, found = None, []
    for place, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(place) + os.sep
        beneath = {name: os.path.realpath(os.path.join(place, name)) + os.sep for name in folders if _shown(name)}
        folders[:] = sorted(name for name, target in beneath.items() if not real.startswith(target))
        first = [*folders] if first is None else first
        here = Path(place).relative_to(folder)
        pictures = (name for name in files if _shown(name) and os.path.splitext(name)[1].lower() in SUFFIXES)
        found += [(here / name).as_posix() for name in pictures]
    return first or [], sorted(found, key=lambda name: name.split("/"))


def _shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _to_train_on(files: Sequence[Path]) -> list[Path]:
    """Without those that are to be held out, by their names, where there are others."""
    return [file for file in files if not HELD_OUT.search(file.name.lower())] or [*files]


def _only(path: Path, files: Sequence[Path]) -> Path:
    plain = [file for file in files if file.suffix == ".gz" and file.with_suffix("") in files]
    files = [file for file in files if file not in plain]
    if len(files) > 1:
        raise ValueError(f"{path} holds {', '.join(file.name for file in files)}: pass one of these files.")
    return files[0]


def _listed(path: Path, labelled: bool | None) -> _Found:
    """Of a list: a picture a line, one that is listed twice once."""
    found: dict[str, tuple[str, str | None]] = {}
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        if "path" not in row:
            raise ValueError(f"{path} has no column 'path': its first line names {', '.join(map(repr, row))}.")
        name, label = row["path"], row.get("label") if labelled is not False else None
        if not name or label == "":
            raise ValueError(f"{where}, has no {'label' if name else 'path'}: every picture needs one.")
        before = found.setdefault(os.path.normpath(name), (name, label))[1]
        if before != label:
            raise ValueError(f"{where}, gives {name} the label {label!r} and an earlier line {before!r}: expected one.")
    if not found:
        raise ValueError(f"{path} lists no pictures: expected a line with the names of the columns, then one for each.")
    source = _Files(path.parent, [name for name, _ in found.values()])
    classes = [label for _, label in found.values() if label is not None]
    numbers = {label: i for i, label in enumerate(_in_order(classes))}
    without = f"{path} has no column 'label': expected the columns path and label."
    return _Found(source, tuple(numbers), [numbers[label] for label in classes], without)


def _in_order(labels: Iterable[str]) -> list[str]:
    """Each once, numbers in the order of their size, names in that of the alphabet."""
    found = set(labels)
    numbers = all(label.isdecimal() for label in found)
    return sorted(found, key=lambda label: (int(label), label)) if numbers else sorted(found)


# --- packed files


@dataclass(frozen=True)
class _Shard:
    """What a packed file holds: pictures, maybe numbers of classes, maybe the names that these count."""

    file: Path
    source: Source
    numbers: Sequence[int] | None
    names: Sequence[str] | None = None


def _together(shards: Sequence[_Shard], labelled: bool | None) -> _Found:
    source = shards[0].source if len(shards) == 1 else _Joined([shard.source for shard in shards])
    without = [shard.file for shard in shards if shard.numbers is None]
    beside = "labels beside it, as train-labels-idx1-ubyte" if IDX.search(shards[0].file.name) else "the array labels"
    if labelled is False or len(without) == len(shards):
        return _Found(source, unlabelled=f"{shards[0].file} has no labels: expected {beside}.")
    if without:
        raise ValueError(f"{without[0]} has no labels and other files beside it have: expected them in all or none.")
    for shard in shards:
        if shard.names != shards[0].names:
            raise ValueError(f"{shard.file} names other classes than {shards[0].file}: expected one data set.")
    numbers, names = [number for shard in shards for number in shard.numbers or ()], shards[0].names
    if names is not None:
        return _Found(source, names, numbers)
    known = {number: i for i, number in enumerate(sorted(set(numbers)))}
    return _Found(source, [str(number) for number in known], [known[number] for number in numbers])


def _archive(path: Path) -> _Shard:
    held: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as file:
            members = {each.filename.removesuffix(".npy"): each for each in file.infolist()}
            chosen = [next((name for name in names if name in members), None) for names in (IMAGES, LABELS)]
            if packed := {"data", "offsets"} <= members.keys():
                chosen[0] = "data"
            for name in (*chosen, "names", *["offsets", "files"][: 2 * packed]):
                if name in members:
                    held[name] = _array(path, file, members[name])
    except MemoryError:
        raise ValueError(f"{path} does not fit into memory: save it uncompressed, with np.savez.") from None
    except Exception as error:  # zipfile's, zlib's and numpy's
        raise ValueError(
            f"{path} cannot be read as .npz ({_reason(error)}): fetch it again, or write it anew from plain arrays."
        ) from None
    images, labels = chosen
    if images is None:
        raise ValueError(
            f"{path} holds no pictures: expected an array {', '.join(IMAGES)}, or data with offsets, and found "
            f"{', '.join(members) or 'none'}."
        )
    names = _strings(path, "names", held["names"]) if "names" in held else None
    if packed:
        files = names if labels is None else None
        source: Any = _packed(path, held, _strings(path, "files", held["files"]) if "files" in held else files)
    else:
        source = _pixels(path, images, held[images])
    return _Shard(path, source, *_numbers(path, labels, held.get(labels or ""), names, len(source)))


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an .npz file, seen to be whole."""
    with archive.open(member) as file:
        array = _mapped(path, member, file) if member.compress_type == zipfile.ZIP_STORED else _unpacked(file)
        while file.read(CHUNK):  # at the end zipfile compares the sum of what it read
            pass
    return array


def _unpacked(file: Any) -> np.ndarray:
    return npy.read_array(file, allow_pickle=False)


def _mapped(path: Path, member: zipfile.ZipInfo, file: Any) -> np.ndarray:
    """An array that is not compressed, left in the file."""
    readers: Any = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, columns_first, dtype = readers[npy.read_magic(file)](file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or file.tell() + size > member.file_size:
        raise ValueError("it holds Python objects" if dtype.hasobject else "it is shorter than it says")
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)  # of the member's own header: 30 bytes, its name, and what is added to it
        begin = member.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4))) + file.tell()
    return np.memmap(path, dtype, "r", begin, shape, order="F" if columns_first else "C")


def _strings(path: Path, what: str, array: np.ndarray) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise ValueError(f"{path} has {what} of shape {array.shape}, {array.dtype}: expected a row of texts.")
    return tuple(each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in array.tolist())


def _pixels(path: Path, name: str, array: np.ndarray) -> _Pixels:
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4))):
        raise ValueError(
            f"{path} has {name} of shape {array.shape}, {array.dtype}: expected uint8 (n, height, width), or (n, "
            "height, width, channels) with 1, 3 or 4 channels."
        )
    if not array.size:
        raise ValueError(f"{path} holds no pictures: {name} has the shape {array.shape}.")
    return _Pixels(path.name, array)


def _packed(path: Path, held: dict[str, np.ndarray], names: Sequence[str] | None) -> _Packed:
    data, offsets = held["data"], held["offsets"]
    if data.ndim != 1 or data.dtype != np.uint8 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise ValueError(
            f"{path} has data {data.shape} {data.dtype} and offsets {offsets.shape} {offsets.dtype}: expected rows of "
            "uint8 and of whole numbers."
        )
    if len(offsets) < 2:
        raise ValueError(f"{path} holds no pictures: expected offsets with one more number than there are pictures.")
    ends = offsets.astype(np.int64)
    if ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > len(data):
        raise ValueError(f"{path} has offsets that do not rise from 0 to {len(data)}, the length of its data.")
    if names is not None and len(names) != len(ends) - 1:
        raise ValueError(f"{path} has {len(ends) - 1} pictures and {len(names)} names of them: expected one for each.")
    return _Packed(path.name, data, ends, names)


def _numbers(
    path: Path, name: str | None, labels: np.ndarray | None, names: Sequence[str] | None, count: int
) -> tuple[list[int] | None, Sequence[str] | None]:
    """The number of each picture's class, and the names that it counts."""
    if labels is None:
        return None, None
    if labels.dtype.kind not in "iu" or labels.shape not in ((labels.size,), (labels.size, 1)):
        raise ValueError(
            f"{path} has {name} of shape {labels.shape}, {labels.dtype}: expected a row of whole numbers, one for each "
            "picture."
        )
    if len(labels) != count:
        raise ValueError(f"{path} has {count} pictures and {len(labels)} labels: expected one for each.")
    numbers, known = labels.ravel().tolist(), math.inf if names is None else len(names)
    if wrong := [number for number in numbers if not 0 <= number < known]:
        what = "0 or more" if names is None else f"0 to {len(names) - 1}, for it has {len(names)} names"
        raise ValueError(f"{path} has the label {wrong[0]}: expected {what}.")
    if twice := [each for each, times in Counter(names or ()).items() if times > 1]:
        raise ValueError(f"{path} names two classes {twice[0]!r}: expected a name of its own for each.")
    return numbers, names


def _idx(path: Path) -> _Shard:
    source = _Pixels(path.name, _idx_array(path, 3))
    beside = IDX.sub(r"labels\1idx1-ubyte", path.name)
    for labels in (path.with_name(beside), path.with_name(f"{beside}.gz")):
        if labels.is_file():
            numbers, _ = _numbers(labels, "labels", _idx_array(labels, 1), None, len(source))
            return _Shard(path, source, numbers)
    return _Shard(path, source, None)


def _idx_array(path: Path, axes: int) -> np.ndarray:
    """The bytes of an idx file: 0, 0, 8 for uint8, the number of axes, the length of each as big-endian uint32, and
    the values."""
    compressed, mend = path.suffix == ".gz", "fetch it again"
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            head: Any = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:4] != bytes([0, 0, 8, axes]):
                raise ValueError(f"{path} is no idx file of uint8 with {axes} axes, by its first bytes: {mend}.")
            shape = struct.unpack(f">{axes}I", head[4:])
            size = math.prod(shape)
            content: Any = file.read(size + 1) if compressed else b""
    except (OSError, EOFError, zlib.error, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read ({_reason(error)}): {mend}.") from None
    held = len(content) if compressed else path.stat().st_size - len(head)
    if held != size:
        raise ValueError(f"{path} says that it holds {size} bytes and has {'more' if held > size else held}: {mend}.")
    if not size:
        raise ValueError(f"{path} holds nothing: its axes are {shape}.")
    if compressed:
        return np.frombuffer(content, np.uint8).reshape(shape)
    return np.memmap(path, np.uint8, "r", len(head), shape)
