"""Move many tensors to page-locked memory, for asynchronous copies to a GPU.

Torch rounds each page-locked allocation up to a power of two, up to twice the size of a tensor, so tensors share
buffers of such sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 256
"""Alignment of tensors in bytes."""

BUFFER_BYTES = 2**32
"""Size of a buffer for smaller tensors. The old memory of a tensor is freed once the tensor is copied, so filling a
larger buffer would need more memory at once.
"""


class Place(NamedTuple):
    """The place of a tensor: the index of its buffer, and the offset in bytes."""

    buffer: int
    start: int


def places(sizes: Sequence[int]) -> tuple[list[int], dict[int, Place]]:
    """Return the sizes of buffers, powers of two, and the places of tensors by index, in the order of the buffers.

    The largest tensors are placed first, and smaller ones fill the remaining space.

    Args:
        sizes: bytes of each tensor.
    """
    padded = [max(1, -(-size // ALIGNMENT)) * ALIGNMENT for size in sizes]
    buffers: list[int] = []
    used: list[int] = []
    found: dict[int, Place] = {}
    left = sum(padded)
    for i in sorted(range(len(sizes)), key=padded.__getitem__, reverse=True):
        size = padded[i]
        buffer = next((b for b, taken in enumerate(used) if taken + size <= buffers[b]), len(buffers))
        if buffer == len(buffers):
            buffers.append(max(1 << (size - 1).bit_length(), min(BUFFER_BYTES, 1 << (left.bit_length() - 1))))
            used.append(0)
        found[i] = Place(buffer, used[buffer])
        used[buffer] += size
        left -= size
    return buffers, found


def page_locked(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy in CPU memory, page-locked if `device` is a GPU, to which it will be copied repeatedly."""
    on_cpu = tensor.cpu()
    return on_cpu.pin_memory() if device.type == "cuda" else on_cpu


def move_to_cpu(tensors: Sequence[Tensor], device: torch.device) -> None:
    """Move the data of tensors to CPU memory, page-locked if `device`, on which they are used, is a GPU.

    Strides are kept, because fused optimizers expect a weight and its states to have equal strides.
    """
    if device.type != "cuda":
        for tensor in tensors:
            tensor.data = tensor.data.cpu()
        return
    sizes, found = places([tensor.nbytes for tensor in tensors])
    buffers: dict[int, Tensor] = {}
    for i, (buffer, start) in found.items():
        if buffer not in buffers:
            buffers[buffer] = torch.empty(sizes[buffer], dtype=torch.uint8, device="cpu", pin_memory=True)
        old = tensors[i].data
        strides = torch.empty_like(old, device="meta").stride()
        new = buffers[buffer][start : start + old.nbytes].view(old.dtype).as_strided(old.shape, strides)
        tensors[i].data = new.copy_(old)
