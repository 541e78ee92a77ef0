"""YOLO text labels: a line per object with its class and its box in shares of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vrft.data.image_folder import IMAGE_SUFFIXES
from vrft.data.images import BadImage, check_image
from vrft.data.reason_seg import hull
from vrft.data.records import Part, Problems, Record, RecordData, choose_negatives
from vrft.data.splits import Categories, category_names
from vrft.errors import ConfigurationError
from vrft.types import Detection

TOLERANCE = 1e-3
"""Shares of the image that a box may stand out of it: rounding, which is cut off."""


class YoloData(RecordData):
    """A data.yaml with `path`, `train`, `val` and `names`; labels stand in `labels/` where images stand in `images/`."""

    def __init__(
        self,
        config: str,
        categories: Categories = None,
        val_categories: Categories = None,
        negatives: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Names the file; it is read when training starts.

        Args:
            config: the data.yaml.
            categories: names of the categories to ask for, or a list of `vrft.data.splits`; default: all.
            val_categories: the same for held-out images; default: `categories`.
            negatives: training prompts that ask for what is not there, per prompt that does not.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.config, self.negatives = Path(config), negatives
        self.categories: dict[Part, Sequence[str] | None] = {
            "train": category_names(categories),
            "val": category_names(categories if val_categories is None else val_categories),
        }
        self.names: list[str] = []
        if not self.config.is_file():
            raise ConfigurationError(f"data.config: no such file: {config}; expected a YOLO data.yaml")

    def ordered_categories(self) -> Sequence[str]:
        return self.names

    def records(self, part: Part, problems: Problems) -> list[Record]:
        folder, self.names = read_config(self.config, part)
        wanted = self.names if (chosen := self.categories[part]) is None else list(chosen)
        if unknown := sorted(set(wanted) - set(self.names)):
            raise ConfigurationError(
                f"data.categories: {unknown[0]!r} is not in {self.config}; it has {', '.join(self.names)}"
            )
        images = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
        found: list[Record] = []
        absent: list[Record] = []
        for image_id, image in enumerate(images):
            path = label_file(image)
            try:
                size = check_image(image)
                boxes = read_labels(path, size, self.names)
            except (BadImage, ValueError) as error:
                problems.add(str(path if not isinstance(error, BadImage) else image), str(error))
                continue
            for name in wanted:
                target = tuple(box for box in boxes if box.label == name)
                (found if target else absent).append(Record(image, str(path), image_id, name, target, size))
        if part == "train" and self.negatives:
            found += choose_negatives(absent, round(self.negatives * len(found)), self.seed)
        return found


def read_config(path: Path, part: Part) -> tuple[Path, list[str]]:
    """The folder of a part's images, and the names of the classes.

    Raises:
        ConfigurationError: the file is not a YOLO data.yaml, or there is no such folder.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"data.config: {path} is not YAML: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    names = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"data.config: {path}: names: expected texts, got {names!r}")
    if not isinstance(content.get(part), str):
        raise ConfigurationError(f"data.config: {path}: {part}: expected a folder of images, got {content.get(part)!r}")
    folder = path.parent / str(content.get("path") or "") / content[part]
    if not folder.is_dir():
        raise ConfigurationError(f"data.config: {path}: {part}: no such folder: {folder}")
    return folder, names


def label_file(image: Path) -> Path:
    """`…/images/train/x.jpg` -> `…/labels/train/x.txt`."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, size: tuple[int, int], names: Sequence[str]) -> list[Detection]:
    """Boxes in pixels of an image of `size` (width, height); none if there is no file.

    A line of more than five numbers is the outline of a segment, whose hull is taken.

    Raises:
        ValueError: a line is not what it should be; names line and reason.
    """
    if not path.exists():
        return []
    boxes = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                boxes.append(_read_line(line.split(), size, names))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return boxes


def _read_line(words: list[str], size: tuple[int, int], names: Sequence[str]) -> Detection:
    label, *values = words
    if not label.isdecimal() or int(label[:9]) >= len(names):
        raise ValueError(f"no class has number {label!r}; there are {len(names)}")
    numbers = [float(value) for value in values]
    if len(numbers) < 4 or (len(numbers) > 4 and len(numbers) % 2) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"expected a class, then x, y, width and height in shares of the image, got {' '.join(words)[:80]}"
        )
    if len(numbers) == 4:
        x, y, w, h = numbers
        corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        corners = hull([numbers])
    if min(corners) < -TOLERANCE or max(corners) > 1 + TOLERANCE:
        raise ValueError(f"the box {corners} stands out of its image")
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in corners)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {corners} has no area")
    width, height = size
    return Detection((x0 * width, y0 * height, x1 * width, y1 * height), names[int(label)])
