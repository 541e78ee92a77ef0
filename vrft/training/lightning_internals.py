"""Public wrappers of all private names of Lightning that vrft uses.

Lightning may change private names in any minor release, so `pyproject.toml` allows one minor version only.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.distributed import _destroy_dist_connection
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor


def logged_step(trainer: Trainer) -> int:
    """Return the step that Lightning passes to loggers: the number of rollouts before the current one.

    `trainer.global_step` counts optimizer steps, of which a rollout may have several.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def shift_logged_step(trainer: Trainer, by: int) -> None:
    """Correct `logged_step` if Lightning counts a batch too many or too few."""
    trainer.fit_loop.epoch_loop._batches_that_stepped += by


def logged_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the metrics that the current step has logged so far.

    `trainer.logged_metrics` has them only after the callbacks' `on_train_batch_end`, in which checkpoints are written.
    """
    return {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}


def attach_data(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """Attach a module and its data to a trainer, as `fit` does."""
    trainer._data_connector.attach_data(module, datamodule=data)


def evaluation_is_due(trainer: Trainer) -> bool:
    """Return whether Lightning evaluates after the current batch.

    A checkpoint must be written before the evaluation, and only the loop knows `val_check_interval` in batches.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def forget_evaluation(trainer: Trainer) -> None:
    """Reset Lightning's record of evaluations in the fit loop.

    A restarted epoch loop counts as done once it has evaluated, so a run resumed after the last batch of an epoch would
    end before it trains.
    """
    trainer.fit_loop.epoch_loop.val_loop._has_run = False


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Set the number of data-parallel ranks, by default the number of nodes."""
    strategy._data_parallel_size = size


def set_process_group_backend(strategy: ModelParallelStrategy, backend: str) -> None:
    """Set the backend of the process group, which Lightning would otherwise choose by device. Call before set-up."""
    strategy._process_group_backend = backend


def destroy_process_group_at_exit() -> None:
    """Destroy the process group at exit; otherwise NCCL warns. Lightning does this only if NCCL is the only backend."""
    atexit.unregister(_destroy_dist_connection)
    atexit.register(_destroy_dist_connection)


def unsynchronize_layers(strategy: DDPStrategy) -> None:
    """Undo `trainer.sync_batchnorm` at the end of a fit by restoring the original kind of layers."""
    module, layers = strategy.lightning_module, strategy._layer_sync
    if layers is None or module is None or module._trainer is None or module._trainer.state.fn != TrainerFn.FITTING:
        return
    strategy.model = layers.revert(module)


class CheckpointBase(ModelCheckpoint):
    """ModelCheckpoint with public names for its private hooks and state.

    Lightning decides when to save, link and remove, and calls its private hooks, which call the public hooks that
    subclasses override.
    """

    @property
    def every_n_steps(self) -> int:
        """The argument `every_n_train_steps`; 0: never."""
        return self._every_n_train_steps

    @property
    def last_saved_step(self) -> int:
        """The optimizer step of the last checkpoint that this process has written; 0 if there is none."""
        return self._last_global_step_saved

    @property
    def last_saved_path(self) -> str:
        """The last checkpoint that this process has written; empty if there is none."""
        return self._last_checkpoint_saved

    def forget_last_saved_step(self) -> None:
        """Allow saving the current step again."""
        self._last_global_step_saved = 0

    def candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return the metrics that `monitor` may name, with `epoch` and `step`."""
        return self._monitor_candidates(trainer)

    def write_if_among_best(self, trainer: Trainer, candidates: dict[str, Tensor]) -> None:
        """Write a checkpoint if the monitored score is among the `save_top_k` best."""
        self._save_monitor_checkpoint(trainer, candidates)

    def may_remove(self, trainer: Trainer, path: str) -> bool:
        """Return whether a file is in this callback's folder and is not the checkpoint from which the run resumed."""
        return self._should_remove_checkpoint(trainer, path, "")

    def write(self, trainer: Trainer, path: str) -> None:
        """Write a checkpoint."""
        super()._save_checkpoint(trainer, path)

    def write_last(self, trainer: Trainer, candidates: dict[str, Tensor]) -> None:
        """Write `last.ckpt`, or make it point at the checkpoint that was written last."""
        super()._save_last_checkpoint(trainer, candidates)

    def link(self, trainer: Trainer, path: str, link: str) -> None:
        """Make `link` point at a checkpoint."""
        super()._link_checkpoint(trainer, path, link)

    def remove(self, trainer: Trainer, path: str) -> None:
        """Remove a checkpoint."""
        super()._remove_checkpoint(trainer, path)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.write(trainer, filepath)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self.write_last(trainer, monitor_candidates)

    def _link_checkpoint(self, trainer: Trainer, filepath: str, linkpath: str) -> None:  # type: ignore[override]
        self.link(trainer, filepath, linkpath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.remove(trainer, filepath)


class BarsAndMetrics(CustomProgress):
    """Progress bars, and below them a line of metrics, trimmed to the width of the terminal."""

    metrics = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.metrics:
            yield Text(self.metrics, no_wrap=True, overflow="ellipsis")


class ProgressBarBase(RichProgressBar):
    """RichProgressBar with a training bar for the whole run instead of an epoch, and the metrics below the bars.

    Lightning shows the metrics beside the bars, where they take several lines.
    """

    def run_fraction(self, trainer: Trainer) -> float | None:
        """Return the completed fraction of the run, or None if no end is set."""
        raise NotImplementedError

    def run_description(self, trainer: Trainer) -> str:
        """Return the text before the training bar."""
        raise NotImplementedError

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.__class__ = BarsAndMetrics  # Lightning constructs it

    def _update_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self.progress, BarsAndMetrics):
            metrics = self.get_metrics(trainer, pl_module)
            shown = (
                f"{name} {value}" if isinstance(value, str) else f"{name} {value:.3f}"
                for name, value in metrics.items()
            )
            self.progress.metrics = "  ".join(shown)

    @property
    def total_train_batches(self) -> int | float:
        """The training bar's total: 1 for the whole run, because `_update` counts in fractions of the run."""
        return float("inf") if self.run_fraction(self.trainer) is None else 1

    def _get_train_description(self, current_epoch: int) -> str:
        return self.run_description(self.trainer)

    def _update(self, progress_bar_id: Any, current: int, visible: bool = True, hard: bool = False) -> None:
        if self.progress is not None and progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            fraction = self.run_fraction(self.trainer) or 0.0
            description = self.run_description(self.trainer)
            self.progress.update(progress_bar_id, completed=fraction, visible=visible, description=description)
            self.refresh(hard=hard)
            return
        super()._update(progress_bar_id, current, visible, hard)
