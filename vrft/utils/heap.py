"""The heap of the C library."""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)

LARGEST_IN_HEAP = 32 * 2**20
"""Largest block that glibc takes from the heap, the most that mallopt accepts."""

LARGEST_UNUSED = 2**30
"""Bytes of freed memory that each process keeps at the end of its heap."""

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which users configure the heap themselves."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for later ones, unless one of SETTINGS is in the environment.

    By default, glibc soon returns that memory to the system, which clears and maps each page again for the next
    tensors. With this setting, up to 1 GiB of freed memory stays with the process and with each process forked from it.
    Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in SETTINGS):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)
        mallopt(TRIM_THRESHOLD, LARGEST_UNUSED)
