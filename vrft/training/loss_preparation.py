"""Compute the inputs of a step's loss before the weights change: advantages, token weights and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from vrft.training.entropy import top_entropy_tokens
from vrft.training.fixed_log_probs import FixedLogProbs
from vrft.training.grpo import token_weights
from vrft.training.loss_inputs import LossInputs, Minibatch
from vrft.training.objective import Objective
from vrft.types import ScoredRollout


class LossPreparation:
    """Divides a scored rollout into minibatches and computes the inputs of their loss."""

    def __init__(
        self,
        module: LightningModule,
        objective: Objective,
        fixed_log_probs: FixedLogProbs,
        num_minibatches: int,
        max_completion_length: int,
        mask_truncated_completions: bool,
    ) -> None:
        """Set the parameters that all steps share.

        Args:
            module: the trained module, which reduces over ranks.
            objective: settings of the loss.
            fixed_log_probs: computes old and reference log-probabilities.
            num_minibatches: optimizer steps per pass, on equal parts of the prompts.
            max_completion_length: maximum number of tokens in a completion.
            mask_truncated_completions: leave truncated completions out of the loss.
        """
        self.module, self.objective, self.fixed_log_probs = module, objective, fixed_log_probs
        self.num_minibatches, self.max_completion_length = num_minibatches, max_completion_length
        self.mask_truncated_completions = mask_truncated_completions

    def __call__(self, scored: ScoredRollout) -> list[Minibatch]:
        """Return the minibatches of the first pass, with old and reference log-probabilities."""
        prompts = scored.batch.inputs
        parts = [part.tolist() for part in torch.arange(len(prompts)).tensor_split(self.num_minibatches)]
        inputs = self.inputs(scored, [len(part) for part in parts])
        trains = inputs.mask.any(1) & ((inputs.advantages != 0) | self.objective.trains_ties)  # (N,)
        groups: list[bool] = trains.view(len(prompts), -1).any(1).tolist()  # (P,)
        minibatches = [Minibatch(prompts, inputs, part, groups) for part in parts]
        if self.objective.top_entropy_quantile < 1:
            inputs.old_log_probs, entropy = self.fixed_log_probs.with_entropy(inputs, prompts)
            inputs.chosen = self.top_entropy_tokens(entropy, inputs.mask)
        else:
            inputs.old_log_probs = self.fixed_log_probs(inputs, minibatches[1:])
        inputs.reference = scored.reference
        if self.objective.beta > 0 and inputs.reference is None:
            inputs.reference = self.fixed_log_probs(inputs, minibatches, reference=True)
        return minibatches

    def inputs(self, scored: ScoredRollout, minibatches: Sequence[int]) -> LossInputs:
        """Return the loss's inputs without log-probabilities. `minibatches`: number of prompts per minibatch."""
        rollout, group_size = scored.rollout, scored.reward.shape[1]
        mask = rollout.mask * ~rollout.truncated[:, None] if self.mask_truncated_completions else rollout.mask
        weights = []
        for lengths in mask.sum(1).split([count * group_size for count in minibatches]):
            tokens = self.module.trainer.strategy.reduce(lengths.sum().float(), reduce_op="mean")
            weights.append(token_weights(lengths, self.objective.loss_type, self.max_completion_length, tokens))
        non_finite = ~scored.finite.to(scored.advantages.device)  # (N,), rows that skip the optimizer step
        advantages = scored.advantages.flatten().masked_fill(non_finite, torch.nan)
        old = torch.zeros_like(rollout.log_probs)
        fixed = (rollout.ids, mask, rollout.log_probs, old, advantages, torch.cat(weights))
        return LossInputs(*fixed, lengths=mask.sum(1).tolist())

    def top_entropy_tokens(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """Return which tokens are among those with the highest entropy on all ranks, (N, T) bool."""
        padded = entropy.new_full((len(mask), self.max_completion_length), torch.nan)
        padded[:, : mask.shape[1]] = entropy.masked_fill(mask == 0, torch.nan)
        everyone = self.module.all_gather(padded)
        assert isinstance(everyone, Tensor)
        return top_entropy_tokens(entropy, mask, everyone.flatten(), self.objective.top_entropy_quantile)
