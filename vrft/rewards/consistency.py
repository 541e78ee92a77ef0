"""Agreement of answers to the same question: a reward that needs no label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from vrft.answers import normalise_label
from vrft.boxes import matched_iou
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Consistency(Reward):
    """The mean agreement of an answer with the others to its question (after TTRL, arXiv 2504.16084, eq. 2).

    Boxes agree by their matched IoU / max(boxes of either answer), names by being equal, and an answer that can't be
    read agrees with none. It does not apply where there is one answer. Without a reward that knows what is right, it
    only makes a policy surer of what it mostly says.
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
        """Of one answer alone there is nothing to say."""


def agreement(answer: Answer, other: Answer) -> float:
    """How far two answers say the same, in 0..1; the order of the two matters for boxes of unequal confidence only."""
    mine, theirs = answer.value, other.value
    if isinstance(mine, str) and isinstance(theirs, str):
        return float(normalise_label(mine) == normalise_label(theirs))
    if not isinstance(mine, tuple) or not isinstance(theirs, tuple):
        return 0.0
    scores = [1.0 if found.score is None else found.score for found in mine]
    return matched_iou([found.box for found in mine], scores, [found.box for found in theirs])
