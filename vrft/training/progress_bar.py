"""A progress bar that shows the phase of a step, so that a rollout of minutes never looks hung."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from vrft.training.lightning_internals import ProgressBarBase
from vrft.utils.progress import ThrottledPrinter, has_terminal


class PhaseProgressBar(ProgressBarBase):
    """Lightning's bar with a second line for the phase of the step; without a terminal, occasional lines."""

    def __init__(self) -> None:
        self.plain = not has_terminal()
        super().__init__(refresh_rate=0 if self.plain else 10)
        self.lines = ThrottledPrinter()
        self.guards: list[str] = []
        """Names of the guards that are raised."""

    @contextmanager
    def phase(self, name: str, total: int, main: bool) -> Iterator[Callable[..., None]]:
        """Show a phase while the context lasts. Yield a function `advance(done, remark)` that updates it.

        Args:
            name: name of the phase.
            total: final value of `done`.
            main: whether this process prints.
        """
        if self.plain and main:
            label = name

            def print_line(done: int, remark: str = "") -> None:
                nonlocal label
                label = f"{name}, {remark}," if remark else label
                self.lines.say(f"{label} {done}/{total}")

            yield print_line
            return
        if not self.is_enabled or self.progress is None:
            yield lambda *_: None
            return
        progress = self.progress
        task = progress.add_task(f"  {name}", total=total)

        def advance(done: int, remark: str = "") -> None:
            progress.update(task, completed=done, description=f"  {name}, {remark}" if remark else None)
            self.refresh()  # Lightning disables automatic refreshing

        try:
            yield advance
        finally:
            progress.remove_task(task)
            progress.refresh()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics of training without the prefix `train/`, and the guards that are raised."""
        metrics = super().get_metrics(trainer, pl_module)
        shown = {name.removeprefix("train/"): value for name, value in metrics.items() if name.startswith("train/")}
        return shown | ({"guards": ", ".join(self.guards)} if self.guards else {})

    @property
    def train_description(self) -> str:
        return "rollouts"

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.is_global_zero and self.plain:
            shown: dict[str, Any] = {
                name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith("train/")
            }
            shown |= {name: value for name, value in trainer.logged_metrics.items() if name.startswith("time/")}
            line = "  ".join(f"{name.removeprefix('train/')} {float(value):.3g}" for name, value in shown.items())
            last = 0 <= trainer.max_steps <= trainer.global_step
            self.lines.say(f"step {trainer.global_step}/{trainer.max_steps}  {line}", always=last)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_validation_batch_end(trainer, pl_module, *args)
        self._print_batches(trainer, "evaluation", args[2], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_test_batch_end(trainer, pl_module, *args)
        self._print_batches(trainer, "test", args[2], trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_predict_batch_end(trainer, pl_module, *args)
        self._print_batches(trainer, "prediction", args[2], trainer.num_predict_batches)

    def _print_batches(self, trainer: Trainer, name: str, batch_idx: int, totals: list[int | float]) -> None:
        if trainer.is_global_zero and self.plain:
            self.lines.say(f"{name} {batch_idx + 1}/{sum(totals)} batches")


@contextmanager
def phase(trainer: Trainer, name: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a phase in the trainer's bar if it is a PhaseProgressBar, see `PhaseProgressBar.phase`."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, PhaseProgressBar):
        with bar.phase(name, total, trainer.is_global_zero) as advance:
            yield advance
    else:
        yield lambda *_: None
