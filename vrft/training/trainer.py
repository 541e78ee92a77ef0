"""Lightning's Trainer that can stop early with a reason, and raises checkpoint errors on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from vrft.data import VisionData
from vrft.evaluators.base import evaluators_of
from vrft.training.checks import check_determinism, check_precision
from vrft.training.lightning_internals import attach_data
from vrft.training.module import VisionModule
from vrft.utils.distributed import raise_on_all_ranks


class Stopped(Exception):
    """Raised to leave an evaluation after `VisionTrainer.stop`; training ends without it."""


class VisionTrainer(Trainer):
    """A Trainer with a reason for stopping early. `vrft.cli.trainer` adds the commands."""

    callbacks: list[Callback]
    exit_code = 0
    """Exit code of the command."""
    draw = False
    """Whether `predict` draws pictures."""
    stopped: str | None = None
    """Why training stopped early; None if it did not."""

    def stop(self, reason: str, exit_code: int) -> None:
        """End training after this step, without another evaluation, checkpoint, export or summary.

        All ranks must call this in the same step.
        """
        self.stopped, self.exit_code = reason, exit_code
        self.should_stop = True
        self.limit_val_batches = 0  # Lightning would evaluate once more
        self.fit_loop.min_epochs = self.fit_loop.epoch_loop.min_steps = None  # Lightning would train until these

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Save like Lightning. If the writing rank fails, raise its OSError on all ranks."""

        def save() -> None:
            try:
                super(VisionTrainer, self).save_checkpoint(filepath, weights_only, storage_options)
            except OSError:
                self.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
                raise

        raise_on_all_ranks(self, save, (OSError,))

    def check_data(self, model: VisionModule, datamodule: VisionData) -> None:
        """Read and check the data of a run, and check that its evaluators fit the data, without loading a model.

        Raises:
            ConfigurationError: the data is invalid, or an evaluator can't evaluate it.
        """
        check_precision(self)
        check_determinism(self.strategy.root_device)
        self.strategy.connect(model)
        attach_data(self, model, datamodule)
        datamodule.trainer = self
        datamodule.prepare_data()
        datamodule.setup("fit")
        for evaluator in evaluators_of(self):
            evaluator.check(datamodule)
