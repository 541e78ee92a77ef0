"""Types of settings with bounds, which the config parser enforces."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar


class Number:
    """Base class of types for numbers within inclusive bounds. Values are plain numbers."""

    base: ClassVar[type[int] | type[float]] = float
    lowest: ClassVar[float] = -math.inf
    highest: ClassVar[float] = math.inf

    @classmethod
    def expected(cls) -> str:
        """Describe the accepted values, for messages."""
        kind = "a whole number" if cls.base is int else "a number"
        if cls.highest < math.inf:
            return f"{kind} from {cls.lowest:.10g} to {cls.highest:.10g}"
        return f"a finite {kind[2:]}" if cls.lowest == -math.inf else f"{kind} of at least {cls.lowest:.10g}"


class Finite(Number):
    """Any number except NaN and infinities."""


if TYPE_CHECKING:  # `Annotated` would be simpler, but jsonargparse ignores it in postponed annotations
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
        """Seed of a random number generator."""

        base, lowest, highest = int, 0, 2**32 - 1
