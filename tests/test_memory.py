"""Memory that a training step gives back stays in the process; whatever the system, asking for it does no harm."""

import platform
import subprocess
import sys

import pytest

from scratchformers.training.memory import keep_freed_memory

FAULTS = """
import ctypes, resource, sys
if sys.argv[1] == "keep":
    from scratchformers.training.memory import keep_freed_memory
    assert keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def step():  # a hundred blocks of 1 MiB, all of them written
    blocks = [c.malloc(2**20) for _ in range(100)]
    for block in blocks:
        ctypes.memset(block, 1, 2**20)
    for block in reversed(blocks):
        c.free(block)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.unhooked
def test_a_step_clears_no_page_that_the_last_one_had():
    if platform.libc_ver()[0] != "glibc":
        assert keep_freed_memory() is False
        return

    def faults(how):
        code = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    assert faults("default") > 5000  # of 25,600 pages
    assert faults("keep") < 500


def test_another_libc_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
