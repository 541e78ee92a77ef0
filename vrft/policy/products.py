"""The weights that linear layers decode with: those of several layers side by side, or stored transposed for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Product(NamedTuple):
    """The arguments of F.linear after the input."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)


Products = Mapping[nn.Module, Product]
"""The product of a linear layer, or of all linear layers that have the same input, side by side, by the first one."""


def empty_transposed(like: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return memory for a weight with the inputs of another, which lies transposed (size, in).

    A CPU multiplies 16 rows by it in two thirds of the time.
    """
    return like.new_empty(like.shape[1], size, dtype=dtype).t()


def stored_transposed(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return a copy of weights, each (out, in), side by side, which lies in memory transposed (sum of out, in)."""
    sizes = [len(weight) for weight in weights]
    copy = empty_transposed(weights[0], sum(sizes), dtype)
    for part, weight in zip(copy.split(sizes), weights, strict=True):
        part.copy_(weight.detach())
    return copy


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Replace the forwards of modules."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own
