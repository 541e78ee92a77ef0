"""Agreement among the answers to a question: a reward that needs no label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from vrft.answers import normalise_label
from vrft.rewards.base import Reward
from vrft.rewards.detection import DetectionIoU
from vrft.types import Answer, Question

OVERLAP = DetectionIoU(threshold=0.0, matching="confidence")
"""Matches the boxes of two answers."""


class Consistency(Reward):
    """Mean agreement of an answer with the other answers to its question (after TTRL, arXiv 2504.16084, eq. 2).

    The agreement of boxes is the sum of the IoUs of pairs with equal labels, matched by falling confidence, over the
    larger number of boxes; that of two answers without boxes is 1. The agreement of texts is equality, and that of an
    unreadable answer 0. The reward does not apply to a single answer. Without another reward based on the truth, it
    only reinforces the policy's most frequent answers.
    """

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        groups = defaultdict(list)
        for answer, sample in zip(answers, samples, strict=True):
            groups[sample.image_id, sample.query].append(answer)
        found: list[float | None] = []
        for answer, sample in zip(answers, samples, strict=True):
            others = [other for other in groups[sample.image_id, sample.query] if other is not answer]
            found.append(sum(agreement(answer, other) for other in others) / len(others) if others else None)
        return found

    def score(self, answer: Answer, sample: Question) -> None:
        """Return None: a single answer has no agreement."""


def agreement(answer: Answer, other: Answer) -> float:
    """Return the agreement of two answers in 0..1, symmetric unless boxes differ in confidence."""
    a, b = answer.value, other.value
    if isinstance(a, str) and isinstance(b, str):
        return float(normalise_label(a) == normalise_label(b))
    if not isinstance(a, tuple) or not isinstance(b, tuple):
        return 0.0
    matches = OVERLAP.match(a, b)
    return OVERLAP.earned(matches) if matches.num_slots else 1.0
