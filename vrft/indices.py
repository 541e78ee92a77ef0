"""Index tensors on a GPU without synchronisation, and split sequences into parts of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def index_on(device: torch.device, indices: Sequence[int]) -> Tensor:
    """Return indices as a tensor on a device. Indexing a GPU tensor by a list would make the CPU wait for the GPU."""
    return torch.tensor(indices, dtype=torch.long, device="cpu").to(device, non_blocking=True)


def buckets(sizes: Sequence[int], limit: int) -> list[slice]:
    """Split a sequence into consecutive slices of total size `limit` or less. A larger item is a slice by itself."""
    parts: list[slice] = []
    room = 0
    for i, size in enumerate(sizes):
        if not parts or size > room:
            parts.append(slice(i, i))
            room = limit
        parts[-1] = slice(parts[-1].start, i + 1)
        room -= size
    return parts
