"""Paths of all files in a run's folder, defined once for the code that writes and the code that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ANSWERS = "answers.jsonl"
"""File of the held-out answers, in the folder of an evaluation."""

EVALUATOR_WARNINGS = "warnings_{}.json"
"""File of an evaluator's warnings, named by the evaluator's class, in the folder of an evaluation."""

SCORES_FILE = "scores.json"
"""File of the scores, keyed by the titles of `summary.json`, in the folder of an evaluation."""

RESAMPLED = "resampled_{}.json"
"""File of the scores of bootstrap samples, named by the evaluator's class, in the folder of an evaluation."""

INFERENCE_SCALING = "inference_scaling.json"
"""File of the curves over the number of sampled answers, in the folder of a test."""

BY = "by "
"""Prefix, before the reward's name, of a curve for answers that a reward selects."""

THINKING_BUDGET = "thinking_budget.json"
"""File of the quality of answers over the number of thinking tokens, in the folder of a test."""

UNSHARDED = "run.pt"
"""File of the unsharded part of a sharded checkpoint, in the checkpoint's folder."""


def is_sharded(checkpoint: Path) -> bool:
    """Return whether a path is a sharded checkpoint or a link to one."""
    return (checkpoint / UNSHARDED).is_file()


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a file or a sharded checkpoint."""
    return path.is_file() or is_sharded(path)


class HasRootDir(Protocol):
    """The part of Lightning's Trainer that `RunDir.of` needs."""

    @property
    def default_root_dir(self) -> str: ...


@dataclass(frozen=True)
class RunDir:
    """The folder that `--run_dir` names, which may not exist yet."""

    path: Path

    @classmethod
    def of(cls, trainer: HasRootDir) -> RunDir:
        """Return the folder of a trainer's run."""
        return cls(Path(trainer.default_root_dir))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """Every setting of the run. A folder holds a run if it has this file."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """Held-out scores of the base, the tuned and the best weights, written when training ends."""
        return self.path / "summary.json"

    @property
    def progress(self) -> Path:
        """Progress of `fit`, updated while it runs."""
        return self.path / "progress.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    # ------------------------------------------------------------------------------------------------- checkpoints

    @property
    def checkpoints(self) -> Path:
        """The default of `checkpoint.dirpath`."""
        return self.path / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint by its name: `last`, `best` or `step=N`."""
        return self.checkpoints / f"{name}.ckpt"

    @property
    def export(self) -> Path:
        """The Hugging Face folder of the last step."""
        return self.path / "export"

    def export_of(self, checkpoint: str) -> Path:
        """Return the Hugging Face folder of a checkpoint that is not the last one, by its name."""
        return self.path / f"export-{checkpoint}"

    @property
    def vllm(self) -> Path:
        """Weights for vLLM servers to load."""
        return self.path / "vllm"

    @property
    def vllm_log(self) -> Path:
        """Output of a vLLM server on the trainer's GPU."""
        return self.path / "vllm.log"

    # ---------------------------------------------------------------------------------------------------- training

    @property
    def logs(self) -> Path:
        """The folder of CSVLogger."""
        return self.path / "logs"

    def metrics_files(self) -> list[Path]:
        """Return the metrics.csv of every version of every logger, in arbitrary order."""
        return [*self.path.glob("*/version_*/metrics.csv")]

    @property
    def wandb(self) -> Path:
        """The folder of WandbLogger."""
        return self.path / "wandb"

    @property
    def wandb_run_id(self) -> Path:
        return self.wandb / "run_id"

    @property
    def transcripts(self) -> Path:
        """Completions of training with their rewards and advantages."""
        return self.path / "transcripts.jsonl"

    @property
    def pictures(self) -> Path:
        """Small copies of the images that transcripts and held-out answers name."""
        return self.path / "pictures"

    @property
    def warnings(self) -> Path:
        """Warnings of the guards."""
        return self.path / "warnings.jsonl"

    def faults(self, rank: int | None) -> Path:
        """Return the path for completions of skipped steps. `rank` is None if the run has a single rank."""
        return self.path / ("faults.jsonl" if rank is None else f"faults-{rank}.jsonl")

    def faults_files(self) -> list[Path]:
        """Return the existing files of all ranks with completions of skipped steps."""
        return sorted(self.path.glob("faults*.jsonl"))

    # -------------------------------------------------------------------------------------------------------- data

    @property
    def few_shot(self) -> Path:
        """The images chosen for each category."""
        return self.path / "few_shot.json"

    @property
    def bad_records(self) -> Path:
        """Records that were skipped."""
        return self.path / "bad_records.txt"

    @property
    def data_notices(self) -> Path:
        """Assumptions that the run makes about its data."""
        return self.path / "data_notices.json"

    @property
    def doctor(self) -> Path:
        return self.path / "doctor"

    @property
    def success_rates(self) -> Path:
        """Success rates of the training samples, which `filter` writes."""
        return self.path / "success_rates.jsonl"

    def success_rates_of_rank(self, rank: int) -> Path:
        """Return the path for the scores of one rank, until they are merged."""
        return self.path / f"success_rates-{rank}.jsonl"

    def success_rates_files(self) -> list[Path]:
        """Return the existing files of all ranks with scores that are not merged yet."""
        return sorted(self.path.glob("success_rates-*.jsonl"))

    # -------------------------------------------------------------------------------------------------- evaluation

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluation"

    def evaluation(self, stage: str, name: str) -> Path:
        """Return the folder of an evaluation. `stage`: `val` or `test`; `name`: an optimizer step or a checkpoint."""
        return self.evaluations / f"{stage}-{name}"

    def evaluations_by_step(self) -> list[tuple[int, Path]]:
        """Return the existing evaluations during training as (optimizer step, folder), ordered by step."""
        found = []
        for folder in self.evaluations.glob("val-*"):
            step = folder.name.removeprefix("val-")
            if step.isascii() and step.isdecimal() and len(step) < 16 and folder.is_dir():
                found.append((int(step), folder))
        return sorted(found)

    def answer_log(self, checkpoint: str) -> Path:
        """Return the folder for the answers of an unfinished test of a checkpoint."""
        return self.evaluations / f"answers-{checkpoint}"

    def comparison(self, name: str) -> Path:
        """Return the path for the comparison that `test --against` writes; `name` has the names of both models."""
        return self.evaluations / f"comparison-{name}.json"

    # -------------------------------------------------------------------------------------------------- prediction

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    def predictions_of_rank(self, rank: int) -> Path:
        """Return the path for the predictions of one rank, until they are merged."""
        return self.path / f"predictions-{rank}.jsonl"

    @property
    def predictions_coco(self) -> Path:
        """Predicted boxes as a COCO results file."""
        return self.path / "predictions_coco.json"

    @property
    def predictions_images(self) -> Path:
        """The images and categories that `predictions_coco` refers to."""
        return self.path / "predictions_images.json"

    @property
    def predictions_left_out(self) -> Path:
        """Images that could not be read."""
        return self.path / "predictions_left_out.txt"

    @property
    def predictions_drawn(self) -> Path:
        return self.path / "predictions"
