"""Read, write and summarise finished trials."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot.intervals import difference, over_seeds
from fewshot.report import head, line, shown, signed
from scipy.stats import ttest_rel

Row = dict[str, Any]

KEY = ("study", "budget", "shots", "seed")
"""Columns by which the rows of a file are sorted."""
TEXTS, COUNTS = ("study", "method"), ("shots", "seed", "step", "steps")
"""Columns with text and with integers. Other columns have floats."""
MIN_SEEDS = 3
"""Minimum number of seeds for intervals."""


def summary(rows: Sequence[Row], scores: Sequence[str]) -> list[str]:
    """Return a table with a line for each number of shots and method.

    Cells are means over seeds with intervals, and paired differences from the first method with the p-value of a paired
    t-test, not corrected for the number of comparisons. With one or two seeds, there are only means and differences.
    """
    first, *others = dict.fromkeys(row["method"] for row in rows)
    differences = [f"{score}: difference from {first}" for score in scores] if others else []
    lines = head(["shots", "method", "seeds", "steps", "best step", *scores, *differences])
    for shots in dict.fromkeys(row["shots"] for row in rows):
        found = {
            name: sorted((r for r in rows if (r["method"], r["shots"]) == (name, shots)), key=lambda row: row["seed"])
            for name in (first, *others)
        }
        for name, trials in found.items():
            cells = [str(shots), name, str(len(trials))]
            cells += [f"{over_seeds([row[count] for row in trials]).mean:.0f}" for count in ("steps", "step")]
            cells += [mean([row[score] for row in trials]) for score in scores]
            if others:
                cells += ["" if name == first else apart(found[first], trials, score) for score in scores]
            lines.append(line(cells))
    return lines


def mean(values: Sequence[float]) -> str:
    found = over_seeds(values)
    return shown(found) if len(values) >= MIN_SEEDS else f"{found.mean:.3f}"


def apart(first: Sequence[Row], trials: Sequence[Row], score: str) -> str:
    before, after = ([row[score] for row in found] for found in (first, trials))
    if len(before) < MIN_SEEDS:
        return ", ".join(f"{b - a:+.3f}" for a, b in zip(before, after, strict=True))
    return f"{signed(difference(before, after))}, p = {ttest_rel(after, before).pvalue:.3f}"


def read_rows(path: Path) -> list[Row]:
    """Return the trials in a file, or an empty list if it does not exist. Empty cells are left out of the rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: value(key, cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def value(key: str, cell: str) -> Any:
    if key in TEXTS:
        return cell
    if key == "evaluations":
        return [float(score) for score in cell.split()]
    return int(cell) if key in COUNTS else float(cell)


def add_row(row: Row, path: Path) -> None:
    """Add a trial to a file, to which other processes may have added trials."""
    rows = sorted([*read_rows(path), row], key=lambda row: [row[key] for key in KEY])
    columns = sorted({key: None for row in rows for key in row}, key=lambda column: column == "evaluations")  # last
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for entry in rows:
            writer.writerow({key: as_cell(entry[key]) for key in entry})


def as_cell(value: Any) -> Any:
    return " ".join(f"{score:g}" for score in value) if isinstance(value, list) else value
