"""Save checkpoints during a run and at its end, and keep the best ones by a held-out score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.callbacks.base import vision_module, vision_trainer
from vrft.callbacks.loop_counters import repeat_evaluation, resume_counters, uncount_batch
from vrft.callbacks.safe_checkpoint import SafeCheckpoint
from vrft.errors import ConfigurationError, RolloutFailed
from vrft.training.lightning_internals import evaluation_is_due, logged_metrics
from vrft.utils.distributed import on_rank_zero
from vrft.utils.files import hardlink, relative_path


class RunCheckpoint(SafeCheckpoint):
    """Saves every `every_n_train_steps` optimizer steps and at the end of the run.

    Lightning writes a checkpoint before the evaluation of its step, so the score of its weights is not known yet. If
    `monitor` is a held-out score (`val/…`), `last.ckpt` is therefore written before every evaluation. After the
    evaluation, it gets a second name if its score is among the `save_top_k` best, and `best.ckpt` points at the best.
    """

    _unscored = ""
    """File with the current weights until they are evaluated; empty otherwise."""
    _ranked = ""
    """The file that was just evaluated, while its score is compared with others; empty otherwise."""
    _evaluation_due = False
    """Whether an evaluation of the current weights follows. A checkpoint has the value of its step."""
    _steps: Mapping[str, int] = MappingProxyType({})
    """Optimizer steps of the best checkpoints, by file name."""

    @classmethod
    def of(cls, trainer: Trainer) -> RunCheckpoint:
        """Return the callback of a trainer."""
        return next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, cls))

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint. It does not depend on settings, which may change when a run resumes."""
        return type(self).__name__

    @property
    def monitors_held_out(self) -> bool:
        """Whether the best checkpoints are selected by a held-out score."""
        return self.monitor is not None and self.monitor.startswith("val/")

    @property
    def best(self) -> dict[str, Any] | None:
        """Path, metric, score and step of the best checkpoint by a held-out score, or None if there is none."""
        if not self.monitors_held_out or self.best_model_score is None:
            return None
        path = relative_path(self.best_model_path)
        score = round(float(self.best_model_score), 6)
        step = self._steps.get(Path(self.best_model_path).name)
        return {"checkpoint": path, "metric": self.monitor, "score": score, "step": step}

    # ----------------------------------------------------------------------------------------------- start and resume

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._training_began = False
        self._row: dict[str, float] = {}
        """Metrics of the current step, for the next checkpoint."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._unscored = str(trainer.ckpt_path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume: log the metrics of the checkpoint's step again, and repeat the evaluation that follows this step.

        The run may have been killed before either was complete. If the step was the last of a run that is now
        extended, the checkpoint does not have the score of the evaluation either.
        """
        super().on_train_start(trainer, pl_module)
        self._training_began = True
        resume_counters(trainer)
        if self._row:
            for logger in trainer.loggers:
                logger.log_metrics(self._row, int(vision_module(pl_module).steps_done) - 1)
        if self._evaluation_due or (trainer.fit_loop.epoch_loop.restarting and evaluation_is_due(trainer)):
            repeat_evaluation(trainer, int(self._row["epoch"]))

    def state_dict(self) -> dict[str, Any]:
        more = {"mode": self.mode, "row": self._row, "due": self._evaluation_due, "steps": {**self._steps}}
        return {**super().state_dict(), **more}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, but the best scores only if they belong to the monitored metric."""
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            super().load_state_dict(self._moved_here(state_dict) if self.monitors_held_out else state_dict)
        self._row, self._evaluation_due = state_dict["row"], state_dict["due"]
        self._steps = {**state_dict.get("steps", {})}  # checkpoints of earlier versions have no steps

    def _moved_here(self, state: dict[str, Any]) -> dict[str, Any]:
        """Replace the folder in a state's paths by this run's folder, which may have been moved."""
        before, here = state["dirpath"], str(self.dirpath)
        best = {here + path.removeprefix(before): score for path, score in state["best_k_models"].items()}
        return state | {"dirpath": here, "best_k_models": best}

    # --------------------------------------------------------------------------------------------------- during a run

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._row = {"epoch": trainer.current_epoch} | logged_metrics(trainer)
        self._unscored, self._evaluation_due = "", False
        if vision_trainer(trainer).stopped is not None:
            return
        is_last_step = 0 <= trainer.max_steps <= trainer.global_step
        if self.monitors_held_out:
            self._evaluation_due = is_last_step or evaluation_is_due(trainer)
            every = self.every_n_steps
            if self._evaluation_due or (every > 0 and trainer.global_step % every == 0):
                self.save_last_step(trainer)
        else:
            with self.warn_if_write_fails(trainer):
                super().on_train_batch_end(trainer, pl_module, *args)
        if is_last_step:  # later, the loops count the epoch as complete
            self.save_last_step(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.monitors_held_out:
            with self.warn_if_write_fails(trainer):
                super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self.warn_if_write_fails(trainer):
            if not self.monitors_held_out:
                super().on_validation_end(trainer, pl_module)
            elif not trainer.sanity_checking:
                self._rank_evaluated(trainer)

    def write(self, trainer: Trainer, path: str) -> None:
        """Write a checkpoint, or give the evaluated checkpoint a second name."""
        if self._ranked:
            on_rank_zero(trainer, hardlink, Path(self._ranked), Path(path))
            self._steps = {**self._steps, Path(path).name: trainer.global_step}
        else:
            super().write(trainer, path)
            self._unscored = path

    def _rank_evaluated(self, trainer: Trainer) -> None:
        """Keep the evaluated checkpoint if its score is among the best."""
        candidates = self.candidates(trainer)
        if self.monitor not in candidates:
            found = ", ".join(sorted(name for name in candidates if name.startswith("val/")))
            message = f"checkpoint.monitor: this evaluation has no {self.monitor}; it has {found}"
            if trainer.global_step == 0:
                raise ConfigurationError(message)
            rank_zero_warn(message)
        self._ranked, self._unscored = self._unscored, ""
        try:
            if self._ranked and self.save_top_k != 0:
                self._forget_surplus(trainer)
                self.write_if_among_best(trainer, candidates)
                if self.best_model_path:
                    self.link(trainer, self.best_model_path, str(Path(str(self.dirpath)) / "best.ckpt"))
                self.remove_outdated(trainer)  # `best.ckpt` no longer points at them
        finally:
            self._ranked = ""

    def _forget_surplus(self, trainer: Trainer) -> None:
        """Forget deleted best checkpoints, and the worst ones if a run resumes with a smaller `save_top_k`."""
        kept = {path: score for path, score in self.best_k_models.items() if self.file_exists(path, trainer)}
        best, worst = (min, max) if self.mode == "min" else (max, min)
        while len(kept) > self.save_top_k > 0:
            path = worst(kept, key=kept.__getitem__)
            kept.pop(path)
            if self.may_remove(trainer, path):
                self.remove(trainer, path)
        self.best_k_models = kept
        self.best_model_path = best(kept, key=kept.__getitem__, default="")
        self.best_model_score = kept.get(self.best_model_path)
        self.kth_best_model_path = worst(kept, key=kept.__getitem__, default="")

    # --------------------------------------------------------------------------------------------------- end of a run

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, or end the run with exit code 1 if that fails."""
        run = vision_trainer(trainer)
        if run.stopped is not None:
            return
        if self.monitors_held_out and not self._evaluation_due:
            self._evaluation_due = True  # the command evaluates after training
            self.forget_last_saved_step()
        if not self.save_last_step(trainer):
            run.stop("the last checkpoint can't be written", exit_code=1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last completed step if rollouts fail, an error that all ranks share. Resuming repeats the batch."""
        vision_module(pl_module).rollouts.release()
        if not isinstance(exception, RolloutFailed):
            return
        unsaved = ""
        if trainer.state.fn == TrainerFn.FITTING and self._training_began:
            current = trainer.fit_loop.epoch_loop.batch_progress.current
            if trainer.training and current.ready > current.completed:
                uncount_batch(trainer)
            if trainer.global_step > 0 and not self.save_last_step(trainer):
                unsaved = f"; step {trainer.global_step} can't be saved"
        vision_trainer(trainer).stop(f"{exception}{unsaved}", exit_code=1)
