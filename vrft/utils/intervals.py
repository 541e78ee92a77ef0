"""Draw bootstrap samples and compute intervals of scores over them (Efron 1979)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE_LEVEL = 0.95


class Interval(NamedTuple):
    """A score with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{plain(self.value)} [{plain(self.low)}, {plain(self.high)}]"


def plain(value: float) -> str:
    """Format a score with three decimals, and zero without a sign.

    >>> plain(-0.0001), plain(-0.001)
    ('0.000', '-0.001')
    """
    return f"{round(value, 3) + 0.0:.3f}"


def bootstrap_draws(size: int, resamples: int, seed: int) -> list[list[int]]:
    """Return `resamples` samples of `size` indices in 0..size-1, drawn with replacement."""
    rng = random.Random(seed)
    return [[rng.choice(range(size)) for _ in range(size)] for _ in range(resamples)]


def mean_over_images(images: Sequence[Sequence[float]], draws: Sequence[Sequence[int]]) -> Interval:
    """Return the mean of all values, with its 95 % interval.

    Args:
        images: the values of each image.
        draws: bootstrap samples, as lists of indices of images.
    """
    sums = [(sum(values), len(values)) for values in images]

    def mean(parts: Sequence[tuple[float, int]]) -> float:
        return sum(total for total, _ in parts) / sum(count for _, count in parts)

    return interval(mean(sums), [mean([sums[i] for i in draw]) for draw in draws])


def interval(value: float, resampled: Sequence[float]) -> Interval:
    """Return a value with the bounds of the middle 95 % of its resampled values."""
    ordered = sorted(resampled)
    if not ordered:
        return Interval(value, value, value)
    cut = math.floor(len(ordered) * (1 - CONFIDENCE_LEVEL) / 2)
    return Interval(value, ordered[cut], ordered[-1 - cut])
