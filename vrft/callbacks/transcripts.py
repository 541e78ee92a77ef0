"""Transcripts of training: a JSON line for each completion, small images, and tables or pictures in the loggers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vrft.callbacks.base import vision_module
from vrft.callbacks.rollout_pictures import show_rollout
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.types import ScoredRollout
from vrft.utils.thumbnails import save_thumbnail


class Transcripts(Callback):
    """Writes `transcripts.jsonl`: question, completion, answer, rewards, advantage and image of rollouts.

    A line names its image in the folder `pictures`, or null if the image can't be written.
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
        module = vision_module(pl_module)
        rollout = int(module.steps_done)
        if rollout % self.every_n_rollouts and rollout != 1:
            return
        run, group, task = RunDir.of(trainer), scored.reward.shape[1], type(module.task).__name__
        shown = min(len(scored.answers), self.max_prompts * group)
        on_cpu = replace(scored, advantages=scored.advantages.cpu())  # a GPU would be waited for with every number
        rows = [transcript_row(on_cpu, rollout, n) for n in range(shown)]
        samples = scored.samples[: shown // group]
        pictures = [save_thumbnail(sample.image, run.pictures) for sample in samples]
        lines = [
            row
            | {
                "task": task,
                "image": pictures[n // group],
                "size": samples[n // group].size,
                "frame": scored.batch.frames[n // group],
            }
            for n, row in enumerate(rows)
        ]
        append_json_lines(run.transcripts, lines)
        show_rollout(trainer.loggers, scored, rows, module.logged_step)


def append_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append a line of JSON for each row, or warn if that fails.

    A killed run may have left a partial line at the end of the file; it gets a line break first.
    """
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read() == b"\n" else b"\n")
            file.writelines(json.dumps(entry, allow_nan=False).encode() + b"\n" for entry in rows)
    except OSError as error:
        rank_zero_warn(f"{path.name}: lines are missing: {error}")


def transcript_row(scored: ScoredRollout, rollout: int, n: int) -> dict[str, Any]:
    """Return completion n of a rollout as plain values; None for rewards that don't apply or are not finite."""
    group = scored.reward.shape[1]
    sample, answer = scored.samples[n // group], scored.answers[n]
    choices = {"metadata": {"choices": sample.metadata["choices"]}} if "choices" in sample.metadata else {}
    return choices | {
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
