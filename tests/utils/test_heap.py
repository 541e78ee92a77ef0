"""Memory that is freed and used again."""

import ctypes
import platform
import resource

import pytest

from vrft.utils.heap import keep_freed_memory

SIZE, COUNT = 30 * 2**20, 4


def faults_of_blocks() -> int:
    """Write to some blocks, free them, and return how many pages the system mapped."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    blocks = [libc.malloc(SIZE) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_used_again_without_faults() -> None:
    keep_freed_memory()
    faults_of_blocks()
    assert faults_of_blocks() < SIZE / resource.getpagesize()
