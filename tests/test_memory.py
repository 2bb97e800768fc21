"""Memory that a training step gives back stays in the process; whatever the system, asking for it does no harm."""

import os
import platform
import subprocess
import sys

import pytest

from scratchformers.training.memory import TUNABLES, UNCACHED, begin_anew, keep_freed_memory

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


# --- caches of cuttings


@pytest.fixture
def begun(monkeypatch):
    """What was put in this program's place, each time."""
    found = []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(os, "execv", lambda *given: found.append((given, os.environ[TUNABLES])))
    monkeypatch.delenv(TUNABLES, raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "scratchformers", "train", "gpt2"])
    return found


def test_a_program_begins_anew_once(begun, monkeypatch):
    begin_anew()
    begin_anew()
    assert begun == [((sys.executable, [sys.executable, "-m", "scratchformers", "train", "gpt2"]), UNCACHED)]
    monkeypatch.setenv(TUNABLES, "glibc.malloc.arena_max=2")
    begin_anew()
    assert begun[1][1] == f"glibc.malloc.arena_max=2:{UNCACHED}", "what is asked for stays"
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delenv(TUNABLES)
    begin_anew()
    assert len(begun) == 2, "another libc has no such caches"


def test_where_it_cannot_it_goes_on(begun, monkeypatch):
    def refuse(*given):
        raise PermissionError("not here")

    monkeypatch.setattr(os, "execv", refuse)
    begin_anew()
    assert not begun


@pytest.mark.unhooked
@pytest.mark.parametrize("command", ["train", "plan"])
def test_training_alone_begins_anew(command):
    """The program as it is started: its place is taken by one with the tunable, and what was asked for is done."""
    code = f"import sys; sys.argv[1:] = ['{command}', '--help']\nfrom scratchformers import cli\nimport os\n"
    code += "os.execv = lambda *given: print(os.environ['GLIBC_TUNABLES'])\ncli.main()"
    environ = {name: value for name, value in os.environ.items() if name != TUNABLES}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ).stdout
    assert (UNCACHED in said) is (command == "train" and platform.libc_ver()[0] == "glibc")
