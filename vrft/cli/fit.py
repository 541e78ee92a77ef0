"""`python -m vrft fit`: the steps after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.summary import Summary
from vrft.cli.export import usage_program
from vrft.data import VisionData
from vrft.report import write_report
from vrft.report.model_card import write_card
from vrft.report.run_facts import SCORES
from vrft.run_dir import RunDir
from vrft.training.lightning_internals import shift_logged_step
from vrft.training.module import VisionModule
from vrft.training.trainer import VisionTrainer
from vrft.utils.display import decimals, shell_word, visible
from vrft.utils.redact import redact


def finish_run(trainer: VisionTrainer, model: VisionModule, data: VisionData, last_checkpoint: Path) -> None:
    """Evaluate the last step, then write the summary, the model card and the report."""
    summary = next(callback for callback in trainer.callbacks if isinstance(callback, Summary))
    complete_finished_run(trainer)
    if summary.tuned_step != trainer.global_step:
        trainer.validate(model, data, verbose=False)
    best = RunCheckpoint.of(trainer).best
    if not trainer.is_global_zero:
        return
    run = RunDir.of(trainer)
    if summary.base is not None and summary.tuned:
        print(f"summary: {summary.write(run, best)}")
    program = usage_program(model.task, model.policy, run.export)
    write_card(run.export, run.path, model.task.template, adapter=False, step=trainer.global_step, program=program)
    try_to_report(run)
    print(f"checkpoint: {last_checkpoint}")
    if best is not None:
        print_best(run, best, last_checkpoint, summary.base or {}, falls=RunCheckpoint.of(trainer).mode == "min")


def complete_finished_run(trainer: VisionTrainer) -> None:
    """Count the last step and epoch of a resumed run with nothing left to train, which Lightning does not count."""
    loop = trainer.fit_loop
    if loop.restarting:
        shift_logged_step(trainer, 1)
        loop.epoch_progress.increment_completed()


def try_to_report(run: RunDir) -> None:
    """Write the run's report, or warn that it can't be written."""
    try:
        print(f"report: {write_report(run.path)}")
    except OSError as error:
        rank_zero_warn(f"no report is written: {error}")


def print_best(
    run: RunDir, best: dict[str, Any], last_checkpoint: Path, base: dict[str, float], *, falls: bool
) -> None:
    """Print which checkpoint is the best, and how to export it if it is not the last one.

    Args:
        run: the run.
        best: see `RunCheckpoint.best`.
        last_checkpoint: checkpoint of the last step.
        base: scores of the base, by the titles of `SCORES`.
        falls: whether a lower score is better.
    """
    score, metric = best["score"], best["metric"]
    title = next((title for title, names in SCORES.items() if metric.removeprefix("val/") in names), "")
    before = base.get(title, score)
    places = decimals(score, before)
    print(f"best by {metric}: {best['checkpoint']} ({score:.{max(places, 4)}f})")
    if (before < score) if falls else (before > score):
        print(f"the base scored {'lower' if falls else 'higher'} ({before:.{max(places, 4)}f}) than every checkpoint")
    if not Path(best["checkpoint"]).samefile(last_checkpoint):
        command = f"python -m vrft export {shell_word(str(run))} --ckpt best"
        print(f"export/ holds the last step; to export the best: {command}")


def print_stopped(run: RunDir, reason: str, last_checkpoint: Path) -> None:
    """Print why a run stopped early, and how to resume it."""
    print(f"stopped: {visible(redact(reason))}")
    if last_checkpoint.exists():
        print(f"checkpoint: {last_checkpoint}")
        print(f"to resume: python -m vrft fit --config {shell_word(str(run.config))} --ckpt_path last")
