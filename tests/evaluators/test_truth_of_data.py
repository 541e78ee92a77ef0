"""Average precision of data without a COCO file: the ground truth comes from the data's own boxes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import CSV_ONLY, formats
from tests.helpers.benchmark_rules import pycocotools_numbers
from tests.helpers.coco import coco
from tests.helpers.data import samples_of
from vrft.__main__ import main
from vrft.data import CocoData, JsonlData, RecordData, YoloData
from vrft.data.ground_truth import LabelledImage, coco_tables, file_ids
from vrft.errors import ConfigurationError
from vrft.evaluators import CocoEvaluator, LvisEvaluator
from vrft.evaluators.coco import Row
from vrft.evaluators.detection_rows import rows_of_results
from vrft.evaluators.truth import LVIS_LISTS, Truth
from vrft.tasks import ClassificationTask
from vrft.types import Detection, Sample


def evaluated(data: RecordData, samples: Sequence[Sample], folder: Path, **settings: Any) -> dict[str, float]:
    """Return the scores of boxes near the true ones; the evaluator has no annotation file."""
    evaluator = CocoEvaluator(**settings)
    evaluator.check(data)
    rng = random.Random(0)

    def near(box: Detection) -> Detection:
        x0, y0, x1, y1 = (value + rng.uniform(-1, 1) for value in box.box)
        return Detection((x0, y0, x1, y1), box.label, round(rng.random(), 3))

    rows = [Row(sample.image_id, tuple(map(near, sample.target)), 0.5, True) for sample in samples]
    scores = evaluator.scores(rows)
    evaluator.write(folder / "val-0", rows)
    return scores


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_yolo_gets_the_numbers_of_the_coco_file_with_the_same_boxes(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x", 6)
    data = YoloData(str(config))
    _, samples = samples_of(data, tmp_path)
    assert {sample.image_id for sample in samples} == {"0", "1", "2", "3", "4", "5"}  # file names
    found = evaluated(data, samples, tmp_path / "out")
    tables, results = read(tmp_path / "out" / "annotations_val.json"), tmp_path / "out" / "val-0"
    assert {entry["name"]: entry["id"] for entry in tables["categories"]}["red"] == 0  # the class number
    expected = pycocotools_numbers(tables, read(results / "detections_annotations_val_vrft_results.json"))
    assert 0 < found["coco/AP"] < 1
    for name, value in found.items():
        if name.startswith("coco/"):
            assert value == pytest.approx(expected[name.removeprefix("coco/")], abs=1e-12)
    original, _ = formats.coco_tables(tmp_path / "y", "val", 6)
    boxes = sorted(row["bbox"] for row in tables["annotations"])
    assert boxes == [pytest.approx(box, abs=1e-4) for box in sorted(row["bbox"] for row in original["annotations"])]


def test_a_part_of_yolo_or_coco_data_is_its_own_ground_truth(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x", 6)
    tables, _ = formats.coco_tables(tmp_path / "y", "train", 6)
    (tmp_path / "y.json").write_text(json.dumps(tables))
    for name, data in {
        "yolo": YoloData(str(config), val_fraction=0.5),
        "coco": CocoData(str(tmp_path / "y.json"), str(tmp_path / "y"), val_fraction=0.5),
    }.items():
        _, samples = samples_of(data, tmp_path)
        assert evaluated(data, samples, tmp_path / name)["coco/AP"] > 0
        written = read(tmp_path / name / "annotations_val.json")
        assert len(written["images"]) == 3
        assert {entry["id"] for entry in written["images"]} == {sample.image_id for sample in samples}
        assert len(written["annotations"]) == sum(len(sample.target) for sample in samples)


def test_a_coco_file_is_used_as_it_is_and_only_the_categories_that_were_asked_for(tmp_path: Path) -> None:
    file = coco(tmp_path)
    data = CocoData(str(file), str(tmp_path), str(file), str(tmp_path), categories=["cat"])
    _, samples = samples_of(data, tmp_path)
    given = evaluated(data, samples, tmp_path / "given", annotations=str(file), categories=["cat"])
    assert evaluated(data, samples, tmp_path / "own") == given
    assert (tmp_path / "own" / "val-0" / "detections_instances_vrft_results.json").exists()
    assert not (tmp_path / "own" / "annotations_val.json").exists()


def test_a_test_is_scored_with_the_boxes_of_the_test_split(tmp_path: Path) -> None:
    file = coco(tmp_path)
    content = read(file)
    (tmp_path / "test.json").write_text(json.dumps(content | {"annotations": content["annotations"][:1]}))
    files = [str(tmp_path / name) for name in ("instances.json", "", "instances.json", "", "test.json", "")]
    names = ("train_annotations", "train_images", "val_annotations", "val_images", "test_annotations", "test_images")
    data = CocoData(**dict(zip(names, files, strict=True)))
    samples_of(data, tmp_path, stage="test")
    evaluated(data, [data.test_set()[0]], tmp_path / "out")
    assert (tmp_path / "out" / "val-0" / "detections_test_vrft_results.json").exists()


def test_questions_are_the_categories_of_data_without_names(tmp_path: Path) -> None:
    formats.write_jsonl(tmp_path / "x", 4)
    data = JsonlData(str(tmp_path / "x" / "train.jsonl"), str(tmp_path / "x" / "val.jsonl"))
    _, samples = samples_of(data, tmp_path)
    assert evaluated(data, samples, tmp_path / "out")["coco/AP"] > 0
    names = {entry["name"] for entry in read(tmp_path / "out" / "annotations_val.json")["categories"]}
    assert names == {sample.query for sample in samples}


def test_a_fold_of_the_training_images_is_averaged_over_the_training_categories(tmp_path: Path) -> None:
    data = fold(tmp_path, categories=["red", "green"], val_categories=["blue"], val_queries="all")
    _, samples = samples_of(data, tmp_path)
    assert {sample.query for sample in samples} == {"red", "green"}
    assert evaluated(data, samples, tmp_path / "out")["coco/AP"] > 0
    about = read(tmp_path / "out" / "val-0" / "coco.meta.json")
    assert (about["categories"], about["queries"]) == (["red", "green"], "annotated")


@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_objects_that_a_fold_does_not_ask_about_are_ignored(name: str, tmp_path: Path) -> None:
    config = str(formats.write_yolo(tmp_path / "x", 6))
    data = fold(tmp_path) if name == "coco" else YoloData(config, val_shots=1)
    _, samples = samples_of(data, tmp_path)
    evaluator = CocoEvaluator(confidence="answer")
    evaluator.check(data)
    rows = [Row(sample.image_id, sample.target, 1.0, True) for sample in samples]
    assert evaluator.scores(rows)["coco/AP"] == pytest.approx(1)
    evaluator.write(tmp_path / "out" / "val-0", rows)
    truth = read(tmp_path / "out" / "annotations_val.json")
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    asked = {(sample.image_id, sample.query) for sample in samples}
    ignored = [(entry["image_id"], names[entry["category_id"]]) not in asked for entry in truth["annotations"]]
    assert [bool(entry.get("iscrowd")) for entry in truth["annotations"]] == ignored
    assert 0 < sum(ignored) < len(ignored)
    # another detector finds all objects
    found = [
        {key: e[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for e in truth["annotations"]
    ]
    (tmp_path / "r.json").write_text(json.dumps(found))
    others, _ = rows_of_results(tmp_path / "r.json", evaluator.truth)
    for other in (evaluator, LvisEvaluator()):
        other.check(data)
        assert other.scores(others)[f"{other.format}/AP"] == pytest.approx(1)


@pytest.mark.parametrize("settings", [{"val_shots": 1}, {"val_fraction": 0.5}])
def test_fields_that_are_not_read_may_hold_anything(settings: dict[str, Any], tmp_path: Path) -> None:
    content, _ = formats.coco_tables(tmp_path / "images", "train", 6)
    content["licenses"] = [math.nan]
    content["images"] = [entry | {"date_captured": math.nan, "coco_url": math.nan} for entry in content["images"]]
    content["annotations"] = [entry | {"attributes": {"x": math.inf}} for entry in content["annotations"]]
    content["categories"] = [entry | {"frequency": math.nan} for entry in content["categories"]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = CocoData(str(tmp_path / "train.json"), str(tmp_path / "images"), **settings)
    _, samples = samples_of(data, tmp_path)
    assert evaluated(data, samples, tmp_path / "out")["coco/AP"] > 0
    written = read(tmp_path / "out" / "annotations_val.json")
    assert written["images"][0].keys() == {"id", "file_name", "width", "height"}


def test_lvis_lists_and_frequencies_are_kept(tmp_path: Path) -> None:
    folder = formats.write_lvis(tmp_path / "x")
    content = read(folder / "lvis_train.json")
    data = CocoData(str(folder / "lvis_train.json"), str(folder / "train2017"), val_fraction=0.5)
    samples_of(data, tmp_path)
    tables = data.truth_tables()
    assert tables["categories"] == [{k: e[k] for k in ("id", "name", "frequency")} for e in content["categories"]]
    given = {entry["id"]: entry for entry in content["images"]}
    for entry in tables["images"]:
        for field in LVIS_LISTS:
            assert entry[field] == given[entry["id"]][field]


def fold(folder: Path, **settings: Any) -> CocoData:
    """Return COCO data with one held-out training record per category."""
    tables, _ = formats.coco_tables(folder / "images", "train", 6)
    (folder / "train.json").write_text(json.dumps(tables))
    return CocoData(str(folder / "train.json"), str(folder / "images"), val_shots=1, **settings)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a.png", "b.png"], ["a", "b"]),
        (["a.png", "x/a.png", "a.png"], ["a.png", "x/a.png", "a.png (2)"]),
        (["caf\udce9.png", "caf\udcea.png"], ["caf\\udce9", "caf\\udcea"]),  # bytes that are not UTF-8
        (["caf\udce9.png", "caf\\udce9.jpg"], ["caf\\udce9.png", "caf\\udce9.jpg"]),
        ([" .png", "a.png"], [" .png", "a.png"]),
    ],
)
def test_ids_of_files_are_unique_text(names: list[str], ids: list[str]) -> None:
    images = [LabelledImage(key, name, (4, 4), []) for key, name in zip(ids, names, strict=True)]
    assert file_ids([Path(name) for name in names]) == ids
    json.dumps(coco_tables(images, {}), ensure_ascii=False).encode()
    assert Truth(coco_tables(images, {}), "x").image_ids == sorted(ids)


def test_ignored_boxes_are_crowds() -> None:
    box, crowd = Detection((1, 2, 4, 6), "cat"), Detection((10, 10, 30, 30), "cat")
    tables = coco_tables([LabelledImage("a", "a.png", (40, 30), [box], [crowd])], {"cat": 3})
    assert tables["annotations"] == [
        {"id": 1, "image_id": "a", "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": "a", "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 1, "ignore": 1},
    ]
    inside = {"image_id": 1, "category_id": 3, "bbox": [12, 12, 5, 5], "score": 0.9}
    right = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    numbered = json.loads(json.dumps(tables).replace('"a"', "1"))
    assert pycocotools_numbers(numbered, [inside, right])["AP"] == pytest.approx(1)


def test_data_without_boxes_needs_a_file() -> None:
    from vrft.data import FreshSceneData

    with pytest.raises(ConfigurationError, match=r"CocoEvaluator\.annotations: FreshSceneData has no boxes"):
        CocoEvaluator().check(FreshSceneData(1))


def test_names_are_no_boxes(tmp_path: Path) -> None:
    formats.write_jsonl(tmp_path / "x", 4)
    files = [str(tmp_path / "x" / f"{part}.jsonl") for part in ("train", "val")]
    for file in files:
        lines = [
            json.loads(line) | {"solution": "<answer>red</answer>"} for line in Path(file).read_text().splitlines()
        ]
        Path(file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = JsonlData(*files)
    samples_of(data, tmp_path, ClassificationTask())
    with pytest.raises(ConfigurationError, match="JsonlData has no boxes"):
        CocoEvaluator().check(data)


@pytest.mark.slow
def test_a_yolo_run_logs_average_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = formats.write_yolo(tmp_path / "x", 3)
    command = ["validate", "--config=quickstart", "--data=YoloData", f"--data.config={config}"]
    assert main([*command, CSV_ONLY, f"--run_dir={tmp_path}/run", "--trainer.enable_progress_bar=false"]) == 0
    assert "val/coco/AP" in capsys.readouterr().out
    folder = tmp_path / "run" / "evaluation"
    about = read(folder / "val-0" / "coco.meta.json")
    results = folder / "val-0" / "detections_annotations_val_vrft_results.json"
    truth = folder / "annotations_val.json"
    assert about["confidence"] == "product"
    assert about["numbers"] == pytest.approx(pycocotools_numbers(read(truth), read(results)), abs=1e-12)
    assert main(["evaluate", f"--annotations={truth}", f"--results={results}", "--format=coco", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == about["numbers"]
    predict = ["predict", *command[1:], CSV_ONLY, f"--run_dir={tmp_path}/run", "--trainer.enable_progress_bar=false"]
    assert main(predict) == 0
    assert read(tmp_path / "run" / "predictions_coco.json") == read(results)
