"""Log-probabilities that stay fixed during a step: those of the weights at its start, and the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from vrft.policy import Policy
from vrft.policy.processor import MicroBatch
from vrft.training.loss_inputs import LossInputs, Minibatch, micro_batches_of
from vrft.training.optimization import Optimization
from vrft.training.step_state import StepState
from vrft.types import ScoredRollout
from vrft.utils.indices import index_on


class FixedLogProbs:
    """Computes log-probabilities without gradient, a micro-batch at a time."""

    def __init__(self, policy: Policy, optimization: Optimization, step: StepState, temperature: float) -> None:
        self.policy, self.optimization, self.state, self.temperature = policy, optimization, step, temperature

    @torch.no_grad()
    def __call__(self, inputs: LossInputs, minibatches: Sequence[Minibatch], *, reference: bool = False) -> Tensor:
        """Return log-probabilities (N, T) under the present weights or the reference, 0 outside of `minibatches`."""

        def compute(work: Sequence[MicroBatch]) -> Tensor:
            log_probs = torch.zeros_like(inputs.mask, dtype=torch.float32)
            with self.state.phase("reference" if reference else "old", len(work)) as advance:
                for i, (micro, _) in enumerate(self.optimization.padded(work)):
                    mine = inputs.select(micro.rows)
                    values, _ = self.policy(
                        [minibatches[0].prompts[p] for p in micro.prompts],
                        mine.ids,
                        mine.mask,
                        self.temperature,
                        reference=reference,
                        entropy=False,
                    )
                    log_probs[index_on(values.device, micro.rows), : values.shape[1]] = values
                    advance(i + 1)
            return log_probs

        if not minibatches:
            return torch.zeros_like(inputs.mask, dtype=torch.float32)
        with self.policy.reference_on_device() if reference else nullcontext():
            return self.optimization.retry_smaller(partial(micro_batches_of, minibatches), compute)

    def of_rollout(self, scored: ScoredRollout, *, reference: bool = False) -> Tensor:
        """Return log-probabilities (N, T) of all completions, truncated ones too, before there are advantages."""
        self.policy.train()
        rollout, prompts = scored.rollout, scored.batch.inputs
        rows = torch.zeros_like(scored.reward).flatten()  # (N,)
        inputs = LossInputs(rollout.ids, rollout.mask, rollout.log_probs, rollout.log_probs, rows, rows)
        everything = Minibatch(prompts, inputs, [*range(len(prompts))], [True] * len(prompts))
        return self(inputs, [everything], reference=reference)
