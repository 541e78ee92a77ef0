"""Find the images that annotations name, possibly by paths from another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from vrft.data.files import endings, is_file_name
from vrft.data.images import image_suffixes


def find_image(name: object, folders: Sequence[Path]) -> Path:
    """Return the file in one of the folders that matches the longest ending of a path.

    If there is none, a file that differs only in its image suffix matches too, or one with a suffix if the name has
    none. The returned file may not exist.

    Raises:
        ValueError: `name` is not a file name.
    """
    if not is_file_name(name) or not endings(name):
        raise ValueError(f"expected the file name of an image, got {name!r}")
    plain = name.replace("\\", "/")
    for tail in (plain, *endings(name)):
        for folder in folders:
            if os.path.isfile(folder / tail):  # unlike Path.is_file, false for a name that is too long
                return folder / tail
    last = endings(name)[-1]
    suffixes = image_suffixes()
    stem, suffix = os.path.splitext(last)
    stem = stem if suffix.lower() in suffixes else last  # cam.1 may be cam.1.jpg but not cam.jpg
    for folder in folders:
        for other in sorted(suffixes):
            for file in (folder / f"{stem}{other}", folder / f"{stem}{other.upper()}"):
                if os.path.isfile(file):
                    return file
    return folders[0] / last


def without_links(image: Path) -> Path:
    """Resolve links and `..` in the folder of an image, so that all paths to the image give the same result."""
    return _real_folder(image.parent.absolute()) / image.name


@lru_cache(maxsize=1024)
def _real_folder(folder: Path) -> Path:
    return Path(os.path.realpath(folder))
