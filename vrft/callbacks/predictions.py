"""Answers of `predict`, a JSON line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vrft.types import Answer, PromptBatch


class Predictions(Callback):
    """Writes `predictions.jsonl` in the run's folder as the answers come; of several ranks, each has a file."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.path = Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        answers: list[Answer] = outputs
        with self.path.open("a") as file:
            for answer, sample in zip(answers, batch.samples, strict=True):
                if not trainer.datamodule.is_counted_here(sample):  # type: ignore[attr-defined]
                    continue
                entry = {
                    "sample": sample.index,
                    "image_id": sample.image_id,
                    "query": sample.query,
                    "completion": answer.text,
                    "valid": answer.valid,
                    "answer": answer.value,
                }
                file.write(json.dumps(entry, allow_nan=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(f"predictions: {self.path}")
