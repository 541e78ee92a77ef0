"""Scale losses in float16, where small gradients would otherwise underflow."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

LOWEST_SCALE = 1.0
"""The lowest scale. At this scale, an infinite gradient is an error of the step, not of the scale."""


class LossScale:
    """Scales losses with torch's GradScaler if the policy computes in float16; otherwise does nothing."""

    def __init__(self, module: LightningModule, dtype: torch.dtype) -> None:
        self.module, self.enabled = module, dtype == torch.float16

    @cached_property
    def scaler(self) -> GradScaler:
        return GradScaler(self.module.device.type, enabled=self.enabled)

    @property
    def scale(self) -> float:
        """The current scale. Reading it waits for the GPU."""
        return self.scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss times the scale."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide an optimizer's gradients by the scale, after ranks have exchanged them."""
        if self.enabled:
            self.scaler.unscale_(optimizer)

    def update(self, finite: bool, losses_finite: bool) -> bool:
        """Halve the scale if gradients overflowed; double it after 2,000 steps without an overflow.

        Args:
            finite: whether losses and gradients of all ranks are finite, so that the optimizer has stepped.
            losses_finite: whether losses of all ranks are finite.

        Returns:
            Whether the scale was too large, i.e. gradients are not finite although the losses are.
        """
        if not self.enabled:
            return False
        overflowed = not finite and losses_finite and self.scale > LOWEST_SCALE
        if finite or overflowed:
            self.scaler.update()
        else:
            self.scaler.update(self.scale)  # resets the scaler's record of gradients, but keeps the scale
        return overflowed

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the number of steps since it changed; empty for dtypes other than float16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scale from a checkpoint. A checkpoint of another dtype has none."""
        if state:
            self.scaler.load_state_dict(state)
