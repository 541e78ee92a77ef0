"""The base class of evaluators, callbacks that collect held-out answers and log their scores."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from vrft.data.datamodule import VisionData, data_of, module_of
from vrft.errors import ConfigurationError
from vrft.evaluators.resampling import Scores, rows_by_image, write_resampled
from vrft.run_dir import EVALUATOR_WARNINGS, RunDir
from vrft.types import Answer, Id, PromptBatch, Sample
from vrft.utils.files import write_json
from vrft.utils.own_code import noted, question_note

Row = TypeVar("Row")

RESAMPLING_SECONDS = 60.0
"""Maximum time, in seconds, for the scores of bootstrap samples after an evaluation."""


class Evaluator(Callback, Generic[Row]):
    """Collects one row per sample, gathers the rows of all ranks and logs their scores as `val/…` or `test/…`.

    A subclass converts an answer to a row of plain values, and rows to scores. All ranks take the same number of steps,
    so that several ranks may evaluate the same sample, which counts once. Rows are in the order of the dataset for any
    number of ranks, so that equal answers have bitwise equal scores. All ranks take part in the same two collectives,
    even without rows.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.warnings: list[str] = []
        """Warnings of `check` and of the current evaluation, for the report."""
        self.warnings_of_check = 0
        self.said: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            self.warnings = []
            self.check(data_of(trainer))
            self.warnings_of_check = len(self.warnings)

    def check(self, data: VisionData) -> None:
        """Raise ConfigurationError if the held-out samples can't be evaluated. Called once the data is read."""

    @abstractmethod
    def row(self, answer: Answer, sample: Sample) -> Row:
        """Return one answer as a row of plain values."""

    @abstractmethod
    def scores(self, rows: list[Row]) -> dict[str, float]:
        """Return the scores over all samples by name, without undefined scores."""

    def image_of(self, row: Row, index: int) -> Id:
        """Return the image of a row. Rows of one image are resampled together. Default: one image per row."""
        return index

    def scores_of(self, images: list[list[Row]]) -> dict[str, float]:
        """Return the scores of a bootstrap sample of images. Repetitions of an image count as different images."""
        return self.scores([row for rows in images for row in rows])

    def resampled(self, images: Sequence[list[Row]], draws: Sequence[Sequence[int]]) -> Scores:
        """Return the scores of bootstrap samples by name. None stands for an undefined score.

        Args:
            images: the rows of each image.
            draws: indices of images, for each sample.

        Returns:
            An empty dict if the computation would take longer than `RESAMPLING_SECONDS`.
        """
        start, found = time.perf_counter(), []
        for draw in draws:
            found.append(self.scores_of([images[i] for i in draw]))
            if time.perf_counter() - start > RESAMPLING_SECONDS:
                return {}
        return {name: [scores.get(name) for scores in found] for name in found[0]}

    def images_of_scores(self, images: Sequence[Id]) -> dict[str, int]:
        """Return the number of images that a score depends on, by name of the score, if these are not all images."""
        return {}

    def quality(self, row: Row) -> float | None:
        """Return the quality of one answer, in 0..1, to find the best and the worst images; None if unknown."""
        return None

    def write(self, folder: Path, rows: list[Row]) -> None:
        """Write the result files of an evaluation. Called on rank zero, after `scores`."""

    def warn(self, message: str) -> None:
        """Warn about circumstances that make the scores less meaningful, in the console and in the report."""
        rank_zero_warn(message)
        self.warnings.append(message)

    def note(self, message: str) -> None:
        """Note circumstances of the scores in the report, but not in the console."""
        self.warnings.append(message)

    def say(self, message: str) -> None:
        """Print a message about the evaluation once, although `check` runs before each evaluation of a run."""
        if message not in self.said:
            rank_zero_info(message)
            self.said.add(message)

    def show(self, loggers: Sequence[Logger], stage: str, folder: Path, step: int) -> None:
        """Log the files in `folder` as tables and pictures. `step` is the step of the loggers."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = {}
        del self.warnings[self.warnings_of_check :]

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
            with noted(partial(question_note, sample.image_id, sample.query, answer.text)):
                self.rows[sample.index] = self.row(answer, sample)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = gather(self.rows, trainer.world_size)
        stage = "test" if trainer.testing else "val"
        rows = [self.rows[index] for index in sorted(self.rows)]
        scores = self.scores(rows) if rows else {}
        for name, value in scores.items():
            pl_module.log(f"{stage}/{name}", value, sync_dist=True, reduce_fx="max")  # equal on all ranks
        if rows and trainer.is_global_zero:
            folder = evaluation_folder(trainer)
            try:
                self.write(folder, rows)
                images = rows_by_image(rows, self.image_of)
                write_resampled(type(self).__name__, images, self.resampled, folder)
                if self.warnings:
                    write_json(folder / EVALUATOR_WARNINGS.format(type(self).__name__), self.warnings)
                self.show(trainer.loggers, stage, folder, module_of(trainer).logged_step)
            except OSError as error:  # the scores are logged already
                rank_zero_warn(f"{folder}: files of this evaluation are missing: {error}")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def evaluation_folder(trainer: Trainer) -> Path:
    """Return the folder of the current evaluation, named after the stage and the checkpoint or optimizer step."""
    stage = "test" if trainer.testing else "val"
    of_checkpoint = trainer.ckpt_path is not None and trainer.state.fn != TrainerFn.FITTING  # `fit` resumes from it
    name = Path(str(trainer.ckpt_path)).stem if of_checkpoint else str(trainer.global_step)
    return RunDir.of(trainer).evaluation(stage, name)


def evaluators_of(trainer: Trainer) -> list[Evaluator[Any]]:
    """Return the evaluators among the trainer's callbacks."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning doesn't declare it
    return [callback for callback in callbacks if isinstance(callback, Evaluator)]


def judging_evaluator(trainer: Trainer, option: str) -> Evaluator[Any]:
    """Return the first of the trainer's evaluators that defines `quality`.

    Raises:
        ConfigurationError: no evaluator defines it. The message names the option that needs such an evaluator.
    """
    found = evaluators_of(trainer)
    for evaluator in found:
        if type(evaluator).quality is not Evaluator.quality:
            return evaluator
    names = ", ".join(type(evaluator).__name__ for evaluator in found) or "none"
    raise ConfigurationError(
        f"{option}: expected an evaluator among trainer.callbacks that says how good an answer is (its method "
        f"`quality`), got {names}"
    )


def quality_of(evaluator: Evaluator[Any], answer: Answer, sample: Sample) -> float:
    """Return the quality of an answer. Raise ConfigurationError if it is not a number from 0 to 1."""
    value = evaluator.quality(evaluator.row(answer, sample))
    if value is None or not 0 <= value <= 1:
        raise ConfigurationError(
            f"{type(evaluator).__name__}.quality: expected a number from 0 to 1, got {value!r} "
            f"({question_note(sample.image_id, sample.query, answer.text)})"
        )
    return value


def gather(rows: dict[int, Row], world_size: int) -> dict[int, Row]:
    """Return the rows of all ranks by sample. If several ranks have a sample, keep the first rank's row."""
    if world_size == 1:
        return rows
    parts: list[dict[int, Row]] = [{}] * world_size
    dist.all_gather_object(parts, rows)
    return {index: row for part in reversed(parts) for index, row in part.items()}


def defined(scores: Mapping[str, float], prefix: str, undefined: float) -> dict[str, float]:
    """Add `prefix/` to the names of scores, and drop scores that equal `undefined`."""
    return {f"{prefix}/{name}": value for name, value in scores.items() if value != undefined}
