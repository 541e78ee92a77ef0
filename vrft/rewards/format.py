"""The format reward of every task."""

from __future__ import annotations

from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Format(Reward):
    """1 if the whole completion is `<think>…</think><answer>…</answer>`, each tag once and nothing around them, else 0.

    Where the task asks for no reasoning, `<answer>…</answer>` alone is right.

    Visual-RFT, section 3.2, made strict: a second answer block, or one inside the reasoning, is not the format.
    """

    def score(self, answer: Answer, sample: Question) -> float:
        return float(answer.well_formed)
