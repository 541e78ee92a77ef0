"""Write transcripts of training: a JSON line per completion, thumbnails, and tables or pictures for the loggers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vrft.callbacks.base import vision_module
from vrft.callbacks.rollout_pictures import show_rollout
from vrft.data.datamodule import data_of
from vrft.data.record_set import image_file
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule
from vrft.types import PromptBatch, ScoredRollout
from vrft.utils.thumbnails import save_thumbnails


class Transcripts(Callback):
    """Writes `transcripts.jsonl`: prompt, completion, answer, rewards, advantage and image of rollouts.

    The first and the last rollout of a run are always written. A line names its image in the folder `pictures`, or is
    null there if the image can't be written.
    """

    def __init__(self, every_n_rollouts: int = 10, max_prompts: int = 4) -> None:
        """Set which rollouts to write.

        Args:
            every_n_rollouts: number of rollouts from one written rollout to the next.
            max_prompts: maximum number of prompts of a rollout to write, each with all its completions.
        """
        if every_n_rollouts < 1 or max_prompts < 1:
            raise ConfigurationError("trainer.callbacks: Transcripts: every_n_rollouts and max_prompts start at 1")
        self.every_n_rollouts, self.max_prompts = every_n_rollouts, max_prompts
        self.pending: Callable[[], None] | None = None
        """Writes the last rollout, if not written yet. Dropped when the next step begins."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        self.pending = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        scored = outputs.get("scored") if isinstance(outputs, dict) else None
        if not isinstance(scored, ScoredRollout) or not trainer.is_global_zero:
            return
        module = vision_module(pl_module)
        rollout, step = int(module.steps_done), module.logged_step
        self.pending = partial(self.write, trainer, module, scored, rollout, step)
        if rollout == 1 or rollout % self.every_n_rollouts == 0:
            self.write_pending()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write_pending()

    def write_pending(self) -> None:
        """Write the last rollout if it is not written yet."""
        if self.pending is not None:
            self.pending()
            self.pending = None

    def write(self, trainer: Trainer, module: VisionModule, scored: ScoredRollout, rollout: int, step: int) -> None:
        """Append the lines of a rollout to the file, and log the rollout. `step` is the step of the loggers."""
        run, group = RunDir.of(trainer), scored.reward.shape[1]
        prompts = min(len(scored.samples), self.max_prompts)
        on_cpu = replace(scored, advantages=scored.advantages.cpu())  # else each number would wait for the GPU
        rows = [transcript_row(on_cpu, rollout, n) for n in range(prompts * group)]
        data, task = data_of(trainer), type(module.task).__name__
        about = [
            {
                "task": task,
                **save_thumbnails(sample, run.pictures),
                "size": sample.size,
                "frame": frame,
                "file": image_file(data.train_set(), sample.index),
                **dict(zip(("question", "prompt"), module.encoder.texts(sample, frame), strict=True)),
            }
            for sample, frame in zip(scored.samples[:prompts], scored.batch.frames, strict=False)
        ]
        append_json_lines(run.transcripts, [row | about[n // group] for n, row in enumerate(rows)])
        show_rollout(trainer.loggers, scored, rows, step)


def append_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append a line of JSON for each row, or warn if writing fails.

    A partial line that a killed run left at the end of the file is first ended by a line break.
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
    """Return completion n of a rollout as plain values, with None for rewards that don't apply or are not finite."""
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
        "problem": answer.problem,
        "answer": answer.value,
        "target": sample.target,
        "rewards": {name: _finite(values[n]) for name, values in scored.rewards.items()},
        "reward": _finite(scored.reward.flatten()[n]),
        "advantage": _finite(scored.advantages.flatten()[n]),
    }


def _finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None
