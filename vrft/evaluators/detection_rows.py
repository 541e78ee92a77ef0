"""Rows of a detection evaluation, and their conversion to a table of boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vrft.errors import ConfigurationError
from vrft.evaluators.average_precision import COLUMNS, Array
from vrft.evaluators.confidence import Confidence
from vrft.evaluators.results import read_results
from vrft.evaluators.ties import Keys
from vrft.evaluators.truth import Truth
from vrft.types import Detection, Id


class Row(NamedTuple):
    """An answer about an image, or the boxes of another detector in an image."""

    image_id: Id
    detections: tuple[Detection, ...]
    iou: float
    valid: bool
    tie_key: int = 0
    bboxes: tuple[tuple[float, ...], ...] | None = None
    """x, y, width and height of each detection in a results file; None for answers, whose boxes are rounded."""
    stated: tuple[Detection, ...] = ()
    """The detections with stated confidences as scores; None if not stated."""
    probable: tuple[Detection, ...] = ()
    """The detections with probabilities of their tokens as scores; None if not known."""


def plain_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Return the scores that are means over prompts: mIoU and the share of valid answers."""
    return {
        "mIoU": sum(row.iou for row in rows) / len(rows),
        "valid": sum(row.valid for row in rows) / len(rows),
    }


def rows_by_confidence(rows: Sequence[Row]) -> dict[Confidence, list[Row]]:
    """Return the rows with stated confidences (`answer`) and with token probabilities (`logprob`) as scores.

    `answer` is missing if no box states a confidence, `logprob` if the probability of any box is unknown.
    """
    found: dict[Confidence, list[Row]] = {}
    stated = [row._replace(detections=row.stated) for row in rows]
    if any(box.score is not None for row in stated for box in row.detections):
        found["answer"] = stated
    probable = [row._replace(detections=row.probable) for row in rows]
    scores = [box.score for row in probable for box in row.detections]
    if scores and None not in scores:
        found["logprob"] = probable
    return found


def with_scores(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without the boxes that have no score."""
    return [row._replace(detections=tuple(box for box in row.detections if box.score is not None)) for row in rows]


def table_of(rows: Sequence[Row], truth: Truth) -> tuple[Array, Keys, int]:
    """Return the boxes with known labels as a table, (N, 7), their tie keys, (N,), and the number of dropped boxes.

    Boxes of answers are rounded to 0.01 pixels, and dropped if that leaves no area.
    """
    found, keys, dropped = [], [], 0
    for row in rows:
        for i, ((x0, y0, x1, y1), label, score) in enumerate(row.detections):
            rounded = tuple(round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0))
            bbox = rounded if row.bboxes is None else row.bboxes[i]
            if label not in truth.category_numbers:
                continue
            if row.bboxes is None and min(bbox[2:]) <= 0:
                dropped += 1
                continue
            number, category = truth.image_numbers[row.image_id], truth.category_numbers[label]
            found.append((number, *bbox, 1.0 if score is None else score, category))
            keys.append(row.tie_key)
    return np.array(found, np.float64).reshape(-1, COLUMNS), np.array(keys, np.uint64), dropped


def rows_of_results(path: Path, truth: Truth) -> tuple[list[Row], list[str]]:
    """Return the boxes of a results file as one row per image of the truth, and warnings.

    Boxes in other images are left out and counted in a warning.
    """
    results, messages = read_results(path, truth, "against", other_images=True)
    if not len(results):
        raise ConfigurationError(
            "; ".join([f"against: {path}: no box is of a category and in an image of {truth.source}", *messages])
        )
    boxes: dict[int, list[tuple[Detection, tuple[float, ...]]]] = defaultdict(list)
    for image, x, y, w, h, score, category in results.tolist():
        found = Detection((x, y, x + w, y + h), truth.categories[int(category)].name, score)
        boxes[int(image)].append((found, (x, y, w, h)))
    rows = [
        Row(key, tuple(box for box, _ in boxes[number]), 0.0, True, 0, tuple(bbox for _, bbox in boxes[number]))
        for key, number in truth.image_numbers.items()
    ]
    return rows, messages
