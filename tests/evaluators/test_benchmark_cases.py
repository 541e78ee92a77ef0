"""The fuzzed files of COCO and LVIS cover every rule and every trap."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from tests.helpers.benchmark_rules import (
    CASES,
    Entry,
    area_of,
    expected_of,
    fuzzed,
    ids,
    lvis_numbers,
    numbered,
    pycocotools_numbers,
    same,
)
from vrft.evaluators.average_precision import Format

pytestmark = pytest.mark.slow(seconds=0.2)


@pytest.mark.parametrize(
    "rule",
    [
        "federation",
        "negatives",
        "not exhaustive",
        "cap",
        "cap over categories",
        "cap before federation",
        "edges of areas",
        "edges of IoUs",
    ],
)
def test_the_cases_of_lvis_need_each_rule(rule: str) -> None:
    """Check that leaving a rule out changes some numbers, since otherwise no case tests the rule."""
    others = ((seed, lvis_numbers(*fuzzed(seed, "lvis"), without=rule)) for seed in range(CASES))
    changed = (seed for seed, other in others if other != same(expected_of(seed, "lvis")))
    assert len([*islice(changed, 3)]) == 3


def with_changes(truth: Entry, change: Callable[[Entry], Entry]) -> Entry:
    return truth | {"annotations": [row | change(row) for row in truth["annotations"]]}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda gt, dt: (with_changes(gt, lambda row: {"iscrowd": 0}), dt), id="no crowds"),
        pytest.param(
            lambda gt, dt: (with_changes(gt, lambda row: {"area": area_of(row["bbox"])}), dt), id="area of boxes"
        ),
        pytest.param(
            lambda gt, dt: (with_changes(gt, lambda row: {"area": row["area"] + 1e-9}), dt), id="edges of areas"
        ),
        pytest.param(lambda gt, dt: (gt, dt[::-1]), id="order of ties"),
        pytest.param(lambda gt, dt: (gt, dt, 1000), id="more than 100"),
    ],
)
def test_the_cases_of_coco_need_each_rule(wrong: Callable[..., Any]) -> None:
    cases = ((seed, *fuzzed(seed, "coco")) for seed in range(CASES))
    others = ((seed, pycocotools_numbers(*wrong(numbered(truth), results))) for seed, truth, results in cases)
    changed = (seed for seed, other in others if other != same(expected_of(seed, "coco")))
    assert len([*islice(changed, 3)]) == 3


def keys(entries: list[Entry], *names: str) -> list[str]:
    return [json.dumps([entry[name] for name in names]) for entry in entries]


@pytest.mark.parametrize("format", ["coco", "lvis"])
@pytest.mark.parametrize(
    "trap",
    [
        pytest.param(lambda gt, dt: not dt and gt["annotations"], id="no results"),
        pytest.param(lambda gt, dt: {*ids(gt["images"])} - {r["image_id"] for r in gt["annotations"]}, id="no boxes"),
        pytest.param(lambda gt, dt: 0 in ids(gt["annotations"]), id="annotation 0"),
        *(
            pytest.param(
                lambda gt, dt, table=table: len({*map(np.float32, ids(gt[table]))}) < len(gt[table]),
                id=f"{table} float32 can't tell apart",
            )
            for table in ("images", "annotations", "categories")
        ),
        pytest.param(lambda gt, dt: any(not area_of(row["bbox"]) for row in gt["annotations"]), id="true, no area"),
        pytest.param(lambda gt, dt: any(not area_of(row["bbox"]) for row in dt), id="found, no area"),
        pytest.param(
            lambda gt, dt: max(Counter(keys(dt, "image_id", "category_id", "bbox", "score")).values(), default=0) > 1,
            id="found twice",
        ),
        pytest.param(
            lambda gt, dt: (
                len({*keys(gt["annotations"], "image_id", "category_id", "bbox")})
                > len({*keys(gt["annotations"], "image_id", "bbox")})
            ),
            id="a box in two categories",
        ),
    ],
)
def test_the_cases_contain_each_trap(trap: Callable[[Entry, list[Entry]], object], format: Format) -> None:
    assert sum(bool(trap(*fuzzed(seed, format))) for seed in range(CASES)) >= 5
