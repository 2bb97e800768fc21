"""Pictures in their order, prepared for a model, as evaluations read them: some at a time, the next ones in threads
while the model computes."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from scratchformers.grid import check_pictures
from scratchformers.images import Preprocess
from scratchformers.training.data import generator
from scratchformers.training.pictures import SHOWN, Pictures

Track = Callable[[Iterable[Any], int], Iterable[Any]]  # shows how far one is among so many
LeftOut = dict[int, str]  # rows of pictures that cannot be decoded, and why


def prepared(
    model: Any,
    pictures: Pictures,
    preprocess: Preprocess,
    *,
    batch: int,
    track: Track = lambda items, total: items,
    left_out: LeftOut | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Their rows, and the pictures (b, channels, height, width) where the model is and in its dtype, `batch` at a time.
    No more than two batches are in memory.

    A picture that cannot be decoded is put into `left_out`; without one it is a ValueError, as are pictures that are
    not prepared as the model reads them, and none that can be read.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}: expected at least 1.")
    weight, size, read = next(model.parameters()), len(pictures), 0
    parts = [range(start, min(start + batch, size)) for start in range(0, size, batch)]

    def prepare(row: int) -> Tensor | ValueError:
        try:
            return preprocess(pictures.image(row))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(torch.get_num_threads(), "pictures") as threads:
        coming = threads.map(prepare, parts[0] if parts else ())
        for rows, following in track(zip(parts, [*parts[1:], range(0)]), len(parts)):
            found, coming = [*zip(rows, coming)], threads.map(prepare, following)
            good = [(row, x) for row, x in found if isinstance(x, Tensor)]
            _leave_out(pictures, [(row, x) for row, x in found if isinstance(x, ValueError)], left_out)
            for _, x in good:
                check_pictures(x[None], model.config.image, model.config.channels)
            read += len(good)
            if good:
                kept, images = zip(*good)
                yield [*kept], torch.stack(images).to(weight.device, weight.dtype)
    if not read:
        raise ValueError(f"None of the {size} pictures can be read: there is nothing to measure.")


def held_out_noise(patches: int, rows: Sequence[int]) -> Tensor:
    """(b, patches): noise that hides patches of held-out pictures, by their rows alone: always the same."""
    return torch.stack([torch.rand(patches, generator=generator(0, row, 5)) for row in rows])


def _leave_out(pictures: Pictures, faults: Sequence[tuple[int, ValueError]], left_out: LeftOut | None) -> None:
    for row, error in faults:
        name = pictures.name(row)
        said = str(error) if name in str(error) else f"{name}: {error}"
        if left_out is None:
            raise ValueError(f"{said.removesuffix('.')}, or leave it out with --skip-unreadable.")
        left_out[row] = said


def class_numbers(pictures: Pictures, known: Sequence[str], whose: str) -> Tensor:
    """(n,) int64: where the class of each picture stands among the `known` names, whatever numbers the data gives them.
    ValueError for a class that is not among them, or is twice; `whose` they are is said there."""
    if not pictures.targets:
        raise ValueError("The pictures have no classes: expected a folder for each class, or labels.")
    counts, shown = Counter(known), ", ".join(known[:SHOWN])
    shown += f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    for name in (pictures.labels[target] for target in sorted(set(pictures.targets))):
        if not counts[name]:
            raise ValueError(f"The class {name!r} of the pictures is none of {whose}: expected {shown}.")
        if counts[name] > 1:
            raise ValueError(f"Two of {whose} are called {name!r}, so that none is right: leave those pictures out.")
    numbers = {name: i for i, name in enumerate(known)}
    return torch.tensor([numbers[pictures.labels[target]] for target in pictures.targets])
