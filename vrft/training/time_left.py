"""Estimate the remaining time of a run."""

from __future__ import annotations

import time

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer


class RunClock:
    """Measures the seconds since training began in this process, and estimates the remaining seconds."""

    def __init__(self) -> None:
        self.started = 0.0
        self.steps_before = self.batches_before = 0
        """Numbers of steps and batches in earlier parts of a resumed run."""

    def start(self, trainer: Trainer, batches: int) -> None:
        """Start measuring. `batches`: number of batches in earlier parts of a resumed run."""
        self.started = time.perf_counter()
        self.steps_before, self.batches_before = trainer.global_step, batches

    @property
    def seconds(self) -> float:
        """Seconds since training began in this process."""
        return time.perf_counter() - self.started

    def seconds_to_go(self, trainer: Trainer, batches: int) -> float | None:
        """Estimate the remaining seconds from the steps of this process.

        Args:
            trainer: the trainer.
            batches: number of completed batches in all epochs.

        Returns:
            None before the first step, or if no end is set.
        """
        seconds = self.seconds
        found = []
        if trainer.max_steps > 0 and trainer.global_step > self.steps_before:
            per_step = seconds / (trainer.global_step - self.steps_before)
            found.append((trainer.max_steps - trainer.global_step) * per_step)
        if (trainer.max_epochs or 0) > 0 and batches > self.batches_before:
            total = float(trainer.max_epochs or 0) * float(trainer.num_training_batches)
            found.append((total - batches) * seconds / (batches - self.batches_before))
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        found += [rest for timer in timers if (rest := timer.time_remaining()) is not None]
        return round(max(0.0, min(found)), 1) if found else None
