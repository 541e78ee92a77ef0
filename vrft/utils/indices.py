"""Indices of tensors on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def index_on(device: torch.device, indices: Sequence[int]) -> Tensor:
    """Return indices as a tensor on a device. A list as an index would make the CPU wait for the GPU."""
    return torch.tensor(indices, dtype=torch.long, device="cpu").to(device, non_blocking=True)
