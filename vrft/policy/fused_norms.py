"""Root mean square normalizations (arXiv 1910.07467) of transformers by one kernel, or by few operations on a CPU.

A layer is changed only if it gives the values of its own forward, so that families with other formulas keep theirs.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

EPSILONS = ("variance_epsilon", "eps")
"""Names that normalizations have for the number that keeps them from dividing by 0."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference between a layer's own values, which are about 1, and those of its fused version."""


class FusedLayer(nn.Module):
    """Base of fused layers, each of which is also an instance of its own class."""

    own_class: type[nn.Module]
    """The layer's class in transformers."""


class FusedNorm(FusedLayer):
    """Root mean square normalization in the dtype that autocast computes in."""

    epsilon: str
    """Name of the attribute with the number that keeps it from dividing by 0."""
    offset: float
    """Added to the weight."""
    weight: nn.Parameter

    def forward(self, hidden_states: Tensor) -> Tensor:
        device, dtype = hidden_states.device.type, hidden_states.dtype
        weight: Tensor = self.weight  # a copy in autocast's dtype, if the layer around it has made one
        if weight.dtype != dtype:
            weight = cast(Tensor, self._parameters["weight"])
        weight = weight + self.offset if self.offset else weight
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            normed = rms_norm(hidden_states, weight.to(dtype), getattr(self, self.epsilon))
        # The next layer would convert it, each of its matrix products anew.
        return normed.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normed


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + epsilon) * weight (…, H)."""
    if x.is_cpu and x.dtype == torch.float32:
        return cast(Tensor, NormOnCpu.apply(x, weight, epsilon))
    return F.rms_norm(x, weight.shape, weight, epsilon)


class NormOnCpu(torch.autograd.Function):
    """`rms_norm` whose backward reads and writes half as much memory as that of F.rms_norm on a CPU.

    With f = 1 / sqrt(mean(x^2) + epsilon), n = f x and the gradient g of the output, the gradients are
    dx = f (g w - n mean(g w n)), and dw = g n summed over all but the last dimension.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()  # (…, 1)
        factor = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        n = x * factor
        ctx.save_for_backward(n, weight, factor)
        return n * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None]:
        n, weight, factor = ctx.saved_tensors
        gn = g * n
        mean = (gn @ weight)[..., None] / len(weight)  # (…, 1)
        of_weight = gn.reshape(-1, len(weight)).sum(0) if ctx.needs_input_grad[1] else None
        return (g * weight).addcmul_(n, mean, value=-1).mul_(factor), of_weight, None


def epsilon_of(module: nn.Module) -> str | None:
    """Return the name of a normalization's epsilon; None if the module isn't one, or takes more than one tensor."""
    names = [name for name in EPSILONS if isinstance(vars(module).get(name), float)]
    parameters = dict(module.named_parameters())
    one_weight = [*parameters] == ["weight"] and parameters["weight"].ndim == 1
    one_tensor = len(inspect.signature(module.forward).parameters) == 1
    return names[0] if one_weight and one_tensor and len(names) == 1 else None


def fused_norm(module: nn.Module, epsilon: str) -> type[nn.Module] | None:
    """Return the fused class of a normalization, None if its formula is another."""
    own: Any = type(module)
    kinds = [subclass(FusedNorm, own, epsilon=epsilon, offset=offset) for offset in (0.0, 1.0)]
    return next((kind for kind in kinds if norms_agree(module, kind)), None)


@torch.no_grad()
def norms_agree(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a normalization gives the same values as its own class and as `kind`."""
    own, size = type(module), len(cast(Tensor, module.weight))
    for dtype, tolerance in TOLERANCE.items():
        numbers = torch.arange(3.0 * size, device="cpu").sin()
        weight, hidden = numbers[:size].to(dtype), numbers[size:].view(2, size).to(dtype)
        expected = functional_call(module, {"weight": weight}, hidden)
        module.__class__ = kind
        found = functional_call(module, {"weight": weight}, hidden)
        module.__class__ = own
        if found.dtype != expected.dtype or not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
            return False
    return True


@cache
def subclass(base: Any, own: Any, **attributes: Any) -> type[nn.Module]:
    """Return a subclass of a fused layer and a class of transformers, under the latter's name."""
    return type(own.__name__, (base, own), {"own_class": own, "__module__": own.__module__, **attributes})
