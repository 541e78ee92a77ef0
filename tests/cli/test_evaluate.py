"""`python -m vrft evaluate` against pycocotools, and against LVIS's rules computed by hand."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.helpers.annotation_tools import write
from vrft.__main__ import main
from vrft.evaluators.average_precision import COCO_NUMBERS, LVIS_NUMBERS, UNDEFINED

FIRST = 2**24 + 1
"""An image id that float32 can't represent exactly."""


def fuzzed(seed: int, folder: Path) -> tuple[Path, Path]:
    """Write truth with crowds and areas at the edges of COCO's ranges, and results with ties and too many boxes."""
    rng = random.Random(seed)
    images = [{"id": FIRST + 7 * i, "width": 400, "height": 400} for i in range(rng.randint(1, 10))]
    categories = [{"id": i, "name": f"c{i}"} for i in rng.sample(range(1, 90), 4)]
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for category in categories[:3]:  # the last category never occurs
            for _ in range(rng.choice([0, 0, 1, 2, 5])):
                x, y = rng.uniform(0, 200), rng.uniform(0, 200)
                w, h = rng.choice([(32, 32), (96, 96), (rng.uniform(1, 150), rng.uniform(1, 150))])
                truth.append(
                    {
                        "id": len(truth) + 1,
                        "image_id": image["id"],
                        "category_id": category["id"],
                        "bbox": [x, y, w, h],
                        "area": w * h if rng.random() < 0.5 else w * h * 0.7,
                        "iscrowd": int(rng.random() < 0.15),
                    }
                )
                for _ in range(rng.choice([0, 1, 1, 3])):
                    box = [max(0.0, v + rng.gauss(0, 6)) for v in (x, y, w, h)]
                    score = rng.choice([0.5, 0.9, rng.random()])
                    results.append(
                        {"image_id": image["id"], "category_id": category["id"], "bbox": box, "score": score}
                    )
    if seed % 5 == 0:  # more than the limit of 100
        many = {"image_id": FIRST, "category_id": categories[0]["id"], "bbox": [1, 1, 30, 30]}
        results += [many | {"score": rng.random()} for _ in range(150)]
    rng.shuffle(results)
    files = folder / "gt.json", folder / "dt.json"
    content = {"images": images, "annotations": truth, "categories": categories}
    for path, value in zip(files, (content, results), strict=True):
        path.write_text(json.dumps(value))
    return files


def reference(truth: Path, results: Path) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(truth))
        evaluation = COCOeval(gt, gt.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def numbers_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    assert main(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("seed", range(60))
def test_the_numbers_of_coco_equal_those_of_pycocotools(
    seed: int, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, results = fuzzed(seed, tmp_path)
    if not json.loads(results.read_text()):
        pytest.skip("pycocotools can't read an empty file")
    files = ["--annotations", str(truth), "--results", str(results), "--format", "coco", "--backend", backend]
    found = numbers_of(capsys, *files)
    assert list(found) == list(COCO_NUMBERS)
    assert list(found.values()) == pytest.approx(reference(truth, results).stats.tolist(), abs=1e-12)


def test_a_subset_is_selected_from_the_whole_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = fuzzed(3, tmp_path)
    names = [category["name"] for category in json.loads(truth.read_text())["categories"]]
    found = numbers_of(
        capsys, "--annotations", str(truth), "--results", str(results), "--format", "coco", "--categories", names[1]
    )
    evaluation = reference(truth, results)
    place = evaluation.params.catIds.index(json.loads(truth.read_text())["categories"][1]["id"])
    precision = evaluation.eval["precision"][:, :, place, 0, -1]
    assert found["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)


def lvis(tmp_path: Path, results: list[dict[str, Any]], **image: Any) -> tuple[str, ...]:
    """Write an image with a box of category 1; categories 2 (rare) and 3 are not annotated. Return arguments."""
    content = {
        "images": [{"id": 5, "width": 100, "height": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500.0}],
        "categories": [{"id": i, "name": f"c{i}", "frequency": kind} for i, kind in ((1, "f"), (2, "r"), (3, "c"))],
    }
    content["images"][0] |= image
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dt.json").write_text(json.dumps(results))
    return ("--annotations", f"{tmp_path}/gt.json", "--results", f"{tmp_path}/dt.json", "--format", "lvis")


def box(category: int, score: float, corner: float = 0.0) -> dict[str, Any]:
    return {"image_id": 5, "category_id": category, "bbox": [corner, corner, 50, 50], "score": score}


RIGHT = box(1, 0.5)
WRONG = box(1, 0.9, 45)  # a confident box beside the true one


@pytest.mark.parametrize(
    ("results", "image", "expected"),
    [
        ([RIGHT], {}, 1.0),
        ([RIGHT, WRONG], {}, 0.5),
        ([RIGHT, WRONG], {"not_exhaustive_category_ids": [1]}, 1.0),  # unannotated objects are possible
        ([RIGHT, box(1, 0.4)], {"not_exhaustive_category_ids": [1]}, 1.0),
        ([RIGHT, box(2, 0.9), box(3, 0.9)], {}, 1.0),  # not annotated in this image
        ([RIGHT, *[box(2, 0.9)] * 300], {}, 0.0),  # the limit of 300 boxes counts all categories
        ([RIGHT, *[box(2, 0.9)] * 299], {}, 1.0),
        ([], {}, 0.0),
    ],
)
def test_lvis_rules(
    results: list[dict[str, Any]],
    image: dict[str, Any],
    expected: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = numbers_of(capsys, *lvis(tmp_path, results, **image))
    assert list(found) == list(LVIS_NUMBERS)
    assert found["AP"] == found["APf"] == pytest.approx(expected, abs=1e-12)
    assert found["APr"] == found["APc"] == UNDEFINED


def test_a_box_of_a_category_annotated_as_absent_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = lvis(tmp_path, [RIGHT, box(2, 0.9)], neg_category_ids=[2])
    content = json.loads((tmp_path / "gt.json").read_text())
    content["images"].append(content["images"][0] | {"id": 6, "neg_category_ids": []})
    content["annotations"].append({"id": 2, "image_id": 6, "category_id": 2, "bbox": [0, 0, 50, 50], "area": 2500.0})
    (tmp_path / "gt.json").write_text(json.dumps(content))
    entries = [RIGHT, box(2, 0.9), box(2, 0.5) | {"image_id": 6}]
    (tmp_path / "dt.json").write_text(json.dumps(entries))
    assert numbers_of(capsys, *arguments)["APr"] == pytest.approx(0.5, abs=1e-12)


def test_the_papers_average_is_over_all_areas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = lvis(tmp_path, [box(1, 0.5) | {"bbox": [0, 0, 50, 40]}])
    standard = numbers_of(capsys, *arguments)
    paper = numbers_of(capsys, *arguments, "--convention", "visual_rft")
    assert standard["AP"] == pytest.approx(0.7, abs=1e-12)  # IoU 0.8: seven of ten thresholds
    assert paper["AP"] == pytest.approx(np.mean([0.7, standard["APm"]]), abs=1e-12)


def test_annotation_zero_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = lvis(tmp_path, [RIGHT])
    content = json.loads((tmp_path / "gt.json").read_text())
    content["annotations"][0] |= {"id": 0, "iscrowd": 0}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    assert numbers_of(capsys, *arguments[:-1], "coco")["AP"] == pytest.approx(1, abs=1e-12)


def test_the_table_has_the_benchmarks_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = fuzzed(4, tmp_path)
    assert main(["evaluate", "--annotations", str(truth), "--results", str(results), "--format", "coco"]) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    out = io.StringIO()
    evaluation = reference(truth, results)
    with contextlib.redirect_stdout(out):
        evaluation.summarize()
    assert said == out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ('[{"image_id": 6, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "[0].image_id: "),
        ('[{"image_id": "5", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "has no image '5'"),
        ('[{"image_id": 5.5, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "[0].image_id: expected a whole"),
        ('[{"image_id": 5, "category_id": true, "bbox": [0, 0, 1, 1], "score": 1}]', "$[0].category_id"),
        ('[{"image_id": 5, "category_id": 1.5, "bbox": [0, 0, 1, 1], "score": 1}]', "[0].category_id: expected a"),
        ('[{"image_id": 5, "category_id": 1, "bbox": [0, 0, 1], "score": 1}]', "$[0].bbox"),
        ('[{"image_id": 5, "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}]', "[0].bbox: expected x, y"),
        ('[{"image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1]}]', "missing required field `score`"),
        ('[{"image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1], "score": NaN}]', "malformed"),
        ('[{"image_id": 5, "category_id": 1, "bbox": [0, 0', "truncated"),
        ("{}", "Expected `array`"),
    ],
)
def test_a_file_that_does_not_match_is_one_error(
    results: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = lvis(tmp_path, [])
    (tmp_path / "dt.json").write_text(results)
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert reason in said[0]
    assert "dt.json" in said[0]


@pytest.mark.parametrize("field", ["annotations", "results"])
@pytest.mark.parametrize(
    ("tool", "file", "name"),
    [
        ("voc_folder", "*.xml", "Pascal VOC"),
        ("voc_folder", "", "Pascal VOC"),
        ("labelme", "*.json", "LabelMe"),
        ("cvat", "*.xml", "CVAT for images"),
        ("label_studio", "*.json", "Label Studio"),
        ("label_studio_min", "*.json", "Label Studio"),
        ("via", "*.json", "VIA"),
        ("supervisely", "ann/*.json", "Supervisely"),
        ("csv", "*.csv", "a table"),
    ],
)
def test_a_file_of_another_format_is_named(
    field: str, tool: str, file: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = lvis(tmp_path, [])
    write(tool, tmp_path / tool)
    path = next((tmp_path / tool).rglob(file)) if file else tmp_path / tool
    assert main(["evaluate", *arguments, f"--{field}", str(path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"vrft: {field}: {path} ")
    assert said.endswith(f"; this is {name}")
    if file:
        expected = {"annotations": "not a COCO or LVIS annotation file", "results": "image_id, category_id, bbox"}
        assert expected[field] in said


def test_exchanged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, truth, _, results, *_ = lvis(tmp_path, [RIGHT])
    assert main(["evaluate", "--annotations", results, "--results", results, "--format", "lvis"]) == 2
    assert "annotation file: expected lists of images, annotations" in (said := capsys.readouterr().err)
    assert said.endswith("; this is a COCO results file; expected one with images, annotations and categories\n")
    assert main(["evaluate", "--annotations", truth, "--results", truth, "--format", "lvis"]) == 2
    assert capsys.readouterr().err.endswith("; this is COCO\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--annotations", "none.json"], "annotations: none.json can't be read"),
        (["--categories", "c1", "bird"], "categories: 'bird' is not in"),
        (["--format", "voc"], "invalid choice: 'voc'"),
        (["--backend", "pycocotools"], "expected hotcoco for LVIS"),
    ],
)
def test_bad_arguments_are_one_error(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *lvis(tmp_path, []), *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert reason in said[0]


def test_a_file_of_predicted_images_says_where_its_ids_are_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, results = fuzzed(4, tmp_path)
    results = results.rename(tmp_path / "predictions_coco.json")
    results.write_text('[{"image_id": "no", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    (tmp_path / "predictions_images.json").write_text("{}")
    assert main(["evaluate", "--annotations", str(truth), "--results", str(results), "--format", "coco"]) == 2
    assert "has no image 'no'; if it was written by `predict --images`" in capsys.readouterr().err
