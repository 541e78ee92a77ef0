"""Finished trials as tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot.intervals import difference, over_seeds
from fewshot.report import head, line, shown, signed
from scipy.stats import ttest_rel

Row = dict[str, Any]


def summary(rows: Sequence[Row], scores: Sequence[str]) -> list[str]:
    """Return a table for each number of shots: means over seeds, and paired differences from the first method.

    Differences have the p-value of a paired t-test, for a correction by the number of comparisons.
    """
    lines = []
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for shots in dict.fromkeys(row["shots"] for row in rows):
        found = {
            name: sorted((r for r in rows if (r["method"], r["shots"]) == (name, shots)), key=lambda row: row["seed"])
            for name in methods
        }
        lines += [
            "",
            f"{shots} shots",
            "",
            *head(["method", "steps", *scores, *(f"{s} − {methods[0]}" for s in scores)]),
        ]
        for name, trials in found.items():
            cells = [name, f"{over_seeds([row['steps'] for row in trials]).mean:.0f}"]
            cells += [shown(over_seeds([row[score] for row in trials])) for score in scores]
            if name != methods[0]:
                cells += [apart(found[methods[0]], trials, score) for score in scores]
            lines.append(line(cells))
    return lines


def apart(first: Sequence[Row], trials: Sequence[Row], score: str) -> str:
    before, after = ([row[score] for row in found] for found in (first, trials))
    if len(before) == 1:
        return f"{after[0] - before[0]:+.3f}"
    return f"{signed(difference(before, after))}, p = {ttest_rel(after, before).pvalue:.3f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write all trials, with the looks at the fold separated by spaces."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "looks": " ".join(f"{look:g}" for look in row["looks"])})
