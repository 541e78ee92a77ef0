"""What a reward is: a pure score of one answer, wrapped in a metric that remembers its mean."""

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
    """Scores N answers at once; `compute` is the mean of everything scored since the last `reset`.

    A subclass writes `score`. Calling the reward returns one score per answer, (N,) float32, NaN where the reward does
    not apply; NaN is left out of means and sums. A score that is NaN or infinite comes as infinity: the training step
    is skipped, and means go without it.
    """

    full_state_update = False
    higher_is_better = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    total: Tensor
    count: Tensor

    def __init__(self, weight: float = 1.0) -> None:
        """`weight`: of the score in the sum of all rewards; 0 shows a score without training on it."""
        super().__init__()
        self.weight = weight
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, answer: Answer, sample: Question) -> float | None:
        """The reward of one answer, within `bounds`. None means "does not apply", which may depend on the sample alone.

        What is outside the bounds is cut off. NaN and infinities are faults of the reward.
        """

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        """`score` of N answers."""
        return [self.score(answer, sample) for answer, sample in zip(answers, samples, strict=True)]

    def load(self) -> None:
        """Read what scoring needs, before training starts."""

    def update(self, answers: Sequence[Answer], samples: Sequence[Question]) -> None:
        self._accumulate(self._scores(answers, samples))

    def compute(self) -> Tensor:
        return (self.total / self.count).float()

    def forward(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Tensor:
        """Score, accumulate and return the scores (N,)."""
        scores = self._scores(answers, samples)
        self._accumulate(scores)
        return scores

    def bounded_scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> list[float | None]:
        """`scores`, cut off at `bounds`; infinity for what isn't finite."""
        return [None if value is None else self._bounded(value) for value in self.scores(answers, samples)]

    def _scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Tensor:
        values = [float("nan") if value is None else value for value in self.bounded_scores(answers, samples)]
        return torch.tensor(values, device=self.device)

    def _bounded(self, value: float) -> float:
        lowest, highest = self.bounds
        if not math.isfinite(value):
            rank_zero_warn(f"{type(self).__name__} gave {value}, which is no score")
            return math.inf
        return min(max(float(value), lowest), highest)

    def _accumulate(self, scores: Tensor) -> None:
        finite = scores[scores.isfinite()]
        self.total += finite.sum().double()
        self.count += len(finite)
        self._computed = None
        self._update_count += 1
