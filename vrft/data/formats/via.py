"""Projects and JSON annotations of the VGG Image Annotator (VIA)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, hull, is_number, points_of, read_all, require_object
from vrft.data.formats.other_formats import load_json, refuse_other_format
from vrft.data.image_names import find_image


class ViaData(AnnotatedData):
    """A JSON file of VIA 1 or 2. Images are in `train_images`, or beside the file."""

    expected = "a project or a JSON export of VIA"
    image_field = "filename"

    def __init__(self, train_annotations: str, label_attribute: str | None = None, **kwargs: Any) -> None:
        """Set the files, which are read when training starts.

        Args:
            train_annotations: annotations of the training images.
            label_attribute: attribute with the category of a region; default: the only attribute.
            kwargs: see `AnnotatedData`.
        """
        super().__init__(train_annotations, **kwargs)
        self.label_attribute = label_attribute

    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        content = load_json(annotations, self.encoding, self.expected)
        content = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
        if not isinstance(content, dict) or not all(isinstance(v, dict) and "regions" in v for v in content.values()):
            refuse_other_format(annotations, self.expected)
        for key, item in content.items():
            location = f"{annotations}: {brief(key)}"
            regions = item["regions"]
            regions = [*regions.values()] if isinstance(regions, dict) else regions
            try:
                if not isinstance(regions, list):
                    raise ValueError(f"regions: expected a list, got {brief(regions)}")
                boxes = read_all(regions, self._box)
                outlines = sum(region["shape_attributes"]["name"] != "rect" for region in regions)
                image = find_image(item.get("filename"), [annotations.parent if images is None else images])
                yield Entry(image, location, None, boxes, outlines=outlines)
            except ValueError as error:
                bad_records.add(location, str(error))

    def _box(self, i: int, region: Any) -> tuple[str, Corners]:
        try:
            parts = require_object(region, "region")
            attributes, shape = (
                require_object(parts.get(name) or {}, name) for name in ("region_attributes", "shape_attributes")
            )
            return label_of(attributes, self.label_attribute), corners_of(shape)
        except ValueError as error:
            raise ValueError(f"regions[{i}]: {error}") from error


def label_of(attributes: dict[str, Any], name: str | None) -> str:
    """Return the category of a region: the attribute's text, or its only ticked option."""
    if name is None:
        if len(attributes) != 1:
            listed = ", ".join(attributes) or "none"
            raise ValueError(f"expected one attribute, got {listed}; data.label_attribute names the category's")
        name = next(iter(attributes))
    value = attributes.get(name)
    if isinstance(value, dict):
        ticked = [option for option, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else value
    if not isinstance(value, str):
        raise ValueError(f"attribute {name}: expected one category, got {brief(value)}")
    return value


def corners_of(shape: dict[str, Any]) -> Corners:
    """Return the corners of the box around a shape. Raise ValueError if it has none."""
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list):
            raise ValueError(f"{kind}: expected lists all_points_x and all_points_y, got {brief(xs)} and {brief(ys)}")
        return hull(points_of([list(pair) for pair in zip(xs, ys, strict=True)]))
    names = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    if kind not in names or shape.get("theta"):
        raise ValueError(f"shape {brief(kind)} has no upright box; expected rect, polygon, polyline, circle or ellipse")
    numbers = [shape.get(name) for name in names[kind]]
    if not all(map(is_number, numbers)):
        raise ValueError(f"{kind}: expected {', '.join(names[kind])} as numbers, got {brief(numbers)}")
    x, y, w, h = (float(value or 0) for value in [*numbers, numbers[-1]][:4])
    return (x, y, x + w, y + h) if kind == "rect" else (x - w, y - h, x + w, y + h)
