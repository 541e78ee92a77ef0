"""Search folders for images and other files. Links are followed; hidden files are skipped and counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from vrft.data.image_folders import ImageFolders
from vrft.data.images import image_suffixes
from vrft.errors import ConfigurationError

SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}
"""Folders that macOS adds to archives and Synology to disks."""


def find_images(
    folder: Path, passed_over: Counter[str], allowed: ImageFolders | None, expected: Collection[str] = ()
) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted by path.

    Args:
        folder: folder to search.
        passed_over: counts the other files by reason.
        allowed: folders that links may lead to; None: any.
        expected: suffixes of files that belong to the format and are not counted.

    Raises:
        ConfigurationError: a link leads out of `allowed`.
    """
    return find_files(folder, image_suffixes(), passed_over, expected, allowed)


def find_files(
    folder: Path,
    suffixes: Collection[str],
    passed_over: Counter[str],
    expected: Collection[str] = (),
    allowed: ImageFolders | None = None,
) -> list[Path]:
    """Return the files with one of the suffixes in a folder and its subfolders, see `find_images`."""
    found = []
    for path in walk(folder, passed_over, allowed):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or not path.is_file():
            passed_over["hidden files" if path.name.startswith(".") else "broken links or special files"] += 1
        elif suffix in suffixes:
            found.append(path)
        elif suffix not in expected:
            passed_over[f"{suffix or 'suffixless'} files"] += 1
    return sorted(found)


def count_unused(folders: Collection[Path], used: Collection[Path], passed_over: Counter[str]) -> None:
    """Count the images in folders that no annotation refers to. Folders need not exist."""
    names = {os.path.realpath(path) for path in used}
    images = (path for folder in folders if folder.is_dir() for path in find_images(folder, Counter(), None))
    found = {os.path.realpath(path) for path in images}
    passed_over["images without annotations"] += len(found - names)


def walk(folder: Path, passed_over: Counter[str], allowed: ImageFolders | None) -> Iterator[Path]:
    """Yield everything below a folder except folders. A folder that several links lead to is searched once.

    Raises:
        ConfigurationError: a folder can't be read, or is outside of `allowed`.
    """
    seen = {os.path.realpath(parent) for parent in folder.absolute().parents}  # a link to a parent would be a cycle
    for place, subfolders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(place)
        if real in seen:
            passed_over["folders that links lead to again"] += 1
            subfolders.clear()
            continue
        seen.add(real)
        if allowed is not None:
            allowed.require(Path(place), str(folder))
        hidden = [name for name in subfolders if is_hidden_folder(name)]
        passed_over["hidden folders"] += len(hidden)
        subfolders[:] = sorted(name for name in subfolders if name not in hidden)
        yield from (Path(place, name) for name in names)


def _refuse(error: OSError) -> None:
    raise ConfigurationError(f"{error.filename}: can't be read: {error.strerror}") from error


def is_hidden_folder(name: str) -> bool:
    """Return whether a folder is hidden or made by the system."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def subfolders(folder: Path, passed_over: Counter[str]) -> list[Path]:
    """Return the subfolders of a folder, sorted. Hidden ones are left out and counted."""
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    kept = [path for path in found if not is_hidden_folder(path.name)]
    passed_over["hidden folders"] += len(found) - len(kept)
    return kept
