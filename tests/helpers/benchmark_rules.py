"""Fuzzed files of COCO and LVIS, and their expected numbers from pycocotools and from LVIS's rules as plain loops."""

from __future__ import annotations

import contextlib
import io
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vrft.evaluators.average_precision import COCO_NUMBERS, LVIS_NUMBERS, UNDEFINED, Format

Entry = dict[str, Any]
Case = tuple[Entry, list[Entry]]
"""The contents of an annotation file and of a results file."""
T = TypeVar("T")
CASES = 128
IOUS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0, 1, 101).tolist()
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
MOST = {"coco": 100, "lvis": 300}
FIRST_IDS = (0, 1, 2**24 + 1, 2**40 + 1)
"""First ids: float32 can't represent the last two exactly, and 0 is false in Python."""
SIZES = ((32, 32), (16, 64), (96, 96), (64, 144), (20, 20), (40, 40))
"""Sizes of boxes with areas at the edges of the ranges; cut to n / 20 of the height, their IoUs are at thresholds."""


def pick(rng: np.random.Generator, options: Iterable[T]) -> T:
    found = [*options]
    return found[int(rng.integers(len(found)))]


def some_ids(rng: np.random.Generator, number: int) -> list[int]:
    start = pick(rng, FIRST_IDS)
    return [start + int(i) for i in rng.permutation(number)]


def decimals(value: float) -> float:
    """Round to 0.01 pixels, as in results files."""
    return round(float(value), 2)


def any_box(rng: np.random.Generator) -> list[float]:
    """Draw a box as x, y, width, height; one in 25 has no area."""
    sides = pick(rng, SIZES) if rng.random() < 0.6 else (decimals(rng.uniform(1, 150)), decimals(rng.uniform(1, 150)))
    if rng.random() < 0.04:
        sides = (sides[0], 0)
    corner = rng.integers(0, 200, 2) if rng.random() < 0.5 else rng.uniform(-10, 200, 2)
    return [*map(decimals, corner), *map(float, sides)]


def box_near(rng: np.random.Generator, true: list[float]) -> list[float]:
    """Draw a box: the true one, one whose IoU is at a threshold, one nearby, or any."""
    x, y, w, h = true
    cut = [x, y, w, decimals(h * int(rng.integers(10, 20)) / 20)]
    beside = [decimals(v) for v in (*rng.normal((x, y), 4), *abs(rng.normal((w, h), 4)))]
    return pick(rng, [true, cut, beside, any_box(rng)])


def any_score(rng: np.random.Generator) -> float:
    """Draw a score, mostly with one decimal, so that scores tie."""
    return round(rng.random(), 1) if rng.random() < 0.8 else rng.random()


def true_boxes(rng: np.random.Generator, image: int, categories: list[int]) -> list[Entry]:
    """Draw the annotations of an image, possibly none; some occur twice or in two categories."""
    found = []
    for category in categories:
        for _ in range(pick(rng, [0, 0, 1, 2, 4])):
            bbox = any_box(rng)
            area = pick(rng, [bbox[2] * bbox[3], bbox[2] * bbox[3] * 0.7, 32.0**2, 96.0**2])
            entry = {"image_id": image, "category_id": category, "bbox": bbox, "area": area}
            found.append(entry)
            if rng.random() < 0.15:
                found.append(entry | {"category_id": pick(rng, [category, pick(rng, categories)])})
    return found if rng.random() < 0.85 else []


def found_boxes(rng: np.random.Generator, image: int, categories: list[int], true: list[Entry]) -> list[Entry]:
    """Draw the results of an image: near true boxes, twice, in another category, or anywhere."""
    found = []
    for entry in true:
        for _ in range(pick(rng, [0, 1, 1, 3])):
            one = {"image_id": image, "category_id": entry["category_id"], "bbox": box_near(rng, entry["bbox"])}
            found.append(one | {"score": any_score(rng)})
            if rng.random() < 0.2:
                found.append(found[-1] | {"category_id": pick(rng, [entry["category_id"], pick(rng, categories)])})
    for category in categories:
        for _ in range(pick(rng, [0, 0, 1])):
            one = {"image_id": image, "category_id": category, "bbox": any_box(rng)}
            found.append(one | {"score": any_score(rng)})
    return found


def too_many(rng: np.random.Generator, image: int, categories: list[int], true: list[Entry], most: int) -> list[Entry]:
    """Draw more boxes than the limit per image: of one category for COCO, of one or all for LVIS.

    Their scores are higher than many others, so that the limit drops the others.
    """
    one = [pick(rng, [entry["category_id"] for entry in true] or categories)]
    chosen = one if most == MOST["coco"] else pick(rng, [one, categories])
    boxes = [entry["bbox"] for entry in true] or [any_box(rng)]
    return [
        {
            "image_id": image,
            "category_id": pick(rng, chosen),
            "bbox": box_near(rng, pick(rng, boxes)),
            "score": round(rng.uniform(0.3, 1), 1),
        }
        for _ in range(most + int(rng.integers(1, 40)))
    ]


@cache
def fuzzed(seed: int, format: Format) -> Case:
    """Return an annotation file with 3 to 8 images and 2 to 5 categories, and results, both shuffled."""
    rng = np.random.default_rng([seed, MOST[format]])
    images = some_ids(rng, int(rng.integers(3, 9)))
    categories = some_ids(rng, int(rng.integers(2, 6)))
    true: list[Entry] = []
    found: list[Entry] = []
    crowded = pick(rng, images) if rng.random() < 0.2 else None
    for image in images:
        here = true_boxes(rng, image, categories[1:] if seed % 3 else categories)  # the first may have no boxes
        true += here
        found += found_boxes(rng, image, categories, here)
        if image == crowded:
            found += too_many(rng, image, categories, here, MOST[format])
    rows = [entry | {"id": i} for entry, i in zip(true, some_ids(rng, len(true)), strict=True)]
    if format == "coco":
        rows = [row | {"iscrowd": int(rng.random() < 0.15), "ignore": int(rng.random() < 0.1)} for row in rows]
    truth = {
        "images": [described(rng, image, categories) for image in images],
        "annotations": [rows[i] for i in rng.permutation(len(rows))],
        "categories": [{"id": i, "name": f"c{i}", "frequency": pick(rng, "rcf")} for i in categories],
    }
    return truth, [] if rng.random() < 0.1 else [found[i] for i in rng.permutation(len(found))]


def described(rng: np.random.Generator, image: int, categories: list[int]) -> Entry:
    """Return an image entry with LVIS's fields."""
    absent, open_ended = ([i for i in categories if rng.random() < 0.3] for _ in range(2))
    lists = {"neg_category_ids": absent, "not_exhaustive_category_ids": open_ended}
    return {"id": image, "width": 400, "height": 400, **lists}


def numbered(truth: Entry) -> Entry:
    """Return the truth with annotation ids from 1: pycocotools counts a match with id 0 as unmatched."""
    return truth | {"annotations": [row | {"id": i} for i, row in enumerate(truth["annotations"], 1)]}


def pycocotools_numbers(truth: Entry, results: list[Entry], most: int = 100) -> dict[str, float]:
    """Return pycocotools' numbers for unchanged files."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = json.loads(json.dumps(truth))  # COCO modifies its input
        gt.createIndex()
        dt.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": []}
        dt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(json.loads(json.dumps(results))) if results else dt, "bbox")
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.params.maxDets = [1, 10, 100]  # `summarize` looks columns up by these numbers
        evaluation.summarize()
    return dict(zip(COCO_NUMBERS, evaluation.stats.tolist(), strict=True))


def ids(entries: list[Entry]) -> list[int]:
    return [entry["id"] for entry in entries]


def area_of(box: list[float]) -> float:
    return box[2] * box[3]


def iou_of(a: list[float], b: list[float]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return w * h / (area_of(a) + area_of(b) - w * h) if w > 0 and h > 0 else 0.0


def lvis_results(truth: Entry, results: list[Entry], image: Entry, without: str) -> list[Entry]:
    """Return the boxes of an image that count: the 300 best of all categories, then only annotated categories."""
    found = sorted((r for r in results if r["image_id"] == image["id"]), key=lambda r: -r["score"])
    wanted = {row["category_id"] for row in truth["annotations"] if row["image_id"] == image["id"]}
    if without != "negatives":
        wanted |= {*image["neg_category_ids"]}
    looked_for = [r for r in found if r["category_id"] in wanted]
    if without == "federation":
        return found[:300]
    if without == "cap":
        return looked_for
    if without == "cap before federation":
        return looked_for[:300]
    if without == "cap over categories":
        places = Counter[int]()
        return [r for r in looked_for if places.update([r["category_id"]]) or places[r["category_id"]] <= 300]
    return [r for r in found[:300] if r["category_id"] in wanted]


def judged(
    found: list[Entry], true: list[Entry], area: str, threshold: float, open_ended: bool, without: str
) -> list[tuple[float, bool]]:
    """Return the score of each counted box of one category in one image, and whether the box is correct.

    A box matches the free true box of this range of area with the largest overlap, the last one among equals. If there
    is none, it may match a true box of another range and is then not counted.
    """
    low, high = AREAS[area]
    strict = without == "edges of areas"

    def inside(value: float) -> bool:
        return low < value < high if strict else low <= value <= high

    left = [*range(len(true))]
    counted = []
    for entry in found:
        overlaps = {i: iou_of(entry["bbox"], true[i]["bbox"]) for i in reversed(left)}
        near = {i: v for i, v in overlaps.items() if v > threshold or (v == threshold and without != "edges of IoUs")}
        preferred = {i: v for i, v in near.items() if inside(true[i]["area"]) and not true[i].get("ignore")}
        if near:
            candidates = preferred or near
            left.remove(max(candidates, key=candidates.__getitem__))
        if preferred:
            counted.append((entry["score"], True))
        elif not near and inside(area_of(entry["bbox"])) and not open_ended:
            counted.append((entry["score"], False))
    return counted


def precision_and_recall(counted: list[tuple[float, bool]], positives: int) -> tuple[float, float]:
    """Return the mean over 101 recalls of the best precision at that recall or above, and the recall of all boxes."""
    hits = 0
    precisions, recalls = [], []
    for i, (_, right) in enumerate(sorted(counted, key=lambda one: -one[0]), 1):
        hits += right
        precisions.append(hits / i)
        recalls.append(hits / positives)
    for i in range(len(precisions) - 1, 0, -1):
        precisions[i - 1] = max(precisions[i - 1 : i + 1])
    places = [bisect_left(recalls, recall) for recall in RECALLS]
    return sum(precisions[i] for i in places if i < len(precisions)) / 101, hits / positives


def lvis_numbers(truth: Entry, results: list[Entry], without: str = "") -> dict[str, float]:
    """Return LVIS's numbers by its rules, or without one of the rules."""
    counted: dict[tuple[str, int, float], list[tuple[float, bool]]] = defaultdict(list)
    positives = Counter[tuple[str, int]]()
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        kept = lvis_results(truth, results, image, without)
        for category in (entry["id"] for entry in truth["categories"]):
            open_ended = category in image["not_exhaustive_category_ids"] and without != "not exhaustive"
            found = [r for r in kept if r["category_id"] == category]
            here = image["id"], category
            true = [row for row in truth["annotations"] if (row["image_id"], row["category_id"]) == here]
            for area, (low, high) in AREAS.items():
                positives[area, category] += sum(low <= row["area"] <= high and not row.get("ignore") for row in true)
                for iou in IOUS:
                    counted[area, category, iou] += judged(found, true, area, iou, open_ended, without)
    frequencies = {entry["id"]: entry["frequency"] for entry in truth["categories"]}
    curves = {
        (area, category, iou): precision_and_recall(counted[area, category, iou], number)
        for (area, category), number in positives.items()
        for iou in IOUS
        if number
    }

    def mean(which: int, area: str = "", ious: Iterable[float] = IOUS, kinds: str = "rcf") -> float:
        chosen = [curves.get((area, c, iou)) for c in frequencies if frequencies[c] in kinds for iou in ious]
        values = [curve[which] for curve in chosen if curve is not None]
        return sum(values) / len(values) if values else UNDEFINED

    values = [mean(0), mean(0, ious=IOUS[:1]), mean(0, ious=IOUS[5:6]), *(mean(0, area) for area in "sml")]
    values += [*(mean(0, kinds=kind) for kind in "rcf"), mean(1), *(mean(1, area) for area in "sml")]
    return dict(zip(LVIS_NUMBERS, values, strict=True))


@cache
def expected_of(seed: int, format: Format) -> dict[str, float]:
    truth, results = fuzzed(seed, format)
    return lvis_numbers(truth, results) if format == "lvis" else pycocotools_numbers(numbered(truth), results)


def same(expected: dict[str, float]) -> Any:
    """Return an object equal to the same numbers within 1e-12; an undefined number, -1, equals -1 alone."""
    assert all(value == UNDEFINED or 0 <= value < 1 + 1e-12 for value in expected.values())
    return pytest.approx(expected, rel=0, abs=1e-12)
