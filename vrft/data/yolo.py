"""YOLO text labels: a line per object with its class and its box in shares of the image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.categories import CategoryData
from vrft.data.files import brief, clip_to, decode_text, hull, is_id, is_text, read_bytes, require_file
from vrft.data.image_folder import IMAGE_SUFFIXES
from vrft.data.images import BadImage, check_image
from vrft.data.records import BadRecords, Record, Split
from vrft.errors import ConfigurationError
from vrft.types import Detection
from vrft.utils.yaml_text import decode_yaml

TOLERANCE = 1e-3
"""Shares of the image that a box may stand out of it: rounding, which is cut off."""


class Labelled(NamedTuple):
    """An image with its label file and its boxes."""

    image: Path
    labels: Path
    size: tuple[int, int]
    boxes: list[Detection]


class YoloData(CategoryData):
    """A data.yaml with `path`, `train`, `val` and `names`; labels are in `labels/` where images are in `images/`."""

    def __init__(self, config: str, **kwargs: Any) -> None:
        """Names the file; it is read when training starts.

        Args:
            config: the data.yaml.
            kwargs: see `CategoryData`.
        """
        super().__init__(**kwargs)
        self.config = Path(config)
        self.names: dict[int, str] = {}
        self.images: dict[int, Labelled] = {}
        require_file("config", self.config, "a YOLO data.yaml")

    def ordered_categories(self) -> Sequence[str]:
        return [self.names[key] for key in sorted(self.names)]

    @property
    def known(self) -> list[str]:
        """Names of the classes."""
        return list(dict.fromkeys(self.ordered_categories()))

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        folder, self.names = read_config(self.config, split)
        wanted = self.select(split, self.known, self.config)
        images = {}
        files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
        for image_id, image in enumerate(file for file in files if not file.name.startswith(".")):
            path = label_file(image)
            try:
                size = check_image(image)
                images[image_id] = Labelled(image, path, size, read_labels(path, size, self.names))
            except (BadImage, ValueError) as error:
                location = str(image if isinstance(error, BadImage) else path)
                bad_records.add(location, str(error).removeprefix(f"{location}: "))
        if split == "train":
            self.images = images
        asked = self.queries(split, categories_in(images, wanted), wanted, self.config, bad_records)
        return [self._record(image_id, images[image_id], name) for image_id, names in asked.items() for name in names]

    def absent(self, images: set[int] | None) -> Iterator[tuple[int, str]]:
        wanted = self.select("train", self.known, self.config)
        there = categories_in(self.images, wanted)
        chosen = [key for key in self.images if images is None or key in images]
        return ((key, name) for key in chosen for name in wanted if name not in there[key])

    def absent_record(self, image_id: int, name: str) -> Record:
        return self._record(image_id, self.images[image_id], name)

    @staticmethod
    def _record(image_id: int, labelled: Labelled, name: str) -> Record:
        target = tuple(box for box in labelled.boxes if box.label == name)
        return Record(labelled.image, str(labelled.labels), image_id, name, target, labelled.size)


def categories_in(images: Mapping[int, Labelled], wanted: Sequence[str]) -> dict[int, list[str]]:
    """The categories in each image, in the order of `wanted`."""
    labels = {image_id: {box.label for box in labelled.boxes} for image_id, labelled in images.items()}
    return {image_id: [name for name in wanted if name in there] for image_id, there in labels.items()}


def read_config(path: Path, split: Split) -> tuple[Path, dict[int, str]]:
    """The folder of a split's images, and the names of the classes by their numbers.

    Raises:
        ConfigurationError: the file is not a YOLO data.yaml, or there is no such folder.
    """
    try:
        content = decode_yaml(decode_text(read_bytes(path)))
    except ValueError as error:
        raise ConfigurationError(f"data.config: {path} is not YAML that can be read: {error}") from error
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise ConfigurationError(f"data.config: {path}: names: expected a list or numbers with names")
    for key, name in names.items():
        if not is_id(key) or not is_text(name):
            raise ConfigurationError(
                f"data.config: {path}: names: expected text in quotes for a number, got {brief(name)} for {brief(key)}"
            )
    root, below = content.get("path") or "", content.get(split)
    if not isinstance(root, str) or not is_text(below):
        raise ConfigurationError(f"data.config: {path}: {split}: expected a folder of images, got {brief(below)}")
    folder = path.parent / root / below
    if not os.path.isdir(folder):  # which is no error either for a name that can't be one
        raise ConfigurationError(f"data.config: {path}: {split}: no such folder: {brief(str(folder))}")
    return folder, names


def label_file(image: Path) -> Path:
    """`…/images/train/x.jpg` -> `…/labels/train/x.txt`."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, size: tuple[int, int], names: Mapping[int, str]) -> list[Detection]:
    """Boxes in pixels of an image of `size` (width, height); none if there is no file. A repeated line counts once.

    A line of more than five numbers is the outline of a segment, whose hull is taken.

    Raises:
        ValueError: a line is not what it should be; names line and reason.
    """
    if not path.exists():
        return []
    boxes: dict[Detection, None] = {}
    for number, line in enumerate(decode_text(read_bytes(path)).split("\n"), 1):
        if line.strip():
            try:
                boxes[_read_line(line.split(), size, names)] = None
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return list(boxes)


def _read_line(words: list[str], size: tuple[int, int], names: Mapping[int, str]) -> Detection:
    label, *values = words
    key = int(label) if label.isdecimal() and len(label) < 10 else -1
    if key not in names:
        raise ValueError(f"no class has number {brief(label)}; there are {len(names)}")
    numbers = [float(value) for value in values]
    if len(numbers) < 4 or (len(numbers) > 4 and len(numbers) % 2) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected class, x, y, width and height in shares of the image, got {brief(' '.join(words))}")
    if len(numbers) == 4:
        x, y, w, h = numbers
        corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        corners = hull(zip(numbers[::2], numbers[1::2], strict=True))
    if min(corners) < -TOLERANCE or max(corners) > 1 + TOLERANCE:
        raise ValueError(f"the box {corners} stands out of its image")
    x0, y0, x1, y1 = clip_to(corners, 1, 1)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {corners} has no area")
    width, height = size
    return Detection((x0 * width, y0 * height, x1 * width, y1 * height), names[key])
