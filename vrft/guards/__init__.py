"""Guards: rules over recent rollouts that detect failures that the mean reward does not show."""

from vrft.guards.answers import DuplicateBoxes, EqualConfidences, NoFormat, SameBox, WholeImage
from vrft.guards.base import Guard, Observation
from vrft.guards.training import (
    AgreeableJudge,
    EntropyCollapse,
    EqualRewards,
    GrowingCompletions,
    Overfitting,
    TinyUpdates,
)

GUARDS: tuple[type[Guard], ...] = (
    NoFormat,
    EqualRewards,
    EntropyCollapse,
    GrowingCompletions,
    Overfitting,
    TinyUpdates,
    AgreeableJudge,
    WholeImage,
    SameBox,
    DuplicateBoxes,
    EqualConfidences,
)

__all__ = ["GUARDS", "Guard", "Observation"]
