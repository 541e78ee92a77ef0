"""Which of CUDA's attention kernels computes a call of `scaled_dot_product_attention`.

The flash kernel needs compute capability 8.0, half precision and heads of at most 256 dimensions; it takes no mask, but
fewer key heads than query heads. The memory-efficient kernel takes the rest, except for fewer key heads. What neither
takes goes to the math kernel, which repeats keys and values and keeps all scores in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flash_computes(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> bool:
    """Return whether the flash kernel computes attention without a mask: (N, heads, L, dim) on its GPU.

    k and v may have fewer heads than q.
    """
    if not q.is_cuda:
        return False
    grouped = q.shape[1] != k.shape[1]
    call = torch.backends.cuda.SDPAParams(q, k, v, None, dropout, False, grouped)
    return torch.backends.cuda.can_use_flash_attention(call)


def avoid_cudnn() -> None:
    """Let no attention of this process go to cuDNN, which torch prefers on Hopper and data-center Blackwell GPUs.

    cuDNN compiles a plan for each new combination of shapes and strides and keeps it for good. Rows of prompts and
    completions rarely have the same lengths twice, so most calls would wait for a plan.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)
