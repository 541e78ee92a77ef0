"""Write the scores of bootstrap samples of an evaluation's images, from which the report computes intervals."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from vrft.data.formats.coco_fields import id_order
from vrft.run_dir import RESAMPLED
from vrft.types import Id
from vrft.utils.files import write_json
from vrft.utils.intervals import bootstrap_draws

RESAMPLES = 200
SEED = 0
MIN_IMAGES = 8
"""Minimum number of images for which an interval is meaningful."""

Row = TypeVar("Row")
Scores = dict[str, list[float | None]]
"""Scores of bootstrap samples by name; None if a score is undefined for a sample."""


def rows_by_image(rows: Sequence[Row], image_of: Callable[[Row, int], Id]) -> dict[Id, list[Row]]:
    """Return the rows of each image, in the order of image ids."""
    groups: dict[Id, list[Row]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[image_of(row, index)].append(row)
    return {key: groups[key] for key in sorted(groups, key=id_order)}


def write_resampled(
    name: str,
    images: Mapping[Id, list[Row]],
    resampled: Callable[[Sequence[list[Row]], Sequence[Sequence[int]]], Scores],
    folder: Path,
) -> None:
    """Write the scores of bootstrap samples of the images.

    Two evaluations of the same images draw the same samples, so that the report can pair them. If a user's evaluator
    can't score resampled images, the file is left out.

    Args:
        name: class of the evaluator.
        images: the rows of each image.
        resampled: `Evaluator.resampled`.
        folder: folder of the evaluation.
    """
    if len(images) < MIN_IMAGES:
        return
    try:
        found = resampled([*images.values()], bootstrap_draws(len(images), RESAMPLES, SEED))
    except (ArithmeticError, LookupError, ValueError) as error:
        rank_zero_info(
            f"{name}: the report has no intervals, because scores of resampled images can't be computed: {error}"
        )
        return
    content = {
        "images": len(images),
        "digest": hashlib.sha256(repr([*images]).encode(errors="replace")).hexdigest()[:16],
        "scores": {score: [value and float(f"{value:.6g}") for value in values] for score, values in found.items()},
    }
    write_json(folder / RESAMPLED.format(name), content)
