"""Types of settings with bounds, which the parser of configs enforces by field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar


class Number:
    """Base of the types that stand for numbers within bounds, both included. Values are plain numbers."""

    base: ClassVar[type[int] | type[float]] = float
    lowest: ClassVar[float] = -math.inf
    highest: ClassVar[float] = math.inf

    @classmethod
    def expected(cls) -> str:
        """Return what a message says about the values."""
        kind = "a whole number" if cls.base is int else "a number"
        if cls.highest < math.inf:
            return f"{kind} from {cls.lowest:.10g} to {cls.highest:.10g}"
        return f"a finite {kind[2:]}" if cls.lowest == -math.inf else f"{kind} of at least {cls.lowest:.10g}"


class Finite(Number):
    """Any number but NaN and infinities."""


if TYPE_CHECKING:  # `Annotated` would say it, but jsonargparse drops it where annotations are postponed
    Decimals = int
    Fraction = float
    NonNegative = float
    Seed = int
else:

    class Decimals(Number):
        """Number of decimals."""

        base, lowest, highest = int, 0, 6

    class Fraction(Number):
        """From 0 to 1."""

        lowest, highest = 0.0, 1.0

    class NonNegative(Number):
        """At least 0."""

        lowest = 0.0

    class Seed(Number):
        """Seed of a generator of random numbers."""

        base, lowest, highest = int, 0, 2**32 - 1
