"""Images that annotations name, possibly by the path that they had on another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vrft.data.files import endings, is_file_name
from vrft.data.images import image_suffixes


def find_image(name: object, folders: Sequence[Path]) -> Path:
    """Return the image of a name: in one of the folders, by the longest ending of its path that exists there.

    If there is none, a file that differs only in its suffix counts. The returned file may not exist.

    Raises:
        ValueError: the name is no file name.
    """
    if not is_file_name(name) or not endings(name):
        raise ValueError(f"expected the file name of an image, got {name!r}")
    plain = name.replace("\\", "/")
    for tail in (plain, *endings(name)):
        for folder in folders:
            if os.path.isfile(folder / tail):  # unlike Path.is_file, false for a name that is too long
                return folder / tail
    last = endings(name)[-1]
    for folder in folders:
        for suffix in sorted(image_suffixes()):
            for other in (folder / last).with_suffix(suffix), (folder / last).with_suffix(suffix.upper()):
                if os.path.isfile(other):
                    return other
    return folders[0] / last
