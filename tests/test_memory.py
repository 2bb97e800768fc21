"""Memory that a training step gives back stays in the process; whatever the system, asking for it does no harm."""

import platform
import subprocess
import sys

import pytest

from scratchformers.training.memory import keep_freed_memory

HELD = """
import ctypes, sys
from pathlib import Path
if sys.argv[1] == "keep":
    from scratchformers.training.memory import keep_freed_memory
    assert keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * c.getpagesize() / 2**20

before = resident()
block = c.malloc(24 * 2**20)
ctypes.memset(block, 1, 24 * 2**20)
c.free(block)
print(resident() - before)
"""


@pytest.mark.unhooked
def test_what_was_given_back_stays_in_the_process():
    if platform.libc_ver()[0] != "glibc":
        assert keep_freed_memory() is False
        return

    def held(how):
        code = [sys.executable, "-c", HELD, how]
        return float(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    assert held("default") < 4  # MiB, of 24
    assert held("keep") > 20


def test_another_libc_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
