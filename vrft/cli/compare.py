"""`python -m vrft test --against`: compare a checkpoint with another checkpoint or detector on the same images."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from vrft.data import RecordData
from vrft.data.datamodule import data_of
from vrft.errors import ConfigurationError
from vrft.evaluators import CocoEvaluator, Evaluator
from vrft.evaluators.base import evaluators_of
from vrft.evaluators.intervals import Comparison, as_json, compare, table
from vrft.run_dir import RunDir
from vrft.training.trainer import VisionTrainer
from vrft.utils.display import counted
from vrft.utils.files import write_json

RESULTS = ".json"
"""Suffix of results files, by which `--against` distinguishes them from checkpoints."""

MAX_NAME = 60
"""Maximum number of characters of a model's name in the name of a comparison's file."""


def compare_checkpoints(
    trainer: VisionTrainer,
    test: Callable[..., Any],
    ckpt_path: str | None,
    against: str,
    *,
    resamples: int,
    seed: int,
    verbose: bool,
) -> Any:
    """Test two checkpoints, print a table with intervals and write it to `evaluation/comparison-….json`.

    Args:
        trainer: trainer with the evaluators.
        test: `Trainer.test` with everything but `ckpt_path` and `verbose`.
        ckpt_path: the checkpoint; None: the base.
        against: the checkpoint to compare with, `base`, or a results file.
        resamples: bootstrap samples per interval.
        seed: seed of the bootstrap.
        verbose: print the scores of `ckpt_path`.

    Returns:
        The scores that `test` returns for `ckpt_path`.
    """
    evaluators = evaluators_of(trainer)
    if against.endswith(RESULTS):
        return compare_with_results(trainer, test, ckpt_path, Path(against), resamples=resamples, seed=seed)
    test(ckpt_path=None if against == "base" else against, verbose=False)
    before = [_ordered_rows(evaluator) for evaluator in evaluators]
    scores = test(ckpt_path=ckpt_path, verbose=verbose)
    if trainer.is_global_zero:
        comparisons: dict[str, Comparison] = {}
        for evaluator, rows in zip(evaluators, before, strict=True):
            comparisons |= compare(evaluator, rows, _ordered_rows(evaluator), resamples, seed)
        show(trainer, comparisons, _names(against, ckpt_path))
    return scores


def compare_with_results(
    trainer: VisionTrainer,
    test: Callable[..., Any],
    ckpt_path: str | None,
    against: Path,
    *,
    resamples: int,
    seed: int,
) -> Any:
    """Compare a checkpoint with the boxes of a results file, on the images with questions.

    See `compare_checkpoints`.

    Raises:
        ConfigurationError: no evaluator compares boxes.
    """
    evaluators = [evaluator for evaluator in evaluators_of(trainer) if isinstance(evaluator, CocoEvaluator)]
    if not evaluators:
        raise ConfigurationError(f"against: {against}: comparing boxes needs a CocoEvaluator or LvisEvaluator")
    for evaluator in evaluators:
        evaluator.against = against
    scores = test(ckpt_path=ckpt_path, verbose=False)
    if trainer.is_global_zero:
        comparisons: dict[str, Comparison] = {}
        for evaluator in evaluators:
            found = compare(evaluator, evaluator.rows_against, _ordered_rows(evaluator), resamples, seed)
            comparisons |= {name: scores for name, scores in found.items() if name.startswith(f"{evaluator.format}/")}
        show(trainer, comparisons, _names(str(against), ckpt_path))
    return scores


def show(trainer: VisionTrainer, comparisons: dict[str, Comparison], names: tuple[str, str]) -> None:
    """Print a comparison and write it to the run's folder."""
    data = data_of(trainer)
    split = "test" if isinstance(data, RecordData) and data.tested_split() is not None else "held-out"
    images = max((score.compared for score in comparisons.values()), default=0)
    content = as_json(comparisons, names)
    path = free_path(RunDir.of(trainer), "-".join(Path(name).stem[:MAX_NAME] for name in names), content)
    write_json(path, content)
    Console(width=110).print(table(comparisons, names, counted(images, f"{split} image")))
    print(f"comparison: {path}")


def free_path(run: RunDir, name: str, content: dict[str, Any]) -> Path:
    """Return the first path for a comparison that is free, or has the same content."""
    paths = (run.comparison(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    text = json.dumps(content) + "\n"
    return next(path for path in paths if not path.exists() or path.read_text(encoding="utf-8") == text)


def _ordered_rows(evaluator: Evaluator[Any]) -> list[Any]:
    """Return the rows of the held-out images in the order of their indices."""
    return [row for _, row in sorted(evaluator.rows.items())]


def _names(against: str, ckpt_path: str | None) -> tuple[str, str]:
    """Return short names of both models, or their paths if the short names are equal."""
    names = (Path(against).stem, Path(ckpt_path).stem if ckpt_path else "base")
    return (against, str(ckpt_path)) if names[0] == names[1] else names
