"""Out-of-memory errors: recognise them, and free what can be freed before a retry."""

from __future__ import annotations

import gc
import warnings

import torch
from accelerate.utils.memory import should_reduce_batch_size


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means out of memory: CUDA's, cuDNN's and the CPU allocator's among them."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return all(isinstance(argument, str) for argument in error.args) and should_reduce_batch_size(error)


def free_memory(change: str) -> None:
    """Collect garbage, empty the GPU's cache, and warn on every rank what changes from now on."""
    gc.collect()
    torch.cuda.empty_cache()
    warnings.warn(f"out of memory; from here on {change}", stacklevel=3)
