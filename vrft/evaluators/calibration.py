"""Measure the calibration of the confidences that answers state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from vrft.evaluators.average_precision import Array, Format, hotcoco_evaluation

NUM_BINS = 10
CORRECT_IOU = 0.5
"""Minimum IoU of a matched box that counts as correct."""


class Bin(NamedTuple):
    """The boxes with `low` <= confidence < `high`; the last bin includes `high`.

    `confidence` is the mean confidence of the boxes, `accuracy` the share of correct boxes; both are 0 in an empty bin.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    boxes: int


class Calibration(NamedTuple):
    """The expected calibration error, and the bins that it is computed from."""

    error: float
    bins: list[Bin]


def calibration(
    content: dict[str, Any], results: Array, format: Format, categories: Iterable[int]
) -> Calibration | None:
    """Return the expected calibration error of the scores in a table of results, or None if no box counts.

    ECE = sum over the bins m of n_m / n * |accuracy_m - confidence_m|, where n_m of the n boxes are in bin m (Guo et
    al. 2017, arXiv 1706.04599, eq. 3). There are 10 bins of equal width. A box is correct if the benchmark's matching,
    in descending order of score within an image and a category, pairs it with a true box at an IoU of at least 0.5. As
    in average precision, boxes that match ignored objects and boxes beyond the limit per image don't count.

    Args:
        content: ground truth in COCO's or LVIS's tables, with numbers as ids.
        results: image, x, y, width, height, score, category of N boxes, (N, 7); scores are in 0..1 and may tie.
        format: rules of the matching.
        categories: numbers of the categories whose boxes count.
    """
    evaluation = hotcoco_evaluation(content, results, format)
    evaluation.params.cat_ids = [*categories]
    evaluation.evaluate()
    found = evaluation.calibration(n_bins=NUM_BINS, iou_threshold=CORRECT_IOU)
    if not found["num_detections"]:
        return None
    names = ("bin_lower", "bin_upper", "avg_confidence", "avg_accuracy", "count")
    return Calibration(found["ece"], [Bin(*(entry[name] for name in names)) for entry in found["bins"]])
