"""Restrict the images of a data set to the folders of its config."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vrft.errors import ConfigurationError


@dataclass(frozen=True)
class ImageFolders:
    """The folders that may contain the images of a split, and the field or setting that names an image."""

    field: str
    folders: tuple[Path, ...]

    def require(self, path: Path, location: str) -> None:
        """Raise ConfigurationError if an absolute path, `..` or a link leads out of the folders.

        Args:
            path: an image, or a folder of images.
            location: the file and the record that name `path`, for the message.
        """
        parent, name = os.path.split(os.path.join(os.getcwd(), path))
        try:
            if name != os.pardir and _is_inside(parent, self.folders) and not os.path.islink(path):
                return
            real = Path(os.path.realpath(path))
        except ValueError:  # not a valid file name; opening the file reports it
            return
        if not _is_inside(str(real), self.folders):
            leads = f"{path} leads to {real}" if str(real) != os.path.abspath(path) else str(path)
            raise ConfigurationError(
                f"{location}: {self.field}: {leads}, outside of {' and '.join(map(str, self.folders))}; "
                "data.allow_outside=true reads images from anywhere"
            )


@lru_cache(maxsize=1024)
def _is_inside(place: str, folders: tuple[Path, ...]) -> bool:
    """Return whether an absolute path leads to one of the folders or below it."""
    return any(Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)) for folder in folders)
