"""Predict and restrict which CUDA kernel computes a call of `scaled_dot_product_attention`.

The flash kernel needs compute capability 8.0, half precision and heads of at most 256 dimensions. It supports fewer key
heads than query heads, but no mask. The memory-efficient kernel supports masks, but not fewer key heads. Other calls go
to the math kernel, which repeats keys and values and keeps all scores in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flash_computes(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> bool:
    """Return whether the flash kernel can compute attention without a mask for q, k and v, each (N, heads, L, dim).

    k and v may have fewer heads than q.
    """
    if not q.is_cuda:
        return False
    grouped = q.shape[1] != k.shape[1]
    call = torch.backends.cuda.SDPAParams(q, k, v, None, dropout, False, grouped)
    return torch.backends.cuda.can_use_flash_attention(call)


def avoid_cudnn() -> None:
    """Disable attention by cuDNN, which torch prefers on Hopper and data-center Blackwell GPUs, in this process.

    cuDNN compiles and caches a plan for each new combination of shapes and strides. Lengths of prompts and completions
    rarely repeat, so most calls would wait for a new plan.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)
