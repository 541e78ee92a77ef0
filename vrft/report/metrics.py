"""The numbers of a run, out of the CSV files that its logger wrote."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vrft.run_dir import RunDir

MOST = 1500
"""Points of a curve; of longer runs, neighbours are averaged."""

LARGEST = 1e100
"""Values beyond it, infinities and NaN are gaps."""

TRAINED = "train/"


class Point(NamedTuple):
    """A value after so many rollouts."""

    rollouts: int
    name: str
    value: float


Series = dict[str, list[tuple[int, float]]]
"""Rollouts and value, by name."""


def read_metrics(run: RunDir, problems: list[str]) -> Series:
    """Every metric over rollouts. Where a continued run did some again, the later ones count."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(run.metrics_files(), key=_version):
        points = list(_read(path, problems))
        trained = [point.rollouts for point in points if point.name.startswith(TRAINED)]
        if not trained and found:  # an evaluation of some checkpoint counts as step 0, that of a run's end does not
            points = [point for point in points if point.rollouts > 0]
        if trained:
            for values in found.values():
                for rollouts in [known for known in values if known >= min(trained)]:
                    del values[rollouts]
        for point in points:
            found[point.name][point.rollouts] = point.value
    return {name: sorted(values.items()) for name, values in sorted(found.items()) if values}


def _version(path: Path) -> tuple[int, str]:
    number = path.parent.name.removeprefix("version_")
    return (int(number) if number.isascii() and number.isdecimal() and len(number) < 16 else 0, str(path))


def _read(path: Path, problems: list[str]) -> Iterator[Point]:
    """The points of a file.

    Lightning counts the steps before a row. An evaluation within training has the step of the rollout that it follows;
    those before and after training come at a step that no rollout has had.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        problems.append(f"{path.parent.name}/{path.name} can't be read: {error.strerror}")
        return
    whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
    trained, bad = -1, 0
    rows = csv.DictReader(whole.splitlines())
    try:
        for row in rows:
            step = _number(row.get("step"))
            if step is None or step != int(step) or not 0 <= step < 2**53:
                bad += 1
                continue
            values = {name: _number(text) for name, text in row.items() if isinstance(name, str) and name.count("/")}
            known = {name: value for name, value in values.items() if value is not None}
            if any(name.startswith(TRAINED) for name in known):
                trained = int(step)
            rollouts = int(step) + (trained == step)
            yield from (Point(rollouts, name, value) for name, value in known.items())
    except csv.Error:
        bad += 1
    if bad:
        problems.append(f"{path.parent.name}/{path.name}: {bad} line{'s' if bad > 1 else ''} can't be read")


def _number(text: object) -> float | None:
    """What a cell says, if that is a number to draw."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < LARGEST else None


def thin(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `MOST` points, each the mean of equally many neighbours but for the last."""
    each = max(1, -(-len(points) // MOST))
    parts = [points[start : start + each] for start in range(0, len(points), each)]
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in parts]


def _mean(values: Sequence[float]) -> float:
    """In six digits: more are not seen."""
    return float(f"{math.fsum(value / len(values) for value in values):.6g}")
