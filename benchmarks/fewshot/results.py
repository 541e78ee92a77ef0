"""Access to the rows of a study."""

from __future__ import annotations

from collections.abc import Sequence

from fewshot.study import Study
from fewshot.trials import Row


class Results:
    """The rows of a study, selected by test, method and shots."""

    def __init__(self, study: Study, rows: Sequence[Row]) -> None:
        self.study, self.rows = study, rows
        self.tests = list(study.tests)
        self.methods = list(study.methods)
        self.trained = [row for row in rows if row["method"] != "base"]
        self.shots = sorted({row["shots"] for row in self.trained})

    def base(self, test: str, metric: str) -> float:
        return next(row[metric] for row in self.rows if row["test"] == test and row["method"] == "base")

    def values(self, test: str, method: str, shots: int, metric: str) -> list[float]:
        """Return the value of a metric for each seed, in order."""
        found = [row for row in self.rows if (row["test"], row["method"], row["shots"]) == (test, method, shots)]
        return [row[metric] for row in sorted(found, key=lambda row: row["seed"])]

    def over_shots(self, test: str, method: str, metric: str) -> list[float]:
        """Return the mean over all numbers of shots, for each seed."""
        columns = zip(*(self.values(test, method, shots, metric) for shots in self.shots), strict=True)
        return [sum(column) / len(column) for column in columns]


def count(shots: int) -> str:
    return str(shots) if shots else "all"
