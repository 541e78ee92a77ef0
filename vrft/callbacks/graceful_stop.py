"""Stop a run after a checkpoint when a signal arrives."""

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

from vrft.callbacks.base import vision_module, vision_trainer
from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.errors import RolloutFailed
from vrft.training.rollouts import Rollouts
from vrft.training.trainer import Stopped

SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGTERM", "SIGUSR1", "SIGINT"))

POLL_SECONDS = 0.2
"""Seconds between attempts to end rollouts, since one may begin after the signal."""


class GracefulStop(Checkpoint):
    """Finishes and saves the step on SIGTERM, SIGUSR1 or Ctrl-C, then exits with 128 + the signal's number.

    The signal handler only records the signal. The ranks agree on it at the end of a batch, because a collective in a
    handler would deadlock. Under SLURM, SIGUSR1 also requeues the job. Ctrl-C does not wait for rollout servers: the
    resumed run repeats the step. A second Ctrl-C quits at once.

    The class derives from Checkpoint because Lightning runs checkpoint callbacks last, after all others have processed
    the batch.
    """

    def __init__(self) -> None:
        self.received = 0
        """The number of the last signal; 0 if there was none."""
        self.interrupts = 0
        """Number of SIGINTs received, whatever other signals came in between."""
        self.quiet = False
        self.rollouts: Rollouts | None = None
        self.ended = threading.Event()
        """Set once no rollouts need to be ended any more."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has just set. Lightning restores the original ones after the stage."""
        self.quiet = not trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():  # Python's requirement; Ray Train uses threads
            for number in SIGNALS:
                signal.signal(number, self.record)
            self.rollouts = vision_module(pl_module).rollouts
            self.ended.clear()

    on_validation_start = on_train_start

    def record(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record it, or quit at the second Ctrl-C."""
        self.interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self.interrupts > 1:
            signal.default_int_handler(number, frame)
        self.received = number
        if not self.quiet:
            name = signal.Signals(number).name
            text = f"\n{name}: stopping when this step is done; a second Ctrl-C quits at once\n"
            os.write(2, text.encode())  # the signal may have interrupted print, which is not reentrant
        if number == signal.SIGINT:
            threading.Thread(target=self._end_rollouts, daemon=True).start()

    def _end_rollouts(self) -> None:
        while self.rollouts is not None and not self.ended.wait(POLL_SECONDS):
            self.rollouts.interrupt()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop_if_received(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report the signal instead of the failure of the rollout that it ended."""
        self.ended.set()
        run = vision_trainer(trainer)
        if self.interrupts and isinstance(exception, RolloutFailed) and run.stopped is not None:
            saved = f"step {trainer.global_step} is saved" if trainer.global_step else "nothing to save"
            run.stop(f"SIGINT during a rollout, {saved}", 128 + signal.SIGINT)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.ended.set()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Raise Stopped on a signal, because part of an evaluation is useless."""
        if self._stop_if_received(trainer):
            raise Stopped

    def _stop_if_received(self, trainer: Trainer) -> bool:
        """Stop the run if any rank has received a signal. Return whether this call has stopped it."""
        trainer = vision_trainer(trainer)
        received = torch.tensor(float(self.received), device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(received, reduce_op="max"))
        if number == 0 or trainer.stopped is not None:
            return False
        self.ended.set()
        name = signal.Signals(number).name
        # bring back tensors that were offloaded to make room for a server
        vision_module(trainer.lightning_module).rollouts.release()
        if trainer.global_step == 0:
            trainer.stop(f"{name} before the first step, nothing to save", 128 + number)
        elif trainer.state.fn == TrainerFn.FITTING and not RunCheckpoint.of(trainer).save_last_step(trainer):
            trainer.stop(f"{name}, and step {trainer.global_step} can't be saved", 1)
        else:
            trainer.stop(f"{name} after step {trainer.global_step}, which is saved", 128 + number)
            if name == "SIGUSR1" and trainer.is_global_zero and "SLURM_JOB_ID" in os.environ:
                requeue(os.environ["SLURM_JOB_ID"])
        return True


def requeue(job: str) -> None:
    """Requeue a SLURM job. Warn if that fails."""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"the job is not requeued: {error}")
