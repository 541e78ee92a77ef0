"""Rewards of names, letters and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vrft.answers import normalise_label
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Accuracy(Reward):
    """1 if the answer is the right name, letter or number, else 0.

    Both sides are compared whole, after `normalise_label`: case, white space, hyphens and underscores don't count. The
    released code accepts either text inside the other, so an empty answer wins; here it never does.
    """

    def __init__(self, weight: float = 1.0, aliases: Mapping[str, Sequence[str]] | None = None) -> None:
        """What else is right.

        Args:
            weight: of the score in the sum of all rewards.
            aliases: other names of a class, by its name in the data.
        """
        super().__init__(weight)
        self.aliases = {
            normalise_label(name): {normalise_label(other) for other in others}
            for name, others in (aliases or {}).items()
        }

    def score(self, answer: Answer, sample: Question) -> float:
        if not isinstance(answer.value, str) or not isinstance(sample.target, str):
            return 0.0
        named, right = normalise_label(answer.value), normalise_label(sample.target)
        return float(named == right or named in self.aliases.get(right, ()))


class CountError(Reward):
    """1 less the relative error of a count, |answer - truth| / max(truth, 1); 0 from an error of 100 % on."""

    def score(self, answer: Answer, sample: Question) -> float:
        if not isinstance(answer.value, str) or not isinstance(sample.target, str):
            return 0.0
        if not (answer.value.isdecimal() and sample.target.isdecimal()):
            return 0.0
        truth = int(sample.target)
        return 1 - abs(int(answer.value) - truth) / max(truth, 1)
