"""Vectors as they come, written into .npy files."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from torch import Tensor

from scratchformers.checkpoints import files


def finite(features: Tensor) -> Tensor:
    """The same; ValueError unless all are numbers."""
    if not features.isfinite().all():
        raise ValueError("The vectors are not finite: the model's weights hold NaN, or overflow.")
    return features


def write_vectors(path: Path, vectors: Iterable[tuple[int, np.ndarray]], dim: int) -> int:
    """As `write_rows`, into a file that appears when it is complete."""
    counts: list[int] = []
    files.write_atomically(path, lambda file: counts.append(write_rows(file, vectors, dim)))
    return counts[0]


def write_rows(path: Path, vectors: Iterable[tuple[int, np.ndarray]], dim: int) -> int:
    """Vectors (b, dim), as they come, into a .npy file, float32 (n, dim), and returns n. The header says it last."""
    count = 0
    with path.open("wb") as file:
        begin = _header(file, count, dim)
        for _, some in vectors:
            file.write(some.astype("<f4").tobytes())
            count += len(some)
        file.seek(0)
        assert _header(file, count, dim) == begin  # numpy leaves room for a number that grows
    return count


def _header(file: BinaryIO, count: int, dim: int) -> int:
    npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})
    return file.tell()
