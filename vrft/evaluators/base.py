"""What an evaluator is: a callback that collects held-out answers and logs scores of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.data.datamodule import VisionData
from vrft.loggers import logged_step
from vrft.run_dir import RunDir
from vrft.types import Answer, PromptBatch, Sample

Row = TypeVar("Row")


class Evaluator(Callback, Generic[Row]):
    """Collects one row per sample, brings the rows of all ranks together and logs `val/…` or `test/…`.

    A subclass turns an answer into a row of plain values and rows into scores. A sample that several ranks saw, because
    they take equal numbers of steps, counts once; rows are in the order of the data set whatever the number of ranks,
    so scores are the same to the last bit. All ranks take part in the same two collectives, rows or not.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            self.check(trainer.datamodule)  # type: ignore[attr-defined]

    def check(self, data: VisionData) -> None:
        """Raise ConfigurationError if held-out samples can't be evaluated. Called before any work, data being read."""

    @abstractmethod
    def row(self, answer: Answer, sample: Sample) -> Row:
        """What is kept of one answer."""

    @abstractmethod
    def scores(self, rows: list[Row]) -> dict[str, float]:
        """The scores of all samples, by name; what is undefined is left out."""

    def image_of(self, row: Row, index: int) -> int:
        """What a row is about; rows of one image are resampled together. Default: each is of an image of its own."""
        return index

    def scores_of(self, images: list[list[Row]]) -> dict[str, float]:
        """The scores of images, one of which may be there more than once: each time it counts as another image."""
        return self.scores([row for rows in images for row in rows])

    def quality(self, row: Row) -> float | None:
        """How good one answer is, from 0 to 1: what the best and the worst images are told by. None: nothing says."""
        return None

    def write(self, folder: Path, rows: list[Row]) -> None:
        """Write what is worth keeping of an evaluation. Called on rank zero, after `scores`."""

    def show(self, loggers: Sequence[Logger], stage: str, folder: Path, step: int) -> None:
        """Log tables and pictures of what was written to `folder`. `step`: that of the loggers."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for answer, sample in zip(outputs, batch.samples, strict=True):
            self.rows[sample.index] = self.row(answer, sample)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = gather(self.rows, trainer.world_size)
        stage = "test" if trainer.testing else "val"
        rows = [self.rows[index] for index in sorted(self.rows)]
        scores = self.scores(rows) if rows else {}
        for name, value in scores.items():
            pl_module.log(f"{stage}/{name}", value, sync_dist=True, reduce_fx="max")  # the same on all ranks
        if rows and trainer.is_global_zero:
            folder = evaluation_folder(trainer)
            try:
                self.write(folder, rows)
                self.show(trainer.loggers, stage, folder, logged_step(trainer))
            except OSError as error:  # the scores are logged all the same
                rank_zero_warn(f"{folder}: files of this evaluation are missing: {error}")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def evaluation_folder(trainer: Trainer) -> Path:
    """Where the evaluation that is on writes to: in the run's folder, by stage and optimizer step or checkpoint."""
    stage = "test" if trainer.testing else "val"
    asked = trainer.ckpt_path is not None and trainer.state.fn != TrainerFn.FITTING  # which goes on from it
    name = Path(str(trainer.ckpt_path)).stem if asked else str(trainer.global_step)
    return RunDir.of(trainer).evaluation(stage, name)


def gather(rows: dict[int, Row], world_size: int) -> dict[int, Row]:
    """The rows of all ranks: each rank's are packed into one buffer, whose size goes around first."""
    if world_size == 1:
        return rows
    parts: list[dict[int, Row]] = [{}] * world_size
    dist.all_gather_object(parts, rows)
    return {index: row for part in reversed(parts) for index, row in part.items()}  # the first one to see it counts


def defined(scores: Mapping[str, float], prefix: str, undefined: float) -> dict[str, float]:
    """Scores under `prefix/`, without those that have no value."""
    return {f"{prefix}/{name}": value for name, value in scores.items() if value != undefined}
