"""bitsandbytes on the stand-in: each of its CUDA kernels is one launch that computes what its CPU kernel does.

Import this module before weights are read in four bits, or before an 8-bit optimizer's first step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.standin.attention import one_kernel, recorded
from tests.standin.device import gpu  # noqa: F401  before bitsandbytes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes  # noqa: F401

KERNELS = (
    "quantize_4bit",
    "dequantize_4bit",
    "quantize_blockwise",
    "dequantize_blockwise",
    "optimizer_update_8bit_blockwise",
    "optimizer_update_32bit",
)


def on_the_cpu(name: str) -> Callable[..., Any]:
    """Return a kernel that computes on copies in CPU memory, and copies back what it has changed."""
    operator = getattr(torch.ops.bitsandbytes, name).default

    def kernel(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        with one_kernel(name, tensors, 0):
            copies = {id(x): x.cpu() for x in tensors}
            before = {key: x.clone() for key, x in copies.items()} if "update" in name else {}
            moved = [copies.get(id(x), x) for x in args]
            result = operator(*moved, **{key: copies.get(id(x), x) for key, x in kwargs.items()})
            for x in tensors:
                if id(x) in before and not torch.equal(copies[id(x)], before[id(x)]):
                    x.copy_(copies[id(x)])
            outputs = result if isinstance(result, tuple) else (result,)
            moved_back = tuple(x.cuda() if isinstance(x, Tensor) else x for x in outputs)
            return moved_back if isinstance(result, tuple) else moved_back[0]

    return kernel


def gemm(  # type: ignore[no-untyped-def]
    x, weight, shape, absmax, block, kind, bias=None, absmax_8bit=None, absmax_code=None, absmax_offset=None
) -> Tensor:
    """Multiply by a weight that is dequantised first, as CUDA does with many rows."""
    ops = torch.ops.bitsandbytes
    if absmax_8bit is not None:
        absmax = ops.dequantize_blockwise.default(absmax_8bit, absmax, absmax_code, 256, torch.float32) + absmax_offset
    return torch.nn.functional.linear(x, ops.dequantize_4bit.default(weight, absmax, block, kind, shape, x.dtype), bias)


library = torch.library.Library("bitsandbytes", "IMPL")
for name in KERNELS:
    library.impl(name, recorded(on_the_cpu(name)), "CUDA", allow_override=True)
library.impl("gemm_4bit", gemm, "CUDA", allow_override=True)
