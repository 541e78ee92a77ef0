"""Layers of Hugging Face models with fewer operations: normalization and rotary positions.

A layer is changed only if it gives the values of its own forward, so that families with other formulas keep theirs.

N rows, L tokens, D size of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.weak import WeakTensorKeyDictionary

from vrft.policy.casts import cast_by_layer, casting_layers, without_casts
from vrft.policy.fused_norms import FusedLayer, epsilon_of, fused_norm, subclass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROTATIONS = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision")
"""Names by which attention layers call the rotation of queries and keys."""


def fuse_layers(model: nn.Module) -> None:
    """Let layers compute with fewer operations, if they give the same values."""
    cast_by_layer(model)
    norms: dict[Any, type[nn.Module] | None] = {}  # of one class, epsilon and size, all are alike
    for module in model.modules():
        kind = fused_attention(type(module))
        if (epsilon := epsilon_of(module)) is not None:
            key = (type(module), getattr(module, epsilon), module.weight.shape)
            if key not in norms:
                norms[key] = fused_norm(module, epsilon)
            kind = norms[key]
        if kind is not None:
            module.__class__ = kind


def unfuse_layers(model: PreTrainedModel) -> None:
    """Let all layers compute as they do in transformers, from now on."""
    from vrft.policy.vision_tower import pack_segments

    fused: list[Any] = [module for module in model.modules() if isinstance(module, FusedLayer)]
    for module in fused:
        module.__class__ = unfused(type(module))
    for layer in casting_layers(model):
        layer.casts = False
    pack_segments(model, "sdpa")


def unfused(kind: Any) -> Any:
    """Return the class of a fused layer in transformers; with FSDP's methods, if FSDP shards the layer."""
    own = kind.own_class
    return sharded_class(own) if issubclass(kind, FSDPModule) else own


@cache
def sharded_class(own: Any) -> Any:
    """Return the class that FSDP gives to modules of a class."""
    return type(f"FSDP{own.__name__}", (FSDPModule, own), {"__module__": own.__module__})


@contextmanager
def own_forwards(model: PreTrainedModel) -> Iterator[None]:
    """Let all layers compute as they do in transformers."""
    from vrft.policy.vision_tower import own_attention

    fused: dict[FusedLayer, Any] = {
        module: type(module) for module in model.modules() if isinstance(module, FusedLayer)
    }
    for module, kind in fused.items():
        module.__class__ = unfused(kind)
    try:
        with own_attention(model), without_casts(model):
            yield
    finally:
        for module, kind in fused.items():
            module.__class__ = kind


# --------------------------------------------------------------------------------------------------- rotary positions


def fused_attention(kind: Any) -> type[nn.Module] | None:
    """Return a subclass of an attention layer that calls `rotate`; None if it doesn't rotate, or by another formula."""
    forward = inspect.unwrap(kind.forward)
    if issubclass(kind, FusedLayer) or not isinstance(forward, FunctionType):
        return None
    namespace = forward.__globals__
    called = [name for name in ROTATIONS if name in forward.__code__.co_names and name in namespace]
    replaced = {name: rotate for name in called if rotations_agree(namespace[name], name)}
    if not replaced:
        return None
    return attention_subclass(kind, tuple(replaced))


@cache
def attention_subclass(kind: Any, names: tuple[str, ...]) -> type[nn.Module]:
    """Return a subclass of an attention layer whose forward calls `rotate` under each name."""
    own = cast(FunctionType, inspect.unwrap(kind.forward))
    namespace = {**own.__globals__, **dict.fromkeys(names, rotate)}
    forward = FunctionType(own.__code__, namespace, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return subclass(FusedLayer, kind, forward=forward)


@cache
@torch.no_grad()
def rotations_agree(own: Callable[..., tuple[Tensor, Tensor]], name: str) -> bool:
    """Return whether a function of transformers rotates queries and keys as `rotate` does."""
    with torch.device("cpu"):
        q, k = torch.arange(4 * 3 * 8.0).sin().view(3, 4, 8), torch.arange(2 * 3 * 8.0).cos().view(3, 2, 8)
        angles = torch.arange(3 * 8.0).view(3, 8)
    if name == "apply_rotary_pos_emb":
        q, k, angles = q.transpose(0, 1)[None], k.transpose(0, 1)[None], angles[None]
    arguments = (q, k, angles.cos(), angles.sin())
    try:
        expected = own(*arguments)
    except (TypeError, ValueError, RuntimeError):  # a function of the same name with other arguments
        return False
    found = rotate(*arguments)
    return all(x.shape == y.shape and torch.allclose(x, y, atol=1e-5) for x, y in zip(expected, found, strict=True))


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, **_: Any) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys (N, heads, L, D), or (L, heads, D) in a vision tower, by the angles of their positions.

    Args:
        q: queries.
        k: keys.
        cos: cosine of each angle (N, L, D) or (L, D); fewer than D if a part of each head is rotated.
        sin: their sine.
        unsqueeze_dim: dimension of the heads.
    """
    factors = rotation_factors(cos, sin, unsqueeze_dim)
    if not torch.is_grad_enabled():  # a decoding step on a CPU is bound by Python
        return cast(tuple[Tensor, Tensor], rotated(q, k, *factors[:2], unsqueeze_dim))
    return cast(tuple[Tensor, Tensor], Rotation.apply(q, k, *factors, unsqueeze_dim))


FACTORS: Any = WeakTensorKeyDictionary()
"""Factors by the sine that they were made of: all layers of a forward get the same."""


def rotation_factors(cos: Tensor, sin: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of x, of x with swapped halves, and of the swapped gradient, which broadcast over heads."""
    factors = FACTORS.get(sin)
    if factors is None:
        swapped = signed_sines(sin)
        factors = FACTORS[sin] = tuple(x.unsqueeze(dim) for x in (cos, swapped, swapped.roll(sin.shape[-1] // 2, -1)))
    return cast(tuple[Tensor, Tensor, Tensor], factors)


def signed_sines(sin: Tensor) -> Tensor:
    """Return the factors of x with swapped halves: sines, negative in the first half (…, D)."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], -1)


class Rotation(torch.autograd.Function):
    """Rotation of queries and keys at once. It keeps nothing of their size for the backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, gradient_sin: Tensor, dim: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, gradient_sin)
        ctx.dim = dim
        return rotated(q, k, cos, sin, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, gradient_sin = ctx.saved_tensors
        return *rotated(gradients[0], gradients[1], cos, gradient_sin, ctx.dim), None, None, None, None


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Return x * cos + swapped halves of x * sin for queries and keys. What lies behind the angles is not rotated."""
    whole, width = side_by_side(q, k, dim), cos.shape[-1]
    x = whole[..., :width]
    result = torch.empty_like(x)  # in a vision tower, the factors are float32, and so is the sum until it is stored
    torch.addcmul(x * cos, x.roll(width // 2, -1), sin, out=result)
    if width < whole.shape[-1]:
        result = torch.cat([result, whole[..., width:]], -1)
    return result.split([q.shape[dim], k.shape[dim]], dim)


def side_by_side(q: Tensor, k: Tensor, dim: int) -> Tensor:
    """Return queries and keys as one tensor, without a copy if one projection made both."""
    dim %= q.dim()
    between = k.storage_offset() - q.storage_offset()
    one_storage = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    one_layout = q.stride() == k.stride() and q.dtype == k.dtype
    if one_storage and one_layout and between == q.shape[dim] * q.stride(dim):
        shape = [*q.shape]
        shape[dim] += k.shape[dim]
        return q.as_strided(shape, q.stride())
    return torch.cat([q, k], dim)
