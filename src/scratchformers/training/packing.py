"""A long text as ids in a file that is memory-mapped: prepared piece by piece, gone on with where that was stopped."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scratchformers.checkpoints import files
from scratchformers.text import TextTokenizer
from scratchformers.training.data import blocks, encoded
from scratchformers.training.documents import Documents, Piece, Survey
from scratchformers.training.request import Watch

FOLDER = "tokens"  # of a run
SMALL = 1 << 25  # characters; a shorter text is in memory
EVERY = 1 << 24  # bytes of ids after which what is there is noted
TOLD = 1 << 19  # bytes of text after which it is told how far it is
FORMAT = 1


def watched(pieces: Iterator[Piece], watch: Watch, what: str, size: int) -> Iterator[Piece]:
    """The pieces; how far they were gone through is told now and then."""
    done = told = 0
    for number, text in pieces:
        yield number, text
        done += len(text.encode("utf-8"))
        if done >= told + TOLD:
            watch(what, told := done, size)


def pack(
    documents: Documents, tokenizer: TextTokenizer, path: Path, *, text: str, watch: Watch, size: int
) -> tuple[Tensor, str]:
    """The ids of documents, as `to_stream` has them, mapped from `path`: (n,) uint16, or int32 where there are more
    than 65536; and the sha256 of the documents. `text` says by digests what they are, `size` their bytes.

    A journal beside the file says how much of it is there. It is written after what it speaks of, so that a process
    that was killed is gone on with from there, and the file comes out the same to the byte. What a journal says of
    another text or tokeniser is begun anew. OSError, of one sentence, where it cannot be written.
    """
    small = tokenizer.vocab <= 1 << 16
    key = hashlib.sha256(f"{FORMAT} {text} {tokenizer.digest()} {small}".encode()).hexdigest()
    width, place = 2 if small else 4, path.with_suffix(".json")
    found = _journal(place, path, key, width)
    if "sha256" not in found:
        try:
            read = watched(documents.pieces(), watch, "Tokens", size)
            found = _write(read, tokenizer, path, place, found, "uint16" if small else "int32")
        except OSError as error:
            how = "make room or let it be written to, and the same command goes on where it was"
            raise OSError(f"{path.parent} takes no more tokens ({error.strerror or error}): {how}.") from error
    dtype, count = torch.uint16 if small else torch.int32, found["bytes"] // width
    # The mapping is private: what is written to the tensor would not reach the file.
    stream = torch.from_file(str(path), shared=False, size=count, dtype=dtype) if count else torch.zeros(0, dtype=dtype)
    return stream, found["sha256"]


def _journal(place: Path, path: Path, key: str, width: int) -> dict[str, Any]:
    """What is there of the file, as far as it can be relied on."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = files.read_json(place)
        there = path.stat().st_size
        whole = there == found["bytes"] if "sha256" in found else there >= found["bytes"]
        if found["key"] == key and whole and found["bytes"] % width == 0:
            return found
    return {"key": key, "blocks": 0, "bytes": 0}


def _write(
    read: Iterator[Piece], tokenizer: TextTokenizer, path: Path, place: Path, found: dict[str, Any], dtype: str
) -> dict[str, Any]:
    """Writes what is not there yet. Gives the journal of the whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not found["blocks"]:
        place.unlink(missing_ok=True)  # what it speaks of is written over
    path.touch()
    whole = Survey()
    with path.open("r+b") as file:
        file.truncate(found["bytes"])
        file.seek(found["bytes"])
        for number, block in enumerate(blocks(whole.through(read)), 1):
            if number <= found["blocks"]:
                continue
            file.write(encoded(block, tokenizer).astype(dtype).data)
            if file.tell() - found["bytes"] >= EVERY:
                found = _note(file, place, found | {"blocks": number})
        return _note(file, place, found | {"sha256": whole.sha256})


def _note(file: Any, place: Path, found: dict[str, Any]) -> dict[str, Any]:
    file.flush()
    os.fsync(file.fileno())
    files.write_json(place, found := found | {"bytes": file.tell()})
    return found
