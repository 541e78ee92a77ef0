"""The report of a run: one HTML file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vrft.errors import ConfigurationError
from vrft.report import facts, held_out, rollouts
from vrft.report.metrics import read_metrics, thin
from vrft.report.page import read_pictures, render
from vrft.run_dir import RunDir
from vrft.utils.files import PARTIAL


def write_report(folder: Path) -> Path:
    """Write `report.html` in a run's folder; returns its path.

    Raises:
        ConfigurationError: there is no run.
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
    path = run.report
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_text(render(data, pictures), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_run(run: RunDir, problems: list[str]) -> dict[str, Any]:
    """All that the page shows, as plain values; what can't be read is left out and named in `problems`."""
    config, settings = facts.read_config(run, problems)
    series = read_metrics(run, problems)
    summary = facts.read_summary(run, problems)
    done = max((points[-1][0] for points in series.values()), default=0)
    everything = rollouts.read_groups(run, problems)
    groups = rollouts.thin(everything)
    evaluations = [folder for _, folder in run.evaluations_by_step()]
    return {
        "name": run.path.resolve().name,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "facts": settings,
        "ended": bool(summary) and done <= (facts.number(summary, "rollouts") or 0),
        "seconds": facts.number(summary, "seconds"),
        "scores": facts.read_scores(summary, series),
        "rollouts": done,
        "series": {name: thin(points) for name, points in series.items()},
        "groups": [rollouts.as_values(group) for group in groups],
        "all_groups": len(everything),
        "pairs": rollouts.pairs(groups),
        "held_out": held_out.read_pairs(evaluations, problems),
        "categories": facts.read_categories(evaluations, problems),
        "warnings": facts.read_warnings(run, problems),
        "config": config,
        "problems": problems,
    }


def _names(data: dict[str, Any]) -> list[str | None]:
    """The pictures that are shown."""
    return [group["image"] for group in data["groups"]] + [pair["image"] for pair in data["held_out"]["answers"]]
