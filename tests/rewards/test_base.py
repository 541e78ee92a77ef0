"""Rewards as metrics: running means, scores that don't apply, state."""

from __future__ import annotations

import pickle

import pytest
import torch

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


def test_a_reward_returns_scores_and_keeps_their_running_mean() -> None:
    reward = Characters()
    scores = reward(answers("a", "abc"), [sample(ONE)] * 2)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1, 3]
    assert reward.compute() == 2
    reward.update(answers("abcde"), [sample(ONE)])
    assert reward.compute() == 3
    reward(answers("abcdefg"), [sample(ONE)])
    assert reward.compute() == 4
    reward.reset()
    reward(answers("ab"), [sample(ONE)])
    assert reward.compute() == 2


def test_a_score_that_does_not_apply_is_nan_and_left_out_of_the_mean() -> None:
    reward = Characters()
    scores = reward(answers("a", "abcdef", "abc"), [sample(ONE), sample(NONE), sample(ONE)])
    assert scores.isnan().tolist() == [False, True, False]
    assert reward.compute() == 2


def test_the_numbers_of_answers_and_samples_have_to_be_equal() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Characters()(answers("a", "b"), [sample(ONE)])


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
def test_rewards_have_no_state_to_save_and_can_be_sent_to_workers(kind: type[Reward]) -> None:
    reward = kind(weight=0.5)
    reward(answers("a", "b"), [sample(ONE)] * 2)
    copy = pickle.loads(pickle.dumps(reward))
    assert reward.state_dict() == {}
    assert (copy.weight, copy.compute()) == (0.5, reward.compute())
