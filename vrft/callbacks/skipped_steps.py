"""Record the completions that caused skipped optimizer steps, and end a run that only skips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vrft.callbacks.base import vision_module, vision_trainer
from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.transcripts import append_json_lines, transcript_row
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.types import PromptBatch, ScoredRollout
from vrft.utils.display import counted


class SkippedSteps(Checkpoint):
    """Writes the completions behind skipped steps to `faults.jsonl`, and ends a run that only skips.

    Writes the completions whose reward or log-probabilities are not finite, or the whole rollout if all are finite.
    With several ranks, each writes its own file.

    The class derives from Checkpoint because Lightning runs checkpoint callbacks last, after all others have processed
    the batch.
    """

    def __init__(self, max_in_a_row: int = 10) -> None:
        """Set after how many consecutive training steps without an optimizer step the run saves and ends."""
        if max_in_a_row < 1:
            raise ConfigurationError(f"skipped_steps.max_in_a_row: expected at least 1, got {max_in_a_row}")
        self.max_in_a_row = max_in_a_row
        self.in_a_row = self.last_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row, self.last_step = state_dict["in_a_row"], state_dict["last_step"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        trainer, module = vision_trainer(trainer), vision_module(pl_module)
        if module.step.skipped_steps:
            path = RunDir.of(trainer).faults(trainer.global_rank if trainer.world_size > 1 else None)
            append_json_lines(path, fault_rows(int(module.steps_done), batch, outputs))
        self.in_a_row = self.in_a_row + 1 if trainer.global_step == self.last_step else 0
        self.last_step = trainer.global_step
        if self.in_a_row == self.max_in_a_row:
            self.in_a_row = 0  # the checkpoint saves it, and a resumed run must not stop again at once
            saved = "" if RunCheckpoint.of(trainer).save_last_step(trainer) else "; the last step can't be saved"
            trainer.stop(
                f"no finite gradient in {counted(self.max_in_a_row, 'step')} in a row, see faults.jsonl{saved}", 1
            )


def fault_rows(step: int, batch: PromptBatch, outputs: Any) -> Iterator[dict[str, Any]]:
    """Yield the lines of `faults.jsonl` for a skipped step: its completions, or in SFT its samples."""
    scored: ScoredRollout | None = outputs.get("scored")
    if scored is None:
        for sample in batch.samples:
            yield {"rollout": step, "sample": sample.index, "image_id": sample.image_id, "query": sample.query}
        return
    finite: list[bool] = scored.finite.tolist()
    bad = [n for n, is_finite in enumerate(finite) if not is_finite]
    for n in bad or range(len(finite)):
        yield {"finite": finite[n], **transcript_row(scored, step, n)}
