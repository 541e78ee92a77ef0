"""Strict versions of Visual-RFT's detection rewards (arXiv 2503.01785, section 3.2), and related rewards.

Predictions are matched to true boxes with the same label; a pair counts if its overlap is above `threshold`. If a task
asks for one category, all boxes have its label. An answer that can't be parsed, e.g. with a confidence outside 0..1,
scores 0.

`benchmarks/reward_search.py` searches for answers that earn more than better answers. The docstrings state its results.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from vrft.answers import normalise_label
from vrft.boxes import Box, Matrix, diou_matrix, giou_matrix, iou_matrix, match_by_confidence, match_optimally
from vrft.rewards.base import Reward
from vrft.types import Answer, Detection, Question
from vrft.utils.bounds import Fraction

Matching = Literal["confidence", "optimal"]

OTHER_LABEL = -1.0
"""Overlap of boxes with different labels, which is below every threshold."""


class Matches(NamedTuple):
    """(Confidence, overlap) of matched boxes, confidences of unmatched boxes, and the number of true boxes."""

    right: list[tuple[float | None, float]]
    wrong: list[float | None]
    num_true: int

    @property
    def num_predicted(self) -> int:
        return len(self.right) + len(self.wrong)

    @property
    def num_slots(self) -> int:
        """max(true, predicted), a denominator to which missed objects and surplus boxes each add one."""
        return max(self.num_true, self.num_predicted)

    @property
    def surplus_factor(self) -> float:
        """(true + 1) / (max(true, predicted) + 1), which is 1 without surplus boxes and decreases with each."""
        return (self.num_true + 1) / (self.num_slots + 1)


def within_labels(
    predicted: Sequence[Detection],
    true: Sequence[Detection],
    overlap: Callable[[Sequence[Box], Sequence[Box]], Matrix],
) -> Matrix:
    """Return the overlap of every pair, (predicted, true), or OTHER_LABEL if the normalised labels differ."""
    names, true_names = ([normalise_label(d.label) for d in boxes] for boxes in (predicted, true))
    same = np.array([[a == b for b in true_names] for a in names], dtype=bool).reshape(len(names), len(true_names))
    return np.where(same, overlap([d.box for d in predicted], [d.box for d in true]), OTHER_LABEL)


class DetectionReward(Reward):
    """Base class of rewards for matched boxes: 0 for an unreadable answer, 1 for a correct "No Objects"."""

    def __init__(self, weight: float = 1.0, threshold: Fraction = 0.5, matching: Matching = "optimal") -> None:
        """Set how boxes are matched.

        Args:
            weight: weight of the score in the sum of all rewards.
            threshold: overlap above which a matched box is correct.
            matching: optimally, for the most pairs, or greedily by falling confidence as in the paper.
        """
        super().__init__(weight)
        self.threshold, self.matching = threshold, matching

    def score(self, answer: Answer, sample: Question) -> float:
        if not isinstance(answer.value, tuple) or not isinstance(sample.target, tuple):
            return 0.0
        if not all(box.score is None or 0 <= box.score <= 1 for box in answer.value):
            return 0.0
        matches = self.match(answer.value, sample.target)
        return self.earned(matches) if matches.num_slots else 1.0

    @abstractmethod
    def earned(self, matches: Matches) -> float:
        """Return the score, given at least one true or predicted box."""

    def match(self, predicted: tuple[Detection, ...], true: tuple[Detection, ...]) -> Matches:
        """Match an answer's boxes to the true ones."""
        overlaps = self.overlaps(predicted, true)
        if self.matching == "optimal":
            pairs = match_optimally(overlaps, self.threshold)
        else:
            order = [1.0 if detection.score is None else detection.score for detection in predicted]
            pairs = match_by_confidence(overlaps, order, self.threshold)
        matched = {i for i, _, _ in pairs}
        return Matches(
            right=[(predicted[i].score, overlap) for i, _, overlap in pairs],
            wrong=[detection.score for i, detection in enumerate(predicted) if i not in matched],
            num_true=len(true),
        )

    def overlaps(self, predicted: tuple[Detection, ...], true: tuple[Detection, ...]) -> Matrix:
        """Return the overlap of every pair in 0..1, (predicted, true), or OTHER_LABEL if the labels differ."""
        return within_labels(predicted, true, self.overlap)

    def overlap(self, a: Sequence[Box], b: Sequence[Box]) -> Matrix:
        """Return the overlap of every pair of boxes in 0..1, (len(a), len(b)), regardless of labels."""
        return iou_matrix(a, b)


class DetectionIoU(DetectionReward):
    """Sum of the matched IoUs / max(m, n) * (m + 1) / (max(m, n) + 1), for n boxes and m objects.

    With `matching: confidence`, the score is that of Visual-RFT's released code, without the second factor. Eq. 6 of
    the paper divides by n alone, so that missed objects cost nothing.

    Nothing earns more than the truth. Because IoU counts, six exact boxes for ten objects earn more than ten boxes of
    IoU 0.51, whose F1 is higher. If there are more boxes than objects, leaving out a box with less than the mean IoU
    raises the score, and so does adding a box that overlaps an object better than the matched box does. The score does
    not depend on stated confidences.
    """

    def earned(self, matches: Matches) -> float:
        mean = sum(overlap for _, overlap in matches.right) / matches.num_slots
        return mean if self.matching == "confidence" else mean * matches.surplus_factor


class DetectionGIoU(DetectionIoU):
    """`DetectionIoU` with the overlap (1 + GIoU) / 2 of all pairs, so that a box that misses is scored by its distance.

    Nothing earns more than the truth, but many near misses earn more than a few hits, and a box around the whole image
    earns more than a small overlap. Adding a box that is nearer than the matched one pays. If there are more boxes than
    objects, leaving out a correct box with less than the mean overlap pays too. The score does not depend on stated
    confidences.
    """

    def __init__(self, weight: float = 1.0, threshold: Fraction = 0.0, matching: Matching = "optimal") -> None:
        """Set how boxes are matched.

        Args:
            weight: weight of the score in the sum of all rewards.
            threshold: overlap above which a matched box is correct.
            matching: optimally, for the most pairs, or greedily by falling confidence as in the paper.
        """
        super().__init__(weight, threshold, matching)

    def overlap(self, a: Sequence[Box], b: Sequence[Box]) -> Matrix:
        return (1 + giou_matrix(a, b)) / 2


class DetectionDIoU(DetectionGIoU):
    """`DetectionGIoU` with the overlap (1 + DIoU) / 2, which uses the distance of the centres."""

    def overlap(self, a: Sequence[Box], b: Sequence[Box]) -> Matrix:
        return (1 + diou_matrix(a, b)) / 2


class DetectionConfidence(DetectionReward):
    """About two thirds for finding the objects, one third for calibrated confidences.

    The score is (11 F2 + calibration) / 16. F2 is the F-measure in which recall counts double. With n boxes for m
    objects, calibration = (m + 1) / (max(m, n) + 1) * (4 + S / max(m, n)), where S is the sum of 2c - c² over the
    correct boxes and -c² over the wrong ones. A box without a confidence c counts as c = 0.

    S is a proper scoring rule: a box that is correct with probability p earns most if c = p. Nothing earns more than
    the truth. A surplus box never raises the score, whatever its confidence and position, unless it finds an object
    that the other boxes miss. Leaving out a box never raises the score if an object is then missed. A readable answer
    earns more than an unreadable one. All this also holds for the sum with `DetectionIoU` if the weight of the latter
    is at most a sixth of this reward's weight.

    If there are no more boxes than objects, wrong boxes with confidence 0 cost nothing if no box is correct; beside a
    correct box, they lower only F2.
    """

    def earned(self, matches: Matches) -> float:
        total = sum(c * (2 - c) for c, _ in matches.right if c) - sum(c * c for c in matches.wrong if c)
        calibration = matches.surplus_factor * (4 + total / matches.num_slots)
        return (11 * f_measure(matches, 2.0) + calibration) / 16


class PaperConfidence(DetectionReward):
    """Visual-RFT, eq. 7-8: mean over predictions of c for correct boxes and 1 - c for wrong boxes; 0 if there are none.

    A wrong box with confidence 0 earns as much as the truth, and missed objects cost nothing, so adding boxes with
    confidence 0 pays, and so does leaving out a correct box with low confidence. A policy earns most by stating 1 if a
    box is correct with a probability above 1/2, and 0 otherwise.
    """

    def __init__(self, weight: float = 1.0, threshold: Fraction = 0.5, matching: Matching = "confidence") -> None:
        """Set how boxes are matched.

        Args:
            weight: weight of the score in the sum of all rewards.
            threshold: overlap above which a matched box is correct.
            matching: optimally, for the most pairs, or greedily by falling confidence as in the paper.
        """
        super().__init__(weight, threshold, matching)

    def earned(self, matches: Matches) -> float:
        right = sum(c for c, _ in matches.right if c is not None)
        total = right + sum(1 - c for c in matches.wrong if c is not None)
        return total / matches.num_predicted if matches.num_predicted else 0.0


class DetectionF1(DetectionReward):
    """F-measure of the matched boxes; `recall_weight` is the weight of recall relative to precision (F1: 1).

    Nothing earns more than the truth, and neither adding a surplus box nor leaving out a correct one pays. IoU above
    the threshold and stated confidences don't count.
    """

    def __init__(
        self,
        weight: float = 1.0,
        threshold: Fraction = 0.5,
        matching: Matching = "optimal",
        recall_weight: float = 1.0,
    ) -> None:
        """Set how boxes are matched and scored.

        Args:
            weight: weight of the score in the sum of all rewards.
            threshold: overlap above which a matched box is correct.
            matching: optimally, for the most pairs, or greedily by falling confidence as in the paper.
            recall_weight: b of the F-measure (1 + b²) TP / ((1 + b²) TP + b² missed + surplus).
        """
        super().__init__(weight, threshold, matching)
        self.recall_weight = recall_weight

    def earned(self, matches: Matches) -> float:
        return f_measure(matches, self.recall_weight)


def f_measure(matches: Matches, recall_weight: float) -> float:
    """Return (1 + b²) TP / ((1 + b²) TP + b² missed + surplus), b = `recall_weight`; 0 if no box is correct."""
    squared = recall_weight**2
    hits = (1 + squared) * len(matches.right)
    missed = matches.num_true - len(matches.right)
    return hits / (hits + squared * missed + len(matches.wrong)) if hits else 0.0
