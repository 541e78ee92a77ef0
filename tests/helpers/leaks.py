"""What a process keeps between tests: a test that changes it can make another one fail that runs later."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys

import torch

OF_LIBRARIES = ("WANDB_", "PL_", "KMP_", "PYTEST_", "CUDA_", "CUBLAS_")
"""Beginnings of environment variables that libraries set for the process, and that they set anew for each run."""


def process_state() -> dict[str, object]:
    """Return what tests must leave as it was, by name."""
    handlers = {number.name: str(signal.getsignal(number)) for number in signal.valid_signals() & {*signal.Signals}}
    return {
        **{f"variable {name}": value for name, value in os.environ.items() if not name.startswith(OF_LIBRARIES)},
        **{f"handler of {name}": handler for name, handler in handlers.items()},
        "working folder": os.getcwd(),
        "sys.path": [place for place in sys.path if not place.endswith("modules")],  # transformers adds that of the Hub
        "arguments": [*sys.argv],
        "start method": multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0],
        "level of the root logger": logging.getLogger().level,
        "default time-out of sockets": socket.getdefaulttimeout(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of float32 products": torch.get_float32_matmul_precision(),
        "process group": torch.distributed.is_initialized(),
    }
