"""How sure a score is of so few images: bootstrap intervals, and whether a difference is more than chance."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from vrft.evaluators.base import Evaluator, Row

LEVEL = 0.95
"""Share of the resamples that an interval holds."""


class Interval(NamedTuple):
    """A score with the bounds that 95 % of the resamples lie in."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Comparison(NamedTuple):
    """A score of two models on the same images, and of their difference."""

    before: Interval
    after: Interval
    difference: Interval


def compare(
    evaluator: Evaluator[Row], before: Sequence[Row], after: Sequence[Row], resamples: int, seed: int
) -> dict[str, Comparison]:
    """Paired bootstrap over images: both models are scored on the same resampled images (Efron 1979).

    All questions about an image are drawn together, since they are not independent.

    Args:
        evaluator: makes scores of rows.
        before: rows of one model.
        after: rows of the other, of the same samples.
        resamples: how often images are drawn, with replacement.
        seed: of the draws.
    """
    images = [_by_image(evaluator, rows) for rows in (before, after)]
    keys = sorted(images[0].keys() & images[1].keys())
    rng = random.Random(seed)
    draws = [[rng.choice(keys) for _ in keys] for _ in range(resamples)]
    whole = [evaluator.scores_of([rows[key] for key in keys]) for rows in images]
    sampled = [[evaluator.scores_of([rows[key] for key in draw]) for draw in draws] for rows in images]
    found = {}
    for name in whole[0].keys() & whole[1].keys():
        pairs = [(a[name], b[name]) for a, b in zip(*sampled, strict=True) if name in a and name in b]
        found[name] = Comparison(
            interval(whole[0][name], [a for a, _ in pairs]),
            interval(whole[1][name], [b for _, b in pairs]),
            interval(whole[1][name] - whole[0][name], [b - a for a, b in pairs]),
        )
    return {name: found[name] for name in whole[0] if name in found}


def _by_image(evaluator: Evaluator[Row], rows: Sequence[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[evaluator.image_of(row, index)].append(row)
    return groups


def interval(value: float, resampled: Sequence[float]) -> Interval:
    """The bounds of the middle 95 % of resampled values."""
    ordered = sorted(resampled)
    if not ordered:
        return Interval(value, value, value)
    cut = math.floor(len(ordered) * (1 - LEVEL) / 2)
    return Interval(value, ordered[cut], ordered[-1 - cut])


def table(found: dict[str, Comparison], names: tuple[str, str]) -> Table:
    """The comparison as people read it."""
    drawn = Table(title=f"the same held-out images, {LEVEL:.0%} intervals over images")
    for column in ("", *names, "difference"):
        drawn.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, scores in found.items():
        drawn.add_row(name, *map(str, scores))
    return drawn


def as_json(found: dict[str, Comparison], names: tuple[str, str]) -> dict[str, Any]:
    """The comparison as plain values."""
    keys = (*names, "difference")
    return {
        name: {key: score._asdict() for key, score in zip(keys, scores, strict=True)} for name, scores in found.items()
    }
