"""A published file at a plain address: fetched once, resumed where it was cut, and used only if its digest is right."""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MIRROR = "SCRATCHFORMERS_MIRROR"  # the variable with an address (http://host:port/path) that stands for every host
TIMEOUT = 20.0  # seconds without a byte, after which a connection counts as cut


@dataclass(frozen=True)
class Download:
    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def address(self) -> str:
        mirror = os.environ.get(MIRROR)
        return mirror.rstrip("/") + urlsplit(self.url).path if mirror else self.url


def fetch(wanted: Download, folder: Path, *, client: Any, bar: Callable[..., Any]) -> Path:
    """The file, in this folder. `client` is one of httpx; `bar` makes a progress bar, as tqdm does.

    What has arrived stands beside it as `.part`, also when this process is killed: the next call goes on from there.
    One process at a time may call this for a folder. Raises OSError (ConnectionError, ...) with one sentence.
    """
    path, part = folder / wanted.name, folder / f"{wanted.name}.part"
    if path.is_file():  # whoever held the lock before has fetched it
        return path
    try:
        _fetch_rest(wanted.address, part, client, bar)
        with open(part, "rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if digest == wanted.sha256:
            os.replace(part, path)
            return path
        part.unlink()
    except Exception as error:  # the HTTP library's own errors have no common class with the rest
        raise _sentence(error, wanted, folder) from None
    raise OSError(f"{wanted.address} arrived damaged (its sha256 is {digest}, not {wanted.sha256}): try again.")


def _fetch_rest(url: str, part: Path, client: Any, bar: Callable[..., Any]) -> None:
    """Goes on at once after a cut, as long as each connection brings something."""
    while True:
        held = _size(part)
        try:
            return _go_on(url, part, held, client, bar)
        except OSError:  # the disk, or the server's answer
            raise
        except Exception:
            if _size(part) <= held:
                raise


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _go_on(url: str, part: Path, held: int, client: Any, bar: Callable[..., Any]) -> None:
    """Asks for what lies behind `held` bytes. A server that does not know Range sends all of it anew."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
    with client.stream("GET", url, headers=headers, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing lies behind: its digest says whether that is all
            return
        if answer.status_code not in (200, 206):
            raise _AnswerError(answer.status_code)
        range_ = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        start = min(int(range_[1]), held) if range_ and answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        shown = bar(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True)
        with open(part, "ab") as file, shown:
            file.truncate(start)
            for chunk in answer.iter_raw():
                file.write(chunk)
                shown.update(len(chunk))


class _AnswerError(OSError):
    """A status that brings no file."""


def _sentence(error: Exception, wanted: Download, folder: Path) -> OSError:
    """What a person can do about it."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    if isinstance(error, _AnswerError):
        return OSError(f"{wanted.address} was asked for and answered with status {said}: try again later.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OSError(f"The disk of {folder} is full: make room for {wanted.name}, or set HF_HOME to another.")
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(f"{wanted.name} could not be stored in {folder}: {said}")
    held = _size(folder / f"{wanted.name}.part")
    goes_on = f", which goes on after the {held} bytes that have arrived" if held else ""
    reached = f"{wanted.address} could not be fetched ({type(error).__name__}: {said})"
    return ConnectionError(f"{reached}: check the connection and try again{goes_on}.")
