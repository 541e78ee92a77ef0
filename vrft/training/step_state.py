"""Measure the phases of a training step and count its incidents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from lightning.pytorch import LightningModule

from vrft.training.progress_bar import phase

Phase = Literal["rollout", "reward", "old", "reference", "update", "optimizer"]


class StepState:
    """Seconds per phase and incidents of the current training step.

    Attributes:
        skipped_steps: number of optimizer steps skipped because of a NaN or an infinity.
        overflowed_steps: number of optimizer steps skipped because the loss scale in float16 was too large.
        out_of_memory: number of retries with smaller micro-batches or rollouts after running out of memory.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.begin()

    def begin(self) -> None:
        """Start a new training step."""
        self.seconds: dict[str, float] = {}
        self.skipped_steps = self.overflowed_steps = self.out_of_memory = 0

    @contextmanager
    def phase(self, name: Phase, total: int) -> Iterator[Callable[..., None]]:
        """Show a phase in the progress bar and log its seconds in this step as `time/NAME`.

        Yields:
            A function that takes the number of completed parts, up to `total`.
        """
        start = time.perf_counter()
        with phase(self.module.trainer, name, total) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.module.log(f"time/{name}", self.seconds[name])
