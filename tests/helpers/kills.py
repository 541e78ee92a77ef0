"""Killed runs and their comparison with uninterrupted ones."""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, Trainer

from tests.helpers import ROOT

KILLS = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "kill_runs.py")))
STEPS = 6  # two per epoch
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "the loader's position")


class Sends(Callback):
    """Sends a signal to its own process in the middle of a step or of an evaluation."""

    def __init__(self, number: int, after: int, validation: bool = False) -> None:
        self.number, self.after, self.validation = number, after, validation

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after and not self.validation:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after and self.validation:
            os.kill(os.getpid(), self.number)


class Waits(Callback):
    """Writes a file in the middle of the second step, and waits until a signal may have come: until it is gone."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.file.touch()
            while self.file.exists():
                time.sleep(0.01)
