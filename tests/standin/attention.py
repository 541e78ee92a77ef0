"""CUDA's attention kernels on the stand-in: each is one launch, and reads and writes its arguments alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.attention.bias as causal_bias
from torch import Tensor

KERNELS: dict[str, Callable[..., Any]] = {}
"""Implementations of torch's operators, by name."""

gpu: Any = None


@contextmanager
def one_kernel(name: str, tensors: list[Tensor], flops: int) -> Iterator[None]:
    """Count what runs inside as one kernel that reads and writes `tensors`."""
    gpu.quiet(1)
    try:
        yield
    finally:
        gpu.fused(name, sum(tensor.numel() * tensor.element_size() for tensor in tensors), flops)
        gpu.quiet(-1)


def added_to_scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return 0 where a query sees a key, otherwise -inf. A causal mask ends at the lower right."""
    bias = torch.zeros(q.shape[-2], k.shape[-2], device=q.device)
    if causal:
        bias.masked_fill_(torch.ones_like(bias).tril(k.shape[-2] - q.shape[-2]) == 0, -torch.inf)
    if mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
    return bias


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> tuple[Any, Any]:
    """Return attention probabilities (batch, heads, n, m) and the logarithm of their denominators."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.float() @ k.float().mT * (scale or q.shape[-1] ** -0.5) + added_to_scores(q, k, mask, causal)
    return scores.softmax(-1).nan_to_num(0.0), scores.logsumexp(-1)  # a query without keys gets zeros


def flops(q: Tensor, k: Tensor, causal: bool) -> int:
    """Return the operations of the forward; half of the scores are left out of a square causal one."""
    return 4 * q.numel() * k.shape[2] // (2 if causal and q.shape[2] == k.shape[2] else 1)


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    with one_kernel("attention", [q, k, v, q], flops(q, k, causal)):
        p, denominators = probabilities(q, k, mask, causal, scale)
        values = v.float().repeat_interleave(q.shape[1] // v.shape[1], 1)
        return (p @ values).to(q.dtype), denominators


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, scale: float | None) -> Any:
    with one_kernel("attention_backward", [q, k, v, grad, q, k, v, q], flops(q, k, causal) * 5 // 2):
        groups = q.shape[1] // k.shape[1]
        p, _ = probabilities(q, k, mask, causal, scale)
        g, keys = grad.float(), k.float().repeat_interleave(groups, 1)
        dp = g @ v.float().repeat_interleave(groups, 1).mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * (scale or q.shape[-1] ** -0.5)
        dk, dv = (x.unflatten(1, (-1, groups)).sum(2) for x in (ds.mT @ q.float(), p.mT @ g))
        return (ds @ keys).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def seed(q: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.long, device=q.device)


def swap(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def kernel(name: str) -> Callable[[Callable[..., Any]], None]:
    return lambda function: KERNELS.__setitem__(name, recorded(function))


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a kernel run again on the same tensors when a graph that was recorded meanwhile is replayed."""

    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if gpu.capturing():
            kept = result if isinstance(result, tuple) else (result,)

            def again() -> None:
                found = function(*args, **kwargs)
                for new, old in zip(found if isinstance(found, tuple) else (found,), kept, strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)

            values = (*args, *kwargs.values(), *kept)
            gpu.record(again, [value for value in values if isinstance(value, Tensor)])
        return result

    return call


def has_flash() -> bool:
    return torch.cuda.get_device_capability() >= (8, 0)


def check_flash() -> None:
    if not has_flash():
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


@kernel("_scaled_dot_product_flash_attention")
def _(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):  # type: ignore
    check_flash()
    out, lse = forward(q, k, v, None, is_causal, scale)
    return out, lse, None, None, q.shape[2], k.shape[2], seed(q), seed(q), seed(q)


@kernel("_scaled_dot_product_flash_attention_backward")
def _(grad, q, k, v, out, lse, cq, ck, mq, mk, dropout_p, is_causal, s, offset, *, scale=None):  # type: ignore
    return backward(grad, q, k, v, None, is_causal, scale)


@kernel("_scaled_dot_product_efficient_attention")
def _(q, k, v, bias, compute_lse, dropout_p=0.0, is_causal=False, *, scale=None):  # type: ignore
    out, lse = forward(q, k, v, bias, is_causal, scale)
    return out, lse, seed(q), seed(q)


@kernel("_scaled_dot_product_efficient_attention_backward")
def _(grad, q, k, v, bias, out, lse, s, offset, dropout_p, wanted, is_causal=False, *, scale=None):  # type: ignore
    return *backward(grad, q, k, v, bias, is_causal, scale), None


def segments(*tensors_and_boundaries: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the segments of rows (L, heads, dim), each (1, heads, length, dim), given with their boundaries."""
    parts = [x.split(boundaries.diff().tolist()) for x, boundaries in tensors_and_boundaries]
    for segment in zip(*parts, strict=True):
        yield tuple(x.transpose(0, 1)[None] for x in segment)


def rows(parts: list[Tensor]) -> Tensor:
    """Undo `segments`."""
    return torch.cat([x[0].transpose(0, 1) for x in parts])


@kernel("_flash_attention_forward")
def _(q, k, v, cq, ck, mq, mk, dropout_p, causal, return_debug_mask, *, scale=None, **_):  # type: ignore
    check_flash()
    with one_kernel("attention", [q, k, v, q], 4 * q.numel() * mk):
        parts = [*segments((q, cq), (k, ck), (v, ck))]
        done = [forward(*part, None, causal, scale)[0] for part in parts]
        lse = torch.empty(q.shape[1], q.shape[0], device=q.device)
        return rows(done), lse, seed(q), seed(q), seed(q)


@kernel("_flash_attention_backward")
def _(grad, q, k, v, out, lse, cq, ck, mq, mk, dropout_p, causal, s, o, *, scale=None, **_):  # type: ignore
    with one_kernel("attention_backward", [q, k, v, grad, q, k, v, q], 10 * q.numel() * mk):
        parts = [*segments((grad, cq), (q, cq), (k, ck), (v, ck))]
        gradients = [backward(*part, None, causal, scale) for part in parts]
        return tuple(map(rows, zip(*gradients, strict=True)))


@kernel("_efficient_attention_forward")
def _(q, k, v, bias, cq, ck, mq, mk, dropout_p, kind, compute_lse=False, *, scale=None, **_):  # type: ignore
    out, lse = forward(*swap(q, k, v), bias, kind > 0, scale)
    return out.transpose(1, 2), lse, seed(q), seed(q), q.shape[1], k.shape[1]


@kernel("_efficient_attention_backward")
def _(grad, q, k, v, bias, out, cq, ck, mq, mk, lse, dropout_p, s, o, kind, wanted, *, scale=None, **_):  # type: ignore
    return *swap(*backward(*swap(grad, q, k, v), bias, kind > 0, scale)), None


def register(extension: Any) -> torch.library.Library:
    """Register flash and memory-efficient attention; keep what is returned."""
    global gpu
    gpu = extension
    library = torch.library.Library("aten", "IMPL")
    for name, function in KERNELS.items():
        library.impl(name, function, "CUDA")
    half = (torch.bfloat16, torch.float16)
    torch.backends.cuda.can_use_flash_attention = causal_bias.can_use_flash_attention = lambda p: (
        p.query.is_cuda and has_flash() and p.query.dtype in half and p.query.shape[-1] <= 256
    )
    causal_bias.can_use_efficient_attention = lambda p: (
        p.query.is_cuda and not (p.enable_gqa and p.query.shape[1] != p.key.shape[1])
    )
    return library
