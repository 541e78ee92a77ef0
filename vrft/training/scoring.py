"""Parsing and scoring of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vrft.rewards import Reward
from vrft.tasks import Task
from vrft.types import Answer, PromptBatch, Sample


def parse_completions(task: Task, texts: Sequence[str], batch: PromptBatch) -> tuple[list[Answer], list[Sample]]:
    """Parse N completions of P prompts.

    Returns:
        The N answers, and the N samples that they answer.
    """
    group = len(texts) // len(batch.samples)
    prompts = zip(batch.samples, batch.frames, strict=True)
    pairs = [(sample, frame) for sample, frame in prompts for _ in range(group)]
    answers = [task.parse(text, sample, frame) for text, (sample, frame) in zip(texts, pairs, strict=True)]
    return answers, [sample for sample, _ in pairs]


def score_answers(
    rewards: nn.ModuleDict, answers: Sequence[Answer], samples: Sequence[Sample]
) -> tuple[dict[str, Tensor], Tensor]:
    """Score N answers by named rewards.

    Returns:
        Each reward's scores (N,), NaN where it does not apply, and their weighted sum (N,), to which a reward that does
        not apply adds 0. The sum is NaN where a reward gave no finite number.
    """
    named = {name: cast(Reward, reward) for name, reward in rewards.items()}
    scores = {name: reward(answers, samples) for name, reward in named.items()}
    total = torch.stack([scores[name] * reward.weight for name, reward in named.items()]).nansum(0)
    return scores, total.masked_fill(total.isinf(), torch.nan)
