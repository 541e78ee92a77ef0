"""Rewards for grounding one object with one box. An unreadable answer or one with several boxes scores 0.

Nothing earns more than the truth, and neither a second box nor an empty answer ever pays. Answers state no confidence.
"""

from __future__ import annotations

import math
from abc import abstractmethod

from vrft.boxes import Box, giou_matrix, iou_matrix
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class GroundingReward(Reward):
    """Base class of grounding rewards. They apply only to samples with exactly one true box."""

    def score(self, answer: Answer, sample: Question) -> float | None:
        if not isinstance(sample.target, tuple) or len(sample.target) != 1:
            return None
        if not isinstance(answer.value, tuple) or len(answer.value) != 1:
            return 0.0
        return self.compare(answer.value[0].box, sample.target[0].box, sample.size)

    @abstractmethod
    def compare(self, box: Box, true: Box, size: tuple[int, int]) -> float:
        """Return the score of a box. Boxes are in pixels of an image of `size` (width, height)."""


class GroundingIoU(GroundingReward):
    """IoU with the true box (Visual-RFT, section 3.2). The true box alone earns 1."""

    def compare(self, box: Box, true: Box, size: tuple[int, int]) -> float:
        return float(iou_matrix([box], [true])[0, 0])


class GroundingGIoU(GroundingReward):
    """(1 + GIoU) / 2, so that a box that misses its object is scored by its distance.

    A box with IoU just below 0.5 can earn more than one just above, if less of the hull around both boxes is empty.
    """

    def compare(self, box: Box, true: Box, size: tuple[int, int]) -> float:
        return (1 + float(giou_matrix([box], [true])[0, 0])) / 2


class PaperGroundingGIoU(GroundingReward):
    """1 + GIoU in 0..2, the reward of Visual-RFT's released code for reasoning grounding.

    As in `GroundingGIoU`, a box with IoU just below 0.5 can earn more than one just above.
    """

    bounds = (0.0, 2.0)

    def compare(self, box: Box, true: Box, size: tuple[int, int]) -> float:
        return 1 + float(giou_matrix([box], [true])[0, 0])


class PointInBox(GroundingReward):
    """1 if the centre of the predicted box lies in the true box, else 0.

    A box of any size earns as much as the truth.
    """

    def compare(self, box: Box, true: Box, size: tuple[int, int]) -> float:
        x, y = _centre(box)
        return float(true[0] <= x <= true[2] and true[1] <= y <= true[3])


class CentreDistance(GroundingReward):
    """1 - distance of the box centres / diagonal of the image.

    A box of any size around the right centre earns as much as the truth, and more than a box with a higher IoU whose
    centre is off.
    """

    def compare(self, box: Box, true: Box, size: tuple[int, int]) -> float:
        return 1 - math.dist(_centre(box), _centre(true)) / math.hypot(*size)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
