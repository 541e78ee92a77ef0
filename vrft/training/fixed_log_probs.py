"""Compute log-probabilities that are fixed during a step: under its initial weights and under the reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from vrft.indices import index_on
from vrft.policy import Policy
from vrft.policy.processor import MicroBatch
from vrft.policy.prompts import Prompt
from vrft.training.loss_inputs import LossInputs, Minibatch, micro_batches_of
from vrft.training.optimization import Optimization
from vrft.training.step_state import StepState
from vrft.types import PromptBatch, Rollout


class FixedLogProbs:
    """Computes log-probabilities without gradient by micro-batches."""

    def __init__(self, policy: Policy, optimization: Optimization, step: StepState, temperature: float) -> None:
        self.policy, self.optimization, self.state, self.temperature = policy, optimization, step, temperature

    def __call__(self, inputs: LossInputs, minibatches: Sequence[Minibatch], *, reference: bool = False) -> Tensor:
        """Return log-probabilities under the current weights or the reference, (N, T), 0 outside of `minibatches`."""
        return self._forwards(inputs, minibatches, reference=reference, entropy=False)[0]

    def with_entropy(self, inputs: LossInputs, prompts: Sequence[Prompt]) -> Tensor:
        """Return log-probabilities and entropies of all completions under the current weights, (2, N, T)."""
        everything = Minibatch([*prompts], inputs, [*range(len(prompts))], [True] * len(prompts))
        return self._forwards(inputs, [everything], reference=False, entropy=True)

    @torch.no_grad()
    def _forwards(
        self, inputs: LossInputs, minibatches: Sequence[Minibatch], *, reference: bool, entropy: bool
    ) -> Tensor:
        def compute(work: Sequence[MicroBatch]) -> Tensor:
            found = torch.zeros(2, *inputs.mask.shape, device=inputs.mask.device)
            with self.state.phase("reference" if reference else "old", len(work)) as advance:
                for i, (micro, _) in enumerate(self.optimization.padded(work)):
                    mine = inputs.select(micro.rows)
                    prompts = [minibatches[0].prompts[p] for p in micro.prompts]
                    with self.policy.without_autograd():
                        values = self.policy(
                            prompts, mine.ids, mine.mask, self.temperature, reference=reference, entropy=entropy
                        )
                    for kind, value in zip(found, values, strict=True):
                        kind[index_on(value.device, micro.rows), : value.shape[1]] = value
                    advance(i + 1)
            return found

        if not minibatches:
            return torch.zeros(2, *inputs.mask.shape, device=inputs.mask.device)
        with self.policy.reference_on_device() if reference else nullcontext():
            return self.optimization.retry_smaller(partial(micro_batches_of, minibatches), compute)

    def of_rollout(self, batch: PromptBatch, rollout: Rollout, *, reference: bool = False) -> Tensor:
        """Return log-probabilities of all completions, including truncated ones, (N, T). Needs no advantages."""
        self.policy.train()
        prompts = batch.inputs
        rows = torch.zeros(len(rollout.texts), device=rollout.ids.device)  # (N,)
        inputs = LossInputs(rollout.ids, rollout.mask, rollout.log_probs, rollout.log_probs, rows, rows)
        everything = Minibatch(prompts, inputs, [*range(len(prompts))], [True] * len(prompts))
        return self(inputs, [everything], reference=reference)
