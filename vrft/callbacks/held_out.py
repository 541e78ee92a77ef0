"""Write the held-out answers of each evaluation as JSON lines, and the images of some."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.callbacks.base import vision_module
from vrft.data.datamodule import VisionData, data_of
from vrft.data.record_set import image_file
from vrft.evaluators.base import evaluation_folder, evaluators_of, gather
from vrft.report.held_out import choose, read_answers
from vrft.report.lines import HeldOut
from vrft.run_dir import ANSWERS, RunDir
from vrft.training.module import VisionModule
from vrft.types import Answer, Sample
from vrft.utils.thumbnails import save_thumbnails


class HeldOutAnswers(Callback):
    """Writes `answers.jsonl` in the folder of each evaluation.

    The score of an answer is the first evaluator's `quality`, or the reward if there is no evaluator. Images are saved
    for the worst answers, for those that improved or worsened most since the first evaluation, and for an even sample.
    """

    def __init__(self) -> None:
        self.answers: dict[int, dict[str, Any]] = {}
        """The lines of this rank's answers, by sample."""

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
        data = data_of(trainer)
        for answer, sample in zip(outputs, batch.samples, strict=True):
            if data.is_owned_by_rank(sample):
                self.answers[sample.index] = answer_line(answer, sample, image_file(data.evaluated_set(), sample.index))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the answers of all ranks, after the evaluators have gathered their rows."""
        if trainer.sanity_checking:
            return
        lines = gather(self.answers, trainer.world_size)
        if not trainer.is_global_zero or not lines:
            return
        for evaluator in evaluators_of(trainer)[:1]:
            for index in lines.keys() & evaluator.rows.keys():
                lines[index]["score"] = evaluator.quality(evaluator.rows[index])
        answers = {index: HeldOut(**lines[index]) for index in sorted(lines)}
        folder = evaluation_folder(trainer)
        keep_shown(RunDir.of(trainer), folder, answers, data_of(trainer), vision_module(pl_module))
        texts = [json.dumps(msgspec.structs.asdict(answer), allow_nan=False) + "\n" for answer in answers.values()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ANSWERS).write_text("".join(texts), encoding="utf-8")
        except OSError as error:
            rank_zero_warn(f"{folder / ANSWERS} is incomplete: {error}")


def answer_line(answer: Answer, sample: Sample, file: str | None) -> dict[str, Any]:
    """Return an answer as plain values, with the reward as its score. `file`: file of the image."""
    reward = answer.reward if answer.reward is not None and math.isfinite(answer.reward) else None
    return {
        "sample": sample.index,
        "image_id": sample.image_id,
        "query": sample.query,
        "completion": answer.text,
        "reasoning": answer.reasoning,
        "valid": answer.valid,
        "problem": answer.problem,
        "answer": answer.value,
        "target": sample.target,
        "score": reward,
        "reward": reward,
        "size": sample.size,
        "file": file,
    }


def keep_shown(run: RunDir, folder: Path, answers: dict[int, HeldOut], data: VisionData, module: VisionModule) -> None:
    """Save the images of the answers that the report shows, and add the files and the prompts to the answers.

    `folder` is the folder of the evaluation.
    """
    earlier = [other for _, other in run.evaluations_by_step() if other != folder]
    first = read_answers(earlier[0], []) if earlier else answers
    samples, encoder = data.evaluated_set(), module.encoder
    for index in {index for chosen in choose(first, answers).values() for index in chosen}:
        sample = samples[index]
        for name, value in save_thumbnails(sample, run.pictures).items():
            setattr(answers[index], name, value)
        texts = encoder.texts(sample, encoder.frame(sample.image))
        answers[index].question, answers[index].prompt = texts
