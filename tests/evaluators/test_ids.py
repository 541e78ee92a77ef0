"""Ids in every form that JSON has: the numbers are those of pycocotools on the same files with small ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.benchmark_rules import Entry, fuzzed, lvis_numbers, pycocotools_numbers
from vrft.__main__ import main
from vrft.errors import ConfigurationError
from vrft.evaluators import CocoEvaluator
from vrft.evaluators.average_precision import BACKENDS, Backend
from vrft.evaluators.coco import Row
from vrft.evaluators.results import read_results
from vrft.evaluators.truth import Truth
from vrft.types import Detection

WHOLE = st.one_of(
    st.integers(-(2**80), 2**80),
    st.integers(2**53 - 2, 2**53 + 20),  # neighbours that float64 can't tell apart
    st.integers(-3, 3),
    st.integers(-(10**9), 10**9).map(float),
    st.just(1e300),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(str.strip)
ANY_ANNOTATION_ID = st.one_of(st.none(), st.just(0), WHOLE, TEXTS)


def ordered_ids(draw: st.DrawFn, count: int) -> list[Any]:
    """Draw ids in the order that their numbers have, all numbers or all texts."""
    kind = draw(st.sampled_from((WHOLE, TEXTS)))
    return sorted(draw(st.lists(kind, min_size=count, max_size=count, unique=True)))


def replaced(truth: Entry, results: list[Entry], images: dict[int, Any], categories: dict[int, Any]) -> Any:
    """Return both files with other ids of images and categories."""

    def lists(image: Entry) -> Entry:
        fields = ("neg_category_ids", "not_exhaustive_category_ids")
        return {field: [categories[key] for key in image[field]] for field in fields}

    def boxes(entries: list[Entry]) -> list[Entry]:
        return [
            entry | {"image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]]}
            for entry in entries
        ]

    content = {
        "images": [image | {"id": images[image["id"]]} | lists(image) for image in truth["images"]],
        "annotations": boxes(truth["annotations"]),
        "categories": [entry | {"id": categories[entry["id"]]} for entry in truth["categories"]],
    }
    return content, boxes(results)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 300), form=st.sampled_from(("coco", "lvis")))
def test_numbers_do_not_depend_on_the_form_of_ids(data: st.DataObject, seed: int, form: Any, tmp_path: Path) -> None:
    truth, results = fuzzed(seed, form)
    plain = [sorted(entry["id"] for entry in truth[table]) for table in ("images", "categories")]
    images, categories = (dict(zip(ids, ordered_ids(data.draw, len(ids)), strict=True)) for ids in plain)
    content, boxes = replaced(truth, results, images, categories)
    for row in content["annotations"]:
        row["id"] = data.draw(ANY_ANNOTATION_ID)
    file, found = tmp_path / "truth.json", tmp_path / "results.json"
    file.write_text(json.dumps(content))
    found.write_text(json.dumps(boxes))
    numbered = truth | {"annotations": [row | {"id": i} for i, row in enumerate(truth["annotations"], 1)]}
    expected = pycocotools_numbers(numbered, results) if form == "coco" else lvis_numbers(truth, results)
    read = Truth.read(file)
    backends: tuple[Backend, ...] = tuple(BACKENDS) if form == "coco" else ("hotcoco",)
    for backend in backends:
        numbers = read.evaluate(read_results(found, read)[0], form, backend).numbers(form)
        assert list(numbers.values()) == pytest.approx(list(expected.values()), abs=1e-12)


def cats(ids: list[Any], boxes: list[dict[str, Any]], names: tuple[str, ...] = ("cat", "dog")) -> dict[str, Any]:
    """Return an annotation file with an image of id 7."""
    categories = [{"id": key, "name": name} for key, name in zip(ids, names, strict=True)]
    return {"images": [{"id": 7, "width": 99, "height": 99}], "annotations": boxes, "categories": categories}


def box(category: Any, corner: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "image_id": 7,
        "category_id": category,
        "bbox": [corner, corner, 20, 20],
        "iscrowd": 0,
        "area": 400,
    } | more


def run_evaluate(
    tmp_path: Path, truth: Any, results: bytes, capsys: pytest.CaptureFixture[str], warning: str = ""
) -> Any:
    """Return the numbers of `vrft evaluate`, or its error. Numbers come with one line that has `warning`, if given."""
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_bytes(results)
    files = ["--annotations", f"{tmp_path}/t.json", "--results", f"{tmp_path}/r.json"]
    code = main(["evaluate", *files, "--format", "coco", "--json"])
    out, error = capsys.readouterr()
    if code != 0:
        return error
    assert [warning in line for line in error.splitlines()] == ([True] if warning else [])
    return json.loads(out)


def test_two_ids_with_one_name_are_one_category(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = cats([3, 9], [box(3), box(9, 50), box(3, 70, iscrowd=1)], ("cat", "cat"))
    results = [box(9, 0, score=0.9), box(3, 50, score=0.8), box(9, 30, score=0.85)]
    merged = truth | {
        "categories": truth["categories"][:1],
        "annotations": [row | {"category_id": 3, "id": i} for i, row in enumerate(truth["annotations"], 1)],
    }
    expected = pycocotools_numbers(merged, [row | {"category_id": 3} for row in results])
    warning = "'cat' has the ids 3, 9; they are one category"
    assert run_evaluate(tmp_path, truth, json.dumps(results).encode(), capsys, warning) == pytest.approx(expected)
    detections = [Detection((c, c, c + 20, c + 20), "cat", score) for c, score in ((0, 0.9), (50, 0.8), (30, 0.85))]
    rows = [Row(7, tuple(detections), 1.0, True)]
    evaluator = CocoEvaluator(str(tmp_path / "t.json"))
    assert evaluator.measure(rows) == pytest.approx(expected)
    assert "they are one category" in evaluator.truth.warnings[0]
    evaluator.write(tmp_path, rows)
    written = json.loads((tmp_path / "detections_t_vrft_results.json").read_text())
    assert {entry["category_id"] for entry in written} == {3}


def test_files_are_written_with_the_original_ids(tmp_path: Path) -> None:
    keys = [2**60 + 1, "a b", -7.0]
    content = {
        "images": [{"id": key, "width": 99, "height": 99} for key in keys],
        "annotations": [box("x") | {"image_id": key} for key in keys],
        "categories": [{"id": "x", "name": "cat"}],
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    rows = [
        Row(key, (Detection((0, 0, 20, 20), "cat", score),), 1.0, True)
        for key, score in zip(keys, (1, 0.9, 0.8), strict=True)
    ]
    evaluator = CocoEvaluator(str(tmp_path / "t.json"))
    assert evaluator.scores(rows)["coco/AP"] == pytest.approx(1)
    evaluator.write(tmp_path, rows)
    written = json.loads((tmp_path / "detections_t_vrft_results.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in written] == [(key, "x") for key in keys]
    assert [evaluator.scores_of([[row] for row in rows])["coco/AP"]] == pytest.approx([1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": [{"id": 7}, {"id": 7.0}]}, "images[0].id: 7 appears 2 times"),
        ({"images": [{"id": True}]}, "images[0].id: expected a whole number or text, got True"),
        ({"images": [{"id": [7]}]}, "images[0].id: expected a whole number or text, got [7]"),
        ({"images": [{"id": 1.5}]}, "images[0].id: expected a whole number or text, got 1.5"),
        ({"images": [{"id": None}]}, "images[0].id: expected a whole number or text, got None"),
        ({"images": [{"id": " "}]}, "images[0].id: expected a whole number or text, got ' '"),
        ({"images": [3]}, "images[0].id: expected a whole number or text, got None"),
        ({"images": [{"id": 7, "neg_category_ids": 3}]}, "images[0].neg_category_ids: expected a list of ids, got 3"),
        ({"images": None}, "expected lists of images, annotations and categories; images is None"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3.0, "name": "b"}]}, "3.0 appears twice, as 'a' and 'b'"),
        ({"categories": [{"id": False, "name": "a"}]}, "categories[0].id: expected a whole number or text, got False"),
        ({"categories": [{"id": 3, "name": 4}]}, "categories[0].name: expected text, got 4"),
        ({"annotations": [box(3, id=1.5)]}, "annotations[0]: id: expected a whole number, text or null, got 1.5"),
        ({"annotations": [box(3, image_id="7")]}, "annotations[0]: image_id: expected the id of one of the file's im"),
        ({"annotations": [box([3])]}, "annotations[0]: category_id: expected the id of one of the file's categories"),
        ({"annotations": [box(3), box(3, bbox=None)]}, "annotations[1]: bbox: expected [x, y, width, height] in"),
        ({"annotations": [box(3, iscrowd="yes")]}, "annotations[0]: iscrowd: expected 0 or 1, got 'yes'"),
        ({"annotations": [box(3, iscrowd=[])]}, "annotations[0]: iscrowd: expected 0 or 1, got []"),
        ({"annotations": [box(3, area="1")]}, "annotations[0]: area: expected a finite number of at least 0, got '1'"),
        ({"annotations": [box(3, area=True)]}, "annotations[0]: area: expected a finite number of at least 0"),
        ({"annotations": [box(3, area=-1)]}, "annotations[0]: area: expected a finite number of at least 0, got -1"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_file_record_and_field(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = run_evaluate(tmp_path, cats([3, 9], [box(3)]) | changes, b"[]", capsys)
    assert len(error.splitlines()) == 1
    assert f"{tmp_path}/t.json" in error
    assert said in error


@pytest.mark.parametrize(("given", "meant"), [("0", 0), ("1", 1), (None, 0), (False, 0), (True, 1), (1.0, 1)])
def test_flags_are_read_as_they_are_meant(
    given: Any, meant: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = box(3), box(3, 50, id=2)
    results = [box(3, score=0.5), box(3, 50, score=0.9), box(3, 30, score=0.7)]
    expected = pycocotools_numbers(cats([3, 9], [first, second | {"iscrowd": meant}]), results)
    truth = cats([3, 9], [first | {"area": None}, second | {"iscrowd": given}])
    assert run_evaluate(tmp_path, truth, json.dumps(results).encode(), capsys) == pytest.approx(expected)


def test_a_results_file_may_have_a_mark_and_categories_that_the_truth_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = cats([3, 9], [box(3, area=400)])
    results = [box(3, score=0.5), box(91, score=0.9), box("x", score=0.9)]
    warning = f"left out: 2 of 3 boxes, because {tmp_path}/t.json has no category with the ids 91, 'x'"
    found = run_evaluate(tmp_path, truth, b"\xef\xbb\xbf" + json.dumps(results).encode(), capsys, warning)
    assert found == pytest.approx(pycocotools_numbers(truth, results))
    assert "has no image 8" in run_evaluate(tmp_path, truth, json.dumps([box(3, image_id=8, score=1)]).encode(), capsys)


def test_a_bad_entry_of_a_results_file_is_not_said_to_be_of_another_format(tmp_path: Path) -> None:
    file = write(tmp_path, [box(3, score="0.9")])
    with pytest.raises(ConfigurationError, match=r"got `str` - at `\$\[0\]\.score`$"):
        read_results(file, Truth(cats([3, 9], []), "x"))


def test_invalid_entries_of_an_evaluators_file_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(cats([3, 9], [box(3), box(4), box(3, area="x")])))
    read = CocoEvaluator(str(tmp_path / "t.json")).truth
    assert len(read.content["annotations"]) == 1
    assert "left out: 2 invalid entries, e.g. annotations[1]: category_id" in read.warnings[0]
    with pytest.raises(ConfigurationError, match=r"annotations\[1\]: category_id"):
        Truth.read(tmp_path / "t.json")
    assert np.size(read_results(write(tmp_path, []), Truth(cats([3, 9], []), "x"))[0]) == 0


def write(folder: Path, results: list[Any]) -> Path:
    (folder / "r.json").write_text(json.dumps(results))
    return folder / "r.json"
