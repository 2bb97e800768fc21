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
for step in range(3):  # a hundred blocks of 1 MiB, all of them written
    blocks = [c.malloc(2**20) for _ in range(100)]
    for block in blocks:
        ctypes.memset(block, 1, 2**20)
    for block in reversed(blocks):
        c.free(block)
print(resident() - before)
"""


@pytest.mark.unhooked
def test_what_a_step_gave_back_stays_in_the_process():
    if platform.libc_ver()[0] != "glibc":
        assert keep_freed_memory() is False
        return

    def held(how):
        code = [sys.executable, "-c", HELD, how]
        return float(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    assert held("default") < 20  # MiB, of 100
    assert held("keep") > 90


def test_another_libc_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
