"""Write the report of a run as one HTML file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vrft.errors import ConfigurationError
from vrft.report import held_out, rollouts, run_facts
from vrft.report.intervals import read_resampled, resampled_rewards, with_best, with_intervals
from vrft.report.metrics import Series, read_metrics, thin
from vrft.report.page import read_pictures, render
from vrft.report.progress import Progress, describe, read_progress, resume_command
from vrft.report.scaling import read_scaling
from vrft.report.texts import Prompts, limit
from vrft.run_dir import RunDir
from vrft.utils.files import atomic_write


def write_report(folder: Path) -> Path:
    """Write `report.html` in a run's folder and return its path.

    Raises:
        ConfigurationError: the folder does not exist or does not contain a run.
        OSError: the file can't be written.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"report: no such folder: {folder}")
    run = RunDir(folder)
    if not any(path.exists() for path in (run.config, run.summary, run.transcripts, run.logs, run.evaluations)):
        raise ConfigurationError(f"report: {run} holds no run; expected the folder that `fit` wrote to, e.g. runs/NAME")
    problems: list[str] = []
    data = read_run(run, problems)
    pictures = read_pictures(run.pictures, _names(data), problems)
    with atomic_write(run.report) as partial:
        partial.write_text(render(data, pictures), encoding="utf-8")
    return run.report


def read_run(run: RunDir, problems: list[str]) -> dict[str, Any]:
    """Return the data of the page as plain values. Leave out unreadable parts and list them in `problems`."""
    config, settings = run_facts.read_config(run, problems)
    series = read_metrics(run, problems)
    summary = run_facts.read_summary(run, problems)
    done = max((points[-1][0] for points in series.values()), default=0)
    all_groups = rollouts.read_groups(run, problems)
    groups = rollouts.thin(all_groups)
    prompts, most = Prompts(), limit(sum(len(group.completions) for group in groups))
    evaluations = [folder for _, folder in run.evaluations_by_step()]
    first, last = held_out.read_first_and_last(evaluations, problems)
    progress = read_progress(run, problems)
    ended = has_ended(run, summary, done, progress)
    best_step = run_facts.read_best_step(summary) if ended or progress is None else progress.best_step
    return {
        "name": run.path.resolve().name,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "facts": settings,
        "ended": ended,
        "state": describe(progress, ended, time.time()) | {"resume": None if ended else resume_command(run)},
        "seconds": run_facts.number(summary, "seconds") or (progress and progress.seconds),
        "scores": read_scores(run, summary, series, first, last, best_step, problems),
        "best_step": best_step,
        "rollouts": done,
        "series": {name: thin(points) for name, points in series.items()},
        "groups": [rollouts.as_values(group, prompts, most) for group in groups],
        "all_groups": len(all_groups),
        "pairs": rollouts.pairs(groups),
        "held_out": held_out.pairs(first, last, prompts),
        "prompts": prompts.texts,
        "categories": run_facts.read_categories(evaluations, problems),
        "calibration": run_facts.read_calibration(evaluations, problems),
        "scaling": read_scaling(run, problems),
        "warnings": run_facts.read_warnings(run, problems),
        "config": config,
        "problems": problems,
    }


def has_ended(run: RunDir, summary: dict[str, Any], rollouts: int, progress: Progress | None) -> bool:
    """Return whether a run has finished and was not resumed since. `rollouts`: number of rollouts in the metrics."""
    if not summary or rollouts > (run_facts.number(summary, "rollouts") or 0):
        return False
    return progress is None or progress.written <= run.summary.stat().st_mtime + 1


def read_scores(
    run: RunDir,
    summary: dict[str, Any],
    series: Series,
    first: held_out.Answers | None,
    last: held_out.Answers,
    best_step: int | None,
    problems: list[str],
) -> list[dict[str, Any]]:
    """Return the held-out scores of the base, the last and the best evaluation, with intervals where known.

    Args:
        run: the run.
        summary: content of its summary.
        series: its metrics.
        first: answers of the first evaluation; None if there is only one evaluation.
        last: answers of the last evaluation.
        best_step: step of the best checkpoint, if the run keeps one.
        problems: receives messages about unreadable files.
    """
    scores = run_facts.read_scores(summary, series)
    evaluations = run.evaluations_by_step()
    base, tuned = {}, {}
    if evaluations and evaluations[0][0] == 0:
        base = read_resampled(evaluations[0][1], problems)
        rewards = resampled_rewards(*([last] if first is None else [first, last]))
        base |= {"reward": rewards[0]} if rewards else {}
        if len(evaluations) > 1:
            tuned = read_resampled(evaluations[-1][1], problems)
            tuned |= {"reward": rewards[-1]} if rewards else {}
    scores = with_intervals(scores, base, tuned)
    return scores if best_step is None else with_best(scores, run.evaluation("val", str(best_step)), problems)


def _names(data: dict[str, Any]) -> list[str | None]:
    """Return the names of the pictures that the page shows."""
    subjects = [*data["groups"], *data["held_out"]["answers"]]
    return [name for subject in subjects for name in (subject["image"], *subject["images"])]
