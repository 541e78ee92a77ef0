"""Weights in the dtype that autocast computes in: one kernel for all of a layer, and one for their gradients.

Autocast itself converts each weight and bias of a linear layer, and each of their gradients, by a kernel of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vrft.policy.experts import has_experts
from vrft.policy.fused_norms import FusedNorm


class Cast(torch.autograd.Function):
    """Copies of several tensors in another dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return tuple(converted(tensors, [dtype] * len(tensors)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [(i, gradient) for i, gradient in enumerate(gradients) if gradient is not None]
        raised = converted([gradient for _, gradient in given], [ctx.dtypes[i] for i, _ in given])
        by_place = dict(zip([i for i, _ in given], raised, strict=True))
        return None, *(by_place.get(i) for i in range(len(gradients)))


def converted(tensors: list[Tensor] | tuple[Tensor, ...], dtypes: list[torch.dtype]) -> list[Tensor]:
    """Return copies of tensors in other dtypes, made by one kernel."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    if copies:  # not all gradients are none
        torch._foreach_copy_(copies, list(tensors))
    return copies


class CastingLayer(nn.Module):
    """A layer that converts the weights of all its linear layers at once if autocast would convert them.

    Attributes:
        casts: whether it does; otherwise autocast does.
    """

    casts = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with cast_weights(self, args[0].dtype if args and isinstance(args[0], Tensor) else None):
            return super().forward(*args, **kwargs)


def cast_by_layer(model: nn.Module) -> None:
    """Let each layer of a model convert its weights at once."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and not any(map(ends_autocast, module.modules())):
            own: Any = type(module)
            module.__class__ = casting_class(own)


def ends_autocast(module: nn.Module) -> bool:
    """Return whether a module's forward may compute without autocast, with the weights as they are."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is None or any("autocast" in name for name in code.co_names)


@cache
def casting_class(own: Any) -> Any:
    """Return a subclass of a layer's class that casts, under its name."""
    return type(own.__name__, (CastingLayer, own), {"__module__": own.__module__})


def casting_layers(model: nn.Module) -> list[CastingLayer]:
    """Return the layers of a model that convert their weights at once."""
    return [module for module in model.modules() if isinstance(module, CastingLayer) and module.casts]


@contextmanager
def without_casts(model: nn.Module) -> Iterator[None]:
    """Let autocast convert each weight."""
    layers = casting_layers(model)
    for layer in layers:
        layer.casts = False
    try:
        yield
    finally:
        for layer in layers:
            layer.casts = True


@contextmanager
def cast_weights(layer: CastingLayer, hidden: torch.dtype | None) -> Iterator[None]:
    """Let a layer compute with copies of its weights in autocast's dtype. `hidden`: dtype of its input."""
    device = next(layer.parameters()).device.type
    dtype = torch.get_autocast_dtype(device)
    casts = layer.casts and torch.is_autocast_enabled(device)
    places = places_to_cast(layer, norms=hidden == dtype) if casts else []
    if not places:
        yield
        return
    copies: Any = Cast.apply(dtype, *(module.get_parameter(name) for module, name in places))
    for (module, name), copied in zip(places, copies, strict=True):
        module.__dict__[name] = copied  # is found before the parameter, which stays registered
    try:
        yield
    finally:
        for module, name in places:
            del module.__dict__[name]


def places_to_cast(layer: nn.Module, norms: bool) -> list[tuple[Any, str]]:
    """Return the modules inside a layer, with the names of their parameters, that compute in autocast's dtype.

    Autocast leaves out experts: transformers computes them in the dtype of their weights.

    Args:
        layer: the layer.
        norms: whether normalizations compute in autocast's dtype, since what they normalize has it.
    """
    return [
        (module, name)
        for module in layer.modules()
        if type(module) is nn.Linear
        or has_experts(module)
        or (norms and isinstance(module, FusedNorm) and not module.offset)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dtype == torch.float32
    ]
