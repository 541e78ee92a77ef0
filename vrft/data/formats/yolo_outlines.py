"""Classify YOLO labels of more than five numbers as outlines, oriented boxes or poses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vrft.data.files import read_bytes

MIN_POSES = 3
"""Minimum number of labels to recognise poses: a few outlines may look like poses by chance."""

MARGIN = 0.05
"""Maximum distance of a keypoint from its box, as a fraction of the image."""

MAX_VISIBILITY = 2
"""Maximum of a keypoint's third value: 0, 1 or 2, or a confidence in saved predictions."""

APPENDED = range(3)
"""Possible numbers of values after the keypoints: a saved prediction may have a confidence and a track id."""


def long_labels(files: Iterable[Path]) -> Iterator[list[float]]:
    """Yield the numbers after the class of each label with more than five numbers. Invalid lines are skipped."""
    for file in files:
        for line in read_bytes(file).splitlines() if os.path.isfile(file) else ():
            words = line.split()
            if len(words) > 6:
                try:
                    yield [float(word) for word in words[1:]]
                except ValueError:
                    continue  # `read_labels` reports the line


def are_outlines(labels: Iterable[Sequence[float]]) -> bool:
    """Return whether a label has three or more than four points, so that labels of four points are outlines too."""
    return any(len(numbers) == 6 or len(numbers) > 8 for numbers in labels)


def are_poses(labels: Sequence[Sequence[float]]) -> bool:
    """Return whether all labels look like a box and its keypoints, the same number in each label.

    >>> are_poses([[0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.6, 0.6, 0.5, 0.6]] * 3)
    True
    >>> are_poses([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.5, 0.9, 0.1, 0.5]] * 3)
    False
    """
    counts = {len(numbers) for numbers in labels}
    return len(labels) >= MIN_POSES and len(counts) == 1 and min(counts) > 8 and all(map(_is_pose, labels))


def _is_pose(numbers: Sequence[float]) -> bool:
    x, y, w, h = numbers[:4]
    rests = [numbers[4 : len(numbers) - more] for more in APPENDED]
    for size, rest in ((size, rest) for size in (2, 3) for rest in rests if len(rest) % size == 0):
        keypoints = [rest[i : i + size] for i in range(0, len(rest), size)]
        if size == 3 and not all(0 <= point[2] <= MAX_VISIBILITY for point in keypoints):
            continue
        visible = [point for point in keypoints if any(point[:2])]
        if all(abs(px - x) <= w / 2 + MARGIN and abs(py - y) <= h / 2 + MARGIN for px, py, *_ in visible):
            return True
    return False
