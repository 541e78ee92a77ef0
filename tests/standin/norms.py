"""CUDA's normalization on the stand-in: one kernel each, which torch's CPU build lacks or has for fewer dtypes."""

from __future__ import annotations

import torch

from tests.standin.attention import kernel, one_kernel


@kernel("_fused_rms_norm")
def _(x, shape, weight, eps):  # type: ignore
    with one_kernel("rms_norm", [x, weight, x], 0):
        scale = (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        return (x.float() * scale * weight.float()).to(x.dtype), scale


@kernel("_fused_rms_norm_backward")
def _(grad, x, shape, scale, weight, wanted):  # type: ignore
    with one_kernel("rms_norm_backward", [grad, x, weight, x, weight], 0):
        normed, scaled = x.float() * scale, grad.float() * weight.float()
        dx = (scaled - normed * (scaled * normed).mean(-1, keepdim=True)) * scale
        dw = (grad.float() * normed).flatten(0, -2).sum(0)
        return dx.to(x.dtype), dw.to(weight.dtype) if wanted[1] else torch.empty(0, device=x.device)


@kernel("_softmax")
def _(x, dim, half_to_float):  # type: ignore
    with one_kernel("softmax", [x, x], 0):
        e = x.float().sub(x.float().amax(dim, keepdim=True)).exp()
        y = e / e.sum(dim, keepdim=True)
        return y if half_to_float else y.to(x.dtype)
