"""Read and write results files: boxes of any detector in COCO's format."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vrft.data.files import brief
from vrft.data.formats.coco_fields import is_json_id
from vrft.data.formats.other_formats import RESULTS, format_hint, format_of
from vrft.errors import ConfigurationError
from vrft.evaluators.average_precision import COLUMNS, Array
from vrft.evaluators.truth import Truth
from vrft.types import Id
from vrft.utils.display import counted
from vrft.utils.regular_files import read_regular


class Result(msgspec.Struct, gc=False):
    """An entry of a results file."""

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    score: float


def read_results(
    path: Path, truth: Truth, field: str = "results", other_images: bool = False
) -> tuple[Array, list[str]]:
    """Read a results file as a table.

    Boxes of categories that the truth lacks are left out, as in pycocotools, and counted in a warning.

    Args:
        path: results file.
        truth: ground truth, which defines the numbers of images and categories.
        field: option that names the file, for messages.
        other_images: leave out boxes in images that the truth lacks and count them in a warning, instead of raising an
            error as pycocotools does.

    Returns:
        The table of image, x, y, width, height, score, category, (N, 7), with the truth's numbers; and warnings.

    Raises:
        ConfigurationError: the file is not a list of results, numbers categories from 1 although the truth numbers them
            from 0, or names an image that the truth lacks.
    """
    entries = _read(path, field)
    rows, keys = [], []
    unknown, elsewhere = Counter[Id](), Counter[Id]()
    for i, entry in enumerate(entries):
        if reason := _reason(entry):
            raise ConfigurationError(f"{field}: {path}: [{i}].{reason}")
        image, category = truth.number_of_image(entry.image_id), truth.numbers_of_ids.get(entry.category_id)
        if image is None and not other_images:
            raise ConfigurationError(
                f"{field}: {path}: [{i}].image_id: {truth.source} has no image {entry.image_id!r}{ids_hint(path)}"
            )
        if image is None:
            elsewhere[entry.image_id] += 1
        elif category is None:
            unknown[entry.category_id] += 1
        else:
            rows.append((image, *entry.bbox, entry.score, category))
            keys.append(entry.category_id)
    if is_shifted({entry.category_id for entry in entries}, truth):
        first = truth.categories[truth.numbers_of_ids[0]].name
        raise ConfigurationError(
            f"{field}: {path}: category_id counts from 1, as Ultralytics writes it for custom data, but {truth.source} "
            f"counts from 0 ({first!r}); expected the same ids: subtract 1 from each category_id"
        )
    table = np.array(rows, np.float64).reshape(-1, COLUMNS)
    messages = [
        f"{field}: {path}: left out: {ids.total()} of {counted(len(entries), 'box')}, because {truth.source} has no "
        f"{noun} with the ids {', '.join(map(repr, [*ids][:20]))}"
        for noun, ids in (("category", unknown), ("image", elsewhere))
        if ids
    ]
    if message := shift_warning(table, keys, truth):
        messages.append(f"{field}: {path}: {message}")
    return table, messages


def ids_hint(path: Path) -> str:
    """Return a remedy if a results file comes from `predict --images`, which uses file names as ids, else ""."""
    beside = path.with_name("predictions_images.json")
    if path.name != "predictions_coco.json" or not beside.is_file():
        return ""
    return (
        f"; if it was written by `predict --images`, its image ids are names of files, see {beside}; `predict` without "
        "--images asks about the held-out images by the ids of their annotations"
    )


def entries_of(results: Array, truth: Truth) -> list[dict[str, Any]]:
    """Convert a table of results, (N, 7), to the entries of a results file, with the ids of the annotation file."""
    return [
        {
            "image_id": truth.image_ids[int(image)],
            "category_id": truth.categories[int(category)].ids[0],
            "bbox": [x, y, w, h],
            "score": score,
        }
        for image, x, y, w, h, score, category in results.tolist()
    ]


def is_shifted(used: set[Id], truth: Truth) -> bool:
    """Return whether the ids of categories are larger by 1 than those of a truth that counts from 0."""
    known = [key for key in truth.numbers_of_ids if not isinstance(key, str)]
    if 0 not in known or 0 in used or max(known) + 1 not in used:
        return False
    return used <= {key + 1 for key in known}


def shift_warning(table: Array, keys: Sequence[Id], truth: Truth) -> str | None:
    """Return a warning if the boxes fit the truth better with category ids that are smaller by 1, else None.

    `is_shifted` can't recognise a file that counts from 1 if it has no box of the last category.

    Args:
        table: boxes, (N, 7).
        keys: category ids of the boxes in the file, (N,).
        truth: ground truth.
    """
    numbers = truth.numbers_of_ids
    if not keys or 0 in keys or 0 not in numbers or any(isinstance(key, str) for key in keys):
        return None
    moved = [numbers.get(key - 1) for key in keys if not isinstance(key, str)]
    if None in moved:
        return None
    shifted = np.column_stack([table[:, :-1], np.array(moved, np.float64)])
    before, after = (truth.evaluate(one, "coco").coco()["AP"] for one in (table, shifted))
    if after <= before:
        return None
    return (
        f"no box is of the category 0 ({truth.categories[numbers[0]].name!r}), and AP would be {after:.3f} instead of "
        f"{before:.3f} if 1 was subtracted from each category_id; Ultralytics counts custom categories from 1"
    )


def _read(path: Path, field: str) -> list[Result]:
    try:
        return msgspec.json.decode(read_regular(path).removeprefix(codecs.BOM_UTF8), type=list[Result])
    except OSError as error:
        found = format_hint(format_of(path)) if path.is_dir() else ""
        raise ConfigurationError(f"{field}: {path} can't be read: {error.strerror}{found}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        other = format_of(path)
        found = "" if other == RESULTS else format_hint(other)
        raise ConfigurationError(
            f"{field}: {path} is not a list of {{image_id, category_id, bbox, score}}: {error}{found}"
        ) from error


def _reason(entry: Result) -> str | None:
    """Return why an entry is invalid, with the field, or None if it is valid."""
    for field, key in (("image_id", entry.image_id), ("category_id", entry.category_id)):
        if not is_json_id(key):
            return f"{field}: expected a whole number or text, got {brief(key)}"
    if min(entry.bbox[2:]) < 0:
        return f"bbox: expected x, y, width, height, got {list(entry.bbox)}"
    return None
