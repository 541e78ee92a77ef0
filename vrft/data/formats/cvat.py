"""CVAT's XML format, "CVAT for images 1.1". `CocoData` reads its COCO export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, hull, read_all, read_number, read_xml, size_of
from vrft.data.formats.groups import join_groups
from vrft.data.formats.other_formats import refuse_other_format
from vrft.data.image_names import find_image
from vrft.errors import ConfigurationError

OUTLINES = ("polygon", "polyline")
IGNORED = ("tag", "attribute")


class CvatData(AnnotatedData):
    """An `annotations.xml` of CVAT. Images are in `train_images`, or in `images/` or beside the file.

    Outlines with the same label and group are parts of one object, as in CVAT's COCO export.
    """

    expected = "the annotations.xml of a CVAT export (CVAT for images 1.1)"
    image_field = "name"

    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        if annotations.is_dir() or annotations.suffix.lower() != ".xml":
            refuse_other_format(annotations, self.expected)
        try:
            root = read_xml(annotations, self.encoding)
        except ValueError as error:
            raise ConfigurationError(f"{annotations}: {error}") from error
        if root.tag != "annotations":
            refuse_other_format(annotations, self.expected)
        if root.find("track") is not None:
            raise ConfigurationError(f"{annotations}: tracks of a video; export it as 'CVAT for images 1.1'")
        beside = annotations.parent
        for i, item in enumerate(root.findall("image")):
            location = f"{annotations}: image {i} ({brief(item.get('name'))})"
            subset = item.get("subset") or "."
            folders = [images] if images is not None else [beside / "images", beside]
            try:
                shapes = [(i, shape) for i, shape in enumerate(item) if shape.tag not in IGNORED]
                boxes = read_all(shapes, _box)
                boxes, parts = join_groups(boxes, [_group(shape) for _, shape in shapes])
                outlines = sum(shape.tag != "box" for _, shape in shapes)
                image = find_image(item.get("name"), [*folders, *(folder / subset for folder in folders)])
                size = size_of(_value(item, "width"), _value(item, "height"))
                yield Entry(image, location, size, boxes, outlines=outlines, parts=parts)
            except ValueError as error:
                bad_records.add(location, str(error))


def _group(shape: Element) -> str | None:
    """Return the group of an outline, or None. Boxes in a group are separate objects."""
    return None if shape.tag == "box" or shape.get("group_id") == "0" else shape.get("group_id")


def _box(_: int, numbered: tuple[int, Element]) -> tuple[str, Corners]:
    i, shape = numbered
    label = shape.get("label", "")
    try:
        return label, _corners(shape)
    except ValueError as error:
        raise ValueError(f"{shape.tag} {i} ({label}): {error}") from error


def _corners(shape: Element) -> Corners:
    if _value(shape, "rotation", "0") % 360:
        raise ValueError(f"rotated by {shape.get('rotation')} degrees; expected an upright box")
    if shape.tag == "box":
        return _value(shape, "xtl"), _value(shape, "ytl"), _value(shape, "xbr"), _value(shape, "ybr")
    if shape.tag == "ellipse":
        x, y, rx, ry = (_value(shape, name) for name in ("cx", "cy", "rx", "ry"))
        return x - rx, y - ry, x + rx, y + ry
    if shape.tag == "mask":
        x, y = _value(shape, "left"), _value(shape, "top")
        return x, y, x + _value(shape, "width"), y + _value(shape, "height")
    if shape.tag not in OUTLINES:
        raise ValueError("a shape without a box; expected box, polygon, polyline, ellipse or mask")
    try:
        return hull(tuple(map(read_number, point.split(","))) for point in shape.get("points", "").split(";"))  # type: ignore[misc]
    except ValueError as error:
        raise ValueError(f"points: expected x,y;x,y;..., got {brief(shape.get('points'))}") from error


def _value(element: Element, name: str, default: str = "") -> float:
    text = element.get(name, default)
    try:
        return read_number(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a number, got {brief(text)}") from error
