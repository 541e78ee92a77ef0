"""Scores of masks and boxes in reasoning grounding, against plain loops over pixels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.helpers.small_models import write_sam
from vrft.errors import ConfigurationError
from vrft.evaluators import BoxSegmenter, GroundingEvaluator
from vrft.evaluators.grounding import Row, true_masks
from vrft.evaluators.segmenter import SamSegmenter
from vrft.types import Answer, Detection, Sample

SIZE = (60, 40)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def sample(polygons: list[Any], ignore: list[Any] | None = None, index: int = 0) -> Sample:
    corners = np.array(polygons[0]).reshape(-1, 2)
    box = (*corners.min(0).tolist(), *corners.max(0).tolist())
    metadata = {"polygons": polygons, "ignore": ignore or []}
    return Sample(index, (Image.new("RGB", SIZE),), index, "it", (Detection(box, ""),), metadata)


def answer(*boxes: tuple[float, float, float, float]) -> Answer:
    return Answer("", "", tuple(Detection(box, "") for box in boxes) or None, True)


def test_masks_are_counted_pixel_by_pixel() -> None:
    rng = random.Random(0)
    evaluator = GroundingEvaluator(BoxSegmenter())
    rows, ious, intersections, unions = [], [], 0, 0
    for index in range(20):
        x, y = rng.randint(0, 30), rng.randint(0, 20)
        box = (x, y, x + rng.randint(1, 20), y + rng.randint(1, 15))
        asked = sample([rectangle(5, 5, 25, 20), rectangle(30, 10, 50, 30)], [rectangle(0, 0, 10, 40)], index)
        rows.append(evaluator.row(answer(box), asked))
        inside = outside = 0
        for py in range(SIZE[1]):
            for px in range(10, SIZE[0]):  # the first ten columns are ignored
                true = (5 <= px < 25 and 5 <= py < 20) or (30 <= px < 50 and 10 <= py < 30)
                found = box[0] <= px < box[2] and box[1] <= py < box[3]
                inside, outside = inside + (true and found), outside + (true or found)
        intersections, unions = intersections + inside, unions + outside
        ious.append(inside / outside)
    scores = evaluator.scores(rows)
    assert scores["gIoU"] == pytest.approx(np.mean(ious), abs=1e-12)
    assert scores["cIoU"] == pytest.approx(intersections / unions, abs=1e-12)


def test_boxes_alone_need_no_masks() -> None:
    evaluator = GroundingEvaluator()
    asked = sample([rectangle(0, 0, 10, 10)])
    rows = [evaluator.row(answer(*boxes), asked) for boxes in ([(0, 0, 10, 10)], [(0, 0, 10, 5)], [(0, 0, 10, 4)], [])]
    assert evaluator.scores(rows) == {"mIoU": pytest.approx((1 + 0.5 + 0.4) / 4), "Acc@0.5": 0.5, "valid": 0.75}


def test_an_empty_answer_about_an_empty_target_is_correct() -> None:
    rows = [Row(0, "", None, 0.0, True, 0, 0), Row(1, "", None, 0.0, True, 5, 10)]
    assert GroundingEvaluator(BoxSegmenter()).scores(rows)["gIoU"] == 0.75


def test_masks_may_be_rle() -> None:
    pixels = np.zeros((SIZE[1], SIZE[0]), np.uint8, order="F")
    pixels[3:9, 4:20] = 1
    rle = coco_mask.encode(pixels)
    asked = Sample(0, (Image.new("RGB", SIZE),), 0, "", (Detection((0, 0, 1, 1), ""),), {"polygons": [rle]})
    truth, ignore = true_masks(asked)
    assert np.array_equal(truth, pixels.astype(bool))
    assert not ignore.any()


def test_data_without_polygons_is_refused() -> None:
    asked = Sample(0, (Image.new("RGB", SIZE),), 0, "", (Detection((0, 0, 1, 1), ""),))
    with pytest.raises(ConfigurationError, match="the data has no polygons"):
        GroundingEvaluator(BoxSegmenter()).row(answer((0, 0, 1, 1)), asked)


def test_results_are_written(tmp_path: Path) -> None:
    evaluator = GroundingEvaluator()
    evaluator.write(tmp_path / "x", [evaluator.row(answer((0, 0, 10, 10)), sample([rectangle(0, 0, 10, 10)]))])
    assert json.loads((tmp_path / "x" / "grounding.json").read_text())[0]["box"] == [0, 0, 10, 10]


def test_a_sam_checkpoint_turns_boxes_into_masks(tmp_path: Path) -> None:
    write_sam(tmp_path)
    image = Image.effect_noise(SIZE, 80).convert("RGB")
    mask = SamSegmenter(str(tmp_path)).segment(image, (5, 5, 30, 30))
    assert mask.shape == (SIZE[1], SIZE[0])
    assert mask.dtype == bool
    asked = sample([rectangle(5, 5, 30, 30)])
    row = GroundingEvaluator(SamSegmenter(str(tmp_path))).row(answer((5, 5, 30, 30)), asked)
    assert row.union > 0
