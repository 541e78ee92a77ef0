"""CUDA's kernels on the stand-in that torch's CPU build lacks, or has for fewer dtypes."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from tests.standin.attention import kernel, one_kernel

ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


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


@kernel("_softmax_backward_data")
def _(grad, y, dim, dtype):  # type: ignore
    with one_kernel("softmax_backward", [grad, y, grad], 0):
        return (y * (grad - (grad * y).sum(dim, keepdim=True))).to(dtype)


@kernel("mm.dtype")
def _(x, y, dtype):  # type: ignore
    with one_kernel("mm", [x, y], 2 * x.numel() * y.shape[1]):
        return (x.float() @ y.float()).to(dtype)


@kernel("addmm.dtype_out")
def _(z, x, y, dtype, *, beta=1, alpha=1, out):  # type: ignore
    with one_kernel("addmm", [z, x, y, z], 2 * x.numel() * y.shape[1]):
        return out.copy_((beta * z + alpha * (x.float() @ y.float())).to(dtype))


@kernel("histc")
def _(x, bins=100, min=0, max=0):  # type: ignore
    with one_kernel("histc", [x], 0):
        return torch.histc(x.cpu().float(), bins, min, max).to(x)


@kernel("_grouped_mm")
def _(x, y, ends=None, bias=None, dtype=None):  # type: ignore
    """Multiply rows by the matrix of their group; the ends of groups are read on the CPU unless there is a kernel."""
    has_kernel = x.dtype == y.dtype == torch.bfloat16 and torch.cuda.get_device_capability()[0] in (9, 10)
    with one_kernel("grouped_mm", [x, y], 2 * x.numel() * y.shape[-1]) if has_kernel else nullcontext():
        return torch.ops.aten._grouped_mm.default.redispatch(ON_CPU, x, y, ends, bias, dtype)


@kernel("baddbmm.dtype_out")
def _(z, x, y, dtype, *, beta=1, alpha=1, out):  # type: ignore
    assert z is out
    assert dtype == out.dtype
    with one_kernel("baddbmm", [z, x, y, z] if beta else [x, y, z], 2 * x.numel() * y.shape[2]):
        return out.copy_(torch.baddbmm(z, x.to(dtype), y.to(dtype), beta=beta, alpha=alpha))


@kernel("baddbmm_")
def _(z, x, y, *, beta=1, alpha=1):  # type: ignore
    with one_kernel("baddbmm", [z, x, y, z], 2 * x.numel() * y.shape[2]):
        return z.copy_(torch.baddbmm(z.float(), x.float(), y.float(), beta=beta, alpha=alpha))
