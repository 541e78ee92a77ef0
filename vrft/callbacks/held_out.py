"""Held-out answers to look at: a JSON line each for every evaluation, and the images of some."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.data.datamodule import VisionData
from vrft.evaluators.base import Evaluator, evaluation_folder, gather
from vrft.report.held_out import choose, read_answers
from vrft.report.lines import HeldOut
from vrft.run_dir import ANSWERS, RunDir
from vrft.types import Answer, Sample
from vrft.utils.thumbnails import save_thumbnail


class HeldOutAnswers(Callback):
    """Writes `answers.jsonl` beside what the evaluators write.

    A line has the score that the first evaluator gives one answer, or else the reward. Images are kept of the answers
    that went worst, of those that gained or lost most since the run's first evaluation, and of some of all.
    """

    def __init__(self) -> None:
        self.answers: dict[int, dict[str, Any]] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.answers = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for answer, sample in zip(outputs, batch.samples, strict=True):
            if trainer.datamodule.is_owned_by_rank(sample):  # type: ignore[attr-defined]
                self.answers[sample.index] = as_values(answer, sample)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By then the evaluators have the rows of all ranks."""
        if trainer.sanity_checking:
            return
        everyones = gather(self.answers, trainer.world_size)
        if not trainer.is_global_zero or not everyones:
            return
        evaluator = next((found for found in trainer.callbacks if isinstance(found, Evaluator)), None)  # type: ignore[attr-defined]
        for index, values in everyones.items():
            if evaluator is not None and index in evaluator.rows:
                values["score"] = evaluator.quality(evaluator.rows[index])
        answers = {index: HeldOut(**everyones[index]) for index in sorted(everyones)}
        folder = evaluation_folder(trainer)
        keep_images(RunDir.of(trainer), folder, answers, trainer.datamodule)  # type: ignore[attr-defined]
        lines = [json.dumps(msgspec.structs.asdict(answer), allow_nan=False) + "\n" for answer in answers.values()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ANSWERS).write_text("".join(lines))
        except OSError as error:
            rank_zero_warn(f"{folder / ANSWERS} is not whole: {error}")


def as_values(answer: Answer, sample: Sample) -> dict[str, Any]:
    """An answer as plain values."""
    reward = answer.reward if answer.reward is not None and math.isfinite(answer.reward) else None
    return {
        "sample": sample.index,
        "image_id": sample.image_id,
        "query": sample.query,
        "completion": answer.text,
        "reasoning": answer.reasoning,
        "valid": answer.valid,
        "answer": answer.value,
        "target": sample.target,
        "score": reward,
        "reward": reward,
        "size": sample.size,
    }


def keep_images(run: RunDir, folder: Path, answers: dict[int, HeldOut], data: VisionData) -> None:
    """Keep the images of the answers that are worth a look, and name them there. `folder`: of the evaluation."""
    earlier = [other for _, other in run.evaluations_by_step() if other != folder]
    first = read_answers(earlier[0], []) if earlier else answers
    samples = data.val_set()
    for index in {index for chosen in choose(first, answers).values() for index in chosen}:
        answers[index].image = save_thumbnail(samples[index].image, run.pictures)
