"""Read the config, the scores, the scores per category and the warnings of a run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.report.lines import Fault, Warned, read_lines
from vrft.report.metrics import Series
from vrft.run_dir import EVALUATOR_WARNINGS, SCORES_FILE, RunDir
from vrft.utils.display import counted
from vrft.utils.redact import redact
from vrft.utils.regular_files import read_regular
from vrft.utils.yaml_text import decode_yaml

MAX_FILE_BYTES = 1_000_000

MAX_WARNINGS = 200
"""Maximum number of lines per kind of warning."""

HEADLINE_SETTINGS = {
    "method": ("model", "class_path"),
    "policy": ("model", "init_args", "policy", "init_args", "checkpoint"),
    "task": ("task", "class_path"),
    "data": ("data", "class_path"),
    "shots": ("data", "init_args", "shots"),
    "generations": ("model", "init_args", "num_generations"),
    "prompts a step": ("data", "init_args", "batch_size"),
    "steps": ("trainer", "max_steps"),
    "learning rate": ("model", "init_args", "optimizer", "init_args", "lr"),
    "beta": ("model", "init_args", "beta"),
    "seed": ("seed_everything",),
}
"""Titles of the settings at the top of the page, with their paths in the config."""

SCORES = {
    "mAP": ("coco/AP", "lvis/AP"),
    "AP50": ("coco/AP50", "lvis/AP50"),
    "mAP by stated confidence": ("coco/AP_answer", "lvis/AP_answer"),
    "mAP by token probability": ("coco/AP_logprob", "lvis/AP_logprob"),
    "calibration error": ("coco/ECE", "lvis/ECE"),
    "gIoU": ("gIoU",),
    "mIoU": ("mIoU",),
    "Acc@0.5": ("Acc@0.5",),
    "accuracy": ("accuracy",),
    "class accuracy": ("class_accuracy",),
    "precision": ("presence/precision",),
    "recall": ("presence/recall",),
    "valid": ("valid",),
    "reward": ("reward",),
}
"""Titles of held-out scores in summaries, cards and reports, with the names of the metrics `val/…`."""

LOWER_IS_BETTER = ("calibration error",)
"""Titles of the scores that should fall."""

CALIBRATION_TABLES = ("coco_calibration.csv", "lvis_calibration.csv")

TABLES = {"coco_per_category.csv": "AP", "lvis_per_category.csv": "AP", "accuracy_per_class.csv": "accuracy"}


def read_text(path: Path, problems: list[str]) -> str:
    """Read a small text file. Return "" if it does not exist or can't be read."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            problems.append(f"{path.name} is larger than {MAX_FILE_BYTES} bytes and left out")
            return ""
        return read_regular(path).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problems.append(f"{path.name} can't be read: {error.strerror}")
        return ""


def read_config(run: RunDir, problems: list[str]) -> tuple[str, dict[str, str]]:
    """Return the config as text without secrets, and the settings at the top of the page."""
    text = redact(read_text(run.config, problems))
    try:
        config = decode_yaml(text, as_text=True)
    except ValueError:
        problems.append("config.yaml is not YAML")
        return text, {}
    facts = {}
    for name, path in HEADLINE_SETTINGS.items():
        value: Any = config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value not in ("", "null"):
            facts[name] = value.removeprefix("vrft.")[:200]
    return text, facts


def read_scores(summary: dict[str, Any], series: Series) -> list[dict[str, Any]]:
    """Return the held-out scores of the base and of the last evaluation, from the log, or else from the summary."""
    found = []
    for key, names in SCORES.items():
        points = next((series[f"val/{name}"] for name in names if f"val/{name}" in series), [])
        base, tuned = (number(summary.get(part), key) for part in ("base", "tuned"))
        if points and points[0][0] == 0:
            base = points[0][1]
        if points and points[-1][0] > 0:
            tuned = points[-1][1]
        if base is not None or tuned is not None:
            found.append({"name": key, "base": base, "tuned": tuned, "falls": key in LOWER_IS_BETTER})
    return found


def read_summary(run: RunDir, problems: list[str]) -> dict[str, Any]:
    """Read the summary of a finished run. Return an empty dict if the run has not finished."""
    text = read_text(run.summary, problems)
    try:
        summary = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        problems.append("summary.json can't be read")
        return {}
    return summary


def read_best_step(summary: dict[str, Any]) -> int | None:
    """Return the step of the best checkpoint of a finished run, or None if the run kept none."""
    step = number(summary.get("best"), "step")
    return None if step is None else int(step)


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read the scores of an evaluation. Return an empty dict if its folder has no readable scores."""
    text = read_text(folder / SCORES_FILE, [])
    try:
        scores = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return scores if isinstance(scores, dict) else {}


def number(scores: Any, key: str) -> float | None:
    """Return the finite number under a key, or None."""
    value = scores.get(key) if isinstance(scores, dict) else None
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


def read_categories(folders: list[Path], problems: list[str]) -> dict[str, Any] | None:
    """Return the scores per category of the first and the last evaluation with such scores, or None."""
    for name, score in TABLES.items():
        tables = [path for folder in folders if (path := folder / name).exists()]
        if tables:
            last, counts = _table(tables[-1], problems)
            first = _table(tables[0], problems)[0] if len(tables) > 1 else {}
            rows = [
                {"name": name, "base": first.get(name), "tuned": value, "images": counts.get(name)}
                for name, value in last.items()
            ]
            return {"score": score, "rows": rows}
    return None


def read_calibration(folders: list[Path], problems: list[str]) -> list[dict[str, Any]]:
    """Return the non-empty bins of stated confidences of each evaluator's first and last evaluation."""
    existing = [[path for folder in folders if (path := folder / name).exists()] for name in CALIBRATION_TABLES]
    tables = [paths for paths in existing if paths]
    found = []
    for path in (path for paths in tables for path in paths[:1] + paths[1:][-1:]):
        evaluator = f", {path.name.partition('_')[0]}" if len(tables) > 1 else ""
        found.append({"evaluation": f"{path.parent.name}{evaluator}", "bins": [*_bins(path, problems)]})
    return found


def _bins(path: Path, problems: list[str]) -> Iterator[dict[str, float]]:
    text = read_text(path, problems)
    try:
        for row in csv.DictReader(text.splitlines()):
            found = {name: float(row[name]) for name in ("confidence", "accuracy", "boxes")}
            if not (0 <= found["confidence"] <= 1 and 0 <= found["accuracy"] <= 1 and 0 <= found["boxes"] < 2**53):
                raise ValueError
            if found["boxes"]:
                yield found
    except (csv.Error, ValueError, KeyError, TypeError):
        problems.append(f"{path.parent.name}/{path.name} can't be read to its end")


def _table(path: Path, problems: list[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Return two dicts keyed by the first column: the last column, and the column `images` if there is one."""
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    try:
        header, *rows = [*csv.reader(read_text(path, problems).splitlines())] or [[]]
        for row in rows:
            value = float(row[-1])
            if not math.isfinite(value):
                raise ValueError
            scores[row[0]] = value
            if "images" in header:
                counts[row[0]] = min(int(row[header.index("images")][:15]), 2**53)
    except (csv.Error, ValueError, IndexError):
        problems.append(f"{path.parent.name}/{path.name} can't be read to its end")
    return scores, counts


def read_list_of_texts(path: Path, problems: list[str]) -> list[str]:
    """Read a JSON list of strings. Report any other content in `problems`."""
    text = read_text(path, problems)
    try:
        content = json.loads(text) if text else []
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
        problems.append(f"{path.parent.name}/{path.name} can't be read")
        return []
    return content


def read_evaluators_warnings(run: RunDir, problems: list[str]) -> list[dict[str, Any]]:
    """Return the warnings of evaluators, each once, with the steps of the evaluations."""
    steps: dict[str, list[int]] = {}
    for step, folder in run.evaluations_by_step():
        for path in sorted(folder.glob(EVALUATOR_WARNINGS.format("*"))):
            for text in read_list_of_texts(path, problems)[:20]:
                steps.setdefault(text[:500], []).append(step)
    found = []
    for text, at in steps.items():
        first, *others = dict.fromkeys(at)
        kind = f"evaluations at steps {first} to {others[-1]}" if others else f"evaluation at step {first}"
        found.append({"kind": kind, "rollout": None, "text": text})
    return found[:MAX_WARNINGS]


def read_warnings(run: RunDir, problems: list[str]) -> list[dict[str, Any]]:
    """Return the warnings of guards, evaluators and data, the completions of skipped steps, and skipped records."""
    found = [
        {"kind": warned.guard, "rollout": warned.rollout, "text": warned.message}
        for warned in read_lines(run.warnings, Warned, problems)
    ]
    found += read_evaluators_warnings(run, problems)
    notices = read_list_of_texts(run.data_notices, problems)[:MAX_WARNINGS]
    found += [{"kind": "data", "rollout": None, "text": text[:500]} for text in notices]
    left_out = read_text(run.bad_records, problems).splitlines()
    found += [{"kind": "bad record", "rollout": None, "text": line[:500]} for line in left_out[:MAX_WARNINGS]]
    faults = [fault for path in run.faults_files() for fault in read_lines(path, Fault, problems)]
    found += [
        {
            "kind": "skipped step",
            "rollout": fault.rollout,
            "text": f"sample {fault.sample} ({fault.query}): {fault.completion[:500]}",
        }
        for fault in faults[:MAX_WARNINGS]
    ]
    for name, rows in (("bad record", left_out), ("completion", faults)):
        if len(rows) > MAX_WARNINGS:
            found.append({"kind": "more", "rollout": None, "text": counted(len(rows) - MAX_WARNINGS, f"more {name}")})
    return found
