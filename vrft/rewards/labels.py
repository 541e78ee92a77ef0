"""Rewards on class names."""

from __future__ import annotations

from vrft.answers import normalise_label
from vrft.rewards.base import Reward
from vrft.types import Answer, Sample


class Accuracy(Reward):
    """1 if the answer is the class name, else 0.

    Both sides are compared whole, after `normalise_label`: case, white space, hyphens and underscores don't count. The
    released code accepts either text inside the other, so an empty answer wins; here it never does.
    """

    def score(self, answer: Answer, sample: Sample) -> float:
        if not isinstance(answer.value, str) or not isinstance(sample.target, str):
            return 0.0
        return float(normalise_label(answer.value) == normalise_label(sample.target))
