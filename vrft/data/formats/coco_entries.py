"""Types and validation of the entries of COCO and LVIS instances files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vrft.data.files import UTF8, brief, clip_to, decode_json, decode_text, is_file_name, is_number, read_bytes
from vrft.data.formats.coco_fields import is_json_id
from vrft.data.formats.other_formats import refuse_other_format
from vrft.data.ground_truth import IGNORED
from vrft.types import Id

T = TypeVar("T", bound=msgspec.Struct)

TEXTS = ("file_name", "coco_url", "supercategory", "frequency")

PARTS = ("images", "annotations", "categories")

EXPECTED = "a COCO or LVIS instances file"

HALF_TURN = 180.0
"""Degrees; a multiple rotates a box onto itself."""

TOLERANCE = 1.0
"""Pixels by which a box may extend beyond its image because of rounding. Such a box is clipped."""


class ImageEntry(msgspec.Struct, gc=False):
    """An entry of `images`. Types are checked later, so that all errors are reported together."""

    id: Any = None
    file_name: Any = None
    coco_url: Any = None  # LVIS, instead of file_name
    width: Any = None
    height: Any = None
    neg_category_ids: Any = None  # LVIS: categories known to be absent
    context_images: Any = None  # file names of images that the prompt shows before this one


class AnnotationEntry(msgspec.Struct, gc=False):
    """An entry of `annotations`, without its polygons."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = None
    ignore: Any = None
    area: Any = None


class LabelledEntry(AnnotationEntry, gc=False):
    """An entry of `annotations` with the attributes that annotation tools add."""

    attributes: Any = None


class CategoryEntry(msgspec.Struct, gc=False):
    """An entry of `categories`."""

    id: Any = None
    name: Any = None
    supercategory: Any = None


class InstancesFile(msgspec.Struct, gc=False):
    """The parts of a file that training needs. Other parts are never decoded, to save memory."""

    images: list[ImageEntry]
    annotations: list[LabelledEntry]
    categories: list[CategoryEntry]


class TruthImage(ImageEntry, gc=False):
    """An image in a ground truth file."""

    not_exhaustive_category_ids: Any = None  # LVIS: categories not all of whose objects are annotated


class TruthCategory(CategoryEntry, gc=False):
    """A category in a ground truth file."""

    frequency: Any = None  # LVIS: rare, common or frequent


class TruthFile(msgspec.Struct, gc=False):
    """The parts of a file that evaluation needs."""

    images: list[TruthImage]
    annotations: list[AnnotationEntry]
    categories: list[TruthCategory]


def empty_parents(content: InstancesFile) -> set[str]:
    """Return the category without boxes that is the supercategory of all others, which Roboflow adds to its files."""
    used = {entry.category_id for entry in content.annotations if is_json_id(entry.category_id)}
    with_boxes = {entry.name for entry in content.categories if entry.id in used}
    found = set()
    for entry in content.categories:
        others = [other for other in content.categories if other is not entry]
        if entry.name not in with_boxes and others and all(other.supercategory == entry.name for other in others):
            found.add(entry.name)
    return found


def file_of(entry: ImageEntry) -> str | None:
    """Return the file name or the URL of an image, or None if the entry has neither."""
    name = entry.file_name or entry.coco_url
    return name if isinstance(name, str) else None


def image_reason(entry: ImageEntry, seen: Counter[Id]) -> str | None:
    """Return why an image is invalid, or None if it is valid. `seen`: number of images with each id."""
    if not is_json_id(entry.id):
        return f"id: expected a whole number or text, got {brief(entry.id)}"
    if seen[entry.id] > 1:
        return f"the id appears {seen[entry.id]} times"
    if file_of(entry) is None:
        return f"expected a file_name, got {brief(entry.file_name)}"
    if not all(is_number(side) and side > 0 and side == int(side) for side in (entry.width, entry.height)):
        return f"expected width and height, got {brief(entry.width)} and {brief(entry.height)}"
    absent = entry.neg_category_ids
    if absent is not None and not (isinstance(absent, list) and all(map(is_json_id, absent))):
        return f"neg_category_ids: expected a list of ids, got {brief(absent)}"
    context = entry.context_images
    if context is not None and not (isinstance(context, list) and all(map(is_file_name, context))):
        return f"context_images: expected a list of file names, got {brief(context)}"
    return None


def box_reason(bbox: Any, image: ImageEntry, *, crowd: bool) -> str | None:
    """Return why a COCO box [x, y, width, height] is invalid, or None. A crowd region may have any finite box."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return f"expected bbox [x, y, width, height] in finite numbers, got {brief(bbox)}"
    x, y, w, h = bbox
    if crowd:
        return None
    if w <= 0 or h <= 0:
        return f"bbox {brief(bbox)} has no area"
    if min(x, y) < -TOLERANCE or x + w > image.width + TOLERANCE or y + h > image.height + TOLERANCE:
        return f"bbox {brief(bbox)} extends beyond its image of {image.width} x {image.height}"
    x0, y0, x1, y1 = clip(bbox, image)
    return None if x0 < x1 and y0 < y1 else f"bbox {brief(bbox)} has no area in its image"


def rotation_reason(attributes: Any) -> str | None:
    """Return why CVAT's attributes make a box invalid, or None: CVAT exports the `bbox` of a box before its rotation.

    A rotation that is not a number is an attribute of the user.

    >>> [rotation_reason({"rotation": value}) for value in (0, 180, "360", "clockwise", True)]
    [None, None, None, None, None]
    """
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    if isinstance(rotation, bool) or not isinstance(rotation, int | float | str):
        return None
    try:
        upright = float(rotation) % HALF_TURN == 0
    except (ValueError, OverflowError):
        return None
    return None if upright else f"rotated by {brief(rotation)} degrees; expected an upright box"


def clip(bbox: Sequence[float], image: ImageEntry) -> tuple[float, float, float, float]:
    """Convert COCO's x, y, width, height to corners inside the image."""
    x, y, w, h = map(float, bbox)
    return clip_to((x, y, x + w, y + h), image.width, image.height)


def truth_tables(
    content: TruthFile, evaluated: Set[Id], asked: Set[tuple[Id, str]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of COCO's format with the fields that evaluation reads, because other fields may be invalid.

    Args:
        content: the file, with valid entries of all evaluated images.
        evaluated: ids of the evaluated images.
        asked: pairs of image and category whose objects count; the others are ignored. Default: all.
    """
    names = {entry.id: entry.name for entry in content.categories}
    annotations = []
    for entry in content.annotations:
        if is_json_id(entry.image_id) and entry.image_id in evaluated:
            counts = asked is None or (entry.image_id, names[entry.category_id]) in asked
            _, _, width, height = entry.bbox
            defaults = {"area": width * height, "iscrowd": 0}  # other tools can't read a file without them
            annotations.append(defaults | plain(entry) | ({} if counts else IGNORED))
    return {
        "images": [plain(entry) for entry in content.images if is_json_id(entry.id) and entry.id in evaluated],
        "annotations": annotations,
        "categories": [plain(entry) for entry in content.categories],
    }


def plain(entry: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of an entry that are set, without unchecked text fields (`TEXTS`) that are not strings."""
    given = {key: value for key, value in msgspec.structs.asdict(entry).items() if value is not None}
    return {key: value for key, value in given.items() if key not in TEXTS or isinstance(value, str)}


def require_each_part_once(data: bytes) -> None:
    """Raise ValueError if a JSON object has one of the three lists twice: msgspec would keep the last."""
    if max(data.count(f'"{part}"'.encode()) for part in PARTS) > 1:  # cheap, but true for equal words elsewhere too
        found = json.loads(data, object_pairs_hook=lambda pairs: [key for key, _ in pairs if key in PARTS])
        if len({*found}) < len(found):
            raise ValueError(f"the file has the list {Counter(found).most_common(1)[0][0]!r} twice")


def read_instances(path: Path, encoding: str = UTF8) -> InstancesFile:
    """Read an instances file; see `read_parts`."""
    return read_parts(path, InstancesFile, encoding)


def read_parts(path: Path, parts: type[T], encoding: str) -> T:
    """Read the parts of an instances file that a type names.

    Raises:
        ConfigurationError: the file is not JSON, or lacks one of the three lists or has it twice.
    """
    data = read_bytes(path)
    try:
        data = data if encoding == UTF8 else decode_text(data, encoding).encode()
        content = msgspec.json.decode(data, type=parts)
    except (msgspec.ValidationError, RecursionError) as error:
        refuse_other_format(path, EXPECTED, str(error))
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = None  # unlike msgspec, Python reads NaN and infinities, which are then reported per record
    try:
        if content is None:
            return msgspec.convert(decode_json(data), type=parts)
        require_each_part_once(data)
        return content
    except ValueError as error:
        refuse_other_format(path, EXPECTED, str(error))
