"""`test --against RESULTS.json`: any detector's boxes on the same images."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import CSV_ONLY
from tests.helpers.benchmark_rules import fuzzed, numbered, pycocotools_numbers
from vrft.__main__ import main
from vrft.errors import ConfigurationError
from vrft.evaluators import CocoEvaluator
from vrft.evaluators.coco import Row
from vrft.evaluators.detection_rows import rows_of_results
from vrft.evaluators.intervals import compare
from vrft.evaluators.truth import Truth
from vrft.types import Detection


def near(truth: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """Return results near the true boxes and elsewhere, with ties and unrounded numbers."""
    rng = random.Random(seed)
    results = []
    for entry in truth["annotations"]:
        for _ in range(2):
            bbox = [value + rng.gauss(0, 2) for value in entry["bbox"]]
            bbox[2:] = [max(side, 0.0) for side in bbox[2:]]
            ids = {"image_id": entry["image_id"], "category_id": entry["category_id"]}
            results.append(ids | {"bbox": bbox, "score": round(rng.random(), 1)})
    return results


def test_a_checkpoint_is_compared_with_a_results_file(
    quick_fit: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["test", *quick_fit(CSV_ONLY)[1:]]
    assert main([*arguments, f"--against={tmp_path}/none.json"]) == 2
    assert "against: no such results file" in capsys.readouterr().err
    assert main(["validate", *quick_fit(CSV_ONLY)[1:]]) == 0  # writes the scenes
    truth = json.loads((tmp_path / "val.json").read_text())
    results = near(truth)
    (tmp_path / "yolo.json").write_text(json.dumps([*results, results[0] | {"image_id": "elsewhere"}]))
    capsys.readouterr()
    with pytest.warns(UserWarning, match="left out: 1 of .* boxes, because .* has no image with .*elsewhere"):
        assert main([*arguments, f"--against={tmp_path}/yolo.json", "--resamples=5"]) == 0
    assert "yolo" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "evaluation" / "comparison-yolo-base.json").read_text())
    expected = pycocotools_numbers(truth, results)
    assert "mIoU" not in found  # of answers only
    assert found["coco/AP"]["yolo"]["value"] == pytest.approx(expected["AP"], abs=1e-12)
    about = json.loads((tmp_path / "run" / "evaluation" / "test-0" / "coco.meta.json").read_text())
    assert found["coco/AP"]["base"]["value"] == pytest.approx(about["numbers"]["AP"], abs=1e-12)
    assert any("val_queries=all" in message for message in warnings_of(tmp_path))


def warnings_of(folder: Path) -> list[str]:
    return json.loads((folder / "run" / "evaluation" / "test-0" / "warnings_CocoEvaluator.json").read_text())


def test_both_are_resampled_alike(tmp_path: Path) -> None:
    truth, results = fuzzed(6, "coco")
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text(json.dumps(results))
    evaluator = CocoEvaluator(str(tmp_path / "t.json"))
    rows, _ = rows_of_results(tmp_path / "r.json", evaluator.truth)
    found = compare(evaluator, rows, rows, resamples=10, seed=0)["coco/AP"]
    assert found.difference == (0, 0, 0)
    assert found.before.value == pytest.approx(pycocotools_numbers(numbered(truth), results)["AP"], abs=1e-12)
    assert found.before.low < found.before.high


def test_images_are_found_by_file_name_or_by_its_number(tmp_path: Path) -> None:
    images = [{"id": key} for key in ("000017", "a", "0018", "18")]
    truth = Truth({"images": images, "annotations": [], "categories": [{"id": 0, "name": "cat"}]}, "x")
    numbers = [truth.number_of_image(key) for key in (17, 17.0, "000017", "a", "17", 18, "18", 3)]
    assert [None if n is None else truth.image_ids[n] for n in numbers] == [
        *("000017", "000017", "000017", "a", None, None, "18", None)
    ]
    (tmp_path / "r.json").write_text('[{"image_id": 17, "category_id": 0, "bbox": [1, 2, 3, 4.123], "score": 0.5}]')
    rows, messages = rows_of_results(tmp_path / "r.json", truth)
    assert messages == []
    assert [row for row in rows if row.detections] == [
        Row("000017", (Detection((1, 2, 4, 6.123), "cat", 0.5),), 0.0, True, 0, ((1.0, 2.0, 3.0, 4.123),))
    ]


def rows(folder: Path, ids: list[Any], categories: list[Any], image: Any = 1) -> list[str]:
    """Read results with the given category ids for a truth with `ids`, and return the warnings."""
    names = [{"id": key, "name": f"c{key}"} for key in ids]
    truth = Truth({"images": [{"id": 1}], "annotations": [], "categories": names}, "x")
    box = {"image_id": image, "bbox": [1, 2, 3, 4], "score": 0.5}
    (folder / "r.json").write_text(json.dumps([box | {"category_id": key} for key in categories]))
    return rows_of_results(folder / "r.json", truth)[1]


@pytest.mark.parametrize(
    ("image", "category", "message"),
    [
        (17, 0, r"against: .*r\.json: no box is .* in an image of x; .* has no image with the ids 17"),
        (1, 7, r"against: .*r\.json: no box is of a category .* of x; .* has no category with the ids 7"),
    ],
)
def test_a_file_about_other_images_or_categories_is_refused(
    image: int, category: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        rows(tmp_path, [0], [category], image)


@pytest.mark.parametrize(("ids", "categories"), [([0], [1]), ([0, 1, 2], [1, 3]), ([0, 5], [6, 1.0]), ([0, "a"], [1])])
def test_categories_that_count_from_1_are_refused(ids: list[Any], categories: list[Any], tmp_path: Path) -> None:
    message = r"r\.json: category_id counts from 1, .* x counts from 0 \('c0'\); .* subtract 1 from each category_id"
    with pytest.raises(ConfigurationError, match=message):
        rows(tmp_path, ids, categories)


@pytest.mark.parametrize(
    ("ids", "categories", "warnings"),
    [
        ([0, 1], [1], 0),  # the first category is rarely found
        ([0, 1], [0, 2], 1),
        ([0, 1], [1, 2, 3], 1),
        ([1, 2], [2, 3], 1),  # COCO's own ids start at 1
        ([0, 1], [1, "2"], 1),
    ],
)
def test_other_unknown_categories_are_left_out(
    ids: list[Any], categories: list[Any], warnings: int, tmp_path: Path
) -> None:
    assert len(rows(tmp_path, ids, categories)) == warnings


def test_categories_that_fit_better_when_they_count_from_0_are_named(tmp_path: Path) -> None:
    categories = [{"id": key, "name": f"c{key}"} for key in range(3)]
    true = [{"image_id": 1, "category_id": key, "bbox": [key * 30, 1, 20, 20]} for key in (0, 1)]
    truth = Truth({"images": [{"id": 1}], "annotations": true, "categories": categories}, "x")
    boxes = [box | {"score": 0.5} for box in true]
    for more, warned in ((0, False), (1, True)):  # no box of the last category tells
        results = [box | {"category_id": box["category_id"] + more} for box in boxes]
        (tmp_path / "r.json").write_text(json.dumps(results))
        said = " ".join(rows_of_results(tmp_path / "r.json", truth)[1])
        assert ("the category 0 ('c0'), and AP would be 1.000 instead of 0.000 if 1 was subtracted" in said) == warned
    (tmp_path / "r.json").write_text(json.dumps(boxes[1:]))  # right, but without the first category
    assert rows_of_results(tmp_path / "r.json", truth)[1] == []
