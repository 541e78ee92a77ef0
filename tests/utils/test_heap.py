"""Freed memory that stays with the process."""

import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT

OTHER_HEAPS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables that configure the heap, or replace it."""

SIZE, COUNT = 30 * 2**20, 4

CODE = f"""
import ctypes
from vrft.utils.heap import keep_freed_memory

def mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * {os.sysconf("SC_PAGESIZE")}

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
keep_freed_memory()
before = mapped()
blocks = [libc.malloc({SIZE}) for _ in range({COUNT})]
assert mapped() - before > {SIZE * (COUNT - 1)}
for block in blocks:
    libc.free(block)
print(mapped() - before)
"""


def kept_bytes(**settings: str) -> int:
    """Return how much freed memory a new process keeps, since nothing undoes the setting in this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OTHER_HEAPS)}
    environment |= {"PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
    ids=["default", "trim threshold", "mmap threshold", "tunables"],
)
def test_freed_memory_stays_unless_the_user_configures_the_heap(settings: dict[str, str], keeps: bool) -> None:
    kept = kept_bytes(**settings)
    assert kept > SIZE * (COUNT - 1) if keeps else kept < SIZE
