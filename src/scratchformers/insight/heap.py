"""The heap of glibc, played: where it would put a step's tensors, and so how much of it lies between them."""

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable

KEPT = 32 * 2**20  # bytes of the largest block that stays in the process when it is freed: see training/memory.py
HEAD, MORE, CUTTING = 16, 96, 48  # bytes: before a block; that a free one has to have more; that are cut off before it
APART = 0.3  # of the cuttings are in use in a part of a step: the one number that was fitted, by benchmarks/plan.py
STEPS = 4  # after so many a heap grows little more

Events = Iterable[tuple[Hashable, int]]  # a block, and its bytes: as it is made, and, negative, as it is freed


class Heap:
    """torch's blocks begin at multiples of 64 bytes, so each is cut out of a larger one. Cuttings that something small
    took meanwhile part what lies between them: where a tensor was, another of its size no longer fits.

    `peak` is what the process held at most, `used` what of its blocks were in use at most."""

    def __init__(self):
        self.peak = self.used = 0
        self._top = self._highest = self._mapped = self._now = 0
        self._free: list[tuple[int, int]] = []  # size, address: the smallest that is large enough is taken
        self._begins: dict[int, int] = {}  # the size of what is free, by where it begins
        self._ends: dict[int, int] = {}  # and by where it ends
        self._held: dict[Hashable, tuple[int | None, int]] = {}  # address (None: mapped by itself), size
        self._apart: list[tuple[int, int]] = []  # cuttings in use: address, size
        self._due = 0.0

    def play(self, events: Events, left: Iterable[Hashable] = (), *, apart: float = 0.0) -> set[Hashable]:
        """Gives the blocks that are in use then, of those that are made here or were `left` by what was played before;
        others are not freed here. Of the cuttings a share is in use from now on."""
        made = {*left}
        for key, size in events:
            if size > 0:
                self._make(key, size, apart)
                made.add(key)
            elif key in made:
                made.remove(key)
                self.free(key)
        return made

    def _make(self, key: Hashable, size: int, apart: float) -> None:
        self._now += size
        if size > KEPT:
            self._mapped += size
            self._held[key] = None, size
        else:
            self._due += apart
            cutting = CUTTING if self._due >= 1 else 0
            self._due -= cutting > 0
            whole = cutting + HEAD + size
            address = self._room(HEAD + size + MORE, whole)
            self._held[key] = address + cutting, HEAD + size
            if cutting:
                self._apart.append((address, cutting))
        self.used, self.peak = max(self.used, self._now), max(self.peak, self._highest + self._mapped)

    def _room(self, least: int, taken: int) -> int:
        """The address of so many bytes, of a free block that has at least some more, else of the heap's end."""
        i = bisect_left(self._free, (least, 0))
        if i == len(self._free):
            self._top += taken
            self._highest = max(self._highest, self._top)
            return self._top - taken
        size, address = self._free[i]
        self._remove(address, size)
        self._add(address + taken, size - taken)
        return address

    def free(self, key: Hashable) -> None:
        address, size = self._held.pop(key)
        self._now -= size if address is None else size - HEAD
        if address is None:
            self._mapped -= size
        else:
            self._add(address, size)

    def join(self) -> None:
        """No cutting is in use any more."""
        for address, size in self._apart:
            self._add(address, size)
        self._apart = []

    def _add(self, address: int, size: int) -> None:
        """To what is free, joined with what is free beside it."""
        if before := self._ends.get(address):
            self._remove(address - before, before)
            address, size = address - before, size + before
        if after := self._begins.get(address + size):
            self._remove(address + size, after)
            size += after
        if address + size == self._top:
            self._top = address
        else:
            self._begins[address] = self._ends[address + size] = size
            insort(self._free, (size, address))

    def _remove(self, address: int, size: int) -> None:
        del self._begins[address], self._ends[address + size]
        del self._free[bisect_left(self._free, (size, address))]


def after_steps(weights: Events, parts: Iterable[Events], states: Events, update: Events) -> Heap:
    """The heap of a run: the weights, and a few times a step and an update of the weights, of which the first leaves
    the states of the optimiser. In each part of a step, as a micro-batch, autograd makes much that is small, and frees
    it; what else there is goes as the step ends."""
    heap, parts, update = Heap(), [*parts], [*update]
    heap.play(weights)
    for number in range(STEPS):
        left: set[Hashable] = set()
        for part in parts:
            left = heap.play((((number, key), size) for key, size in part), left, apart=APART)
            heap.join()
        if not number:
            heap.play(states)
        left |= heap.play(((number, "update", key), size) for key, size in update)
        for key in left:
            heap.free(key)
    return heap
