"""A reward that is a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class FunctionReward(Reward):
    """`function(completion, answer, target, size, metadata)`, in 0..1, or None where it does not apply.

    `completion` is the text; `answer` what the task read of it (detections in pixels, a text, or None if it can't be
    read); `target` what is right; `size` width and height of the image; `metadata` what the data knows besides. Errors
    in the function end the run.
    """

    def __init__(self, function: Callable[..., float | None], weight: float = 1.0) -> None:
        """Names the function.

        Args:
            function: its import path, `my_module.my_reward`.
            weight: of the score in the sum of all rewards.
        """
        super().__init__(weight)
        self.function = function

    def score(self, answer: Answer, sample: Question) -> float | None:
        return self.function(answer.text, answer.value, sample.target, sample.size, sample.metadata)
