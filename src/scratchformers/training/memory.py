"""What a step gave back, kept for the next one, and whole."""

import contextlib
import ctypes
import os
import platform
import sys

MXFAST, TRIM_THRESHOLD, MMAP_THRESHOLD = 1, -1, -3  # parameters of mallopt, by glibc's malloc.h
KEPT = 32 * 2**20  # the largest block that is kept, in bytes
TUNABLES, UNCACHED = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"  # of the environment, read as a program begins


def begin_anew() -> None:
    """Puts the same program in the place of this one, with an allocator that joins what is freed at once; returns where
    that was done before, or cannot be.

    A tensor is cut out of a larger block, to lie at a multiple of 64 bytes. The cuttings, once freed, wait in caches of
    glibc's, and what lies between two that wait is no longer room enough for a tensor as large as the last one there: a
    MiniLM held 3 % more with every step, without end. Without these caches it stays, and steps take no longer.
    """
    before = os.environ.get(TUNABLES, "")
    if platform.libc_ver()[0] != "glibc" or "tcache" in before or "-" in sys.orig_argv:  # a program read from stdin
        return
    os.environ[TUNABLES] = f"{before}:{UNCACHED}".strip(":")
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks for the steps to come, and says whether it did; elsewhere nothing is changed.

    By default it hands them back to the kernel, which clears them page by page when the next step asks for as much:
    37,000 page faults in a step of a middling MAE, 7 % of its time. Larger blocks than `KEPT` still go back: kept, they
    were a fifth to a half more memory where no two batches have one length; so it is 3 % more there, none elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(MXFAST, 0)  # the other one of the caches that `begin_anew` speaks of
    return bool(mallopt(MMAP_THRESHOLD, KEPT)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))
