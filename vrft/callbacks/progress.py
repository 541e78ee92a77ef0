"""A bar that shows what a step is doing, so that a rollout of minutes never looks hung."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class PhaseProgressBar(RichProgressBar):
    """Lightning's bar with a second line for the phase of the step. Where there is no terminal, one line per step."""

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show `name` while the context lasts; yields a function that is told how much of `total` is done."""
        if not self.is_enabled or self.progress is None:
            yield lambda _: None
            return
        progress = self.progress
        task = progress.add_task(f"  {name}", total=total)

        def advance(done: int) -> None:
            progress.update(task, completed=done)

        try:
            yield advance
        finally:
            progress.remove_task(task)
            progress.refresh()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Rewards and KL, without the prefix that loggers group by."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in metrics.items() if name.startswith("train/")}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"rollouts, epoch {current_epoch}"

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.is_global_zero and not sys.stdout.isatty():
            shown: dict[str, Any] = {
                name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith("train/")
            }
            shown |= {name: value for name, value in trainer.logged_metrics.items() if name.startswith("time/")}
            line = "  ".join(f"{name.removeprefix('train/')} {float(value):.3g}" for name, value in shown.items())
            print(f"step {trainer.global_step}/{trainer.max_steps}  {line}", flush=True)
