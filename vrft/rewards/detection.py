"""Detection rewards of Visual-RFT (arXiv 2503.01785, section 3.2), strict.

Predictions are matched to true boxes greedily by falling confidence; a pair counts if its IoU is above `threshold`.
The label is not compared: a prompt asks for one category. An answer that can't be read scores 0.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from vrft.boxes import match_by_confidence
from vrft.rewards.base import Reward
from vrft.types import Answer, Sample


class Matches(NamedTuple):
    """Matched (confidence, IoU) pairs, confidences of the wrong boxes, and the number of true boxes."""

    right: list[tuple[float, float]]
    wrong: list[float]
    num_true: int

    @property
    def num_slots(self) -> int:
        """max(true, predicted): a missed object and a surplus box each cost one slot."""
        return max(self.num_true, len(self.right) + len(self.wrong))


def match(answer: Answer, sample: Sample, threshold: float) -> Matches | None:
    """Match an answer's boxes to the sample's; None if the answer can't be read."""
    if not isinstance(answer.value, tuple) or not isinstance(sample.target, tuple):
        return None
    scores = [detection.score for detection in answer.value]
    pairs = match_by_confidence(
        [detection.box for detection in answer.value], scores, [true.box for true in sample.target], threshold
    )
    matched = {i for i, _, _ in pairs}
    return Matches(
        right=[(scores[i], iou) for i, _, iou in pairs],
        wrong=[score for i, score in enumerate(scores) if i not in matched],
        num_true=len(sample.target),
    )


class DetectionReward(Reward):
    """A score of matched boxes: 0 for an answer that can't be read, 1 for a right "No Objects"."""

    def __init__(self, weight: float = 1.0, threshold: float = 0.5) -> None:
        """`threshold`: a box is right if its IoU with its match is above it."""
        super().__init__(weight)
        self.threshold = threshold

    def score(self, answer: Answer, sample: Sample) -> float:
        matches = match(answer, sample, self.threshold)
        if matches is None:
            return 0.0
        return self.earned(matches) / matches.num_slots if matches.num_slots else 1.0

    @abstractmethod
    def earned(self, matches: Matches) -> float:
        """What the boxes earn together, out of one per slot."""


class DetectionIoU(DetectionReward):
    """Sum of the matched IoUs / max(true, predicted boxes).

    The released code's denominator; eq. 6 of the paper divides by the predictions alone, which forgives missed ones.
    """

    def earned(self, matches: Matches) -> float:
        return sum(iou for _, iou in matches.right)


class DetectionConfidence(DetectionReward):
    """Sum of c over right boxes plus half the sum of 1 - c over wrong ones, / max(true, predicted boxes).

    Eq. 7-8 of the paper average c or 1 - c over the predictions alone, which pays 1 for a wrong box with confidence 0
    and for one sure box out of many objects. Here missed objects count, wrong boxes earn half at the most however many
    they are, and saying nothing where there is something earns nothing.
    """

    def earned(self, matches: Matches) -> float:
        return sum(confidence for confidence, _ in matches.right) + sum(1 - c for c in matches.wrong) / 2
