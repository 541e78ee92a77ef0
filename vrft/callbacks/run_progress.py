"""Write the progress of a run to a file for its report."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.callbacks.base import vision_module, vision_trainer
from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.summary import Summary
from vrft.report.progress import Progress
from vrft.run_dir import RunDir
from vrft.training.time_left import RunClock
from vrft.utils.files import write_json

WRITE_SECONDS = 5.0
"""Minimum time between two writes. The file is also written when training begins and when it ends."""


class RunProgress(Callback):
    """Writes `progress.json`: what `fit` is doing, and the elapsed and remaining steps and seconds."""

    def __init__(self) -> None:
        self.written = -WRITE_SECONDS
        self.clock = RunClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.start(trainer, int(vision_module(pl_module).steps_done))
        self.write(trainer, pl_module, "training")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_global_zero and time.perf_counter() - self.written >= WRITE_SECONDS:
            self.write(trainer, pl_module, "training")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_global_zero and time.perf_counter() - self.written >= WRITE_SECONDS:
            self.write(trainer, pl_module, "evaluation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module, "evaluation")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if RunDir.of(trainer).progress.exists():  # a run that is refused at its start leaves no folder
            self.write(trainer, pl_module, "failed", type(exception).__name__)

    def write(self, trainer: Trainer, pl_module: LightningModule, doing: str, reason: str | None = None) -> None:
        """Write the file, or warn if writing fails. `reason`: why the run failed."""
        if not trainer.is_global_zero:
            return
        if vision_trainer(trainer).stopped is not None:
            doing, reason = "stopped", None
        self.written = time.perf_counter()
        rollouts = int(vision_module(pl_module).steps_done)
        summary = next(callback for callback in trainer.callbacks if isinstance(callback, Summary))  # type: ignore[attr-defined]
        best = RunCheckpoint.of(vision_trainer(trainer)).best
        progress = Progress(
            doing=doing,
            reason=reason,
            step=trainer.global_step,
            max_steps=trainer.max_steps if trainer.max_steps > 0 else None,
            rollouts=rollouts,
            seconds=round(summary.seconds_so_far(), 1),
            seconds_to_go=self.clock.seconds_to_go(trainer, rollouts),
            written=round(time.time(), 1),
            best_step=None if best is None else best["step"],
        )
        try:
            write_json(RunDir.of(trainer).progress, progress.as_dict())
        except OSError as error:
            rank_zero_warn(f"{error.filename} is out of date: {error.strerror}")
