"""Atomic writes: a file is complete or absent, whenever the process is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Suffix of unfinished files. A killed run may leave one."""


def replace_link(link: Path, target: Path) -> None:
    """Point a symbolic link to `target` atomically, or copy the target where links are not supported."""
    with atomic_write(link) as partial:
        try:
            partial.symlink_to(os.path.relpath(target, link.parent))
        except OSError:  # Windows requires a privilege, some file systems have no links
            shutil.copy(target, partial)


def hardlink(path: Path, name: Path) -> None:
    """Give a file a second name that survives when `path` is replaced, or copy it where hard links are unsupported."""
    if name.exists() and name.samefile(path):
        return
    with atomic_write(name) as partial:
        try:
            partial.hardlink_to(path.resolve())
        except OSError:  # FAT has no hard links, and they can't cross file systems
            shutil.copy(path, partial)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` atomically after the block.

    Raises:
        OSError: writing fails; the message names `path` and the reason.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # writing would follow a link left by a killed run
        yield partial
        sync(partial)
        partial.replace(path)
        if os.name == "posix":
            sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)  # free its space if the disk is full


def sync(path: Path) -> None:
    """Flush a file or a folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN and infinities."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, allow_nan=False) + "\n")
