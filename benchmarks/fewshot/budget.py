"""Train within a budget, with evaluations on the fold."""

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
    """Ends training within its budget, and restores the weights with the best score on the fold.

    The base is scored first, so that training that only harms results in the base. Evaluations on the fold count
    towards the budget. After the first interval, training ends if another interval of mean length would exceed the
    budget. It also ends after `PATIENCE` evaluations without a better score. `fold.json` in the run's folder has an
    entry for each evaluation.
    """

    def __init__(self, metric: str, seconds: float, clock: Clock = "cpu") -> None:
        """Set the budget.

        Args:
            metric: logged name of the fold's score.
            seconds: the budget.
            clock: whether to count CPU seconds of this process or wall-clock seconds.
        """
        self.metric, self.seconds = metric, seconds
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.started: float | None = None
        self.evaluations: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = self.now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = float(trainer.callback_metrics[self.metric])
        if not self.evaluations or score > max(evaluation["score"] for evaluation in self.evaluations):
            trained = ((name, value) for name, value in pl_module.named_parameters() if value.requires_grad)
            self.best = {name: value.detach().cpu().clone() for name, value in trained}
        spent = 0.0 if self.started is None else self.now() - self.started
        self.evaluations.append({"step": trainer.global_step, "score": score, "seconds": round(spent, 3)})
        intervals = len(self.evaluations) - 1
        scores = [evaluation["score"] for evaluation in self.evaluations]
        tired = intervals - scores.index(max(scores)) >= PATIENCE
        if intervals and (tired or spent * (intervals + 1) / intervals > self.seconds):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.load_state_dict(self.best, strict=False)
        path = Path(trainer.default_root_dir) / "fold.json"
        path.write_text(json.dumps(self.evaluations, indent=1) + "\n")
