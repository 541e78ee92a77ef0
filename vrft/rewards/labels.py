"""Rewards for answers that are names, letters or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vrft.answers import normalise_label
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Accuracy(Reward):
    """1 if the answer is the correct name, letter or number, else 0.

    Whole texts are compared after `normalise_label`, which ignores case, white space, hyphens and underscores.
    Visual-RFT's released code accepts an answer that contains the truth or is contained in it, so that an empty answer
    always scores 1.

    Nothing earns more than the truth. All wrong answers score 0, however close they are.
    """

    def __init__(self, weight: float = 1.0, aliases: Mapping[str, Sequence[str]] | None = None) -> None:
        """Set the accepted names.

        Args:
            weight: weight of the score in the sum of all rewards.
            aliases: further accepted names of each class, by its name in the data.
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
    """1 - |answer - truth| / max(truth, 1), at least 0.

    Nothing earns more than the truth. A wrong answer of 0 or of at least twice the truth scores 0.
    """

    def score(self, answer: Answer, sample: Question) -> float:
        if not isinstance(answer.value, str) or not isinstance(sample.target, str):
            return 0.0
        if not (answer.value.isdecimal() and sample.target.isdecimal()):
            return 0.0
        truth = int(sample.target)
        return 1 - abs(int(answer.value) - truth) / max(truth, 1)
