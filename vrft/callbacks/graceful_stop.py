"""Signals that end a run: a checkpoint first."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.training.trainer import Stopped, VisionTrainer

SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGTERM", "SIGUSR1", "SIGINT"))


class GracefulStop(Checkpoint):
    """At SIGTERM, SIGUSR1 or Ctrl-C: finish the step, save, say how to go on, exit with 128 + the signal's number.

    A handler only takes a note; ranks agree on it when a batch ends, since what ranks do together would deadlock in a
    handler. Under SLURM, the job is put back in the queue after SIGUSR1. A second Ctrl-C quits at once.
    """

    def __init__(self) -> None:
        self.noted = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has just set; it restores those before them when the stage ends."""
        if threading.current_thread() is threading.main_thread():  # no other can; Ray Train starts runs in one
            for number in SIGNALS:
                signal.signal(number, self.note)
        self.quiet = not trainer.is_global_zero

    on_validation_start = on_train_start

    def note(self, number: int, frame: FrameType | None) -> None:
        if number == self.noted == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.noted = number
        if not self.quiet:
            name = signal.Signals(number).name
            text = f"\n{name}: stopping when this step is done; a second Ctrl-C quits at once\n"
            os.write(2, text.encode())  # print may be what was interrupted

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """By then all other callbacks have seen the batch."""
        self._stop_if_noted(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Raise Stopped: an evaluation in part is of no use."""
        if self._stop_if_noted(trainer):
            raise Stopped

    def _stop_if_noted(self, trainer: Trainer) -> bool:
        assert isinstance(trainer, VisionTrainer)
        noted = torch.tensor(float(self.noted), device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(noted, reduce_op="max"))
        if number == 0 or trainer.stopped is not None:
            return False
        name = signal.Signals(number).name
        checkpoint = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint))
        if trainer.global_step == 0:
            trainer.stop(f"{name} before the first step, nothing to save", 128 + number)
        elif trainer.state.fn == TrainerFn.FITTING and not checkpoint.save_last_step(trainer):
            trainer.stop(f"{name}, and step {trainer.global_step} can't be saved", 1)
        else:
            trainer.stop(f"{name} after step {trainer.global_step}, which is saved", 128 + number)
            if name == "SIGUSR1" and trainer.is_global_zero and "SLURM_JOB_ID" in os.environ:
                requeue(os.environ["SLURM_JOB_ID"])
        return True


def requeue(job: str) -> None:
    """Put a SLURM job back in the queue."""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"the job is not in the queue again: {error}")
