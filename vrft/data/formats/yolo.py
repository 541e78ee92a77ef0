"""YOLO text labels: one line per object, with its class and its box in fractions of the image."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vrft.data.bad_records import OUTLINES, BadRecords
from vrft.data.box_data import BoxData, BoxImage, Corners
from vrft.data.files import brief, clip_to, decode_text, hull, read_bytes, read_number, require_file, split_lines
from vrft.data.formats.other_formats import refuse_other_format
from vrft.data.formats.yolo_config import KEYS, YoloConfig
from vrft.data.formats.yolo_outlines import are_outlines, are_poses, long_labels
from vrft.data.image_folders import ImageFolders
from vrft.data.images import BadImage, MissingImage, check_image
from vrft.data.record import Split
from vrft.data.split_sources import OtherHeldOut
from vrft.errors import ConfigurationError
from vrft.types import Detection, Id

TOLERANCE = 0.01
"""Maximum distance of a label's numbers from 0..1, as in Ultralytics. Boxes are then clipped to the image."""

"""Noun for the count of labels in the output."""

ROUNDING = 1e-6
"""Rounding error of coordinates that are written with six decimals."""


class YoloData(BoxData):
    """A data.yaml with `train`, `val` and `names`; labels of `…/images/x.jpg` are in `…/labels/x.txt`.

    `test` is the test split, if there is one. Lines of more than five numbers are outlines, or poses if the file has
    `kpt_shape`.
    """

    test_setting = "`test:` in data.yaml"

    def __init__(self, config: str, outlines: bool = False, **kwargs: Any) -> None:
        """Set the file, which is read when training starts.

        Args:
            config: path of the data.yaml.
            outlines: read labels of more than five numbers as outlines, converted to the smallest upright boxes around
                them, even if they may be oriented boxes, poses, or saved predictions with a track id.
            kwargs: see `CategoryData`.
        """
        super().__init__(**kwargs)
        self.config, self.outlines = Path(config), outlines
        if self.config.is_dir() or self.config.suffix.lower() in (".xml", ".json", ".data", ".names"):
            refuse_other_format(self.config, "a YOLO data.yaml")
        require_file("config", self.config, "a YOLO data.yaml")

    @cached_property
    def yaml(self) -> YoloConfig:
        """The data.yaml, read on first use."""
        return YoloConfig.read(self.config, self.encoding)

    def splits(self) -> Collection[Split]:
        return [split for split in KEYS if self.yaml.entries(split)]

    def other_held_out(self) -> OtherHeldOut | None:
        return OtherHeldOut(f"`val:` of {self.config}") if "val" in self.splits() else None

    def source(self, split: Split) -> Path:
        return self.config

    def ordered_categories(self) -> Sequence[str]:
        """Return the class names by ascending number, without duplicates."""
        return list(dict.fromkeys(self.yaml.names[key] for key in sorted(self.yaml.names)))

    def category_ids(self) -> dict[str, Id]:
        return {name: key for key, name in sorted(self.yaml.names.items(), reverse=True)}

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders(split, (self.config.parent,))

    def read(self, split: Split, bad_records: BadRecords) -> Iterator[BoxImage | None]:
        images = self.yaml.images(split, bad_records.passed_over, self.required_folders(split))
        files = [(image, label_file(image)) for image in images]
        if files and not any(os.path.exists(labels) for _, labels in files):
            raise ConfigurationError(
                f"data.config: {self.config}: {split}: none of {len(files)} images has a label file; expected e.g. "
                f"{files[0][1]} for {files[0][0]}"
            )
        four_points_are_outlines = self._are_outlines(split, [file for _, file in files])
        rules = Rules(self.yaml.names, self.yaml.keypoints, self.outlines, four_points_are_outlines)
        for image, labels in files:
            found = None
            try:
                size = check_image(image)
                boxes, outlines = read_labels(labels, size, rules, self.encoding)
                bad_records.read_as[OUTLINES] += outlines
                found = BoxImage(image, str(labels), size, False, boxes)
            except MissingImage as error:
                bad_records.add_missing(str(self.config), f"{image}: {error}")
            except BadLines as error:
                for line in error.lines:
                    bad_records.add(str(labels), line)
            except (BadImage, ValueError) as error:
                location = str(image if isinstance(error, BadImage) else labels)
                bad_records.add(location, str(error).removeprefix(f"{location}: "))
            yield found

    def _are_outlines(self, split: Split, files: Sequence[Path]) -> bool:
        """Return whether labels of four points are outlines. Raise ConfigurationError if labels look like poses."""
        if self.outlines or self.yaml.keypoints is not None:
            return True
        labels = [*long_labels(files)]
        if are_poses(labels):
            raise ConfigurationError(
                f"data.config: {self.config}: {split}: {len(labels)} labels of {len(labels[0])} numbers after the "
                "class look like poses; set kpt_shape in this file, or data.outlines=true if they are outlines"
            )
        return are_outlines(labels)


def label_file(image: Path) -> Path:
    """Return the label file of an image: `…/images/train/x.jpg` -> `…/labels/train/x.txt`."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


@dataclass(frozen=True)
class Rules:
    """How to read the lines of a data set."""

    names: Mapping[int, str]
    keypoints: tuple[int, int] | None
    outlines: bool
    """Whether all labels of six or more numbers are outlines."""
    four_points_are_outlines: bool


class BadLines(ValueError):
    """Raised for a label file with bad lines. `lines` gives the number and the reason of each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def read_labels(path: Path, size: tuple[int, int], rules: Rules, encoding: str) -> tuple[list[Detection], int]:
    """Read boxes in pixels of an image of `size` (width, height), and the number of boxes from outlines.

    A file that does not exist has no boxes. Duplicate lines count once.

    Raises:
        BadLines: lines are invalid.
        ValueError: the file can't be read.
    """
    if not os.path.exists(path):  # unlike Path.exists, false for a name that is too long
        return [], 0
    boxes: dict[Detection, bool] = {}
    bad: list[str] = []
    for number, line in enumerate(split_lines(decode_text(read_bytes(path), encoding)), 1):
        if words := line.split():
            try:
                boxes[_read_line(words, size, rules)] = len(words) > 5 and rules.keypoints is None
            except ValueError as error:
                bad.append(f"line {number}: {error}")
    if bad:
        raise BadLines(bad)
    return list(boxes), sum(boxes.values())


def _read_line(words: list[str], size: tuple[int, int], rules: Rules) -> Detection:
    key = class_number(words[0])
    if key not in rules.names:
        raise ValueError(f"no class has number {brief(words[0])}; there are {len(rules.names)}")
    numbers = [read_number(word) for word in words[1:]]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected finite numbers, got {brief(' '.join(words))}")
    corners = corners_of(words, numbers, rules)
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ValueError(f"the box {corners} has no area")
    is_centred = rules.keypoints is not None or len(numbers) == 4
    checked = numbers[:4] if is_centred else corners  # like Ultralytics; corners may then lie outside the image
    if min(checked) < -TOLERANCE - ROUNDING or max(checked) > 1 + TOLERANCE + ROUNDING:
        raise ValueError(f"the box {corners} extends beyond its image")
    x0, y0, x1, y1 = clip_to(corners, 1, 1)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {corners} has no area in its image")
    width, height = size
    return Detection((x0 * width, y0 * height, x1 * width, y1 * height), rules.names[key])


def class_number(word: str) -> int:
    """Return the number of a class, which may be written as 3 or 3.000000, or -1 if the word is not a class number."""
    try:
        value = read_number(word)
    except ValueError:
        return -1
    return int(value) if value.is_integer() and 0 <= value < 1e9 else -1


def corners_of(words: Sequence[str], numbers: Sequence[float], rules: Rules) -> Corners:
    """Return the corners in fractions of the image. Raise ValueError unless the numbers are a box, outline or pose."""
    if rules.keypoints is not None:
        count, values = rules.keypoints
        if len(numbers) != 4 + count * values:
            raise ValueError(
                f"expected a pose by kpt_shape, class, x, y, width, height and {count} x {values} numbers, got "
                f"{len(words)} numbers"
            )
        return centred(numbers[:4])
    if len(numbers) == 4:
        return centred(numbers)
    if len(numbers) < 4 or (len(numbers) % 2 and len(numbers) != 5):
        raise ValueError(f"expected class, x, y, width and height as fractions, got {brief(' '.join(words))}")
    if len(numbers) == 5 or (len(numbers) == 6 and is_track(words[-1]) and not rules.outlines):
        track, hint = (" and track", "; data.outlines=true reads it as an outline") if len(numbers) == 6 else ("", "")
        raise ValueError(
            f"{len(words)} numbers: a saved prediction (class, x, y, width, height, confidence{track}), not a label: "
            f"{brief(' '.join(words))}{hint}"
        )
    points = [*zip(numbers[::2], numbers[1::2], strict=True)]
    if len(points) == 4 and not rules.four_points_are_outlines and not is_upright(points):
        raise ValueError(
            "four points: an oriented box (OBB), whose object has no known upright box, or an outline; "
            "data.outlines=true reads the smallest box around the points"
        )
    return hull(points)


def centred(numbers: Sequence[float]) -> Corners:
    """Return the corners of a box from its centre, width and height."""
    x, y, w, h = numbers
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def is_track(word: str) -> bool:
    """Return whether a word is a track id: an integer of at least 1, written without a decimal point."""
    return word.isdecimal() and int(word[:9]) >= 1


def is_upright(points: Sequence[tuple[float, float]]) -> bool:
    """Return whether four points are the corners of an upright box, up to rounding."""
    x0, y0, x1, y1 = hull(points)
    distances = (max(min(abs(x - x0), abs(x - x1)), min(abs(y - y0), abs(y - y1))) for x, y in points)
    return max(distances) < 10 * ROUNDING and len({(x - x0 < x1 - x, y - y0 < y1 - y) for x, y in points}) == 4
