"""Implement `test --samples` and `validate --samples`: score several sampled answers to each question together."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from vrft.callbacks.base import vision_module
from vrft.data.datamodule import data_of
from vrft.errors import ConfigurationError
from vrft.evaluators import Evaluator
from vrft.evaluators.base import evaluation_folder, gather, quality_of
from vrft.evaluators.inference_scaling import Sampled, curves, sizes, vote
from vrft.rollout import Sampling
from vrft.run_dir import INFERENCE_SCALING
from vrft.training.module import VisionModule
from vrft.training.sampled import finite_scores, sample_answers
from vrft.types import Answer, PromptBatch, Sample
from vrft.utils.files import write_json
from vrft.utils.intervals import Interval

SUCCESS = 0.5
"""Minimum quality of an answer that counts as right: an IoU of 0.5, or the right name."""

RESAMPLES = 200


class SampledAnswers(Callback):
    """Samples answers at temperature 1 in addition to the greedy ones, and writes curves over their number.

    Rewards that need no ground truth select among the answers. The random numbers for a question depend only on the
    seed and the question's index in the data, so that the answers are the same for any number of ranks and batch size.
    """

    def __init__(self, samples: int, evaluator: Evaluator[Any]) -> None:
        """Set the number of answers to each question, and the evaluator of their quality."""
        if samples < 2:
            raise ConfigurationError(f"samples: expected at least 2, got {samples}")
        self.samples, self.evaluator = samples, evaluator
        self.questions: dict[int, Sampled] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.questions = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module, data = vision_module(pl_module), data_of(trainer)
        sampled = sample_answers(module, batch, self.samples, Sampling())
        answers, rollout = sampled.answers, sampled.rollout
        log_probs = (rollout.log_probs * rollout.mask).sum(1).tolist()
        scores = label_free_scores(module, answers, sampled.samples)
        for p, sample in enumerate(batch.samples):
            if data.is_owned_by_rank(sample):
                rows = slice(p * self.samples, (p + 1) * self.samples)
                found = judged(self.evaluator, answers[rows], log_probs[rows], sample)
                found.scores = {name: values[rows] for name, values in scores.items()}
                self.questions[sample.index] = found

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        questions = gather(self.questions, trainer.world_size)
        if not trainer.is_global_zero or not questions:
            return
        ordered = [questions[index] for index in sorted(questions)]
        found = curves(ordered, SUCCESS, RESAMPLES, vision_module(pl_module).seed)
        folder = evaluation_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        content = {name: {str(k): [*point] for k, point in points.items()} for name, points in found.items()}
        write_json(folder / INFERENCE_SCALING, {"questions": len(ordered), "success": SUCCESS, "curves": content})
        Console().print(table_of(found, len(ordered)))

    on_validation_epoch_start = on_test_epoch_start
    on_validation_batch_end = on_test_batch_end
    on_validation_epoch_end = on_test_epoch_end


def label_free_scores(module: VisionModule, answers: list[Answer], samples: list[Sample]) -> dict[str, list[float]]:
    """Return the scores, (N,), of each reward that needs no ground truth; -inf where the reward does not apply."""
    found = {}
    for name, reward in module.rewards.items():
        if not reward.label_free:
            continue
        scores = finite_scores(module, name, answers, samples)
        found[name] = [-math.inf if score is None else score for score in scores]
    return found


def judged(evaluator: Evaluator[Any], answers: list[Answer], log_probs: list[float], sample: Sample) -> Sampled:
    """Return the qualities of the n answers to a question, and the mean quality of votes of k answers for each k."""

    def quality(answer: Answer) -> float:
        return quality_of(evaluator, answer, sample)

    found = Sampled(sample.image_id, [quality(answer) for answer in answers], log_probs)
    for k in sizes(len(answers)):
        groups = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
        voted = [Answer("", "", value, value is not None) for value in map(vote, groups)]
        found.votes[k] = sum(map(quality, voted)) / len(voted)
    return found


def table_of(found: dict[str, dict[int, Interval]], questions: int) -> Table:
    """Return the curves as a table."""
    columns = [str(k) for k in found["pass"]]
    table = Table("answers", *columns, title=f"sampled answers to {questions} questions, 95 % intervals over images")
    for name, points in found.items():
        table.add_row(f"{name}@k" if name == "pass" else name, *(str(point) for point in points.values()))
    return table
