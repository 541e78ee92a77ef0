"""Read files that users name, but only regular files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Refuse FIFOs, devices and sockets, which may block or never end.

    Raises:
        OSError: the path is not a regular file, or can't be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    require_regular(path, os.stat(path).st_mode)  # check first, because opening a device may have effects
    file = open(os.open(path, flags), "rb")  # noqa: SIM115  # the caller closes it
    try:
        require_regular(path, os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def require_regular(path: Path, mode: int) -> None:
    """Raise OSError unless the mode of a path indicates a regular file."""
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path) -> bytes:
    """Read a regular file, see `open_regular`."""
    with open_regular(path) as file:
        return file.read()
