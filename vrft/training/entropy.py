"""Select the tokens with the highest entropy, and adapt the weight of an entropy bonus to a target."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


def top_entropy_tokens(entropy: Tensor, mask: Tensor, everyone: Tensor, share: float) -> Tensor:
    """Return which tokens are among the `share` with the highest entropy (arXiv 2506.01939, "Beyond the 80/20 Rule").

        H >= the n-th largest of all M entropies,    n = max(1, ceil(share M))

    Args:
        entropy: entropy of the distribution that each token was sampled from, (N, T).
        mask: 1 at tokens that count, (N, T).
        everyone: entropies of all tokens that count on all ranks, 1-D; NaN is ignored.
        share: share of the tokens, in 0..1.

    Returns:
        Mask of the chosen tokens, (N, T) bool, including all tokens that tie with the n-th.
    """
    known = everyone[~everyone.isnan()]  # (M,)
    if not len(known):
        return mask.bool()
    count = max(1, math.ceil(share * len(known) - 1e-9))  # 0.7 * 10 is more than 7 in floating point
    threshold = known.kthvalue(len(known) - count + 1).values
    return (entropy >= threshold) & mask.bool()


def adapted_weight(weight: Tensor, entropy: Tensor, target: float, step: float) -> Tensor:
    """Return the next step's weight of the entropy bonus (adaptive entropy control, Skywork-OR1, arXiv 2505.22312).

        weight + step if entropy < target,    weight - step if entropy > target,    at least 0

    Args:
        weight: weight of this step, ().
        entropy: mean entropy over this step's completions of all ranks, (); NaN keeps the weight.
        target: entropy to stay above.
        step: change of the weight.
    """
    change = step * ((entropy < target).float() - (entropy > target).float())
    return (weight + change).clamp(min=0.0)


class EntropyBonus:
    """The weight of the entropy bonus, a buffer of the module. Checkpoints contain it if it follows a target."""

    def __init__(self, module: LightningModule, weight: float, target: float | None, step: float) -> None:
        """Register the buffer `entropy_weight`.

        Args:
            module: the trained module.
            weight: weight of the first step.
            target: entropy to stay above, in nats; None keeps the weight.
            step: change of the weight after a step.
        """
        self.module, self.target, self.step = module, target, step
        self.enabled = weight > 0 or target is not None
        module.register_buffer("entropy_weight", torch.tensor(weight), persistent=target is not None)

    @property
    def weight(self) -> Tensor:
        """The current weight, ()."""
        return self.module.get_buffer("entropy_weight")

    def adapt(self, entropy: Tensor, rows: Tensor) -> None:
        """Log the weight and adapt it for the next step.

        Args:
            entropy: sum of the mean entropies of this rank's rows with tokens, ().
            rows: number of these rows, ().
        """
        if not self.enabled:
            return
        self.module.log("train/entropy_weight", self.weight.clone())  # the buffer is changed in place below
        if self.target is not None:
            entropy, rows = self.module.trainer.strategy.reduce(torch.stack([entropy, rows]), reduce_op="sum")
            self.weight.copy_(adapted_weight(self.weight, entropy / rows, self.target, self.step))

    def state_names(self) -> set[str]:
        """Return the names of the buffers in a checkpoint."""
        return set() if self.target is None else {"entropy_weight"}
