"""The report of a run as one HTML file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vrft.errors import ConfigurationError
from vrft.report import held_out, rollouts, run_facts
from vrft.report.metrics import read_metrics, thin
from vrft.report.page import read_pictures, render
from vrft.run_dir import RunDir
from vrft.utils.files import atomic_write


def write_report(folder: Path) -> Path:
    """Write `report.html` in a run's folder and return its path.

    Raises:
        ConfigurationError: the folder does not exist or holds no run.
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
    """Read everything that the page shows as plain values. Unreadable parts are left out and listed in `problems`."""
    config, settings = run_facts.read_config(run, problems)
    series = read_metrics(run, problems)
    summary = run_facts.read_summary(run, problems)
    done = max((points[-1][0] for points in series.values()), default=0)
    all_groups = rollouts.read_groups(run, problems)
    groups = rollouts.thin(all_groups)
    evaluations = [folder for _, folder in run.evaluations_by_step()]
    return {
        "name": run.path.resolve().name,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "facts": settings,
        "ended": bool(summary) and done <= (run_facts.number(summary, "rollouts") or 0),
        "seconds": run_facts.number(summary, "seconds"),
        "scores": run_facts.read_scores(summary, series),
        "rollouts": done,
        "series": {name: thin(points) for name, points in series.items()},
        "groups": [rollouts.as_values(group) for group in groups],
        "all_groups": len(all_groups),
        "pairs": rollouts.pairs(groups),
        "held_out": held_out.read_pairs(evaluations, problems),
        "categories": run_facts.read_categories(evaluations, problems),
        "calibration": run_facts.read_calibration(evaluations, problems),
        "warnings": run_facts.read_warnings(run, problems),
        "config": config,
        "problems": problems,
    }


def _names(data: dict[str, Any]) -> list[str | None]:
    """Return the names of the pictures that the page shows."""
    return [group["image"] for group in data["groups"]] + [pair["image"] for pair in data["held_out"]["answers"]]
