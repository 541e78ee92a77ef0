"""The base class of rewards."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from tests.helpers.answers import (
    NONE,
    ONE,
    answers,
    sample,
)
from vrft.rewards import (
    Accuracy,
    CentreDistance,
    CountError,
    DetectionConfidence,
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    Format,
    GroundingGIoU,
    GroundingIoU,
    Length,
    PaperConfidence,
    PaperGroundingGIoU,
    PointInBox,
    ReasoningPresent,
    Repetition,
    Reward,
)
from vrft.types import Answer, Question


class Characters(Reward):
    """The length of the answer; does not apply to samples without a target."""

    bounds = (0.0, 100.0)

    def score(self, answer: Answer, sample: Question) -> float | None:
        return float(len(answer.text)) if sample.target else None


def test_scores_are_clipped_and_none_stays_none() -> None:
    found = Characters().bounded_scores(answers("a", "abcdef", "a" * 101), [sample(ONE), sample(NONE), sample(ONE)])
    assert found == [1.0, None, 100.0]


def test_the_numbers_of_answers_and_samples_have_to_be_equal() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Characters().bounded_scores(answers("a", "b"), [sample(ONE)])


ALL = [
    Accuracy,
    CentreDistance,
    CountError,
    DetectionConfidence,
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    Format,
    GroundingGIoU,
    GroundingIoU,
    Length,
    PaperConfidence,
    PaperGroundingGIoU,
    PointInBox,
    ReasoningPresent,
    Repetition,
]


@pytest.mark.parametrize("kind", ALL)
def test_rewards_can_be_sent_to_workers(kind: type[Reward]) -> None:
    reward = kind(weight=0.5)
    copy = pickle.loads(pickle.dumps(reward))
    texts, samples = [replace(answer, token_ids=(1, 2)) for answer in answers("a", "b")], [sample(ONE)] * 2
    assert copy.weight == 0.5
    assert copy.bounded_scores(texts, samples) == reward.bounded_scores(texts, samples)
