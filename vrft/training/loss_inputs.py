"""Scored completions on their way from the rollout to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vrft.training.grpo import tied_groups
from vrft.types import Answer, PromptBatch, Rollout


@dataclass(slots=True)
class Rows:
    """What the loss needs of N rows."""

    ids: Tensor  # (N, T)
    mask: Tensor  # (N, T), 1 at tokens that count
    sampled_log_probs: Tensor  # (N, T), as the rollout engine computed them
    old_log_probs: Tensor  # (N, T), the same by the trainer: under the weights that sampled
    advantages: Tensor  # (N,)
    weights: Tensor  # (N,), of each row's tokens
    reference: Tensor | None = None  # (N, T)

    def take(self, rows: Sequence[int]) -> Rows:
        """Some of them, up to the last token of the longest."""
        width = max(1, int(self.mask[rows].sum(1).max()))
        return Rows(
            self.ids[rows, :width],
            self.mask[rows, :width],
            self.sampled_log_probs[rows, :width],
            self.old_log_probs[rows, :width],
            self.advantages[rows],
            self.weights[rows],
            None if self.reference is None else self.reference[rows, :width],
        )

    def log_ratio(self, rows: Sequence[int]) -> Tensor:
        """log-probability of the trainer - that of the sampler, of the tokens of some rows that count (n,)."""
        mine = self.take(rows)
        return (mine.old_log_probs - mine.sampled_log_probs)[mine.mask.bool()]


@dataclass(frozen=True, slots=True)
class Experience:
    """G scored completions of each of P prompts; N = P * G."""

    batch: PromptBatch  # P
    rollout: Rollout  # N
    answers: list[Answer]  # N
    rewards: dict[str, Tensor]  # name -> (N,), NaN where a reward does not apply
    total: Tensor  # (P, G)

    @property
    def tied(self) -> Tensor:
        """Groups whose rewards are all equal (P,) bool."""
        return tied_groups(self.total)

    @property
    def finite(self) -> Tensor:
        """Completions whose reward and log-probabilities are finite (N,) bool."""
        return self.total.flatten().isfinite() & self.rollout.log_probs.isfinite().all(1).to(self.total.device)

    def join(self, other: Experience) -> Experience:
        """These prompts, then those of `other`."""
        a, b = self.batch, other.batch
        return Experience(
            PromptBatch(a.samples + b.samples, a.frames + b.frames, a.inputs + b.inputs),
            Rollout.join([self.rollout, other.rollout]),
            self.answers + other.answers,
            {name: torch.cat([values, other.rewards[name]]) for name, values in self.rewards.items()},
            torch.cat([self.total, other.total]),
        )

    def select(self, prompts: Sequence[int]) -> Experience:
        """These prompts of it, with all their completions."""
        group = self.total.shape[1]
        rows = [p * group + g for p in prompts for g in range(group)]
        rollout = self.rollout
        width = int(rollout.mask[rows].sum(1).max())
        return Experience(
            self.batch.select(prompts),
            Rollout(
                rollout.ids[rows, :width],
                rollout.mask[rows, :width],
                rollout.log_probs[rows, :width],
                rollout.sampling_log_probs[rows, :width],
                rollout.truncated[rows],
                [rollout.texts[n] for n in rows],
            ),
            [self.answers[n] for n in rows],
            {name: values[rows] for name, values in self.rewards.items()},
            self.total[list(prompts)],
        )

    def refill(self, count: int) -> Experience:
        """The first `count` prompts, where tied ones give way to later ones that are not, as long as there are any."""
        tied = self.tied.tolist()
        spare = [p for p in range(count, len(tied)) if not tied[p]]
        return self.select([spare.pop(0) if tied[p] and spare else p for p in range(count)])
