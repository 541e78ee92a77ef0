"""Recognise out-of-memory errors, and free memory before a retry."""

from __future__ import annotations

import gc
import warnings

import torch
from accelerate.utils.memory import should_reduce_batch_size

DRIVER_MESSAGES = ("error: out of memory", "Error [CUDA]: out of memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")
"""Parts of out-of-memory messages of CUDA's runtime and driver, Triton, and libraries such as cuBLAS and cuDNN."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error is an out-of-memory error, of an allocator, CUDA's driver or a CUDA library."""
    if isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in DRIVER_MESSAGES):
        return True
    return all(isinstance(argument, str) for argument in error.args) and should_reduce_batch_size(error)


def free_memory(change: str) -> None:
    """Collect garbage, empty the GPU's cache, and warn on every rank of the `change` for the rest of the run."""
    gc.collect()
    torch.cuda.empty_cache()
    warnings.warn(f"out of memory; from here on {change}", stacklevel=3)
