"""Convert held-out images and their boxes to COCO's tables, the ground truth for data without a COCO file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.files import is_text
from vrft.data.record import Record
from vrft.types import Detection, Id

IGNORED = {"iscrowd": 1, "ignore": 1}
"""Fields of an object that neither raises nor lowers a score, under COCO's and LVIS's rules."""


class LabelledImage(NamedTuple):
    """An image with its boxes. Boxes in `ignored`, e.g. of difficult objects, neither raise nor lower a score."""

    image_id: Id
    file_name: str
    size: tuple[int, int]
    boxes: Sequence[Detection]
    ignored: Sequence[Detection] = ()


def labelled_images(records: Iterable[Record]) -> list[LabelledImage]:
    """Return the images of records with the boxes of all questions about them."""
    found: dict[Id, tuple[Record, dict[str, Sequence[Detection]]]] = {}
    for record in records:
        _, by_query = found.setdefault(record.image_id, (record, {}))
        by_query[record.query] = record.target if isinstance(record.target, tuple) else ()
    return [
        LabelledImage(key, str(first.image), first.size, [box for boxes in by_query.values() for box in boxes])
        for key, (first, by_query) in found.items()
    ]


def coco_tables(images: Iterable[LabelledImage], ids: Mapping[str, Id]) -> dict[str, Any]:
    """Return images and boxes as COCO's tables, in pixels of the original images.

    Args:
        images: images with their boxes.
        ids: category ids by name; if empty, categories are numbered from 1 by name.
    """
    images = list(images)
    if not ids:
        ids = {name: i for i, name in enumerate(sorted({box.label for image in images for box in image.boxes}), 1)}
    annotations: list[dict[str, Any]] = []
    for image in images:
        for box, flags in [(box, {"iscrowd": 0}) for box in image.boxes] + [(box, IGNORED) for box in image.ignored]:
            x0, y0, x1, y1 = box.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": ids[box.label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    **flags,
                }
            )
    return {
        "images": [
            {"id": key, "file_name": escaped(name), "width": width, "height": height}
            for key, name, (width, height), *_ in images
        ],
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for name, key in ids.items()],
    }


def file_ids(files: Sequence[Path]) -> list[Id]:
    """Return an id for each image file: its name without suffix, or its path if names repeat or are blank.

    Results files of other detectors identify images in the same way. Bytes that are not UTF-8 are escaped, because ids
    are written as JSON.
    """
    stems = [escaped(file.stem) for file in files]
    if len({*stems}) == len(stems) and all(map(is_text, stems)):
        return [*stems]
    found: dict[Id, None] = {}
    for i, file in enumerate(files):
        path = escaped(file.as_posix())
        found[f"{path} ({i})" if path in found else path] = None
    return list(found)


def escaped(name: str) -> str:
    r"""Return a file name as valid text.

    >>> escaped("caf\udce9")
    'caf\\udce9'
    """
    return name.encode(errors="backslashreplace").decode()
