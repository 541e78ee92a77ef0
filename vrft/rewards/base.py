"""The reward base class: a pure score of one answer, wrapped in a metric that averages scores."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from vrft.types import Answer, Question


class Reward(Metric):
    """Base class of rewards. `compute` returns the mean of all scores since the last `reset`.

    A subclass implements `score`. Calling the reward returns one score per answer, (N,) float32, NaN where the reward
    does not apply; NaN is left out of means and sums. If `score` returns NaN or infinity, the result is infinity: the
    training step is skipped, and means ignore the score.
    """

    full_state_update = False
    higher_is_better = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    total: Tensor
    count: Tensor

    def __init__(self, weight: float = 1.0) -> None:
        """Set the weight of the score in the sum of all rewards; 0 logs it without training on it."""
        super().__init__()
        self.weight = weight
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, answer: Answer, sample: Question) -> float | None:
        """Return the reward of one answer, or None if it does not apply, which may depend on the sample alone.

        Values are clipped to `bounds`. NaN and infinities count as errors of the reward.
        """

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        """Return the scores of N answers."""
        return [self.score(answer, sample) for answer, sample in zip(answers, samples, strict=True)]

    def load(self) -> None:
        """Load models or files that scoring needs. Called once before training starts."""

    def update(self, answers: Sequence[Answer], samples: Sequence[Question]) -> None:
        self._accumulate(self._scores(answers, samples))

    def compute(self) -> Tensor:
        return (self.total / self.count).float()

    def forward(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Tensor:
        """Return the scores (N,) and add them to the mean."""
        scores = self._scores(answers, samples)
        self._accumulate(scores)
        return scores

    def bounded_scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> list[float | None]:
        """Return `scores` clipped to `bounds`, with infinity for values that are not finite."""
        return [None if value is None else self._bounded(value) for value in self.scores(answers, samples)]

    def _scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Tensor:
        values = [float("nan") if value is None else value for value in self.bounded_scores(answers, samples)]
        return torch.tensor(values, device=self.device)

    def _bounded(self, value: float) -> float:
        lowest, highest = self.bounds
        if not math.isfinite(value):
            rank_zero_warn(f"{type(self).__name__} returned {value}; expected a finite score")
            return math.inf
        return min(max(float(value), lowest), highest)

    def _accumulate(self, scores: Tensor) -> None:
        finite = scores[scores.isfinite()]
        self.total += finite.sum().double()
        self.count += len(finite)
        self._computed = None
        self._update_count += 1
