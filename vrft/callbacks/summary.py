"""Summarise the held-out scores of the base and the tuned model at the end of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table

from vrft.callbacks.base import vision_module
from vrft.evaluators.base import evaluation_folder
from vrft.report.run_facts import SCORES, number, read_evaluation
from vrft.run_dir import SCORES_FILE, RunDir
from vrft.utils.display import score_cells
from vrft.utils.files import write_json


class Summary(Callback):
    """Keeps the first and the last held-out scores of a run, and the seconds of training.

    Checkpoints contain the scores of the base and the seconds, which a resumed run continues to count.
    """

    def __init__(self) -> None:
        self.base: dict[str, float] | None = None
        self.tuned: dict[str, float] = {}
        self.tuned_step: int | None = None
        self.rollouts = 0
        self.seconds = 0.0
        self.train_start: float | None = None

    def seconds_so_far(self) -> float:
        """Return the seconds of training, summed over all parts of a resumed run."""
        return self.seconds + (0.0 if self.train_start is None else time.perf_counter() - self.train_start)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base, "seconds": self.seconds_so_far()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base, self.seconds = state["base"], state["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds, self.train_start = self.seconds_so_far(), None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        scores = {
            key: round(float(metrics[f"val/{name}"]), 6)
            for key, names in SCORES.items()
            for name in names
            if f"val/{name}" in metrics
        }
        if self.base is None:
            self.base = scores
        self.tuned, self.tuned_step = scores, trainer.global_step
        self.rollouts = int(vision_module(pl_module).steps_done)
        if trainer.is_global_zero:
            write_scores(evaluation_folder(trainer), scores)

    def write(self, run: RunDir, best: dict[str, Any] | None) -> Path:
        """Print the table, write `summary.json` and return its path. `best`: see `RunCheckpoint.best`."""
        assert self.base is not None
        best_scores = step = None
        if best is not None and best["step"] is not None:  # None in checkpoints of earlier versions
            step = best["step"]
            evaluation = run.evaluation("val", str(step))
            best_scores = self.tuned if step == self.tuned_step else read_evaluation(evaluation)
            best = best | {"scores": best_scores}
        Console().print(comparison_table(self.base, self.tuned, best_scores, step))
        content = {
            "base": self.base,
            "tuned": self.tuned,
            "seconds": round(self.seconds, 1),
            "step": self.tuned_step,
            "rollouts": self.rollouts,
            "best": best,
        }
        run.summary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return run.summary


def write_scores(folder: Path, scores: dict[str, float]) -> None:
    """Write the scores of an evaluation to its folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SCORES_FILE, scores)
    except OSError as error:
        rank_zero_warn(f"{folder / SCORES_FILE} can't be written: {error}")


def comparison_table(
    base: dict[str, float], tuned: dict[str, float], best: dict[str, float] | None = None, step: int | None = None
) -> Table:
    """Return a table of the scores common to both, since a resumed run may have other evaluators.

    Args:
        base: scores of the base.
        tuned: scores of the last step.
        best: scores of the best checkpoint, if the run kept one.
        step: optimizer step of the best checkpoint.
    """
    table = Table(title="held-out images, greedy answers")
    columns = ("", "base", "tuned" if best is None else "last", "change")
    for column in columns if best is None else (*columns, f"best (step {step})", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for key in [key for key in base if key in tuned]:
        cells = [*score_cells(base[key], tuned[key])]
        value = number(best, key)
        if value is not None:
            cells += score_cells(base[key], value)[1:]
        table.add_row(key, *cells)
    return table
