"""The default sum of rewards for any numbers of right boxes, boxes and objects, with extreme overlaps and confidences.

`test_properties.py` draws boxes at random, and rarely meets these extremes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from vrft.rewards import DetectionConfidence, DetectionIoU
from vrft.rewards.detection import Matches

OBJECTS = (1, 2, 5, 10, 20)
OVERLAPS = (0.5, 1.0)
SURE = (0.0, 1.0)


def earned(right: list[tuple[float, float]], wrong: list[float], objects: int) -> float:
    matches = Matches([*right], [*wrong], objects)
    return 0.5 * DetectionIoU().earned(matches) + 3 * DetectionConfidence().earned(matches)


def outcomes(objects: int) -> Iterator[tuple[int, int]]:
    for boxes in sorted({1, objects // 2, *range(objects - 1, objects + 3), 2 * objects, 3 * objects, 60, 99}):
        for right in range(min(boxes, objects) + 1):
            yield right, boxes


@pytest.mark.parametrize("objects", OBJECTS)
def test_no_outcome_earns_more_than_one_with_a_higher_f1(objects: int) -> None:
    rows = []
    for right, boxes in outcomes(objects):
        share = right / boxes if boxes else 0.0  # the uniform confidence that earns most
        most = earned([(share, 1.0)] * right, [share] * (boxes - right), objects)
        least = min(earned([(c, 0.5)] * right, [c] * (boxes - right), objects) for c in SURE)
        rows.append((2 * right / (boxes + objects), most, least))
    worst = max(a - b for (low, a, _), (high, _, b) in product(rows, rows) if high - low >= 0.2 - 1e-9)
    assert worst <= 1e-12


@pytest.mark.parametrize("objects", OBJECTS)
def test_no_outcome_gains_by_a_box_more_or_by_leaving_out_a_right_one(objects: int) -> None:
    for right, boxes in outcomes(objects):
        for overlap, c, of_wrong in product(OVERLAPS, SURE, SURE):
            others, wrong = [(c, overlap)] * (right - 1), [of_wrong] * (boxes - right)
            loose = [(0.0, 0.5)] * min(right, 1)
            before = earned([*loose, *others], wrong, objects)
            if boxes >= objects:
                assert earned([*loose, *others], [*wrong, 0.0], objects) <= before + 1e-12
                tighter = earned([*[(1.0, 1.0) for _ in loose], *others], [*wrong, 0.0], objects)
                assert not right or tighter <= before + 1e-12
            if right and boxes > 1:
                assert earned(others, wrong, objects) <= before + 1e-12
