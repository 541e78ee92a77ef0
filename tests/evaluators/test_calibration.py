"""Expected calibration error against a plain loop over pycocotools' matches, and against torchmetrics."""

from __future__ import annotations

import contextlib
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from tests.evaluators.test_evaluators import NAMES, SAMPLE, by_pycocotools, random_case, spoken
from vrft.evaluators import CocoEvaluator
from vrft.evaluators.calibration import calibration
from vrft.evaluators.coco import Row
from vrft.evaluators.confidence import Confidence
from vrft.types import Answer, Detection


def stating(rows: list[Row], rng: random.Random | None = None) -> list[Row]:
    """Return rows whose boxes state their scores, or random confidences."""
    found = []
    for row in rows:
        boxes = tuple(box if rng is None else box._replace(score=rng.random()) for box in row.detections)
        found.append(row._replace(detections=boxes, stated=boxes))
    return found


def matches(file: Path, rows: list[Row], names: list[str]) -> list[tuple[float, bool]]:
    """Return (confidence, correct) of the boxes that pycocotools does not ignore at an IoU of 0.5."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = by_pycocotools(file, rows)
        evaluation.params.catIds = [number for number, name in NAMES.items() if name in names]
        evaluation.evaluate()
    whole = evaluation.params.areaRng[0]
    cells = [cell for cell in evaluation.evalImgs if cell is not None and cell["aRng"] == whole]
    return [
        (score, bool(match))
        for cell in cells
        for score, match, ignored in zip(cell["dtScores"], cell["dtMatches"][0], cell["dtIgnore"][0], strict=True)
        if not ignored
    ]


def plain_error(pairs: list[tuple[float, bool]]) -> float:
    error = 0.0
    for m in range(10):
        inside = [(c, ok) for c, ok in pairs if m / 10 <= c < (m + 1) / 10 or (m == 9 and c == 1)]
        if inside:
            accuracy = sum(ok for _, ok in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            error += len(inside) / len(pairs) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("names", [["cat", "dog", "never there"], ["dog"]])
@pytest.mark.parametrize("seed", range(4))
def test_the_error_equals_a_plain_loop_and_torchmetrics(seed: int, names: list[str], tmp_path: Path) -> None:
    rng = random.Random(seed)
    file, rows = random_case(rng, tmp_path)
    rows = stating(rows, rng)
    pairs = matches(file, rows, names)
    assert 0 < sum(ok for _, ok in pairs) < len(pairs)
    evaluator = CocoEvaluator(str(file), names)
    found = evaluator.scores(rows)["coco/ECE"]
    assert found == pytest.approx(plain_error(pairs), abs=1e-12)
    confidences, right = (torch.tensor(values) for values in zip(*pairs, strict=True))
    assert found == pytest.approx(float(binary_calibration_error(confidences.double(), right.long(), n_bins=10)))
    assert evaluator.calibration is not None
    assert sum(part.boxes for part in evaluator.calibration.bins) == len(pairs)


def test_equal_confidences_share_a_bin(tmp_path: Path) -> None:
    file, rows = random_case(random.Random(3), tmp_path)
    rows = stating(rows)  # 0.1, 0.5 and 0.9, each at the edge of a bin
    evaluator = CocoEvaluator(str(file))
    assert evaluator.scores(rows)["coco/ECE"] == pytest.approx(plain_error(matches(file, rows, [*NAMES.values()])))
    assert evaluator.calibration is not None
    assert [part.low for part in evaluator.calibration.bins if part.boxes] == pytest.approx([0.1, 0.5, 0.9])
    assert [part.confidence for part in evaluator.calibration.bins if part.boxes] == pytest.approx([0.1, 0.5, 0.9])


def test_lvis_does_not_count_surplus_boxes_of_categories_that_are_not_annotated_exhaustively() -> None:
    boxes = [{"id": 1, "image_id": 0, "category_id": 0, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0}]
    results = np.array([[0, 0, 0, 20, 20, 0.75, 0], [0, 50, 50, 20, 20, 0.5, 0]])
    for exhaustive, error in ((True, (0.25 + 0.5) / 2), (False, 0.25)):
        image = {"id": 0, "neg_category_ids": [], "not_exhaustive_category_ids": [] if exhaustive else [0]}
        content = {"images": [image], "annotations": boxes, "categories": [{"id": 0, "name": "cat", "frequency": "c"}]}
        found = calibration(content, results, "lvis", [0])
        assert found is not None
        assert found.error == pytest.approx(error)


def answered(corner: int, confidence: float | None, log_prob: float) -> Answer:
    """Return an answer with a box at (corner, 0), whose probability falls with `log_prob`."""
    text = f"<answer>[{{'Position': [{corner}, 0, 20, 20]}}]</answer>"
    return spoken(text, {"Position": log_prob}, Detection((corner, 0, corner + 20, 20), "cat", confidence))


def truth_of_two_images(folder: Path) -> str:
    boxes = [{"id": 1 + i, "image_id": i, "category_id": 1, "bbox": [0, 0, 20, 20], "area": 400} for i in range(2)]
    content = {"images": [{"id": i} for i in range(2)], "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return str(path)


def rows_of(evaluator: CocoEvaluator, *answers: Answer) -> list[Row]:
    return [evaluator.row(answer, replace(SAMPLE, image_id=i)) for i, answer in enumerate(answers)]


def test_average_precision_is_computed_by_stated_confidence_and_by_probability(tmp_path: Path) -> None:
    answers = answered(0, 0.25, 0.0), answered(50, 0.75, -9.0)  # the first is right, and more probable than it states
    found = {}
    for confidence in get_args(Confidence):
        evaluator = CocoEvaluator(truth_of_two_images(tmp_path), confidence=confidence)
        rows = rows_of(evaluator, *answers)
        found[confidence] = evaluator.scores(rows)
        again = evaluator.scores_of([[row] for row in rows])
        assert {name: found[confidence][name] for name in again} == again
        assert {*again} >= {"coco/AP_answer", "coco/AP_logprob", "coco/ECE"}
    for scores in found.values():
        assert scores["coco/AP_answer"] == found["answer"]["coco/AP"] == pytest.approx(51 / 101 / 2)
        assert scores["coco/AP_logprob"] == found["logprob"]["coco/AP"] == pytest.approx(51 / 101)
        assert scores["coco/ECE"] == pytest.approx((0.75 + 0.75) / 2)


def test_numbers_of_unknown_confidences_are_omitted(tmp_path: Path) -> None:
    evaluator = CocoEvaluator(truth_of_two_images(tmp_path))
    silent = evaluator.scores(rows_of(evaluator, answered(0, None, 0.0), answered(50, None, -1.0)))
    assert {"coco/AP_answer", "coco/ECE"}.isdisjoint(silent)
    assert "coco/AP_logprob" in silent
    untold = [replace(answered(0, 0.5, 0.0), tokens=()), answered(0, 0.5, 0.0)]
    assert "coco/AP_logprob" not in evaluator.scores(rows_of(evaluator, *untold))
    half = evaluator.scores(rows_of(evaluator, answered(0, 0.5, 0.0), answered(0, None, 0.0)))
    assert half["coco/ECE"] == 0.5  # of the box that states a confidence


def test_the_bins_are_written_as_a_table(tmp_path: Path) -> None:
    evaluator = CocoEvaluator(truth_of_two_images(tmp_path))
    rows = rows_of(evaluator, answered(0, 0.25, 0.0), answered(50, 0.75, -9.0))
    evaluator.scores(rows)
    evaluator.write(tmp_path / "out", rows)
    lines = (tmp_path / "out" / "coco_calibration.csv").read_text().splitlines()
    assert lines[0] == "low,high,confidence,accuracy,boxes"
    assert [line.split(",")[2:] for line in lines[1:] if not line.endswith(",0")] == [
        ["0.25", "1.0", "1"],
        ["0.75", "0.0", "1"],
    ]
    about = json.loads((tmp_path / "out" / "coco.meta.json").read_text())
    assert about["by_confidence"]["ECE"] == 0.75
