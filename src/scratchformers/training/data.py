"""Training examples: texts packed into one stream of ids, its windows, and an order that can be taken up anywhere."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from scratchformers.text import CHUNK, TextTokenizer, pieces
from scratchformers.training.documents import Documents, Piece, apart

MANY = 1 << 22  # rows of which the order is not held in memory
ROUNDS = 4  # of the network that makes an order of more


def to_stream(texts: Iterable[str], tokenizer: TextTokenizer) -> Tensor:
    """All ids in a row, (n,) int32: the texts are packed, with the end token, where there is one, between one and the
    next. Windows run across it, so that nothing is padding."""
    documents = texts if isinstance(texts, Documents) else Documents(lambda: iter(texts))
    parts = [encoded(block, tokenizer) for block in blocks(documents.pieces())]
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0, dtype=torch.int32)


Block = list[tuple[bool, str]]  # pieces of texts, and whether an end token stands before


def blocks(read: Iterable[Piece]) -> Iterator[Block]:
    """Documents as pieces that are encoded by themselves, some millions of characters at a time."""
    block, size = [], 0
    for i, document in enumerate(apart(read)):
        for j, text in enumerate(pieces(document, CHUNK)):
            block.append((i > 0 and j == 0, text))
            if (size := size + len(text)) >= CHUNK:
                yield block
                block, size = [], 0
    if block:
        yield block


def encoded(block: Block, tokenizer: TextTokenizer) -> np.ndarray:
    """(n,) int32"""
    end = np.array([] if tokenizer.end is None else [tokenizer.end], np.int32)
    ids = tokenizer.encode_pieces([text for _, text in block])
    return np.concatenate([each for (after, _), own in zip(block, ids) for each in ([end, own] if after else [own])])


def in_parts(stream: Tensor) -> Iterator[Tensor]:
    """A stream, which may lie in a file, in parts small enough to be in memory, int64."""
    return (part.long() for part in stream.split(CHUNK))


def counts(stream: Tensor, vocab: int) -> Tensor:
    """(vocab,) int64: how often each id occurs."""
    return sum((torch.bincount(part, minlength=vocab) for part in in_parts(stream)), torch.zeros(vocab).long())


class Windows:
    """A stream of ids cut into windows of `length`, with `ahead` more to be predicted; each epoch cuts it elsewhere."""

    def __init__(self, stream: Tensor, length: int, *, seed: int, ahead: int = 1):
        if len(stream) < length + ahead:
            raise ValueError(
                f"The text to train on has {len(stream)} tokens and one window takes {length}"
                f"{' and its next token' if ahead else ''}: give more text, or a smaller length (--set length=...)."
            )
        self.stream, self.length, self.seed, self.ahead = stream, length, seed, ahead
        self.rows = max(1, (len(stream) - ahead) // length - 1)

    def __getitem__(self, example: tuple[int, int]) -> Tensor:
        """(length + ahead,): window `row` of an epoch, given as (epoch, row)."""
        epoch, row = example
        slack = len(self.stream) - self.ahead - self.rows * self.length
        shift = int(torch.randint(slack + 1, (), generator=generator(self.seed, epoch, 1)))
        start = shift + row * self.length
        return self.stream[start : start + self.length + self.ahead].long()


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers."""
    seed = hashlib.sha256(repr(numbers).encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)


class Order:
    """The numbers below `rows` in an order that is drawn, of which each is computed when it is asked for: a Feistel
    network, walked through again where it leads beyond them (Black and Rogaway 2002, section 4). [number]."""

    def __init__(self, rows: int, draw: torch.Generator):
        self.rows, self._half = rows, (rows.bit_length() + 1) // 2
        self._keys = [bytes(each) for each in torch.randint(256, (ROUNDS, 16), generator=draw).tolist()]

    def __getitem__(self, place: int) -> list[int]:
        while True:
            left, right = divmod(place, 1 << self._half)
            for key in self._keys:
                mixed = hashlib.blake2b(right.to_bytes(8, "big"), key=key, digest_size=8).digest()
                left, right = right, left ^ int.from_bytes(mixed, "big") % (1 << self._half)
            if (place := (left << self._half) + right) < self.rows:
                return [place]


class Sampler:
    """Every row once an epoch, in an order drawn anew. Its whole state is `epoch` and `seen`, rows of it gone by."""

    def __init__(self, rows: int, *, seed: int):
        self.rows, self.seed, self.epoch, self.seen = rows, seed, 0, 0
        self._order: tuple[int, Sequence[Sequence[int]] | Tensor | Order] = (-1, [])

    def _drawn(self) -> "Sequence[Sequence[int]] | Tensor | Order":
        """The rows of this epoch in their order."""
        draw = generator(self.seed, self.epoch, 0)
        return Order(self.rows, draw) if self.rows > MANY else torch.randperm(self.rows, generator=draw)[:, None]

    def take(self, count: int) -> list[tuple[int, int]]:
        """The next `count` examples as (epoch, row)."""
        taken = []
        for _ in range(count):
            if self.seen == self.rows:
                self.epoch, self.seen = self.epoch + 1, 0
            if self._order[0] != self.epoch:
                self._order = (self.epoch, self._drawn())
            taken += [(self.epoch, int(row)) for row in self._order[1][self.seen]]
            self.seen += 1
        return taken

    def peek(self, count: int) -> list[tuple[int, int]]:
        """What `take` will give next, without moving on."""
        state, order = self.state(), self._order
        coming = self.take(count)
        self.restore(state)
        self._order = order  # not drawn again, where the epoch ended between
        return coming

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "seen": self.seen}

    def restore(self, state: dict[str, int]) -> None:
        self.epoch, self.seen = state["epoch"], state["seen"]


class Buckets(Sampler):
    """Buckets of rows, those of like lengths together, drawn anew each epoch: what a `Sampler` does with rows."""

    def __init__(self, lengths: Sequence[int], tokens: int, *, seed: int):
        self.lengths = torch.tensor(lengths)
        self.sizes = bucket_sizes(self.lengths.sort().values, tokens)
        super().__init__(len(self.sizes), seed=seed)

    def _drawn(self) -> list[list[int]]:
        """Rows of one length are in an order of their own before they are cut into buckets."""
        draw = generator(self.seed, self.epoch, 0)
        order = torch.randperm(len(self.lengths), generator=draw)
        buckets = order[self.lengths[order].argsort(stable=True)].split(self.sizes)
        return [buckets[i].tolist() for i in torch.randperm(self.rows, generator=draw).tolist()]


def bucket_sizes(lengths: Tensor, tokens: int) -> list[int]:
    """How many rows are in each of the buckets into which rows are cut, in their order, so that all have nearly as many
    tokens, on the whole at most `tokens` (a row's half more or less in each). A row longer than that is alone."""
    ends, count = lengths.cumsum(0), -(-int(lengths.sum()) // tokens)
    bucket = (2 * ends - lengths) * count // (2 * ends[-1])  # where its middle lies
    return bucket.unique_consecutive(return_counts=True)[1].tolist()
