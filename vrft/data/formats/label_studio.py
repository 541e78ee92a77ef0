"""Label Studio's JSON and JSON-MIN exports."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, hull, is_number, is_text, points_of, read_all, refuse_fractions, size_of
from vrft.data.formats.other_formats import STUDIO, format_of_json, load_json, refuse_other_format
from vrft.data.image_names import find_image
from vrft.data.images import image_suffixes
from vrft.errors import ConfigurationError

SHAPES = ("rectanglelabels", "polygonlabels", "ellipselabels", "rectangle", "polygon", "ellipse", "labels")
REGIONS = ("keypoint", "brush", "bitmask", "vector", "video")
"""Prefixes of the types of regions that have no box."""

UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""The prefix that Label Studio adds to the names of uploaded files."""

PERCENT = 100.0


class LabelStudioData(AnnotatedData):
    """A JSON export of Label Studio with rectangles, polygons or ellipses. Images are in `train_images`.

    Images are found by file name, with or without the prefix of an upload. Tasks without annotations are left out. An
    image annotated by several people is a bad record.
    """

    expected = "a JSON export of Label Studio"

    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        tasks = load_json(annotations, self.encoding, self.expected)
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            refuse_other_format(annotations, self.expected)
        if tasks and format_of_json(tasks) != STUDIO:
            refuse_other_format(annotations, self.expected)
        percents: list[Corners] = []
        names: set[str] = set()
        folders = [images] if images is not None else [annotations.parent, annotations.parent / "images"]
        for i, task in enumerate(tasks):
            location = f"{annotations}: [{i}] (id {brief(task.get('id'))})"
            if nobody_annotated(task):
                bad_records.passed_over["tasks that nobody annotated"] += 1
                continue
            try:
                regions = regions_of(task)
                names |= require_one_image(task, regions)
                labelled = {key for region in regions if labels_of(region) for key in keys_of(region)}
                found = read_all(regions, lambda _, region: boxes_of(region, labelled))  # noqa: B023
                boxes = [box for some in found for box in some]
                size = original_size(regions)
                outlines = sum(len(some) * is_outline(region) for some, region in zip(found, regions, strict=True))
                yield Entry(image_of(task, folders), location, size, boxes, outlines=outlines)
                if size is not None:
                    percents += [in_percent(box, size) for _, box in boxes]
            except ValueError as error:
                bad_records.add(location, str(error))
        if len(names) > 1:
            raise ConfigurationError(
                f"{annotations}: to_name: regions of several images, {', '.join(sorted(names))}; expected those of one"
            )
        refuse_fractions(annotations, percents, "percent")


def nobody_annotated(task: dict[str, Any]) -> bool:
    """Return whether a task has no annotation, or only cancelled ones, so that its image may still have objects."""
    if "data" not in task:  # JSON-MIN
        return task.get("annotation_id", 0) is None and not any(isinstance(value, list) for value in task.values())
    listed = annotations_of(task)
    return isinstance(listed, list) and all(isinstance(entry, dict) and is_cancelled(entry) for entry in listed)


def is_cancelled(annotation: dict[str, Any]) -> bool:
    """Return whether the annotator skipped the task. The key is `skipped` before version 1."""
    return bool(annotation.get("was_cancelled") or annotation.get("skipped"))


def annotations_of(task: dict[str, Any]) -> Any:
    """Return the annotations of a task (`completions` before version 1), or None in JSON-MIN, which has labels only."""
    return (task.get("annotations") or task.get("completions") or []) if "data" in task else None


def require_one_image(task: dict[str, Any], regions: Sequence[dict[str, Any]]) -> set[str]:
    """Return the tag of the image that the labelled regions belong to, as a set that is empty if there is none.

    Raises:
        ValueError: the regions belong to several images, or not to the first image.
    """
    labelled = [region for region in regions if labels_of(region)]
    names = {brief(region.get("to_name")) for region in labelled}
    if len(names) > 1:
        raise ValueError(f"to_name: regions of several images, {', '.join(sorted(names))}; expected one")
    data = task.get("data", {})
    if isinstance(data, dict) and "image" in data:
        others = {brief(name) for name, value in data.items() if name != "image" and is_image_address(value)}
        if wrong := sorted(names & others):
            raise ValueError(f"to_name: regions of {wrong[0]}; expected regions of 'image'")
    if any(region.get("item_index") for region in labelled):
        raise ValueError("item_index: regions of another image than the first of several; expected one image")
    return names


def is_image_address(value: Any) -> bool:
    """Return whether the value of a task's column is the address of an image."""
    return is_text(value) and os.path.splitext(urlsplit(value).path)[1].lower() in image_suffixes()


def regions_of(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the regions of a task. Raise ValueError if several people annotated it."""
    if "data" in task:  # JSON; JSON-MIN has the labels beside the image
        listed = annotations_of(task)
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise ValueError(f"annotations: expected a list of objects, got {brief(listed)}")
        done = [entry for entry in listed if not is_cancelled(entry)]
        if len(done) > 1:
            raise ValueError(f"{len(done)} annotations; expected one")
        regions = done[0].get("result") if done else []
    else:
        lists = [value for value in task.values() if isinstance(value, list)]
        regions = [region for value in lists for region in value if isinstance(region, dict)]
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise ValueError(f"result: expected a list of regions, got {brief(regions)}")
    return regions


def labels_of(region: dict[str, Any]) -> list[Any]:
    """Return the labels of a region; empty if it has none."""
    value = region.get("value", region)
    if not isinstance(value, dict):
        raise ValueError(f"value: expected an object, got {brief(value)}")
    return next((value[name] for name in SHAPES if isinstance(value.get(name), list)), [])


def keys_of(region: dict[str, Any]) -> list[str]:
    """Return the keys by which a region matches other results for it, such as a text: its id and its shape."""
    value = region.get("value", region)
    shape = [value.get(name) for name in ("x", "y", "width", "height", "radiusX", "radiusY", "points")]
    return [f"shape {shape}", *([f"id {region['id']}"] if region.get("id") is not None else [])]


def is_outline(region: dict[str, Any]) -> bool:
    """Return whether a region is a polygon or an ellipse."""
    return bool({"points", "radiusX"} & {*region.get("value", region)})


def in_percent(box: Corners, size: tuple[int, int]) -> Corners:
    """Return a box in percent of its image, the unit of the file."""
    x0, y0, x1, y1 = (PERCENT * value / size[axis % 2] for axis, value in enumerate(box))
    return x0, y0, x1, y1


def boxes_of(region: dict[str, Any], labelled: Collection[str]) -> list[tuple[str, Corners]]:
    """Return the boxes of a region, one per label; none if the region is a choice, a text or a relation.

    Results with the text of a region, or its shape without a label, repeat the box of the result with its label.

    Args:
        region: a result.
        labelled: keys of the regions that have labels, see `keys_of`.

    Raises:
        ValueError: the region has no label or no box.
    """
    value = region.get("value", region)
    kind = str(region.get("type") or "")
    if any(kind.startswith(name) for name in REGIONS) or "rle" in value:
        raise ValueError(f"type {kind}: a region without a box; expected rectangles, polygons or ellipses")
    labels = labels_of(region)
    if not labels:
        if {"width", "radiusX", "points"} & {*value} and not {*keys_of(region)} & {*labelled}:
            raise ValueError("a region without a label")
        return []
    size = original_size([region])
    if size is None:
        raise ValueError("original_width and original_height: expected the size of the image")
    try:
        x0, y0, x1, y1 = _percents(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{kind or 'region'}: expected numbers in percent: {brief(str(error))}") from error
    corners = (x0 * size[0] / PERCENT, y0 * size[1] / PERCENT, x1 * size[0] / PERCENT, y1 * size[1] / PERCENT)
    return [(label, corners) for label in labels]


def _percents(value: dict[str, Any]) -> Corners:
    if value.get("rotation"):
        raise ValueError(f"rotated by {value['rotation']} degrees, not upright")
    if "points" in value:
        return hull(points_of(value["points"]))
    numbers = [
        value[name] for name in ("x", "y", *(("radiusX", "radiusY") if "radiusX" in value else ("width", "height")))
    ]
    if not all(map(is_number, numbers)):
        raise ValueError(f"got {brief(numbers)}")
    x, y, w, h = map(float, numbers)
    return (x - w, y - h, x + w, y + h) if "radiusX" in value else (x, y, x + w, y + h)


def original_size(regions: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """Return the size of the image that regions are relative to, or None if no region states it.

    Raises:
        ValueError: the image was rotated in Label Studio.
    """
    if any(region.get("image_rotation") for region in regions):
        raise ValueError("image_rotation: the image was rotated in Label Studio; rotate the file instead")
    sizes = (size_of(region.get("original_width"), region.get("original_height")) for region in regions)
    return next((size for size in sizes if size is not None), None)


def image_of(task: dict[str, Any], folders: Sequence[Path]) -> Path:
    """Return the image file of a task, whose address may be an upload, a local file or a URL."""
    data = task.get("data", task)
    address = data.get("image") if isinstance(data, dict) else None
    if address is None and isinstance(data, dict):
        texts = [value for value in data.values() if is_text(value) and "." in value]
        address = texts[0] if len(texts) == 1 else None
    if not is_text(address):
        raise ValueError(f"image: expected one address of an image, got {brief(address)}")
    parts = urlsplit(address)
    path = unquote(parse_qs(parts.query).get("d", [parts.path])[0])
    found = find_image(path, folders)
    return found if os.path.isfile(found) else find_image(UPLOAD.sub("", found.name), folders)
