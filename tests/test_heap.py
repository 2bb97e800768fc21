"""The heap that a plan lays a step out on: what it holds, what fits again and what does not; nothing gets lost."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchformers.insight import heap as heaps
from scratchformers.insight.heap import HEAD, KEPT, MORE, Heap, after_steps
from scratchformers.training import memory


def played(*events, **kwargs):
    heap = Heap()
    heap.play(events, **kwargs)
    return heap


def test_blocks_lie_side_by_side():
    heap = played(("a", 1000), ("b", 500))
    assert heap.peak == 1500 + 2 * HEAD
    assert heap.used == 1500


def test_what_was_freed_has_no_room_for_as_much_again():
    """For that it has to have more; what is smaller fits, and what is left of it stays free."""
    before = ("a", 1000), ("b", 1000), ("a", -1000)
    again, less = played(*before, ("c", 1000)), played(*before, ("c", 1000 - MORE))
    assert again.peak == 3 * (1000 + HEAD)
    assert less.peak == 2 * (1000 + HEAD)
    assert played(*before, ("c", 400), ("d", 400)).peak == less.peak


def test_two_that_are_freed_side_by_side_are_one():
    for order in ("ab", "ba"):
        freed = [(key, -1000) for key in order]
        heap = played(("a", 1000), ("b", 1000), ("c", 1000), *freed, ("d", 1900))
        assert heap.peak == 3 * (1000 + HEAD)


def test_the_smallest_that_is_large_enough_is_taken():
    held = ("a", 5000), ("-", 10), ("b", 2000), ("-2", 10), ("a", -5000), ("b", -2000)
    assert played(*held, ("c", 1500), ("d", 4800)).peak == played(*held).peak


def test_what_is_large_goes_back():
    """To the system, at the size from which training has it so."""
    assert KEPT == memory.KEPT
    heap = played(("a", KEPT + 1), ("a", -KEPT - 1), ("b", KEPT + 1))
    assert heap.peak == KEPT + 1
    assert played(("a", KEPT), ("a", -KEPT), ("b", 10)).peak == KEPT + HEAD


def test_cuttings_in_use_part_what_is_free():
    """Until they are joined, as a step ends."""
    events = [("a", 1000), ("b", 1000), ("c", 1000), ("a", -1000), ("b", -1000)]
    heap = Heap()
    heap.play(events, apart=1.0)
    top = heap.peak
    heap.play([("d", 1900)])
    assert heap.peak == top + 1900 + HEAD
    heap = Heap()
    heap.play(events, apart=1.0)
    heap.join()
    heap.play([("d", 1900)])
    assert heap.peak == top


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000)), max_size=60), st.sampled_from([0.0, 0.4, 1.0]))
def test_nothing_gets_lost(drawn, apart):
    """Blocks that do not overlap, and what is free between them, are the heap; freed they are nothing."""
    heap, held, events = Heap(), {}, []
    for key, size in drawn:
        events.append((key, -held.pop(key)) if key in held else (key, held.setdefault(key, size)))
    left = heap.play(events, apart=apart)
    assert left == held.keys()
    cuttings = sum(size for _, size in heap._apart)
    free = sum(size for size, _ in heap._free)
    assert sum(held.values()) + HEAD * len(held) + cuttings + free == heap._top
    assert max(sum(held.values()), free) <= heap.peak
    ends = sorted([*heap._held.values(), *heap._apart, *((address, size) for size, address in heap._free)])
    assert all(a + size == b for (a, size), (b, _) in pairwise(ends))
    for key in left:
        heap.free(key)
    heap.join()
    assert (heap._top, heap._free, heap._held, heap._now) == (0, [], {}, 0)
    assert heap.peak >= heap.used


def test_a_run_is_its_weights_its_steps_and_what_the_optimiser_keeps(monkeypatch):
    monkeypatch.setattr(heaps, "APART", 0.0)
    step = [("x", 100), ("grad", 1000), ("x", -100)]
    parts = [step, [("y", 100), ("y", -100), ("grad", -1000), ("sum", 1000)]]
    heap = after_steps([("weight", 1000)], parts, [("state", 2000)], [("sign", 300), ("sign", -300)])
    assert heap.used == 1000 + 2000 + 1000 + 300
    assert 0 <= heap.peak - heap.used <= 5 * HEAD + 2200  # where the first gradient was, before the states were there


@pytest.mark.parametrize("steps", [4, 8])
def test_it_stays_as_it_is_after_a_few_steps(monkeypatch, steps):
    sizes = [2000 + 37 * i % 900 for i in range(60)]
    step = [event for i, size in enumerate(sizes) for event in ((("kept", i), size), (("passing", i), 5 * size))]
    step = [each for event in step for each in ((event,) if event[0][0] == "kept" else (event, (event[0], -event[1])))]
    peaks = []
    for number in (3, steps):
        monkeypatch.setattr(heaps, "STEPS", number)
        peaks.append(after_steps([("weight", 9000)], [step], [("state", 9000)], []).peak)
    assert peaks[1] <= 1.02 * peaks[0]
