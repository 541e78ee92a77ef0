"""Prepare prompts that don't come from a loader for a forward pass of the policy."""

from __future__ import annotations

import torch
from torch import Tensor

from vrft.policy import Policy
from vrft.types import PromptBatch


def prepared_prompts(policy: Policy, prompts: PromptBatch, device: torch.device) -> PromptBatch:
    """Move encoded prompts to a device, and add positions and, if the vision tower is frozen, image features."""

    def moved(key: str, value: Tensor) -> Tensor:
        return value if key.endswith("_grid_thw") else value.to(device)

    return policy.prepare(policy.compare_prompts(prompts).map(moved))
