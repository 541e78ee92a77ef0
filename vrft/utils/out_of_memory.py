"""Out-of-memory errors: recognise them, and free what can be freed before a retry."""

from __future__ import annotations

import gc
import warnings

import torch
from accelerate.utils.memory import should_reduce_batch_size

DRIVER_MESSAGES = ("error: out of memory", "Error [CUDA]: out of memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")
"""Out of memory in messages of CUDA's runtime and driver, of Triton, and of libraries such as cuBLAS and cuDNN."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means out of memory: that of an allocator, of CUDA's driver or of a library of CUDA."""
    if isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in DRIVER_MESSAGES):
        return True
    return all(isinstance(argument, str) for argument in error.args) and should_reduce_batch_size(error)


def free_memory(change: str) -> None:
    """Collect garbage, empty the GPU's cache, and warn on every rank what changes from now on."""
    gc.collect()
    torch.cuda.empty_cache()
    warnings.warn(f"out of memory; from here on {change}", stacklevel=3)
