"""The weights of experts: two tensors in each layer, which transformers multiplies in groups of tokens.

It computes in the dtype of the weights, whatever autocast's is. In bfloat16, GPUs from compute capability 9 have one
kernel for all experts. Otherwise, the CPU waits for the number of tokens of each expert and starts a kernel for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def has_experts(module: nn.Module) -> bool:
    """Return whether a module's own parameters are weights of experts."""
    return "is_transposed" in vars(module)  # as transformers' `use_experts_implementation` sets it


def experts_to_copy(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str]]:
    """Yield modules with the names of their weights of experts that have another dtype."""
    for module in filter(has_experts, model.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype != dtype:
                yield module, name
