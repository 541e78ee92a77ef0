"""A reference that follows the policy as a moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.training.checkpoint_io import REFERENCE
from vrft.training.strategies import parallelism_of

FIELD = "model.reference_decay"


class MovingReference(Callback):
    """Keeps the reference of a policy at the exponential moving average of the trained weights.

        reference = decay * reference + (1 - decay) * policy    after each training step

    The average starts at the weights before the first step. It is stored in float32, because bfloat16 would round away
    small changes. Frozen weights, e.g. those below adapters, are shared with the policy.

    Sources: the dynamic anchor of T1 (arXiv 2501.11651); EMA-PG (arXiv 2602.04417).
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        self.policy, self.decay = policy, decay

    def start(self) -> None:
        """Initialise the average to the policy's current weights, unless it is already initialised."""
        if not self.policy.start:
            self.policy.fix_reference()

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the policy's current weights."""
        for parameter, average in self.policy.start.items():
            average.lerp_(parameter.detach().to(average.device), 1 - self.decay)

    def averages(self) -> dict[str, Tensor]:
        """Return the average by parameter name."""
        return {name: self.policy.start[p] for name, p in self.policy.named_parameters() if p in self.policy.start}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the average from a checkpoint. Raise ConfigurationError if it has none, or one of other weights."""
        own = self.averages()
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
            what = "that of other weights" if state else "none: the run began without it"
            raise ConfigurationError(f"ckpt_path: expected the average of {FIELD} in the checkpoint, it has {what}")
        for name, average in own.items():
            average.copy_(state[name])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not parallelism_of(trainer).has_whole_weights:
            raise ConfigurationError(
                f"{FIELD}: fsdp2 can't let the reference follow, since each rank holds a part of the weights alone; "
                "expected trainer.strategy ddp, or null"
            )

    def on_train_batch_end(self, *_: Any) -> None:
        self.update()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # averages in page-locked memory share buffers, which torch would save in full
        checkpoint[REFERENCE] = {name: average.clone() for name, average in self.averages().items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.load(checkpoint.get(REFERENCE, {}))


def following(policy: Policy, decay: float | None, beta: float) -> MovingReference | None:
    """Return the moving reference of a policy, or None if there is no decay.

    Raises:
        ConfigurationError: the decay is not between 0 and 1, or there is no KL term that needs a reference.
    """
    if decay is None:
        return None
    if not 0 < decay < 1:
        raise ConfigurationError(f"{FIELD}: expected a number above 0 and below 1, got {decay}")
    if not beta > 0:
        raise ConfigurationError(
            f"{FIELD}={decay} has no meaning with model.beta={beta}; expected beta above 0, the weight of the KL "
            "divergence from the reference"
        )
    return MovingReference(policy, decay)
