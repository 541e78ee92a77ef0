"""Progress of a run: bars in a terminal, with the phase of the step; elsewhere, lines that are read later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import TextColumn
from rich.table import Column

from vrft.training.lightning_internals import ProgressBarBase
from vrft.utils.progress import ThrottledPrinter, has_terminal

LINE_SECONDS = 30.0
"""Longest time between two lines about training steps, and time after which a phase says how far it is."""


NAME_WIDTH = len("  decoding, 256 of 256 rows done")


class PhaseProgressBar(ProgressBarBase):
    """Lightning's bar with a second line for the phase of the step.

    Without a terminal, lines: of the first and the last step, of the step before each evaluation, and of others so that
    one comes every `LINE_SECONDS`. A phase that takes longer than that says how far it is.
    """

    def __init__(self) -> None:
        self.plain = not has_terminal()
        super().__init__(refresh_rate=0 if self.plain else 10)
        self.steps = self.batches = ThrottledPrinter(LINE_SECONDS)
        self.step_line = ""
        """The line of the last step, unless it was printed."""
        self.is_first_step = True
        self.guards: list[str] = []
        """Names of the guards that are raised."""

    @contextmanager
    def phase(self, name: str, total: int, main: bool, place: str) -> Iterator[Callable[..., None]]:
        """Show a phase while the context lasts. Yield a function `advance(done, remark)` that updates it.

        Args:
            name: name of the phase.
            total: final value of `done`.
            main: whether this process prints.
            place: the step or stage that the phase is part of, or an empty text.
        """
        if self.plain and main:
            start = f"{place}: {name}" if place else name
            label, lines = start, ThrottledPrinter(LINE_SECONDS)

            def print_line(done: int, remark: str = "") -> None:
                nonlocal label
                label = f"{start}, {remark}," if remark else label
                lines.say(f"{label} {done}/{total}")

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

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Leave out batches per second, and give each column the room of a phase, so that bars don't jump."""
        _, *columns = super().configure_columns(trainer)
        description = TextColumn("[progress.description]{task.description}", table_column=Column(min_width=NAME_WIDTH))
        return [description, *(column for column in columns if not isinstance(column, ProcessingSpeedColumn))]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics of training without prefixes, and the guards that are raised."""
        metrics = super().get_metrics(trainer, pl_module)
        shown = {name.removeprefix("train/"): value for name, value in metrics.items() if name.startswith("train/")}
        for name in [name for name in shown if name.startswith("reward/")]:
            if (short := name.removeprefix("reward/")) not in shown:
                shown[short] = shown.pop(name)
        return ({"guards": ", ".join(self.guards)} if self.guards else {}) | shown

    @property
    def train_description(self) -> str:
        return "rollouts"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.steps, self.is_first_step = ThrottledPrinter(LINE_SECONDS), True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.is_global_zero and self.plain:
            shown: dict[str, Any] = {
                name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith("train/")
            }
            shown |= {name: value for name, value in trainer.logged_metrics.items() if name.startswith("time/")}
            line = "  ".join(f"{name.removeprefix('train/')} {float(value):.3g}" for name, value in shown.items())
            self.step_line = f"{step_name(trainer, trainer.global_step)}  {line}"
            if self.steps.say(self.step_line, always=self.is_first_step):
                self.step_line = ""
            self.is_first_step = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._print_last_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._print_last_step()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._print_last_step()

    def _print_last_step(self) -> None:
        if self.step_line:
            self.steps.say(self.step_line, always=True)
            self.step_line = ""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_validation_batch_end(trainer, pl_module, *args)
        self._print_batches(trainer, args[2], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_test_batch_end(trainer, pl_module, *args)
        self._print_batches(trainer, args[2], trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_predict_batch_end(trainer, pl_module, *args)
        self._print_batches(trainer, args[2], trainer.num_predict_batches)

    def _print_batches(self, trainer: Trainer, batch_idx: int, totals: list[int | float]) -> None:
        if batch_idx == 0:
            self.batches = ThrottledPrinter(LINE_SECONDS)
        if trainer.is_global_zero and self.plain:
            self.batches.say(f"{place_of(trainer)}: {batch_idx + 1}/{sum(totals)} batches")


@contextmanager
def phase(trainer: Trainer, name: str, total: int, alone: bool = False) -> Iterator[Callable[..., None]]:
    """Show a phase in the trainer's bar if it is a PhaseProgressBar, see `PhaseProgressBar.phase`.

    Args:
        trainer: the trainer.
        name: name of the phase.
        total: number of its parts.
        alone: whether the phase is no part of a step or an evaluation.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, PhaseProgressBar):
        with bar.phase(name, total, trainer.is_global_zero, "" if alone else place_of(trainer)) as advance:
            yield advance
    else:
        yield lambda *_: None


def step_name(trainer: Trainer, step: int) -> str:
    """Return a step with the number of steps, or with the epoch if only epochs are limited.

    Steps are optimizer steps, as in `trainer.max_steps`.
    """
    if trainer.max_steps >= 0:
        return f"step {step}/{trainer.max_steps}"
    limit = trainer.max_epochs or -1
    return f"step {step}" + (f", epoch {trainer.current_epoch + 1}/{limit}" if limit > 0 else "")


def place_of(trainer: Trainer) -> str:
    """Return the step that is being trained, or the stage of the run."""
    if trainer.training:
        return step_name(trainer, trainer.global_step + 1)
    if trainer.validating:
        during = trainer.state.fn == TrainerFn.FITTING
        return f"evaluation after {step_name(trainer, trainer.global_step)}" if during else "evaluation"
    return "test" if trainer.testing else "prediction"
