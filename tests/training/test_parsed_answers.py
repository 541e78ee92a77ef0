"""Answers as rewards get them."""

from __future__ import annotations

import torch

from tests.helpers.answers import FRAME, ONE, SURE, sample, tagged
from vrft.rewards import DetectionIoU, Length
from vrft.tasks import DetectionTask
from vrft.training.scoring import parse_completions, score_answers
from vrft.types import Detection, PromptBatch, Rollout


def test_answers_have_the_tokens_of_their_completions_and_samples_have_rounded_boxes() -> None:
    about = [sample(ONE), sample((Detection((5.1, 9.9, 150.2, 199.8), "cat"),))]
    ids = torch.tensor([[5, 6, 7], [5, 8, 0], [9, 0, 0], [5, 5, 5]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    values = torch.zeros(4, 3)
    texts = [tagged(SURE), "", tagged("No Objects"), DetectionTask().target_text(about[1], FRAME)]
    rollout = Rollout(ids, mask, values, values, torch.zeros(4, dtype=torch.bool), texts)
    answers, samples = parse_completions(DetectionTask(), rollout, PromptBatch(about, [FRAME] * 2, [{}] * 2))
    assert [answer.token_ids for answer in answers] == [(5, 6, 7), (5, 8), (9,), (5, 5, 5)]
    assert [one.target[0].box for one in samples] == [(5, 10, 150, 200)] * 4  # type: ignore[union-attr]
    rewards = {"length": Length(longest=2), "iou": DetectionIoU()}
    scores, _ = score_answers(rewards, answers, samples, torch.device("cpu"))
    assert scores["length"].tolist() == [0.5, 1, 1, 0.5]
    assert scores["iou"][3] == 1
