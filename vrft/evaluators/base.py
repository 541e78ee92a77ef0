"""What an evaluator is: a callback that collects held-out answers and logs scores of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, TypeVar

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from vrft.types import Answer, PromptBatch, Sample

Row = TypeVar("Row")


class Evaluator(Callback, Generic[Row]):
    """Collects one row per sample, brings the rows of all ranks together and logs `val/…`.

    A subclass turns an answer into a row of plain values and rows into scores. A sample that several ranks saw, because
    they take equal numbers of steps, counts once; rows are in the order of the data set whatever the number of ranks.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}

    @abstractmethod
    def row(self, answer: Answer, sample: Sample) -> Row:
        """What is kept of one answer."""

    @abstractmethod
    def scores(self, rows: list[Row]) -> dict[str, float]:
        """The scores of all samples, by name."""

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
        if trainer.world_size > 1:
            parts: list[dict[int, Row]] = [{}] * trainer.world_size
            dist.all_gather_object(parts, self.rows)
            self.rows = {index: row for part in parts for index, row in part.items()}
        scores = self.scores([self.rows[index] for index in sorted(self.rows)])
        for name, value in scores.items():
            pl_module.log(f"{'test' if trainer.testing else 'val'}/{name}", value)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
