"""Score detections for bootstrap samples of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vrft.evaluators.average_precision import UNDEFINED, Array, Convention, Format
from vrft.evaluators.detection_rows import Row, rows_by_confidence, table_of, with_scores
from vrft.evaluators.resampled_precision import resampled_calibration, resampled_precision
from vrft.evaluators.resampling import Scores
from vrft.evaluators.ties import without_ties
from vrft.evaluators.truth import Truth

MAX_BOXES = 60_000
"""Maximum number of boxes for resampled precision, which would otherwise take minutes and gigabytes."""


def resampled_scores(
    truth: Truth,
    images: Sequence[Sequence[Row]],
    draws: Sequence[Sequence[int]],
    format: Format,
    convention: Convention,
    categories: Sequence[str] | None,
) -> Scores:
    """Return AP by each confidence, calibration error, mIoU and share of valid answers for each bootstrap sample.

    Args:
        truth: ground truth.
        images: rows of each image.
        draws: indices of images, for each sample.
        format: rules of the matching.
        convention: with `visual_rft`, LVIS's AP is left out, because it averages over ranges of area.
        categories: names of the categories to average over; None: all.
    """
    rows = [row._replace(image_id=number) for number, group in enumerate(images) for row in group]
    truth = truth.resampled([group[0].image_id for group in images])
    known = truth.category_numbers
    numbers = [*known.values()] if categories is None else [known[name] for name in categories]
    counts = np.stack([np.bincount(draw, minlength=len(images)) for draw in draws]).astype(float)  # (R, I)

    def precision(some: Sequence[Row]) -> dict[str, Array]:
        table = without_ties(*table_of(some, truth)[:2])
        return resampled_precision(truth.content, table, format, numbers, counts)

    found: dict[str, Array] = {}
    if sum(len(row.detections) for row in rows) <= MAX_BOXES:
        found |= {f"{format}/{name}": values for name, values in precision(rows).items()}
        for confidence, ranked in rows_by_confidence(rows).items():
            found[f"{format}/AP_{confidence}"] = precision(ranked)["AP"]
            if confidence == "answer":
                table, _, _ = table_of(with_scores(ranked), truth)
                found[f"{format}/ECE"] = resampled_calibration(truth.content, table, format, numbers, counts)
    if format == "lvis" and convention == "visual_rft":
        found = {name: values for name, values in found.items() if name.rpartition("/")[2] in ("AP50", "AP75", "ECE")}
    asked = counts @ [len(group) for group in images]
    found["mIoU"] = counts @ [sum(row.iou for row in group) for group in images] / asked
    found["valid"] = counts @ [sum(row.valid for row in group) for group in images] / asked
    return {name: [None if value == UNDEFINED else float(value) for value in values] for name, values in found.items()}
