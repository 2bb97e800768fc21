"""TorchScript archives, the form of OpenAI's published CLIP files, read as data.

Such a file is a zip: `data.pkl` pickles the modules as objects that hold attributes, `data/` has the bytes of their
tensors, `code/` programs that are not looked at. Nothing is imported or called here: the pickle is followed by a small
machine that knows the opcodes TorchScript writes, and compares each name it meets with a short list. (Python's own
Unpickler, however restricted, calls what it finds, and takes any amount of memory for one number of a memo.)
Format: torch/csrc/jit/serialization/pickler.cpp.
"""

import math
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Bytes of a pickle, tensors and modules, and letters of a name: many times those of the published files.
PICKLE, NAMES, NAME = 2**23, 2**16, 1000
# Storages of fewer bytes are read: mapping them saves nothing.
MAPPED = 2**16
STORAGES = {
    "torch DoubleStorage": torch.float64, "torch FloatStorage": torch.float32, "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16, "torch LongStorage": torch.int64, "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16, "torch CharStorage": torch.int8, "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool, "torch ComplexHalfStorage": torch.complex32,
    "torch ComplexFloatStorage": torch.complex64, "torch ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
# Lists whose elements have a type, and what else has one: the first argument is the value.
TAGS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"}
TAGGED = {f"torch.jit._pickle {name}" for name in TAGS}
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
HELD = {"collections OrderedDict", "torch device", "builtins complex"}  # values of which nothing is needed
READ = ("data.pkl", "data/", "byteorder")  # the beginnings of entries that are read
ALLOWED = {TENSOR, PARAMETER, *STORAGES, *TAGGED, *HELD}


def is_archive(path: Path) -> bool:
    """Whether this is a TorchScript archive, not a zip of torch.save, which has neither constants nor code."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = [name.partition("/")[2] for name in archive.namelist()]
    except OSError:
        raise
    except Exception:  # a damaged directory can raise any
        return False
    return "constants.pkl" in inner and any(name.startswith("code/") for name in inner)


def read_archive(path: Path, *, mapped: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by dotted names, those of `torch.jit.load(path).state_dict()`, all on the CPU.

    Large ones are memory-mapped (unless `mapped` is False), and copied on change. Of an attribute that may be None only
    the code knows that it is no buffer: if it is a tensor, it is named too.
    Raises ValueError of one sentence for what is damaged, or is not what TorchScript writes.
    """
    try:
        archive = _Archive(path, mapped)
        root = _Machine(archive.tensor).run(archive.pickle())
        return _named(root, 4 * path.stat().st_size + 2**20)
    except _RefusedError as error:
        raise ValueError(f"{path} was refused: {error}.") from None
    except OSError:
        raise
    except Exception as error:  # a damaged zip or pickle can raise any
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is truncated or corrupted ({said}): fetch it again.") from None


class _RefusedError(Exception):
    """What an archive that TorchScript wrote does not have."""


class _Name(NamedTuple):
    """A global that the pickle named and that is allowed. It stands for itself and does nothing."""

    name: str


class _Pairs(list):
    """A dictionary, unhashed."""


class _Object:
    """A module: what its attributes are called, and hold."""

    state: Any = None


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    length: int


def _named(root: Any, most: int) -> dict[str, Tensor]:
    """The tensors below a module. `most` bounds their bytes: a few can be shared or expanded, not all of a bomb."""
    found: dict[str, Tensor] = {}
    waiting, met, size = [("", root)], 0, 0
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, _Object) or not isinstance(module.state, _Pairs):
            raise _RefusedError(f"its {prefix.rstrip('.') or 'data.pkl'} is no module with attributes")
        for name, value in module.state:
            if not isinstance(name, str) or not isinstance(value, (Tensor, _Object)):
                continue
            met, size = met + 1, size + (value.numel() * value.itemsize if isinstance(value, Tensor) else 0)
            if met > NAMES or len(prefix) + len(name) > NAME or size > most:
                raise _RefusedError("its modules or tensors are more than a file of its size can hold")
            if isinstance(value, Tensor):
                found[prefix + name] = value
            else:
                waiting.append((f"{prefix}{name}.", value))
    return found


class _Archive:
    """The zip. Its entries are of one folder, and what is read of them stored as it is: nothing can unfold."""

    def __init__(self, path: Path, mapped: bool):
        self.path, self.mapped, self.size = path, mapped, path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        top = entries[0].filename.partition("/")[0] + "/"
        self.entries = {each.filename.removeprefix(top): each for each in entries}
        if len(self.entries) != len(entries):
            raise _RefusedError("two of its entries have one name")
        for each in entries:
            if not each.filename.startswith(top) or {"..", ""} & {*each.filename.rstrip("/").split("/")}:
                raise _RefusedError(f"its entry {each.filename!r} is outside its folder")
        for each in (each for name, each in self.entries.items() if name.startswith(READ)):
            if each.compress_type != zipfile.ZIP_STORED or each.compress_size != each.file_size or each.flag_bits & 1:
                raise _RefusedError(f"its entry {each.filename!r} is compressed or encrypted, expected plain bytes")
        if sum(each.compress_size for each in entries) > self.size:
            raise _RefusedError("its entries have more bytes than the file")
        if "byteorder" in self.entries and self.read("byteorder") != b"little":
            raise _RefusedError("its numbers are not little-endian")
        self.storages: dict[str, torch.UntypedStorage] = {}

    def start(self, name: str) -> int:
        """Where the bytes of an entry begin: behind a header of its own, which the directory does not measure."""
        entry = self.entries[name]
        if not 0 <= entry.header_offset < self.size:
            raise ValueError(f"no bytes for {entry.filename}")
        with open(self.path, "rb") as file:
            file.seek(entry.header_offset)
            head = file.read(30)
        start = entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\3\4" or start + entry.file_size > self.size:
            raise ValueError(f"no bytes for {entry.filename}")
        return start

    def read(self, name: str) -> bytes:
        start = self.start(name)
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(self.entries[name].file_size)

    def pickle(self) -> bytes:
        entry = self.entries.get("data.pkl")
        if entry is None or entry.file_size > PICKLE:
            raise _RefusedError(f"expected a data.pkl in it of at most {PICKLE} bytes")
        content = self.read("data.pkl")
        if zlib.crc32(content) != entry.CRC:
            raise ValueError("the checksum of data.pkl is another")
        return content

    def storage(self, key: str) -> torch.UntypedStorage:
        if key not in self.storages:
            name = f"data/{key}"
            if name not in self.entries:
                raise _RefusedError(f"it names the storage {key!r}, which is not in it")
            start, size = self.start(name), self.entries[name].file_size
            if self.mapped and size >= MAPPED and start % 16 == 0:  # 16: the largest element
                # From the beginning of the file, as maps begin at a page; what is not touched costs nothing.
                whole = torch.UntypedStorage.from_file(str(self.path), False, start + size)
                self.storages[key] = whole[start:]
            else:
                content = bytearray(self.read(name) or b"\0")  # torch makes no tensor of no bytes
                self.storages[key] = torch.frombuffer(content, dtype=torch.uint8).untyped_storage()[:size]
        return self.storages[key]

    def tensor(self, stored: _Storage, offset: Any, sizes: Any, strides: Any) -> Tensor:
        """A view of a storage, which it must not leave: torch would make the storage longer."""
        storage, itemsize = self.storage(stored.key), stored.dtype.itemsize
        if stored.length * itemsize > storage.nbytes():
            raise ValueError(f"storage {stored.key} has {storage.nbytes()} of {stored.length * itemsize} bytes")
        whole = all(map(_are_indices, ([offset], sizes, strides)))
        if not whole or len(sizes) != len(strides) or math.prod(sizes) >= 2**62:
            raise _RefusedError(f"a tensor of storage {stored.key!r} has sizes, strides or an offset that cannot be")
        behind = offset if 0 in sizes else offset + 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides))
        if behind > stored.length:
            raise _RefusedError(f"a tensor reads past the end of its storage {stored.key!r}")
        return torch.empty(0, dtype=stored.dtype).set_(storage, offset, sizes, strides)


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_indices(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and len(values) <= 64 and all(map(_is_index, values))


class _Machine:
    """The stack and the memo of a pickle of protocol 2, as far as TorchScript writes it."""

    def __init__(self, tensor: Callable[[_Storage, Any, Any, Any], Tensor]):
        self.tensor = tensor
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in STEPS:
                raise _RefusedError(f"its pickle uses {opcode.name}, which TorchScript does not write")
            STEPS[opcode.name](self, argument)
        (root,) = self.stack
        return root

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def last(self, n: int) -> list[Any]:
        taken = self.stack[-n:]
        del self.stack[-n:]
        if len(taken) < n:
            raise ValueError("its stack is empty")
        return taken

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def protocol(self, version: int) -> None:
        if version != 2:
            raise _RefusedError(f"its pickle is of protocol {version}, and TorchScript writes 2")

    def name(self, name: str) -> None:
        """genops gives module and name with a space between."""
        if name not in ALLOWED and not name.startswith("__torch__.") and not name.startswith("__torch__ "):
            raise _RefusedError(f"it names {name.replace(' ', '.')[:200]!r}, which is neither a tensor nor a module")
        self.push(_Name(name))

    def extend(self, values: Iterable[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise _RefusedError("its pickle appends to what is no list")
        self.stack[-1].extend(values)

    def fill(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Pairs):
            raise _RefusedError("its pickle sets items of what is no dictionary")
        self.stack[-1].extend(zip(values[::2], values[1::2], strict=True))

    def make(self, kind: Any, _: Any) -> _Object:
        if not isinstance(kind, _Name) or not kind.name.startswith("__torch__"):
            raise _RefusedError("its pickle makes an object of what is no class of a module")
        return _Object()

    def build(self, state: Any) -> None:
        if not isinstance(self.stack[-1], _Object):
            raise _RefusedError("its pickle gives attributes to what is no module")
        self.stack[-1].state = state

    def stored(self, said: Any) -> _Storage:
        """A persistent id: ("storage", kind, key, device, how many)."""
        what, kind, key, _, length = said
        if what != "storage" or not isinstance(kind, _Name) or kind.name not in STORAGES or not isinstance(key, str):
            raise _RefusedError("it names a storage in a way that TorchScript does not")
        if not _is_index(length):
            raise _RefusedError(f"the storage {key!r} has a length that cannot be")
        return _Storage(key, STORAGES[kind.name], length)

    def reduce(self, function: Any, arguments: Any) -> Any:
        """What a call stands for; none is made."""
        name = function.name if isinstance(function, _Name) else None
        if name == TENSOR:
            stored, offset, sizes, strides, *others = arguments
            if not isinstance(stored, _Storage) or len(others) > 3 or others[2:] not in ([], [None], [[]]):
                raise _RefusedError("it holds a tensor in a way that TorchScript does not write")
            return self.tensor(stored, offset, sizes, strides)
        if name == PARAMETER or name in TAGGED:
            return arguments[0]
        if name in HELD or (name or "").startswith("__torch__"):  # the latter: a value of an enum
            return _Pairs()
        raise _RefusedError("its pickle calls what cannot be called")


# What each opcode does with its argument. Of no instance: then nothing is held longer than it is used.
STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": _Machine.protocol,
    "GLOBAL": _Machine.name,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.fill(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.fill(machine.marked()),
    "REDUCE": lambda machine, _: machine.push(machine.reduce(*machine.last(2))),
    "NEWOBJ": lambda machine, _: machine.push(machine.make(*machine.last(2))),
    "BUILD": lambda machine, _: machine.build(*machine.last(1)),
    "BINPERSID": lambda machine, _: machine.push(machine.stored(*machine.last(1))),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push(_Pairs()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _Machine.push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "STOP": lambda machine, _: None,
}
