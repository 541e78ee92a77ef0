"""Inputs of the loss, and their division into the minibatches of optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vrft.indices import index_on
from vrft.policy.processor import MicroBatch, micro_batches
from vrft.policy.prompts import Prompt, lengths_after_start
from vrft.training.cross_entropy import Targets

SUMS = ("rows", "KL", "entropy", "clipped share", "sampling gap", "rows with tokens")
"""Names of the statistics that are summed over the rows of a micro-batch."""


@dataclass(slots=True)
class LossInputs:
    """Inputs of the loss for N = P * G completions, other than the policy's log-probabilities."""

    ids: Tensor  # (N, T)
    mask: Tensor  # (N, T), 1 at tokens that count
    sampled_log_probs: Tensor  # (N, T), computed by the rollout engine
    old_log_probs: Tensor  # (N, T), computed by the trainer under the weights at the start of the step
    advantages: Tensor  # (N,)
    weights: Tensor  # (N,), weight of each token of the row
    reference: Tensor | None = None  # (N, T), log-probabilities under the reference
    lengths: list[int] | None = None  # N sums of the mask, kept on the CPU to avoid waiting for a GPU
    chosen: Tensor | None = None  # (N, T) bool, tokens with a surrogate; None: all

    def select(self, rows: Sequence[int]) -> LossInputs:
        """Return some rows, trimmed to the longest of them."""
        index = index_on(self.ids.device, rows)
        lengths = self.lengths or self.mask.sum(1).tolist()
        kept = [lengths[row] for row in rows]
        width = max(1, *kept)
        return LossInputs(
            self.ids[index, :width],
            self.mask[index, :width],
            self.sampled_log_probs[index, :width],
            self.old_log_probs[index, :width],
            self.advantages[index],
            self.weights[index],
            None if self.reference is None else self.reference[index, :width],
            kept,
            None if self.chosen is None else self.chosen[index, :width],
        )

    def log_ratio(self, rows: Sequence[int]) -> Tensor:
        """Return log pi_old - log pi_sampler at the unmasked tokens of some rows, 1-D."""
        mine = self.select(rows)
        return (mine.old_log_probs - mine.sampled_log_probs)[mine.mask.bool()]


@dataclass(slots=True)
class Minibatch:
    """The prompts of an optimizer step, and statistics of their last backward."""

    prompts: list[Prompt]  # all P of the rollout
    inputs: LossInputs  # all N of the rollout
    chosen: list[int]  # indices of this minibatch's prompts
    trains: list[bool]  # for each of the P prompts, whether it has a gradient
    on_policy: bool = False  # the weights have not changed since the start of the step, so old log-probs = log-probs
    first_pass: bool = True  # whether this is the first of `num_iterations` passes
    targets: Targets | None = None  # target texts to train on in addition to the rewards
    sums: list[Tensor] = field(default_factory=list)  # `SUMS` of each micro-batch, (6,)
    cross_entropy: Tensor | None = None  # (), of the targets

    def split(self, max_tokens: int) -> list[MicroBatch]:
        """Return micro-batches of at most `max_tokens` tokens.

        Prompts without a gradient are left out, except for at least one prompt, so that each rank runs a backward.
        """
        lengths, room = lengths_after_start(self.prompts, max_tokens)
        chosen = [p for p in self.chosen if self.trains[p]] or self.chosen[:1]
        return micro_batches(lengths, self.inputs.mask.sum(1).tolist(), chosen, room)

    def again(self) -> Minibatch:
        """Return the same minibatch for a further pass over the rollout, after the weights have changed."""
        return replace(self, on_policy=False, first_pass=False, sums=[], cross_entropy=None)

    def log_ratio(self, max_tokens: int) -> Tensor:
        """Return log pi_old - log pi_sampler at the tokens that the minibatch trains on, 1-D."""
        return self.inputs.log_ratio([row for micro in self.split(max_tokens) for row in micro.rows])


def micro_batches_of(minibatches: Sequence[Minibatch], max_tokens: int) -> list[MicroBatch]:
    """Return the micro-batches of several minibatches."""
    return [micro for minibatch in minibatches for micro in minibatch.split(max_tokens)]


def total_sums(minibatches: Sequence[Minibatch]) -> Tensor:
    """Return the sums of all micro-batches of all minibatches, (6,)."""
    return torch.stack([sums for minibatch in minibatches for sums in minibatch.sums]).sum(0)
