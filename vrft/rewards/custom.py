"""A reward that a user's function computes."""

from __future__ import annotations

from collections.abc import Callable

from vrft.rewards.base import Reward
from vrft.types import Answer, Question
from vrft.utils.own_code import check_arguments

ARGUMENTS = ("completion", "answer", "target", "size", "metadata")


class FunctionReward(Reward):
    """A function of `completion, answer, target, size, metadata` that returns 0..1, or None if it doesn't apply.

    `completion` is the text, `answer` its parsed value (detections in pixels, a text, or None if it can't be parsed),
    `target` the correct value, `size` the width and height of the image, and `metadata` the other fields of the sample.
    Arguments are passed by name, so a function may take some of them and `**kwargs`. An exception ends the run. The
    function decides whether anything earns more than the truth; `doctor` tries a few answers.
    """

    def __init__(self, function: Callable[..., float | None], weight: float = 1.0) -> None:
        """Set the function.

        Args:
            function: import path of the function, e.g. `my_module.my_reward`.
            weight: weight of the score in the sum of all rewards.
        """
        super().__init__(weight)
        check_arguments(function, ARGUMENTS, "FunctionReward.function")
        self.function = function

    def score(self, answer: Answer, sample: Question) -> float | None:
        return self.function(
            completion=answer.text,
            answer=answer.value,
            target=sample.target,
            size=sample.size,
            metadata=sample.metadata,
        )
