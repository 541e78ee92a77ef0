"""Parse and score completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from vrft.rewards import Reward
from vrft.tasks import Task
from vrft.types import Answer, PromptBatch, Rollout, Sample


def parse_completions(task: Task, rollout: Rollout, batch: PromptBatch) -> tuple[list[Answer], list[Sample]]:
    """Parse the N completions of P prompts.

    Returns:
        The N answers, and the N samples to score them by.
    """
    group = len(rollout.texts) // len(batch.samples)
    prompts = zip(scored_samples(task, batch), batch.frames, strict=True)
    pairs = [(sample, frame) for sample, frame in prompts for _ in range(group)]
    answers = [task.parse(text, sample, frame) for text, (sample, frame) in zip(rollout.texts, pairs, strict=True)]
    rows = zip(rollout.ids.tolist(), rollout.mask.sum(1).tolist(), rollout.truncated.tolist(), strict=True)
    for answer, (ids, length, truncated) in zip(answers, rows, strict=True):
        answer.token_ids = tuple(ids[: int(length)])
        if truncated and answer.problem is not None:
            answer.problem = f"cut off at the limit of {int(length)} tokens; {answer.problem}"
    return answers, [sample for sample, _ in pairs]


def scored_samples(task: Task, batch: PromptBatch) -> list[Sample]:
    """Return the P samples with the targets that rewards use, see `Task.scored_target`."""
    pairs = zip(batch.samples, batch.frames, strict=True)
    return [replace(sample, target=task.scored_target(sample, frame)) for sample, frame in pairs]


def score_answers(
    rewards: Mapping[str, Reward], answers: Sequence[Answer], samples: Sequence[Sample], device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Score N answers by named rewards.

    Returns:
        Each reward's scores, (N,), NaN where it does not apply; and their weighted sum, (N,), to which a reward that
        does not apply adds 0. The sum is NaN where a score is not finite.
    """
    scores = {}
    for name, reward in rewards.items():
        values = [math.nan if value is None else value for value in reward.bounded_scores(answers, samples)]
        scores[name] = torch.tensor(values, dtype=torch.float32, device=device)
    total = torch.stack([scores[name] * reward.weight for name, reward in rewards.items()]).nansum(0)
    return scores, total.masked_fill(total.isinf(), torch.nan)


def models_of(rewards: Mapping[str, Reward]) -> Iterator[nn.Module]:
    """Yield the torch modules that rewards have loaded."""
    for reward in rewards.values():
        yield from (value for value in vars(reward).values() if isinstance(value, nn.Module))


def finite_means(values: Mapping[str, Tensor], strategy: Strategy) -> dict[str, Tensor]:
    """Return the mean of the finite values under each name over all ranks, NaN if there are none.

    All ranks call this together. Numbers of values may differ between ranks, so sums and counts are exchanged.
    """
    found = [(tensor, tensor.isfinite()) for tensor in values.values()]
    sums = torch.stack([torch.stack([tensor.where(finite, 0).sum(), finite.sum()]) for tensor, finite in found])
    total, count = strategy.reduce(sums, reduce_op="sum").T  # (names,) each
    return dict(zip(values, total / count, strict=True))


class HeldOutMeans:
    """Means of held-out scores over all ranks, summed in float64 on the CPU, since not every device supports it."""

    def __init__(self) -> None:
        self.scores: dict[str, list[float]] = {}

    def reset(self) -> None:
        """Remove all scores."""
        self.scores = {}

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Add scores by name, (N,) each. Values that are not finite are left out."""
        for name, values in scores.items():
            self.scores.setdefault(name, []).extend(filter(math.isfinite, values.tolist()))

    def compute(self, world_size: int) -> dict[str, float]:
        """Return the mean under each name over all ranks, NaN if there are no scores. All ranks call this together."""
        own = {name: (math.fsum(values), len(values)) for name, values in self.scores.items()}
        parts = [own] * world_size
        if world_size > 1:
            dist.all_gather_object(parts, own)
        means = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            found = [part[name] for part in parts if name in part]
            count = sum(count for _, count in found)
            means[name] = math.fsum(total for total, _ in found) / count if count else math.nan
        return means
