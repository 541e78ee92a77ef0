"""CUDA's normalization on the stand-in: one kernel, which torch's CPU build lacks."""

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
