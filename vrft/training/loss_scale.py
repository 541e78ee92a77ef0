"""Loss scaling in float16, without which small gradients would become 0."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

LOWEST_SCALE = 1.0
"""Factor at which an infinite gradient is a fault of the step, because a smaller loss would not have prevented it."""


class LossScale:
    """Multiplies losses by torch's GradScaler if the policy computes in float16; otherwise it changes nothing."""

    def __init__(self, module: LightningModule, dtype: torch.dtype) -> None:
        self.module, self.enabled = module, dtype == torch.float16

    @cached_property
    def scaler(self) -> GradScaler:
        return GradScaler(self.module.device.type, enabled=self.enabled)

    @property
    def scale(self) -> float:
        """The factor; reading it waits for a GPU."""
        return self.scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss times the factor."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide an optimizer's gradients by the factor, after the ranks have exchanged them."""
        if self.enabled:
            self.scaler.unscale_(optimizer)

    def update(self, finite: bool, losses_finite: bool) -> bool:
        """Halve the factor if gradients overflowed; double it after 2,000 steps without.

        Args:
            finite: losses and gradients of all ranks are finite, and the optimizer has stepped.
            losses_finite: losses of all ranks are finite.

        Returns:
            Whether the factor was too large: gradients are not finite although the losses are.
        """
        if not self.enabled:
            return False
        overflowed = not finite and losses_finite and self.scale > LOWEST_SCALE
        if finite or overflowed:
            self.scaler.update()
        else:
            self.scaler.update(self.scale)  # forgets the gradients and keeps the factor
        return overflowed

    def state_dict(self) -> dict[str, Any]:
        """Return the factor and how long it has been the same; empty for another dtype than float16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the factor of a checkpoint; one that was made in another dtype has none."""
        if state:
            self.scaler.load_state_dict(state)
