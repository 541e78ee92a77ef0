"""YOLO text labels: one line per object with its class and its box in fractions of the image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.bad_records import BadRecords
from vrft.data.categories import CategoryData
from vrft.data.files import brief, clip_to, decode_text, hull, is_id, is_text, read_bytes, require_file
from vrft.data.image_folder import IMAGE_SUFFIXES
from vrft.data.images import BadImage, check_image
from vrft.data.record import Record, Split
from vrft.errors import ConfigurationError
from vrft.types import Detection, Id
from vrft.utils.yaml_text import decode_yaml

TOLERANCE = 1e-3
"""Fraction of the image by which a box may extend beyond it and is clipped: rounding errors."""


class Labelled(NamedTuple):
    """An image with its label file and its boxes."""

    image: Path
    labels: Path
    size: tuple[int, int]
    boxes: list[Detection]


class YoloData(CategoryData):
    """A data.yaml with `path`, `train`, `val` and `names`; labels of `…/images/x.jpg` are in `…/labels/x.txt`."""

    def __init__(self, config: str, **kwargs: Any) -> None:
        """Set the file, which is read when training starts.

        Args:
            config: path of the data.yaml.
            kwargs: see `CategoryData`.
        """
        super().__init__(**kwargs)
        self.config = Path(config)
        self.names: dict[int, str] = {}
        self.images: dict[Id, Labelled] = {}
        require_file("config", self.config, "a YOLO data.yaml")

    def ordered_categories(self) -> Sequence[str]:
        return [self.names[key] for key in sorted(self.names)]

    @property
    def known(self) -> list[str]:
        """Class names by ascending number, without duplicates."""
        return list(dict.fromkeys(self.ordered_categories()))

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        folder, self.names = read_config(self.config, split)
        wanted = self.select(split, self.known, self.config)
        images: dict[Id, Labelled] = {}
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

    def absent(self, images: set[Id] | None) -> Iterator[tuple[Id, str]]:
        wanted = self.select("train", self.known, self.config)
        present = categories_in(self.images, wanted)
        chosen = [key for key in self.images if images is None or key in images]
        return ((key, name) for key in chosen for name in wanted if name not in present[key])

    def absent_record(self, image_id: Id, name: str) -> Record:
        return self._record(image_id, self.images[image_id], name)

    @staticmethod
    def _record(image_id: Id, labelled: Labelled, name: str) -> Record:
        target = tuple(box for box in labelled.boxes if box.label == name)
        return Record(labelled.image, str(labelled.labels), image_id, name, target, labelled.size)


def categories_in(images: Mapping[Id, Labelled], wanted: Sequence[str]) -> dict[Id, list[str]]:
    """Return the categories in each image, in the order of `wanted`."""
    labels = {image_id: {box.label for box in labelled.boxes} for image_id, labelled in images.items()}
    return {image_id: [name for name in wanted if name in present] for image_id, present in labels.items()}


def read_config(path: Path, split: Split) -> tuple[Path, dict[int, str]]:
    """Return the image folder of a split and the class names by number.

    Raises:
        ConfigurationError: the file is not a YOLO data.yaml, or the folder does not exist.
    """
    try:
        content = decode_yaml(decode_text(read_bytes(path)))
    except ValueError as error:
        raise ConfigurationError(f"data.config: {path} is not valid YAML: {error}") from error
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise ConfigurationError(f"data.config: {path}: names: expected a list, or a name for each class number")
    for key, name in names.items():
        if not is_id(key) or not is_text(name):
            raise ConfigurationError(
                f"data.config: {path}: names: expected a number and a text, got {brief(key)} and {brief(name)}; quote "
                "names such as 'yes' or '1'"
            )
    root, below = content.get("path") or "", content.get(split)
    if not isinstance(root, str) or not is_text(below):
        raise ConfigurationError(f"data.config: {path}: {split}: expected a folder of images, got {brief(below)}")
    folder = path.parent / root / below
    if not os.path.isdir(folder):  # unlike Path.is_dir, false for a name that is too long
        raise ConfigurationError(f"data.config: {path}: {split}: no such folder: {brief(str(folder))}")
    return folder, names


def label_file(image: Path) -> Path:
    """Return the label file of an image: `…/images/train/x.jpg` -> `…/labels/train/x.txt`."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, size: tuple[int, int], names: Mapping[int, str]) -> list[Detection]:
    """Read boxes in pixels of an image of `size` (width, height); none if the file does not exist.

    Duplicate lines count once. A line with more than five numbers is a segment's outline; its hull is the box.

    Raises:
        ValueError: a line is invalid; the message has its number and the reason.
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
        raise ValueError(f"expected class, x, y, width and height as fractions, got {brief(' '.join(words))}")
    if len(numbers) == 4:
        x, y, w, h = numbers
        corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        corners = hull(zip(numbers[::2], numbers[1::2], strict=True))
    if min(corners) < -TOLERANCE or max(corners) > 1 + TOLERANCE:
        raise ValueError(f"the box {corners} extends beyond its image")
    x0, y0, x1, y1 = clip_to(corners, 1, 1)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {corners} has no area")
    width, height = size
    return Detection((x0 * width, y0 * height, x1 * width, y1 * height), names[key])
