"""Read the metrics of a run from its CSV files."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vrft.run_dir import RunDir
from vrft.utils.regular_files import read_regular

MAX_POINTS = 1500
"""Maximum number of points per curve; longer curves are averaged over neighbours."""

MAX_VALUE = 1e100
"""Values of larger magnitude, infinities and NaN become gaps."""

TRAIN_PREFIX = "train/"


class Point(NamedTuple):
    """The value of a metric at a number of rollouts."""

    rollouts: int
    name: str
    value: float


Series = dict[str, list[tuple[int, float]]]
"""(Number of rollouts, value) pairs by metric name."""


def read_metrics(run: RunDir, problems: list[str]) -> Series:
    """Read every metric as a function of rollouts. If a resumed run repeated rollouts, keep the later values."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(run.metrics_files(), key=_version):
        points = list(_read(path, problems))
        trained = [point.rollouts for point in points if point.name.startswith(TRAIN_PREFIX)]
        if not trained and found:  # a separate evaluation logs step 0, whatever weights it evaluates
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
    """Yield the points of a file.

    A row's step is the number of steps before it. An evaluation during training has the step of the preceding rollout;
    an evaluation before or after training has a step without a rollout.
    """
    try:
        text = read_regular(path).decode(errors="replace")
    except OSError as error:
        problems.append(f"{path.parent.name}/{path.name} can't be read: {error.strerror}")
        return
    complete = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
    trained, bad = -1, 0
    rows = csv.DictReader(complete.splitlines())
    try:
        for row in rows:
            step = _number(row.get("step"))
            if step is None or step != int(step) or not 0 <= step < 2**53:
                bad += 1
                continue
            values = {name: _number(text) for name, text in row.items() if isinstance(name, str) and name.count("/")}
            known = {name: value for name, value in values.items() if value is not None}
            if any(name.startswith(TRAIN_PREFIX) for name in known):
                trained = int(step)
            rollouts = int(step) + (trained == step)
            yield from (Point(rollouts, name, value) for name, value in known.items())
    except csv.Error:
        bad += 1
    if bad:
        problems.append(f"{path.parent.name}/{path.name}: {bad} line{'s' if bad > 1 else ''} can't be read")


def _number(text: object) -> float | None:
    """Parse a cell as a number. Return None if it can't be plotted."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < MAX_VALUE else None


def thin(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Reduce a curve to at most MAX_POINTS points, each the mean of equally many neighbours except the last."""
    each = max(1, -(-len(points) // MAX_POINTS))
    parts = [points[start : start + each] for start in range(0, len(points), each)]
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in parts]


def _mean(values: Sequence[float]) -> float:
    """Return the mean rounded to six digits; more would be invisible."""
    return float(f"{math.fsum(value / len(values) for value in values):.6g}")
