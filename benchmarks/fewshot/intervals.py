"""Means over seeds with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over seeds with the bounds of its confidence interval, which are infinite for a single seed."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def bar(self) -> float:
        """Length of the error bar, half the interval's width; 0 for a single seed."""
        return 0.0 if math.isinf(self.half) else self.half


def over_seeds(values: Sequence[float]) -> Interval:
    """Return Student's interval for the mean of independent values: mean ± t(n - 1) · s / sqrt(n).

    >>> over_seeds([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.48413771175033027, high=4.48413771175033)
    """
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def difference(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Return the interval of the paired differences. Each seed gives both methods the same shots, fold and test."""
    return over_seeds([b - a for a, b in zip(before, after, strict=True)])
