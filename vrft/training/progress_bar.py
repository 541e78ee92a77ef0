"""Show the progress of a run: bars in a terminal, with the phase of the step; log lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from vrft.training.lightning_internals import ProgressBarBase
from vrft.training.time_left import RunClock
from vrft.utils.progress import ThrottledPrinter, has_terminal

LINE_SECONDS = 30.0
"""Maximum time between two lines about training steps, and between two lines about the progress of a phase."""


NAME_WIDTH = len("  decoding, 256 of 256 rows done")


class CountColumn(ProgressColumn):
    """Completed and total parts of a phase. Empty for the run, whose step is shown before its bar."""

    def __init__(self, bar: PhaseProgressBar) -> None:
        super().__init__(Column(no_wrap=True, justify="right"))
        self.bar = bar

    def render(self, task: Task) -> Text:
        if task.id == self.bar.train_progress_bar_id:
            return Text()
        total = "--" if task.total in (None, float("inf")) else f"{task.total:.0f}"
        return Text(f"{task.completed:.0f}/{total}")


class TimesColumn(ProgressColumn):
    """Elapsed and remaining time of the run or of a phase."""

    max_refresh = 0.5

    def __init__(self, bar: PhaseProgressBar) -> None:
        super().__init__(Column(no_wrap=True))
        self.bar = bar

    def render(self, task: Task) -> Text:
        if task.id == self.bar.train_progress_bar_id:
            return Text(self.bar.times())
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(f"{clock(elapsed)} • {clock(task.time_remaining)} left")


class PhaseProgressBar(ProgressBarBase):
    """Lightning's bar with a second line for the phase of the step.

    Without a terminal, lines are printed for the first and the last step, for the step before each evaluation, and
    for other steps at intervals of `LINE_SECONDS`. A phase that takes longer prints its progress.
    """

    def __init__(self) -> None:
        self.plain = not has_terminal()
        super().__init__(refresh_rate=0 if self.plain else 10)
        self.steps = self.batches = ThrottledPrinter(LINE_SECONDS)
        self.step_line = ""
        """The line of the last step if it is not printed yet; empty otherwise."""
        self.is_first_step = True
        self.clock = RunClock()
        self.guards: list[str] = []
        """Names of the guards with current problems."""

    @contextmanager
    def phase(self, name: str, total: int, main: bool, place: str) -> Iterator[Callable[..., None]]:
        """Show a phase in the context. Yield a function `advance(done, remark)` that updates it.

        Args:
            name: name of the phase.
            total: final value of `done`.
            main: whether this process prints.
            place: the step or stage that contains the phase, or an empty text.
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
        """Give texts the width that a phase needs, without wrapping. In a narrow terminal, the bar shrinks."""
        _, bar, *_ = super().configure_columns(trainer)
        assert isinstance(bar, CustomBarColumn)
        name = Column(min_width=NAME_WIDTH, no_wrap=True)
        description = TextColumn("[progress.description]{task.description}", table_column=name)
        return [description, bar, CountColumn(self), TimesColumn(self)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics of training without prefixes, and the guards with current problems."""
        metrics = super().get_metrics(trainer, pl_module)
        shown = {name.removeprefix("train/"): value for name, value in metrics.items() if name.startswith("train/")}
        for name in [name for name in shown if name.startswith("reward/")]:
            if (short := name.removeprefix("reward/")) not in shown:
                shown[short] = shown.pop(name)
        return ({"guards": ", ".join(self.guards)} if self.guards else {}) | shown

    def run_description(self, trainer: Trainer) -> str:
        return step_name(trainer, trainer.global_step)

    def run_fraction(self, trainer: Trainer) -> float | None:
        if trainer.max_steps > 0:
            return trainer.global_step / trainer.max_steps
        total = float(trainer.max_epochs or -1) * float(trainer.num_training_batches)
        return batches_done(trainer) / total if 0 < total < float("inf") else None

    def times(self) -> str:
        """Return the time since training began in this process, and the remaining time."""
        rest = self.clock.seconds_to_go(self.trainer, batches_done(self.trainer))
        return f"{clock(self.clock.seconds)} • {clock(rest)} left"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.start(trainer, batches_done(trainer))
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
            self.step_line = f"{step_name(trainer, trainer.global_step)}  {self.times()}  {line}"
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
        alone: whether the phase is not part of a step or an evaluation.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, PhaseProgressBar):
        with bar.phase(name, total, trainer.is_global_zero, "" if alone else place_of(trainer)) as advance:
            yield advance
    else:
        yield lambda *_: None


def step_name(trainer: Trainer, step: int) -> str:
    """Return a step with the total number of steps, and with the epoch if epochs are limited.

    Steps are optimizer steps, as in `trainer.max_steps`.
    """
    limit = trainer.max_epochs or -1
    of_all = f"/{trainer.max_steps}" if trainer.max_steps >= 0 else ""
    return f"step {step}{of_all}" + (f", epoch {trainer.current_epoch + 1}/{limit}" if limit > 0 else "")


def batches_done(trainer: Trainer) -> int:
    """Return the number of completed batches in all epochs, including the one that has just ended."""
    return trainer.fit_loop.total_batch_idx + 1


def clock(seconds: float | None) -> str:
    """Return a duration as hours, minutes and seconds.

    >>> clock(3725.4), clock(None)
    ('1:02:05', '-:--:--')
    """
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))


def place_of(trainer: Trainer) -> str:
    """Return the current training step, or the stage of the run."""
    if trainer.training:
        return step_name(trainer, trainer.global_step + 1)
    if trainer.validating:
        during = trainer.state.fn == TrainerFn.FITTING
        return f"evaluation after {step_name(trainer, trainer.global_step)}" if during else "evaluation"
    return "test" if trainer.testing else "prediction"
