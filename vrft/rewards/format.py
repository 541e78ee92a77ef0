"""The format reward of every task."""

from __future__ import annotations

from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Format(Reward):
    """1 if the completion is exactly `<think>…</think><answer>…</answer>`, each tag once, else 0.

    If the task does not ask for reasoning, the format is `<answer>…</answer>`.

    Stricter than Visual-RFT, section 3.2: a second answer block, or one inside the reasoning, scores 0.

    The content does not count: a wrong answer in the right format earns as much as the truth, and surplus boxes, missed
    objects and confidences change nothing.
    """

    def score(self, answer: Answer, sample: Question) -> float:
        return float(answer.well_formed)
