"""Tensors that make code take its branch for GPUs."""

from __future__ import annotations

import torch
from torch import Tensor


class OnGPU(Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]
