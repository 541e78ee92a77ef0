"""Products with the weights of linear layers while a model decodes: of several layers at once, or packed by oneDNN."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
"""Maps inputs (…, in) to outputs (…, out)."""

Products = Mapping[nn.Module, Product]
"""The product of a linear layer, or of all linear layers that have the same input, side by side, by the first one."""

ROWS = 64
"""Number of rows that oneDNN packs weights for. It computes any number with them."""


class PackedProduct:
    """A linear layer whose weights lie in the order in which oneDNN reads them.

    A product with few rows takes as long as reading the weights; packed ones are read up to twice as fast. Names of
    torch that begin with an underscore: pyproject.toml bounds its version.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return output


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN packs weights of a dtype on a device."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    has_onednn = bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    return x86 and has_onednn and device.type == "cpu" and dtype == torch.float32


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
