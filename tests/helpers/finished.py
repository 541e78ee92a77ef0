"""Short runs of the quickstart, and one that many tests share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.helpers import CSV_ONLY

EVERYTHING = (
    *("--config", "logger/all"),
    *("--data.batch_size=5", "--model.optimizer.lr=0.01", "--trainer.max_steps=3", "--trainer.val_check_interval=2"),
    *("--transcripts.every_n_rollouts=1", "--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1"),
)
"""Arguments of a run that writes every file a run can write."""


class Finished(NamedTuple):
    """The folder of a run, which holds `run` and its data, and the run's output."""

    folder: Path
    printed: str


def scene_arguments(folder: Path) -> list[str]:
    """Return arguments for a small scene data set in a folder."""
    return [
        f"--data.train_annotations={folder}/train.json",
        f"--data.train_images={folder}/train",
        f"--data.val_annotations={folder}/val.json",
        f"--data.val_images={folder}/val",
        "--data.train_size=12",
        "--data.val_size=6",
    ]


def short_fit(folder: Path, *more: str) -> list[str]:
    """Return the quickstart's command with two steps on twelve scenes in a folder, plus more arguments.

    Without W&B, whose service is a process of its own for each run.
    """
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=100", "--data.batch_size=2"]
    short += [f"--run_dir={folder}/run", "--trainer.enable_progress_bar=false", CSV_ONLY]
    return ["fit", "--config", "quickstart", *scene_arguments(folder), *short, *more]
