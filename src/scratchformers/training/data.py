"""Training examples: read from what the user points at, put in an order that can be taken up again anywhere."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from scratchformers.text import TextTokenizer


def read_texts(path: Path) -> list[str]:
    """The text of a file, or of every .txt file below a folder, hidden ones aside, in the order of their names."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a text file or a folder of .txt files.")
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*.txt") if file.is_file() and file.name[0] != ".")
    )
    texts = [text for text in map(_read_text, files) if text]
    if not texts:
        raise ValueError(
            f"{path} holds no text: expected a UTF-8 text file that is not empty, or a folder of .txt files."
        )
    return texts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): convert it."
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None


def digest(texts: list[str]) -> str:
    """sha256 over the texts, so that a run can tell whether its data is still the data it began with."""
    found = hashlib.sha256()
    for text in texts:
        found.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return found.hexdigest()


def to_stream(texts: list[str], tokenizer: TextTokenizer) -> Tensor:
    """All ids in a row, (n,) int32, each text but a single one followed by the end token where there is one."""
    parts = []
    for text in texts:
        parts += [torch.tensor(ids, dtype=torch.int32) for ids in tokenizer.encode_long(text)]
        if tokenizer.end is not None and len(texts) > 1:
            parts.append(torch.tensor([tokenizer.end], dtype=torch.int32))
    return torch.cat(parts)


class Windows:
    """A stream of ids cut into windows of `length` inputs and as many targets; each epoch cuts it elsewhere."""

    def __init__(self, stream: Tensor, length: int, *, seed: int):
        if len(stream) < length + 1:
            raise ValueError(
                f"The text to train on has {len(stream)} tokens and one window takes {length} and its next token: "
                "give more text, or a smaller length (--set length=...)."
            )
        self.stream, self.length, self.seed = stream, length, seed
        self.rows = max(1, (len(stream) - 1) // length - 1)

    def __getitem__(self, example: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, row = example
        slack = len(self.stream) - 1 - self.rows * self.length
        shift = int(torch.randint(slack + 1, (), generator=generator(self.seed, epoch, 1)))
        start = shift + row * self.length
        window = self.stream[start : start + self.length + 1].long()
        return window[:-1], window[1:]


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers."""
    seed = hashlib.sha256(repr(numbers).encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)


class Sampler:
    """Every row once an epoch, in an order drawn anew. Its whole state is `epoch` and `seen`, rows of it gone by."""

    def __init__(self, rows: int, *, seed: int):
        self.rows, self.seed, self.epoch, self.seen = rows, seed, 0, 0
        self._order: tuple[int, list[int]] = (-1, [])

    def take(self, count: int) -> list[tuple[int, int]]:
        """The next `count` examples as (epoch, row)."""
        taken = []
        for _ in range(count):
            if self.seen == self.rows:
                self.epoch, self.seen = self.epoch + 1, 0
            if self._order[0] != self.epoch:
                order = torch.randperm(self.rows, generator=generator(self.seed, self.epoch, 0))
                self._order = (self.epoch, order.tolist())
            taken.append((self.epoch, self._order[1][self.seen]))
            self.seen += 1
        return taken

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "seen": self.seen}

    def restore(self, state: dict[str, int]) -> None:
        self.epoch, self.seen = state["epoch"], state["seen"]
