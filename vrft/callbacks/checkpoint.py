"""Checkpoints during a run and at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.data.datamodule import ResumableLoader
from vrft.errors import ConfigurationError, RolloutFailed
from vrft.training.module import VisionModule
from vrft.training.trainer import VisionTrainer
from vrft.utils.distributed import on_rank_zero
from vrft.utils.files import PARTIAL, hardlink, replace_link


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also saves the last step when it is no multiple of `every_n_train_steps`.

    At every instant `last.ckpt` and what it points at are whole. A checkpoint that can't be written doesn't end a run.

    Lightning knows the score of an evaluation only after it has saved the step that is evaluated. So with a monitored
    `val/…`, `last.ckpt` is written before each evaluation, and gets a second name if its own score is among the best.
    """

    _unjudged = ""
    """The file of the weights as they are, until they are evaluated."""
    _judged = ""
    """That file, while its score is compared."""
    _due = False
    """Whether an evaluation of the weights as they are comes next; a checkpoint says so of its own."""

    @property
    def state_key(self) -> str:
        """The same whatever the settings, which may change when a run goes on."""
        return type(self).__name__

    @property
    def judges(self) -> bool:
        """Whether checkpoints are kept by a held-out score."""
        return self.monitor is not None and self.monitor.startswith("val/")

    @property
    def best(self) -> dict[str, Any] | None:
        """Checkpoint, metric and score of the best by a held-out score, if there is one."""
        if not self.judges or self.best_model_score is None:
            return None
        path = os.path.relpath(self.best_model_path)
        return {"checkpoint": path, "metric": self.monitor, "score": round(float(self.best_model_score), 6)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._outdated: list[str] = []
        self._began = False
        self._row: dict[str, float] = {}
        if stage == "fit" and trainer.is_global_zero:
            for left in Path(str(self.dirpath)).glob(f"*{PARTIAL}"):
                left.unlink()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = True
        loop = trainer.fit_loop
        progress = loop.epoch_progress.current
        self._count_batches_as_the_loader(trainer)
        if loop.restarted_mid_epoch and progress.completed == progress.ready:
            loop.reset_restart_stage()  # after an epoch's last batch, Lightning would not count the next as begun
        if self._row:  # of the step that the checkpoint was made in; a kill may have come before it was written
            assert isinstance(pl_module, VisionModule)
            for logger in trainer.loggers:
                logger.log_metrics(self._row, int(pl_module.steps_done) - 1)
        self._evaluate_again(trainer)

    def _evaluate_again(self, trainer: Trainer) -> None:
        """Make the evaluation that was due after the step of the checkpoint, which knows nothing of it.

        A kill may have come before its end; and what it found of a run that is made longer is not in the checkpoint.
        """
        loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
        batches = trainer.fit_loop._data_fetcher
        assert batches is not None
        if not (self._due or (loop.restarting and loop._should_check_val_fx(batches))):
            return
        loop.val_loop.restarting = False  # from its first batch on
        loop.val_loop.reset_restart_stage()
        trainer.validating = True
        epoch, epochs.completed = epochs.completed, int(self._row["epoch"])  # which may have ended with that step
        loop.val_loop.run()
        epochs.completed = epoch
        loop.val_loop._has_run = False  # or else a loop that goes on after its last batch would end without a beginning
        trainer.training = True

    @staticmethod
    def _count_batches_as_the_loader(trainer: Trainer) -> None:
        """Of a run that goes on with another global batch, Lightning knows how many of the former it has had."""
        loader, loop = trainer.train_dataloader, trainer.fit_loop
        assert isinstance(loader, ResumableLoader)
        progress = loop.epoch_loop.batch_progress
        if loader.batches == progress.current.ready:
            return
        if loader.batches == len(loader) and not progress.is_last_batch:  # what is left is less than a batch
            loop.epoch_progress.increment_processed()
            loop.epoch_progress.increment_completed()
        shift = loader.batches - progress.current.ready
        for stage in ("ready", "started", "processed", "completed"):
            setattr(progress.current, stage, getattr(progress.current, stage) + shift)

    @staticmethod
    def _take_batch_back(trainer: Trainer) -> None:
        """Count batches as after the last one that was trained on, at the time when checkpoints are made."""
        loader, loop = trainer.train_dataloader, trainer.fit_loop.epoch_loop
        assert isinstance(loader, ResumableLoader)
        loader.return_last_batch()
        progress = loop.batch_progress
        progress.is_last_batch = False
        in_epoch = progress.current.completed > 0
        for count in (progress.total, progress.current):
            for stage in ("ready", "started", "processed"):
                setattr(count, stage, count.completed)
            count.completed -= in_epoch
        loop._batches_that_stepped -= in_epoch  # Lightning adds one to that of a checkpoint within an epoch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(trainer, VisionTrainer)
        logged = trainer._logger_connector.metrics["log"]  # what will be, as soon as this hook is done
        self._row = {"epoch": trainer.current_epoch} | {name: float(value) for name, value in logged.items()}
        self._unjudged, self._due = "", False
        if trainer.stopped is None:
            ends = 0 <= trainer.max_steps <= trainer.global_step  # the loops call the epoch complete then
            if self.judges:
                self._save_in_time(trainer, ends)
            else:
                with self._surviving(trainer):
                    super().on_train_batch_end(trainer, pl_module, *args)
            if ends:
                self.save_last_step(trainer)

    def _save_in_time(self, trainer: Trainer, ends: bool) -> None:
        """Save every so many steps, and before each evaluation."""
        batches, steps = trainer.fit_loop._data_fetcher, self._every_n_train_steps
        assert batches is not None
        self._due = ends or trainer.fit_loop.epoch_loop._should_check_val_fx(batches)
        if self._due or (steps > 0 and trainer.global_step % steps == 0):
            self.save_last_step(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.judges:
            with self._surviving(trainer):
                super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._surviving(trainer):
            if not self.judges:
                super().on_validation_end(trainer, pl_module)
            elif not trainer.sanity_checking:
                self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        """Keep the weights that were evaluated if they are among the best, whatever comes between save and score."""
        candidates = self._monitor_candidates(trainer)
        if self.monitor not in candidates:
            found = ", ".join(sorted(name for name in candidates if name.startswith("val/")))
            message = f"checkpoint.monitor: this evaluation has no {self.monitor}; it has {found}"
            if trainer.global_step == 0:
                raise ConfigurationError(message)
            rank_zero_warn(message)
        self._judged, self._unjudged = self._unjudged, ""
        try:
            if self._judged and self.save_top_k != 0:
                self._look_at_kept(trainer)
                self._save_monitor_checkpoint(trainer, candidates)
                if self.best_model_path:
                    self._link_checkpoint(trainer, self.best_model_path, str(Path(str(self.dirpath)) / "best.ckpt"))
                self._remove_outdated(trainer)  # now that `best.ckpt` points elsewhere
        finally:
            self._judged = ""

    def _look_at_kept(self, trainer: Trainer) -> None:
        """Forget files that are gone, and let go of those that are too many if a run goes on with less of them."""
        kept = {path: score for path, score in self.best_k_models.items() if self.file_exists(path, trainer)}
        best, worst = (min, max) if self.mode == "min" else (max, min)
        while len(kept) > self.save_top_k > 0:
            path = worst(kept, key=kept.__getitem__)
            kept.pop(path)
            if self._should_remove_checkpoint(trainer, path, ""):
                self._outdated.append(path)
        self.best_k_models = kept
        self.best_model_path = best(kept, key=kept.__getitem__, default="")
        self.best_model_score = kept.get(self.best_model_path)
        self.kth_best_model_path = worst(kept, key=kept.__getitem__, default="")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if self._judged:
            on_rank_zero(trainer, hardlink, Path(self._judged), Path(filepath))
        else:
            super()._save_checkpoint(trainer, filepath)
            self._unjudged = filepath

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(trainer, VisionTrainer)
        if trainer.stopped is not None:
            return
        if self.judges and not self._due:  # by the command, which evaluates what it ends with
            self._due, self._last_global_step_saved = True, 0
        if not self.save_last_step(trainer):
            trainer.stop("the last checkpoint can't be written", exit_code=1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what was learnt before completions could not be had any more; their batch comes again."""
        assert isinstance(trainer, VisionTrainer)
        assert isinstance(pl_module, VisionModule)
        pl_module.rollouts.release()
        if not isinstance(exception, RolloutFailed):  # which all ranks raise
            return
        lost = ""
        if trainer.state.fn == TrainerFn.FITTING and self._began:
            current = trainer.fit_loop.epoch_loop.batch_progress.current
            if trainer.training and current.ready > current.completed:
                self._take_batch_back(trainer)
            if trainer.global_step > 0 and not self.save_last_step(trainer):
                lost = f"; step {trainer.global_step} can't be saved"
        trainer.stop(f"{exception}{lost}", exit_code=1)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._unjudged = str(trainer.ckpt_path)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mode": self.mode, "row": self._row, "due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            super().load_state_dict(self._moved(state_dict) if self.judges else state_dict)
        self._row, self._due = state_dict["row"], state_dict["due"]

    def _moved(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state as if its files were in this run's folder. Of a folder that was moved, they are."""
        before, here = state["dirpath"], str(self.dirpath)
        kept = {here + path.removeprefix(before): score for path, score in state["best_k_models"].items()}
        return state | {"dirpath": here, "best_k_models": kept}

    def save_last_step(self, trainer: Trainer) -> bool:
        """Whether the state after the last step is saved, now or before."""
        if self._last_global_step_saved != trainer.global_step:
            with self._surviving(trainer):
                self.last_model_path = self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)
                self._save_checkpoint(trainer, self.last_model_path)
        return self._last_global_step_saved == trainer.global_step

    @contextmanager
    def _surviving(self, trainer: Trainer) -> Iterator[None]:
        before = deepcopy(self.state_dict())
        try:
            yield
        except OSError as error:
            self._outdated.clear()
            self.load_state_dict(before)
            good = self._last_checkpoint_saved or trainer.ckpt_path or "none yet"
            rank_zero_warn(f"no checkpoint of step {trainer.global_step}: {error}; last good one: {good}")

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._remove_outdated(trainer)

    def _remove_outdated(self, trainer: Trainer) -> None:
        while self._outdated:
            on_rank_zero(trainer, super()._remove_checkpoint, trainer, self._outdated.pop())

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._outdated.append(filepath)  # `last.ckpt` may point at it still

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if Path(filepath).absolute() != Path(linkpath).absolute():
            on_rank_zero(trainer, replace_link, Path(linkpath), Path(filepath))
