"""Estimate of the time that a run still takes."""

from __future__ import annotations

import time

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer


class RunClock:
    """Measures the seconds since training began in this process, and estimates the rest from them."""

    def __init__(self) -> None:
        self.started = 0.0
        self.steps_before = self.batches_before = 0
        """Steps and batches of earlier parts of a resumed run."""

    def start(self, trainer: Trainer, batches: int) -> None:
        """Begin to measure when training starts. `batches`: those of earlier parts of a resumed run."""
        self.started = time.perf_counter()
        self.steps_before, self.batches_before = trainer.global_step, batches

    @property
    def seconds(self) -> float:
        """Seconds since training began in this process."""
        return time.perf_counter() - self.started

    def seconds_to_go(self, trainer: Trainer, batches: int) -> float | None:
        """Estimate the rest from the steps of this process; None before the first, or if no end is set.

        Args:
            trainer: the trainer.
            batches: batches done in all epochs.
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
