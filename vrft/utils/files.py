"""Write files and folders atomically: they are complete or absent, whenever the process is killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vrft.utils.display import table_cell

PARTIAL = ".partial"
"""Suffix of unfinished files. A killed run may leave one."""

REPLACE_TRIES, REPLACE_PAUSE = 20, 0.05
"""Number of attempts, and seconds between them, to replace a file on Windows that another process may be reading."""


def replace_link(link: Path, target: Path) -> None:
    """Point a symbolic link to `target` atomically, or copy the target where links are not supported."""
    with atomic_write(link) as partial:
        try:
            partial.symlink_to(os.path.relpath(target, link.parent))
        except OSError:  # links need a privilege on Windows, and some file systems have none
            shutil.copy(target, partial)


def hardlink(path: Path, name: Path) -> None:
    """Make `name` a hard link to a file, which persists when `path` is replaced, or a copy if links are unsupported."""
    if name.exists() and name.samefile(path):
        return
    if path.is_dir():
        folder = spare_folder(name)
        shutil.copytree(path, folder, copy_function=link_or_copy, dirs_exist_ok=True)
        publish_folder(name, folder)
        return
    with atomic_write(name) as partial:
        link_or_copy(str(path), str(partial))


def link_or_copy(path: str, name: str) -> None:
    """Make `name` a hard link to a file, or a copy if links are unsupported."""
    try:
        Path(name).hardlink_to(Path(path).resolve())
    except OSError:  # FAT has no hard links, and they can't cross file systems
        shutil.copy(path, name)


def relative_path(path: str) -> str:
    """Return a path relative to the working folder, or unchanged if it is on another drive of Windows."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return path


SIDES = (".a", ".b")
"""Suffixes of two alternating folders: `path` is a link to one while the other is written."""


def spare_folder(path: Path) -> Path:
    """Create an empty folder for the next content of `path`, to pass to `publish_folder`."""
    live = path.resolve()
    spare = next(folder for folder in sides(path) if folder.resolve() != live)
    shutil.rmtree(spare, ignore_errors=True)  # a killed run may have left it
    spare.mkdir(parents=True)
    return spare


def publish_folder(path: Path, folder: Path) -> None:
    """Make `path` a link to a complete folder atomically, and remove the folder that it linked to before."""
    sync(folder)
    replace_link(path, folder)
    for other in sides(path):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a link made by `publish_folder`, and its folder."""
    path.unlink()
    for folder in sides(path):
        shutil.rmtree(folder, ignore_errors=True)


def sides(path: Path) -> list[Path]:
    """Return the two folders that `path` may link to."""
    return [path.with_name(path.name + side) for side in SIDES]


def remove_unpublished(folder: Path, pattern: str) -> None:
    """Remove files of a killed run: unfinished files, and folders that their link does not point at."""
    for partial in folder.glob(f"{pattern}{PARTIAL}"):
        partial.unlink()
    for side in SIDES:
        for spare in folder.glob(f"{pattern}{side}"):
            if spare.with_suffix("").resolve() != spare.resolve():
                shutil.rmtree(spare)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which atomically replaces `path` after the block.

    Raises:
        OSError: writing fails. The message names `path` and the reason.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # writing would follow a link left by a killed run
        yield partial
        sync(partial)
        replace(partial, path)
        sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)  # free the space, since the disk may be full


def replace(partial: Path, path: Path) -> None:
    """Replace `path` by `partial`. On Windows, retry while another process has `path` open."""
    for _ in range(REPLACE_TRIES if sys.platform == "win32" else 0):
        try:
            partial.replace(path)
        except PermissionError:
            time.sleep(REPLACE_PAUSE)
        else:
            return
    partial.replace(path)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk (fsync). Folders are skipped on Windows, which can't open them."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. Raise ValueError for NaN and infinities."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file. Texts are escaped by `table_cell`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([table_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
