"""Boxes with equal scores: their order does not depend on the order of the data, and any tool sees it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.benchmark_rules import pycocotools_numbers
from vrft.evaluators import CocoEvaluator
from vrft.evaluators.average_precision import BACKENDS, Backend
from vrft.evaluators.confidence import Confidence
from vrft.evaluators.ties import break_ties, tied_share
from vrft.types import Answer, Detection, Sample


def measured(folder: Path, ids: list[int], backend: Backend = "hotcoco") -> dict[str, float]:
    """Score tied answers about ten images with the given ids, and write the files."""
    rng = random.Random(0)
    noise = np.random.default_rng(0)
    evaluator = CocoEvaluator(str(folder / "truth.json"), backend=backend)
    truth = {"images": [{"id": key} for key in ids], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    rows = []
    for key in ids:
        image = Image.fromarray(noise.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        bbox = [rng.randint(0, 50), 0, 20, 20]
        entry = {"image_id": key, "category_id": 1, "bbox": bbox, "area": 400, "iscrowd": 0}
        truth["annotations"].append(entry | {"id": len(rows) + 1})
        right, wrong = ((x, 0, x + 20, 20) for x in (bbox[0] + rng.choice([0, 3, 9]), 70))
        boxes = tuple(Detection(box, "cat", rng.choice([0.0, 0.5, 1.0])) for box in rng.sample([right, wrong], 2))
        rows.append(evaluator.row(Answer("", "", boxes, True), Sample(0, (image,), key, "cat", ())))
    (folder / "truth.json").write_text(json.dumps(truth))
    order = sorted(range(len(ids)), key=ids.__getitem__)
    with pytest.warns(
        UserWarning,
        match="100% of the boxes share their score with others of their category and .*probabilities already",
    ):
        numbers = evaluator.measure([rows[i] for i in order])
    evaluator.write(folder / "out", rows)
    return numbers


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_the_data_does_not_matter_and_the_file_gives_the_same_numbers(
    backend: Backend, tmp_path: Path
) -> None:
    ids = list(range(10, 20))
    found = measured(tmp_path, ids, backend)
    assert 0 < found["AP"] < 1
    results = json.loads((tmp_path / "out" / "detections_truth_vrft_results.json").read_text())
    assert len({entry["score"] for entry in results}) == len(results)
    assert all(0 <= entry["score"] <= 1 for entry in results)
    expected = pycocotools_numbers(json.loads((tmp_path / "truth.json").read_text()), results)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-12)
    stated = [entry | {"score": round(entry["score"], 6)} for entry in results]
    tied = [pycocotools_numbers(json.loads((tmp_path / "truth.json").read_text()), stated)["AP"]]
    for seed in range(5):
        random.Random(seed).shuffle(ids)
        assert measured(tmp_path, ids, backend) == found
        tied.append(pycocotools_numbers(json.loads((tmp_path / "truth.json").read_text()), stated_of(tmp_path))["AP"])
    assert len({*tied}) > 1  # with ties, the ids decide


def stated_of(folder: Path) -> list[dict[str, float]]:
    results = json.loads((folder / "out" / "detections_truth_vrft_results.json").read_text())
    return [entry | {"score": round(entry["score"], 6)} for entry in results]


def test_scores_are_changed_only_where_they_tie() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(0, 30))
        scores = rng.choice([0.0, -0.0, 5e-324, 0.25, np.nextafter(0.25, 0), 0.6, 1.0, *rng.random(4)], size)
        keys = rng.integers(0, 5, size).astype(np.uint64)
        found = break_ties(scores, keys)
        assert len({*found.tolist()}) == size
        assert np.all((found >= 0) & (found <= 1))
        assert found == pytest.approx(scores, abs=1e-14)
        expected = sorted(range(size), key=lambda i: (-scores[i], keys[i], i))
        assert np.argsort(-found, kind="stable").tolist() == expected
    apart = rng.permutation(50) / 50
    assert break_ties(apart, np.zeros(50, np.uint64)).tolist() == apart.tolist()


@pytest.mark.parametrize(
    ("boxes", "share"),
    [
        pytest.param([(0.5, 0), (0.5, 1)], 0.0, id="equal scores of two categories"),
        pytest.param([(0.5, 0), (0.5, 0), (0.4, 0), (0.4, 1)], 0.5, id="equal scores of one category"),
        pytest.param([], 0.0, id="no boxes"),
    ],
)
def test_ties_count_within_a_category(boxes: list[tuple[float, int]], share: float) -> None:
    assert tied_share(np.array([(n, 0, 0, 9, 9, *box) for n, box in enumerate(boxes)]).reshape(-1, 7)) == share


@pytest.mark.parametrize(
    ("confidence", "remedy"),
    [
        ("answer", "product ranks by token probabilities too"),
        ("product", "confidences and token probabilities already"),
    ],
)
def test_the_remedy_for_ties_depends_on_the_setting(confidence: Confidence, remedy: str, tmp_path: Path) -> None:
    truth = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    evaluator = CocoEvaluator(str(tmp_path / "truth.json"), confidence=confidence)
    boxes = tuple(Detection((x, 0.0, x + 9, 9.0), "cat", 0.5) for x in (0.0, 20.0))
    row = evaluator.row(Answer("", "", boxes, True), Sample(0, (Image.new("RGB", (40, 10)),), 1, "cat", ()))
    with pytest.warns(UserWarning, match=remedy):
        evaluator.measure([row])
