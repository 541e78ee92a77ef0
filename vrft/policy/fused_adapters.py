"""Linear layers with a low-rank adapter in few operations: three products forwards, five backwards.

peft multiplies by the scale, adds, and converts between dtypes by kernels of their own.

M tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vrft.policy.fused_norms import FusedLayer, subclass
from vrft.policy.lora import has_adapter

NAME = "default"
"""Name of the adapter."""

TOLERANCE = 1e-4
"""Largest difference, in float32, between an adapted layer's own values and gradients, which are about 1, and these."""


class LowRankLinear(torch.autograd.Function):
    """x W' + b + scale * x A' B', whose frozen W and b have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (M, I)
        low = rows @ a.t()  # (M, r)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        # Models may change the output in place, which autograd refuses if it is a view made here.
        output = x.new_empty(*x.shape[:-1], len(weight))  # (…, O)
        flat = output.view(-1, len(weight))
        if bias is None:
            torch.mm(rows, weight.t(), out=flat)
        else:
            torch.addmm(bias, rows, weight.t(), out=flat)
        flat.addmm_(low, b.t(), alpha=scale)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        grad, rows = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        nothing = grad.new_empty(())
        low_grad = torch.addmm(nothing, grad, b, beta=0, alpha=ctx.scale)  # (M, r)
        grad_b = torch.addmm(nothing, grad.t(), low, beta=0, alpha=ctx.scale)  # (O, r)
        grad_x = (grad @ weight).addmm_(low_grad, a).view_as(x) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, low_grad.t() @ rows, grad_b, None


class FusedAdapter(FusedLayer):
    """A linear layer of peft with one adapter."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self
        if layer.disable_adapters or layer.merged or args or kwargs:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        base, device = layer.base_layer, x.device.type
        tensors = [x, base.weight, base.bias, layer.lora_A[NAME].weight, layer.lora_B[NAME].weight]
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
        return cast(Tensor, LowRankLinear.apply(*tensors, layer.scaling[NAME]))


def fuse_adapters(model: nn.Module) -> nn.Module:
    """Let the adapted layers of a model compute with fewer operations, if these give the same values and gradients."""
    from peft.tuners.lora import Linear

    layers: list[Any] = [module for module in model.modules() if has_adapter(module) and is_plain(module)]
    kind = subclass(FusedAdapter, Linear)
    smallest = min(layers, key=lambda layer: layer.base_layer.weight.numel(), default=None)
    if smallest is not None and adapters_agree(smallest, kind):
        for layer in layers:
            layer.__class__ = kind
    return model


def is_plain(layer: Any) -> bool:
    """Return whether a layer is linear, with one adapter of the usual formula, without dropout."""
    from peft.tuners.lora import Linear

    return (
        type(layer) is Linear
        and type(layer.base_layer) is nn.Linear
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
        and layer.active_adapters == [NAME]
        and NAME not in layer.lora_variant
        and not layer.lora_bias.get(NAME)
        and isinstance(layer.lora_dropout[NAME], nn.Identity)
    )


def adapters_agree(layer: Any, kind: type[nn.Module]) -> bool:
    """Return whether an adapted layer gives the same values and gradients as its own class and as `kind`."""
    own = type(layer)
    numbers = {}
    for i, (name, parameter) in enumerate(layer.named_parameters()):
        angles = torch.arange(float(parameter.numel()), device="cpu") * (i + 0.7)
        numbers[name] = angles.sin().view(parameter.shape) / parameter.shape[-1] ** 0.5
    x = torch.arange(2.0 * layer.in_features, device="cpu").cos().view(2, -1)
    results = []
    for tried in (own, kind):
        inputs = [x, *(value for name, value in numbers.items() if "lora_" in name)]
        for tensor in inputs:
            tensor.requires_grad_()
        layer.__class__ = tried
        output = functional_call(layer, numbers, x)
        layer.__class__ = own
        results.append([output, *torch.autograd.grad(output.sin().sum(), inputs)])
    return all(torch.allclose(found, expected, atol=TOLERANCE) for expected, found in zip(*results, strict=True))
