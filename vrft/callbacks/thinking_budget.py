"""Implement `test --budgets`: score answers after a limited number of thinking tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from vrft.callbacks.base import vision_module
from vrft.callbacks.sampled_answers import RESAMPLES
from vrft.data.datamodule import data_of
from vrft.errors import ConfigurationError
from vrft.evaluators import Evaluator
from vrft.evaluators.base import evaluation_folder, gather, quality_of
from vrft.rollout import RemoteEngine
from vrft.run_dir import THINKING_BUDGET
from vrft.training.module import VisionModule
from vrft.training.thinking import answers_within
from vrft.types import Id, PromptBatch
from vrft.utils.files import write_json
from vrft.utils.intervals import Interval, bootstrap_draws, mean_over_images

Row = tuple[Id, list[tuple[float, int]]]
"""Image of a question; the quality of the answer and the number of thinking tokens for each budget."""


class ThinkingBudget(Callback):
    """Truncates the thinking of each greedy answer at several lengths, and scores the answers that follow."""

    def __init__(self, budgets: Sequence[int], evaluator: Evaluator[Any]) -> None:
        """Set the numbers of thinking tokens, and the evaluator of the answers' quality."""
        if not budgets or min(budgets) < 0:
            raise ConfigurationError(f"budgets: expected numbers of tokens, at least 0, got {[*budgets]}")
        self.budgets, self.evaluator = sorted({*budgets}), evaluator
        self.questions: dict[int, Row] = {}

    def check(self, module: VisionModule) -> None:
        """Raise ConfigurationError if the module does not think, or if its engine can't continue a completion."""
        if not module.task.reasoning:
            raise ConfigurationError("budgets: expected task.reasoning=true; there is no thinking to cut")
        if isinstance(module.engine, RemoteEngine):
            raise ConfigurationError("budgets: expected the policy's own engine; a server continues no completion")

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
        found: dict[int, Row] = {sample.index: (sample.image_id, []) for sample in batch.samples}
        for budget in self.budgets:
            for cut, sample in zip(answers_within(module, batch, outputs, budget), batch.samples, strict=True):
                found[sample.index][1].append((quality_of(self.evaluator, cut.answer, sample), cut.tokens))
        owned = {sample.index for sample in batch.samples if data.is_owned_by_rank(sample)}
        self.questions |= {index: row for index, row in found.items() if index in owned}

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        questions = gather(self.questions, trainer.world_size)
        if not trainer.is_global_zero or not questions:
            return
        rows = [questions[index] for index in sorted(questions)]
        curve: dict[int, Interval] = {}
        tokens: dict[int, float] = {}
        for number, budget in enumerate(self.budgets):
            by_image: dict[Id, list[float]] = defaultdict(list)
            for image_id, values in rows:
                by_image[image_id].append(values[number][0])
            draws = bootstrap_draws(len(by_image), RESAMPLES, vision_module(pl_module).seed)
            curve[budget] = mean_over_images([*by_image.values()], draws)
            tokens[budget] = sum(values[number][1] for _, values in rows) / len(rows)
        folder = evaluation_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        content = {str(budget): [*interval] for budget, interval in curve.items()}
        used = {str(budget): mean for budget, mean in tokens.items()}
        write_json(folder / THINKING_BUDGET, {"questions": len(rows), "curve": content, "tokens": used})
        table = Table("thinking tokens", *map(str, curve), title=f"{len(rows)} questions, 95 % intervals over images")
        table.add_row("quality", *map(str, curve.values()))
        table.add_row("tokens used", *(f"{mean:.1f}" for mean in tokens.values()))
        Console().print(table)
