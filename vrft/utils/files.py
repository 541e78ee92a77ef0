"""Files that are whole or absent, whenever a process is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""What the name of an unfinished file ends with. A killed run may leave one."""


def replace_link(link: Path, target: Path) -> None:
    """Let a symbolic link point elsewhere; it becomes a copy where links can't be made."""
    with atomic_write(link) as partial:
        try:
            partial.symlink_to(os.path.relpath(target, link.parent))
        except OSError:  # Windows asks for a permission, some file systems have none
            shutil.copy(target, partial)


def hardlink(path: Path, name: Path) -> None:
    """Give a file a second name, which stays when the first is given to another; a copy where files have but one."""
    if name.exists() and name.samefile(path):
        return
    with atomic_write(name) as partial:
        try:
            partial.hardlink_to(path.resolve())
        except OSError:  # FAT has none, other file systems are another disk
            shutil.copy(path, partial)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a name to write to, in the same folder; what is written there takes the place of `path` at once.

    Raises:
        OSError: it can't be written; the message names `path` and the reason.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # a link that a killed run left would be written through
        yield partial
        sync(partial)
        partial.replace(path)
        if os.name == "posix":
            sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)  # on a full disk, its space is needed


def sync(path: Path) -> None:
    """Return when what the file or the folder holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN and infinities are refused."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, allow_nan=False) + "\n")
