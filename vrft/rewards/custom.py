"""A reward computed by a user's function."""

from __future__ import annotations

from collections.abc import Callable

from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class FunctionReward(Reward):
    """A function `function(completion, answer, target, size, metadata)` that returns 0..1, or None if it doesn't apply.

    `completion` is the text; `answer` its parsed value (detections in pixels, a text, or None if it can't be parsed);
    `target` the correct value; `size` the width and height of the image; `metadata` the other fields of the sample.
    Errors raised by the function end the run.
    """

    def __init__(self, function: Callable[..., float | None], weight: float = 1.0) -> None:
        """Set the function.

        Args:
            function: import path of the function, e.g. `my_module.my_reward`.
            weight: weight of the score in the sum of all rewards.
        """
        super().__init__(weight)
        self.function = function

    def score(self, answer: Answer, sample: Question) -> float | None:
        return self.function(answer.text, answer.value, sample.target, sample.size, sample.metadata)
