"""Run vrft on the stand-in and print the counts of each phase.

python -m tests.standin.run fit --config quickstart --trainer.max_steps=1
"""

from __future__ import annotations

from tests.standin.device import gpu, phase  # before torch

# isort: split

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from vrft.__main__ import main
from vrft.policy import Policy
from vrft.rollout import decoding, transformers
from vrft.training import checks, module, step_state


def parallel_devices(devices: list[int]) -> list[torch.device]:
    """Return the GPU of each rank: all ranks have the only one."""
    return [torch.device("cuda", 0)] * len(devices)


def count_method(owner: Any, method: str, name: str) -> None:
    """Count what happens in a method under a name of its own."""
    original = getattr(owner, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        with phase(name):
            return original(*args, **kwargs)

    setattr(owner, method, counted)


def count_phases() -> None:
    """Count by the phases of a step, and by the parts of a rollout."""
    count_method(Policy, "load", "load")
    count_method(Policy, "prepare", "prepare")
    count_method(checks, "sharing_gap", "check of sharing")
    count_method(decoding, "prefill", "prefill")
    count_method(transformers, "decode", "decoding")
    show = step_state.phase

    @contextlib.contextmanager
    def counted(trainer: Any, name: str, total: int) -> Iterator[Callable[..., None]]:
        with phase(name if trainer.training else f"evaluation: {name}"), show(trainer, name, total) as advance:
            yield advance

    step_state.phase = module.phase = counted


CUDAAccelerator.get_parallel_devices = staticmethod(parallel_devices)  # type: ignore[method-assign, assignment]
CUDAAccelerator.auto_device_count = staticmethod(lambda: 64)  # type: ignore[method-assign]

if __name__ == "__main__":
    count_phases()
    with phase("between"):
        code = main(sys.argv[1:])
    for name, counts in gpu.counts().items():
        print(f"{name:24}", {kind: count for kind, count in counts.items() if count})
    sys.exit(code)
