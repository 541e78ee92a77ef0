"""Indices of tensors on a GPU, and parts of sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def index_on(device: torch.device, indices: Sequence[int]) -> Tensor:
    """Return indices as a tensor on a device. A list as an index would make the CPU wait for the GPU."""
    return torch.tensor(indices, dtype=torch.long, device="cpu").to(device, non_blocking=True)


def buckets(sizes: Sequence[int], limit: int) -> list[slice]:
    """Split neighbours into parts of at most `limit` in total; a larger one is a part by itself."""
    parts: list[slice] = []
    room = 0
    for i, size in enumerate(sizes):
        if not parts or size > room:
            parts.append(slice(i, i))
            room = limit
        parts[-1] = slice(parts[-1].start, i + 1)
        room -= size
    return parts
