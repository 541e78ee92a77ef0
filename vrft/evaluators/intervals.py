"""Bootstrap intervals of scores, and of the difference between two models."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from vrft.data.formats.coco_fields import id_order
from vrft.evaluators.base import Evaluator, Row
from vrft.types import Id
from vrft.utils.display import visible

CONFIDENCE_LEVEL = 0.95


class Interval(NamedTuple):
    """A score with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Comparison(NamedTuple):
    """One score of two models on the same images, and its difference."""

    before: Interval
    after: Interval
    difference: Interval


def compare(
    evaluator: Evaluator[Row], before: Sequence[Row], after: Sequence[Row], resamples: int, seed: int
) -> dict[str, Comparison]:
    """Compare two models by a paired bootstrap (Efron 1979): both are scored on the same resampled images.

    All questions about an image are drawn together, because they are not independent.

    Args:
        evaluator: evaluator that computes the scores.
        before: rows of the first model.
        after: rows of the second model, for the same samples.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.
    """
    images = [_by_image(evaluator, rows) for rows in (before, after)]
    keys = sorted(images[0].keys() & images[1].keys(), key=id_order)
    rng = random.Random(seed)
    draws = [[rng.choice(keys) for _ in keys] for _ in range(resamples)]
    full = [evaluator.scores_of([rows[key] for key in keys]) for rows in images]
    sampled = [[evaluator.scores_of([rows[key] for key in draw]) for draw in draws] for rows in images]
    found = {}
    for name in full[0].keys() & full[1].keys():
        pairs = [(a[name], b[name]) for a, b in zip(*sampled, strict=True) if name in a and name in b]
        found[name] = Comparison(
            interval(full[0][name], [a for a, _ in pairs]),
            interval(full[1][name], [b for _, b in pairs]),
            interval(full[1][name] - full[0][name], [b - a for a, b in pairs]),
        )
    return {name: found[name] for name in full[0] if name in found}


def _by_image(evaluator: Evaluator[Row], rows: Sequence[Row]) -> dict[Id, list[Row]]:
    groups: dict[Id, list[Row]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[evaluator.image_of(row, index)].append(row)
    return groups


def interval(value: float, resampled: Sequence[float]) -> Interval:
    """Return a value with the bounds of the middle 95 % of its resampled values."""
    ordered = sorted(resampled)
    if not ordered:
        return Interval(value, value, value)
    cut = math.floor(len(ordered) * (1 - CONFIDENCE_LEVEL) / 2)
    return Interval(value, ordered[cut], ordered[-1 - cut])


def table(found: dict[str, Comparison], names: tuple[str, str]) -> Table:
    """Return the comparison as a table."""
    drawn = Table(title=f"the same held-out images, {CONFIDENCE_LEVEL:.0%} intervals over images")
    for column in ("", *(escape(visible(name)) for name in names), "difference"):
        drawn.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, scores in found.items():
        drawn.add_row(name, *map(str, scores))
    return drawn


def as_json(found: dict[str, Comparison], names: tuple[str, str]) -> dict[str, Any]:
    """Return the comparison as plain values."""
    keys = (*names, "difference")
    return {
        name: {key: score._asdict() for key, score in zip(keys, scores, strict=True)} for name, scores in found.items()
    }
