"""LabelMe's JSON files, one per image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, decode_json, hull, points_of, read_all, read_bytes, size_of
from vrft.data.folders import find_files
from vrft.data.formats.groups import join_groups
from vrft.data.formats.other_formats import refuse_other_format
from vrft.data.image_names import find_image
from vrft.data.images import image_suffixes

OUTLINES = {"rectangle": 2, "polygon": 3, "linestrip": 2, "line": 2, "mask": 2}
"""Shapes that are converted to the box around their points, with the minimum number of points."""


class LabelMeData(AnnotatedData):
    """A folder of LabelMe's JSON files. Images are at the paths in the files, or in `train_images`.

    Shapes with the same label and group id are parts of one object, as in LabelMe's conversion to COCO.
    """

    expected = "a folder of LabelMe's JSON files"
    image_field = "imagePath"

    def default_folders(self, annotations: Path) -> tuple[Path, ...]:
        return (annotations.parent,)  # imagePath is often ../images/x.jpg

    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        files = find_files(annotations, {".json"}, bad_records.passed_over, image_suffixes())
        if not files:
            refuse_other_format(annotations, self.expected)
        for file in files:
            try:
                content = decode_json(read_bytes(file), self.encoding)
                if not isinstance(content, dict) or "shapes" not in content:
                    refuse_other_format(file, self.expected)
                if not isinstance(content["shapes"], list):
                    raise ValueError(f"shapes: expected a list, got {brief(content['shapes'])}")
                yield read_labelme(file, content, file.parent if images is None else images)
            except ValueError as error:
                bad_records.add(str(file), str(error).removeprefix(f"{file}: "))


def read_labelme(file: Path, content: dict[str, Any], folder: Path) -> Entry:
    """Return the content of a file. Raise ValueError if a shape has no box."""

    def read(i: int, shape: object) -> tuple[str, Corners]:
        if not isinstance(shape, dict):
            raise ValueError(f"shapes[{i}]: expected an object, got {brief(shape)}")
        try:
            return shape.get("label", ""), corners_of(shape)
        except ValueError as error:
            raise ValueError(f"shapes[{i}] ({brief(shape.get('label'))}): {error}") from error

    boxes = read_all(content["shapes"], read)
    boxes, parts = join_groups(boxes, [shape.get("group_id") for shape in content["shapes"]])
    outlines = sum(shape.get("shape_type") != "rectangle" for shape in content["shapes"])
    name = content.get("imagePath") or file.with_suffix(".jpg").name
    size = size_of(content.get("imageWidth"), content.get("imageHeight"))
    return Entry(find_image(name, [folder]), str(file), size, boxes, outlines=outlines, parts=parts)


def corners_of(shape: dict[str, Any]) -> Corners:
    """Return the corners of the box around a shape. Raise ValueError if it is a point or invalid."""
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str) or (kind != "circle" and kind not in OUTLINES):
        raise ValueError(f"shape_type {brief(kind)} has no box; expected {', '.join(OUTLINES)} or circle")
    points = points_of(shape.get("points"), OUTLINES.get(kind, 2))
    if kind == "rectangle" and not is_upright(points):
        raise ValueError("a rotated rectangle; expected an upright one")
    if kind != "circle":
        return hull(points)
    (x, y), edge = points[:2]
    radius = math.dist((x, y), edge)
    return x - radius, y - radius, x + radius, y + radius


def is_upright(points: Sequence[tuple[float, float]]) -> bool:
    """Return whether the points are, within a pixel, corners of the upright box around them."""
    x0, y0, x1, y1 = hull(points)
    return all(min(abs(x - x0), abs(x - x1)) < 1 and min(abs(y - y0), abs(y - y1)) < 1 for x, y in points)
