"""The base class of rewards, which score answers."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from vrft.errors import ConfigurationError
from vrft.types import Answer, Question
from vrft.utils.own_code import check_overrides, noted, question_note


class Reward(ABC):
    """Base class of rewards. A subclass implements `score`.

    Training uses `bounded_scores`: None leaves an answer out of means and sums, and infinity skips the step.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    label_free: bool = False
    """Whether scores need no ground truth, so that the reward can select among answers at inference."""
    remote: ClassVar[bool] = False
    """Whether scores come from another process. Its failure, a RewardFailed on one rank, ends the run on all ranks."""

    def __init__(self, weight: float = 1.0) -> None:
        """Set the weight of the score in the sum of all rewards; 0 logs it without training on it."""
        check_overrides(self, Reward)
        self.weight = weight

    @abstractmethod
    def score(self, answer: Answer, sample: Question) -> float | None:
        """Return the score of one answer, or None if the reward does not apply, which may depend on the sample only.

        Values are clipped to `bounds`. NaN and infinities count as failures of the reward.
        """

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        """Return the scores of N answers."""
        return [self._score(answer, sample) for answer, sample in zip(answers, samples, strict=True)]

    def ahead(self, answers: Sequence[Answer], samples: Sequence[Question]) -> None:  # noqa: B027
        """Start to score N answers in the background. Called for `remote` rewards, before `scores`.

        Used for completions that are sampled while a step trains.
        """

    def load(self) -> None:  # noqa: B027 # most rewards have nothing to load
        """Load models or files that scoring needs. Called once before training starts.

        A torch module that is assigned to an attribute is moved to the run's device.
        """

    def bounded_scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> list[float | None]:
        """Return `scores` clipped to `bounds`, with infinity for values that are not finite."""
        values = self.scores(answers, samples)
        if len(values) != len(answers):
            raise ConfigurationError(
                f"{type(self).__name__}.scores: expected a score for each of {len(answers)} answers, got {len(values)}"
            )
        return [None if value is None else self._bounded(value) for value in values]

    def _score(self, answer: Answer, sample: Question) -> float | None:
        with noted(partial(question_note, sample.image_id, sample.query, answer.text)):
            return self.score(answer, sample)

    def _bounded(self, value: float) -> float:
        lowest, highest = self.bounds
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several numbers
            raise ConfigurationError(
                f"{type(self).__name__} returned {value!r}; expected a number, or None if it doesn't apply"
            ) from error
        if not math.isfinite(number):
            warnings.warn(f"{type(self).__name__} returned {value}; expected a finite score", stacklevel=2)
            return math.inf
        return min(max(number, lowest), highest)
