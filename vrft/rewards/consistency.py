"""Reward the agreement among the answers to a question, which needs no labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vrft.answers import normalise_label
from vrft.boxes import Box, iou_matrix, match_by_confidence
from vrft.rewards.base import Reward
from vrft.rewards.detection import OTHER_LABEL
from vrft.types import Answer, Question, Sample


class Boxes(NamedTuple):
    """The boxes of an answer, an integer for each normalised label, and confidences, 1 if not stated."""

    boxes: list[Box]
    labels: NDArray[np.int64]
    confidences: list[float]


class Consistency(Reward):
    """Mean agreement of an answer with the other answers to its question (after TTRL, arXiv 2504.16084, eq. 2).

    For boxes, agreement is the sum of the IoUs of pairs with equal labels, matched in descending order of confidence,
    over the larger number of boxes; it is 1 for two answers without boxes. For texts, it is 1 if they are equal, else
    0. An unreadable answer has agreement 0. The reward does not apply to a single answer. Without another reward based
    on the ground truth, it only reinforces the policy's most frequent answers.

    The reward does not use the ground truth, so it has none of the properties of `DetectionConfidence`: an answer can
    earn more than the truth, a surplus box pays if the other answers have it, and leaving out a correct box pays if
    they lack it. Confidences only decide which boxes are matched first, so stating the probability of being correct
    does not pay.
    """

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        groups = defaultdict(list)
        for row, sample in enumerate(samples):
            groups[question_key(sample)].append(row)
        found: list[float | None] = [None] * len(answers)
        for rows in groups.values():
            if len(rows) > 1:
                for row, mean in zip(rows, mean_agreements([answers[row] for row in rows]), strict=True):
                    found[row] = mean
        return found

    def score(self, answer: Answer, sample: Question) -> None:
        """Return None: a single answer has no agreement."""


def question_key(sample: Question) -> Hashable:
    """Return a key of a question: the index in the dataset if known, else the image, the query and the target.

    The target is part of the key because records with the same image and query may have different targets.
    """
    return sample.index if isinstance(sample, Sample) else (sample.image_id, sample.query, sample.target)


def mean_agreements(answers: Sequence[Answer]) -> list[float]:
    """Return the mean agreement of each answer with the other answers to its question, given at least two answers."""
    numbers: dict[str, int] = {}
    readings = [_reading(answer, numbers) for answer in answers]
    totals = [0.0] * len(answers)
    for i, j in combinations(range(len(answers)), 2):
        first, second = _agreements(readings[i], readings[j])
        totals[i] += first
        totals[j] += second
    return [total / (len(answers) - 1) for total in totals]


def _reading(answer: Answer, numbers: dict[str, int]) -> Boxes | str | None:
    """Return an answer with normalised labels as integers. A new label gets the next integer in `numbers`."""
    value = answer.value
    if not isinstance(value, tuple):
        return None if value is None else normalise_label(value)
    labels = [numbers.setdefault(normalise_label(found.label), len(numbers)) for found in value]
    confidences = [1.0 if found.score is None else found.score for found in value]
    return Boxes([found.box for found in value], np.array(labels, np.int64), confidences)


def _agreements(a: Boxes | str | None, b: Boxes | str | None) -> tuple[float, float]:
    """Return the agreements of a with b and of b with a, which may differ if confidences differ."""
    if not isinstance(a, Boxes) or not isinstance(b, Boxes):
        equal = float(isinstance(a, str) and a == b)
        return equal, equal
    slots = max(len(a.boxes), len(b.boxes))
    if not slots:
        return 1.0, 1.0
    overlaps = np.where(a.labels[:, None] == b.labels, iou_matrix(a.boxes, b.boxes), OTHER_LABEL)
    pairs = (
        match_by_confidence(overlaps, a.confidences, 0.0),
        match_by_confidence(overlaps.T, b.confidences, 0.0),
    )
    first, second = (sum(overlap for _, _, overlap in found) / slots for found in pairs)
    return first, second
