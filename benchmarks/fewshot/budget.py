"""A budget for training, and what the fold thinks of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

PATIENCE = 4
Clock = Literal["cpu", "wall"]


class FoldBudget(Callback):
    """Ends training before its budget is spent; the run's result is the best of its looks at the fold.

    The base is the first of them, so a training that does nothing but harm ends where it began. Looks at the fold are
    part of the budget, and training ends if another interval of mean length would not fit into it; the first one is
    made in any case. It ends earlier after `PATIENCE` looks without a better one. `fold.json` in the run's folder has
    an entry for each look.
    """

    def __init__(self, metric: str, seconds: float, clock: Clock = "cpu") -> None:
        """`metric`: what is looked at, as it is logged. `clock`: seconds of this process's CPUs, or of the wall."""
        self.metric, self.seconds = metric, seconds
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.started: float | None = None
        self.looks: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = self.now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = float(trainer.callback_metrics[self.metric])
        if not self.looks or score > max(look["score"] for look in self.looks):
            trained = ((name, value) for name, value in pl_module.named_parameters() if value.requires_grad)
            self.best = {name: value.detach().cpu().clone() for name, value in trained}
        spent = 0.0 if self.started is None else self.now() - self.started
        self.looks.append({"step": trainer.global_step, "score": score, "seconds": round(spent, 3)})
        intervals = len(self.looks) - 1
        scores = [look["score"] for look in self.looks]
        tired = intervals - scores.index(max(scores)) >= PATIENCE
        if intervals and (tired or spent * (intervals + 1) / intervals > self.seconds):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.load_state_dict(self.best, strict=False)
        path = Path(trainer.default_root_dir) / "fold.json"
        path.write_text(json.dumps(self.looks, indent=1) + "\n")
