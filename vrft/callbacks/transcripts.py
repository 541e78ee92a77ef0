"""Completions to read: a JSON line each and their images in the run's folder, and where the loggers can show them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vrft.callbacks.rollout_pictures import show_rollout
from vrft.errors import ConfigurationError
from vrft.loggers import logged_step
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule
from vrft.types import ScoredRollout
from vrft.utils.thumbnails import save_thumbnail


class Transcripts(Callback):
    """Writes `transcripts.jsonl`: question, completion, answer, rewards and advantage of rollouts, and the images.

    A line names its image in the folder `pictures`, null where it could not be written.
    """

    def __init__(self, every_n_rollouts: int = 10, max_prompts: int = 4) -> None:
        """`every_n_rollouts`: how often; `max_prompts`: prompts of a rollout, each with all its completions."""
        if every_n_rollouts < 1 or max_prompts < 1:
            raise ConfigurationError("trainer.callbacks: Transcripts: every_n_rollouts and max_prompts start at 1")
        self.every_n_rollouts, self.max_prompts = every_n_rollouts, max_prompts

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        scored = outputs.get("scored") if isinstance(outputs, dict) else None
        if not isinstance(scored, ScoredRollout) or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, VisionModule)
        rollout = int(pl_module.steps_done)
        if rollout % self.every_n_rollouts and rollout != 1:
            return
        shown = min(len(scored.answers), self.max_prompts * scored.reward.shape[1])
        rows = [row(scored, rollout, n) for n in range(shown)]
        run, group, task = RunDir.of(trainer), scored.reward.shape[1], type(pl_module.task).__name__
        pictures = [save_thumbnail(sample.image, run.pictures) for sample in scored.samples[: shown // group]]
        seen = [
            {"task": task, "image": pictures[n // group], "size": scored.samples[n // group].size} for n in range(shown)
        ]
        append(run.transcripts, [entry | more for entry, more in zip(rows, seen, strict=True)])
        show_rollout(trainer.loggers, scored, rows, logged_step(trainer))


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add a line of JSON for each. Nothing depends on them: a run goes on without those that can't be written.

    Half a line that a killed run left ends first.
    """
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read() == b"\n" else b"\n")
            file.writelines(json.dumps(entry, allow_nan=False).encode() + b"\n" for entry in rows)
    except OSError as error:
        rank_zero_warn(f"{path.name}: lines are missing: {error}")


def row(scored: ScoredRollout, rollout: int, n: int) -> dict[str, Any]:
    """Completion n of a rollout as plain values; null for a reward that does not apply, and for what isn't finite."""
    group = scored.reward.shape[1]
    sample, answer = scored.samples[n // group], scored.answers[n]
    return {
        "rollout": rollout,
        "sample": sample.index,
        "image_id": sample.image_id,
        "query": sample.query,
        "generation": n % group,
        "completion": answer.text,
        "reasoning": answer.reasoning,
        "valid": answer.valid,
        "answer": answer.value,
        "target": sample.target,
        "rewards": {name: _finite(values[n]) for name, values in scored.rewards.items()},
        "reward": _finite(scored.reward.flatten()[n]),
        "advantage": _finite(scored.advantages.flatten()[n]),
    }


def _finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None
