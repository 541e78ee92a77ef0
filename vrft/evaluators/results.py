"""Results files: boxes of any detector in COCO's format."""

from __future__ import annotations

import codecs
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from vrft.data.coco_fields import is_json_id
from vrft.data.files import brief
from vrft.errors import ConfigurationError
from vrft.evaluators.average_precision import COLUMNS, Array
from vrft.evaluators.truth import Truth
from vrft.types import Id


class Result(msgspec.Struct, gc=False):
    """An entry of a results file."""

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    score: float


def read_results(path: Path, truth: Truth, field: str = "results") -> Array:
    """Read a results file as a table (N, 7): image, x, y, width, height, score, category, with the truth's numbers.

    Boxes of categories that the truth lacks are left out with a warning, as pycocotools leaves them out.

    Raises:
        ConfigurationError: the file is not a list of results, or names an image that the truth lacks.
    """
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        entries = msgspec.json.decode(data, type=list[Result])
    except OSError as error:
        raise ConfigurationError(f"{field}: {path} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{field}: {path} is not a list of {{image_id, category_id, bbox, score}}: {error}"
        ) from error
    rows = []
    unknown = Counter[Id]()
    for i, entry in enumerate(entries):
        if reason := _reason(entry, truth):
            raise ConfigurationError(f"{field}: {path}: [{i}].{reason}")
        if entry.category_id in truth.numbers_of_ids:
            image, category = truth.image_numbers[entry.image_id], truth.numbers_of_ids[entry.category_id]
            rows.append((image, *entry.bbox, entry.score, category))
        else:
            unknown[entry.category_id] += 1
    if unknown:
        rank_zero_warn(
            f"{field}: {path}: {unknown.total()} of {len(entries)} boxes are left out, because {truth.source} has no "
            f"category with the ids {', '.join(map(repr, [*unknown][:20]))}"
        )
    return np.array(rows, np.float64).reshape(-1, COLUMNS)


def _reason(entry: Result, truth: Truth) -> str | None:
    """Return the field and the reason why an entry is invalid, or None."""
    for field, key in (("image_id", entry.image_id), ("category_id", entry.category_id)):
        if not is_json_id(key):
            return f"{field}: expected a whole number or text, got {brief(key)}"
    if entry.image_id not in truth.image_numbers:
        return f"image_id: {truth.source} has no image {entry.image_id!r}"
    if min(entry.bbox[2:]) < 0:
        return f"bbox: expected x, y, width, height, got {list(entry.bbox)}"
    return None
