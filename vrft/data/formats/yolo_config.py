"""YOLO's data.yaml: class names and the images of each split, even if its paths come from another machine."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrft.data.files import brief, decode_text, endings, is_file_name, is_id, is_text, read_bytes, read_lines
from vrft.data.folders import find_images
from vrft.data.image_folders import ImageFolders
from vrft.data.image_names import without_links
from vrft.data.record import Split
from vrft.errors import ConfigurationError
from vrft.utils import notices
from vrft.utils.yaml_text import decode_yaml

KEYS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Accepted names of each split's entry."""


@dataclass(frozen=True)
class YoloConfig:
    """A data.yaml."""

    path: Path
    encoding: str
    content: dict[Any, Any]
    names: dict[int, str]
    """Class names by number."""
    keypoints: tuple[int, int] | None
    """Number of keypoints in each label and of values per keypoint; None if labels are not poses."""

    @classmethod
    def read(cls, path: Path, encoding: str) -> YoloConfig:
        """Read a file.

        Raises:
            ConfigurationError: the file is not a YOLO data.yaml.
        """
        try:
            content = decode_yaml(decode_text(read_bytes(path), encoding))
        except ValueError as error:
            raise ConfigurationError(f"data.config: {path} is not valid YAML: {error}") from error
        content = content if isinstance(content, dict) else {}
        try:
            return cls(path, encoding, content, read_names(content), read_keypoints(content))
        except ValueError as error:
            raise ConfigurationError(f"data.config: {path}: {error}") from error

    def entries(self, split: Split) -> list[Any]:
        """Return the entries of a split: folders, or files that list images."""
        found = [self.content[key] for key in KEYS[split] if self.content.get(key) not in (None, "", [])]
        return [] if not found else found[0] if isinstance(found[0], list) else [found[0]]

    def images(self, split: Split, passed_over: Counter[str], allowed: ImageFolders | None) -> list[Path]:
        """Return the images of a split.

        Args:
            split: split to read.
            passed_over: counts other files, see `find_images`.
            allowed: folders that must contain the images; None: no restriction.

        Raises:
            ConfigurationError: an entry is missing or names no file or folder, or an image is outside of `allowed`.
        """
        entries = self.entries(split)
        if not entries or not all(map(is_text, entries)):
            got = brief(self.content.get(split))
            raise ConfigurationError(
                f"data.config: {self.path}: {split}: expected a folder of images, a file that lists images, or a list "
                f"of these, got {got}"
            )
        found: dict[Path, Path] = {}
        for entry in entries:
            place = self.locate(split, entry)
            is_folder = place.is_dir()
            self._look_beside(split, entry, place, allowed)
            if is_folder and allowed is not None:
                allowed.require(place, str(self.path))
            images = find_images(place, passed_over, allowed, {".txt", ".cache"}) if is_folder else self.listed(place)
            for image in images:
                if allowed is not None:
                    allowed.require(image, str(place))
                found.setdefault(without_links(image), image)
        return [*found.values()]

    def listed(self, file: Path) -> Iterator[Path]:
        """Yield the images that a file lists, relative to the file's folder or to the folder of the data.yaml.

        If the path as written does not exist, use the longest ending of it that does.

        Raises:
            ConfigurationError: a line is not a path, or the endings of different lines lead to the same image.
        """
        folders = (file.parent, self.path.parent)
        lines: dict[Path, tuple[str, bool]] = {}
        for location, line in read_lines(file, self.encoding):
            if not is_file_name(line):
                raise ConfigurationError(f"{location}: expected the path of an image, got {brief(line)}")
            written = [folder / line for folder in folders]
            places = [*written, *(folder / name for name in endings(line) for folder in folders)]
            place = next((place for place in places if os.path.isfile(place)), written[0])
            by_ending = place not in written
            other, other_by_ending = lines.setdefault(without_links(place), (line, by_ending))
            if other != line and (by_ending or other_by_ending):
                raise ConfigurationError(
                    f"{location}: {brief(line)} and {brief(other)} both lead to {place} by the last parts of their "
                    "paths; expected paths that exist"
                )
            yield place

    def locate(self, split: Split, entry: str) -> Path:
        """Return the file or folder of an entry. If it does not exist, look beside the data.yaml, with a notice.

        `../train/images` may mean `train/images`; of a path from another machine, only the last folders are used.
        """
        root = self.content.get("path") or ""
        if not isinstance(root, str):
            raise ConfigurationError(f"data.config: {self.path}: path: expected a folder, got {brief(root)}")
        written = self.path.parent / root / entry
        if os.path.exists(written):  # unlike Path.exists, false for a name that is too long
            return written
        found = self._beside(root, entry)
        if found is None:
            raise ConfigurationError(
                f"data.config: {self.path}: {split}: no such file or folder: {brief(str(written))}, and no folder of "
                f"this name beside {self.path.name}"
            )
        notices.warn(f"{self.path}: {split}: {brief(entry)} does not exist; {found} is read instead")
        return found

    def _beside(self, root: str, entry: str) -> Path | None:
        """Return the file or folder beside the data.yaml that matches the last parts of an entry's path."""
        tails = [*dict.fromkeys([*endings(f"{root}/{entry}"), *endings(entry)])]
        common = "images" if endings(entry) != ["images"] else None  # "images" alone may belong to any split
        places = [self.path.parent / tail for tail in tails if tail != common]
        return next((place for place in places if os.path.exists(place)), None)

    def _look_beside(self, split: Split, entry: str, place: Path, allowed: ImageFolders | None) -> None:
        """Refuse an entry that leads out of the data.yaml's folder if it may mean a folder inside; warn if allowed.

        Roboflow writes `../train/images` for `train/images`, which may lead to another export beside this one.
        """
        here, real = os.path.realpath(self.path.parent), os.path.realpath(place)
        root = self.content.get("path") or ""
        if Path(real).is_relative_to(here) or (meant := self._beside(root, entry)) is None:
            return
        if os.path.islink(meant) and os.path.realpath(meant) == real:
            return
        key = next(key for key in KEYS[split] if self.content.get(key) not in (None, "", []))
        tail = meant.relative_to(self.path.parent).as_posix()
        without = "" if os.path.normpath(root) == "." else f" and remove `path: {root}`"
        message = (
            f"data.config: {self.path}: {key}: {brief(entry)} leads to {real}, outside of the folder of this file, "
            f"which has {tail}; if that is meant, write `{key}: {tail}` in this file{without}"
        )
        if allowed is not None:
            raise ConfigurationError(message)
        notices.warn(message)


def read_names(content: dict[Any, Any]) -> dict[int, str]:
    """Return class names by number, from a list or a mapping. Raise ValueError if they, or `nc`, are invalid."""
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise ValueError("names: expected a list, or a name for each class number")
    found: dict[int, str] = {}
    for key, name in names.items():
        number = int(key) if isinstance(key, str) and re.fullmatch(r"[0-9]{1,9}", key) else key
        if not is_id(number) or not is_text(name):
            raise ValueError(
                f"names: expected a number and a text, got {brief(key)} and {brief(name)}; quote names such as 'yes' "
                "or '1'"
            )
        if number in found:
            raise ValueError(f"names: class {number} has two names, {found[number]!r} and {name!r}")
        found[number] = name.strip()
    count = content.get("nc")
    if count is not None and count != len(found):
        raise ValueError(f"nc: {brief(count)} classes, but there are {len(found)} names")
    return found


def read_keypoints(content: dict[Any, Any]) -> tuple[int, int] | None:
    """Return `kpt_shape`, or None if there is none. Raise ValueError if it is invalid."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, Sequence) or len(shape) != 2 or not all(map(is_id, shape)) or shape[1] not in (2, 3):
        raise ValueError(f"kpt_shape: expected [number of keypoints, 2 or 3], got {brief(shape)}")
    return shape[0], shape[1]
