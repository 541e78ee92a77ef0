"""Which errors mean out of memory."""

from __future__ import annotations

import pytest
import torch

from vrft.utils.out_of_memory import is_out_of_memory

ERRORS = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "driver, instantiating a graph": torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda for more."
    ),
    "driver, mapping memory": RuntimeError("CUDA driver error: out of memory"),
    "cuBLAS at the first backward": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
}
OTHER_ERRORS = {
    "kernel": torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with …"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, …)`"),
    "capture": torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
    "no text": RuntimeError(2),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_errors_of_allocators_drivers_and_libraries_mean_out_of_memory(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHER_ERRORS.values(), ids=OTHER_ERRORS)
def test_other_errors_do_not(error: RuntimeError) -> None:
    assert not is_out_of_memory(error)
