"""What tools mean by their files: parts of one object, images that nobody looked at, and files named like an image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import formats
from tests.helpers.annotation_tools import voc_xml, write, write_voc_folder
from tests.helpers.data import drawn, refused, said_of, samples_of
from vrft.data import CocoData, CvatData, LabelMeData, LabelStudioData, ViaData, VocData
from vrft.data.box_data import AnnotatedData
from vrft.data.formats.groups import join_groups
from vrft.errors import ConfigurationError

CAR, DOG = [[1, 1], [9, 1], [9, 9]], [[30, 30], [40, 30], [40, 41]]


def labelme(folder: Path, shapes: list[tuple[str, Any, str, Any]]) -> str:
    """Write a file with shapes of label, points, type and group."""
    formats.save(formats.scenes("train", 1)[0][0], folder / "0.png")
    names = ("label", "points", "shape_type", "group_id")
    content = {"imagePath": "0.png", "shapes": [dict(zip(names, shape, strict=True)) for shape in shapes]}
    (folder / "0.json").write_text(json.dumps(content))
    return str(folder)


def cvat(folder: Path, shapes: list[str]) -> str:
    formats.save(formats.scenes("train", 1)[0][0], folder / "0.png")
    image = f'<image id="0" name="0.png" width="56" height="56">{"".join(shapes)}</image>'
    (folder / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    return str(folder / "annotations.xml")


def boxes_of(data: AnnotatedData, tmp_path: Path) -> list[tuple[str, tuple[float, ...]]]:
    train, _ = samples_of(data, tmp_path)
    return sorted((box.label, box.box) for sample in train for box in sample.target)


def test_shapes_of_one_label_and_group_are_one_object_as_in_labelmes_conversion_to_coco(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = [("car", CAR, "polygon", 0), ("car", DOG[::2], "rectangle", 0), ("dog", DOG, "polygon", 0)]
    shapes += [("car", CAR, "polygon", None), ("car", DOG, "polygon", None)]
    path = labelme(tmp_path, shapes)
    with caplog.at_level("INFO"):
        found = boxes_of(LabelMeData(path, val_annotations=path), tmp_path)
    assert found == [
        ("car", (1, 1, 9, 9)),
        ("car", (1, 1, 40, 41)),
        ("car", (30, 30, 40, 41)),
        ("dog", (30, 30, 40, 41)),
    ]
    assert "shapes joined to other parts of the same object: 2" in caplog.text  # one in each split


def test_outlines_of_one_group_are_one_object_as_in_cvats_coco_export(tmp_path: Path) -> None:
    outlines = [
        '<polygon label="car" points="1,1;9,1;9,9" {}/>',
        '<polygon label="car" points="30,30;40,30;40,41" {}/>',
    ]
    boxes = [
        '<box label="car" xtl="2" ytl="2" xbr="9" ybr="9" {}/>',
        '<box label="car" xtl="3" ytl="3" xbr="8" ybr="8" {}/>',
    ]
    for group, count in (('group_id="2"', 3), ("", 4)):  # grouped boxes are two objects
        path = cvat(tmp_path, [shape.format(group) for shape in (*outlines, *boxes)])
        found = boxes_of(CvatData(path, val_annotations=path), tmp_path)
        assert len(found) == count
        assert (("car", (1, 1, 40, 41)) in found) == (count == 3)


def test_a_rectangle_of_four_points_may_be_upright_alone(tmp_path: Path) -> None:
    upright, rotated = [[1, 1], [9, 1], [9, 9], [1, 9]], [[5, 1], [9, 5], [5, 9], [1, 5]]
    path = labelme(tmp_path, [("car", upright, "rectangle", None)])
    assert boxes_of(LabelMeData(path, val_annotations=path), tmp_path) == [("car", (1, 1, 9, 9))]
    labelme(tmp_path, [("car", rotated, "rectangle", None)])
    with pytest.raises(ValueError, match=r"shapes\[0\] \('car'\): a rotated rectangle; expected an upright one"):
        samples_of(LabelMeData(path, val_annotations=path), tmp_path)


def test_a_voc_file_that_names_another_existing_image_is_a_bad_record(tmp_path: Path) -> None:
    folder = write_voc_folder(tmp_path, formats.scenes("train", 3))
    box = drawn("train")[0]
    for name, refuses in (("1.png", True), ("0.jpg", False), ("older.png", False)):
        (folder / "0.xml").write_text(voc_xml(name, box))
        data = VocData(str(folder), val_annotations=str(folder), on_bad_record="skip")
        samples_of(data, tmp_path)
        assert ("0" in data.images("train")) == (not refuses)
        bad = (tmp_path / "run" / "bad_records.txt").read_text() if refuses else ""
        said = f"0.xml: filename: {folder}/1.png or {folder}/0.png, which is called like this file"
        assert (said in bad) == refuses


def studio(folder: Path, change: Callable[[Any], Any], **settings: Any) -> LabelStudioData:
    path = write("label_studio", folder, count=3)
    tasks = json.loads(path.read_text())
    change(tasks[0])
    path.write_text(json.dumps(tasks))
    return LabelStudioData(str(path), val_annotations=str(path), negatives=9.0, **settings)


@pytest.mark.parametrize(
    "change",
    [
        lambda task: task.update(annotations=[]),
        lambda task: task.update(annotations=None),
        lambda task: task["annotations"].pop(),  # the other one is cancelled
        lambda task: task.update(completions=[{"skipped": True, "result": []}], annotations=[]),
    ],
)
def test_an_image_that_nobody_annotated_is_not_an_image_without_objects(
    change: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train, val = samples_of(studio(tmp_path, change), tmp_path)
    assert "tasks that nobody annotated: 2" in caplog.text  # one in each split
    assert {sample.image_id for sample in [*train, *val]} == {"1", "2"}


def test_completions_are_annotations_of_older_versions(tmp_path: Path) -> None:
    train, _ = samples_of(studio(tmp_path, lambda task: task.update(completions=task.pop("annotations"))), tmp_path)
    assert {sample.image_id for sample in train if sample.target} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("region", "data", "said"),
    [
        ({"to_name": "second"}, {}, "to_name: regions of several images, 'image', 'second'; expected one"),
        ({}, {"image": "0.png", "second": "1.png"}, None),
        ({}, {"image": "0.png", "image2": "no address"}, None),
        ({"item_index": 1}, {}, "item_index: regions of another image than the first of several"),
    ],
)
def test_regions_of_another_image_are_a_bad_record(
    region: dict[str, Any], data: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    def change(task: Any) -> None:
        result = task["annotations"][1]["result"]
        result.append(result[0] | {"id": "more"} | region)
        task["data"].update(data)

    if said is None:
        assert {sample.image_id for sample in samples_of(studio(tmp_path, change), tmp_path)[0]} == {"0", "1", "2"}
    else:
        assert said in said_of(lambda **more: studio(tmp_path, change, **more), tmp_path)


def test_json_min_records_that_nobody_annotated_are_not_images_without_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("label_studio_min", tmp_path, count=3)
    tasks = json.loads(path.read_text())
    tasks[0].pop("label")
    tasks[0]["annotation_id"] = None
    path.write_text(json.dumps(tasks))
    with caplog.at_level("INFO"):
        data = LabelStudioData(str(path), val_annotations=str(path), negatives=9.0)
        train, _ = samples_of(data, tmp_path)
    assert "tasks that nobody annotated: 2" in caplog.text
    assert {sample.image_id for sample in train} == {"1", "2"}


@pytest.mark.parametrize(("tag", "refuses"), [("second", True), ("label", False)])
def test_tags_of_images_are_compared_over_all_tasks(tag: str, refuses: bool, tmp_path: Path) -> None:
    path = write("label_studio", tmp_path, count=2)
    tasks = json.loads(path.read_text())
    for task in tasks[refuses:]:  # a file with one tag is valid, even if a column of texts has its name
        task["data"][tag] = "a text"
        for region in task["annotations"][1]["result"]:
            region["to_name"] = tag
    path.write_text(json.dumps(tasks))
    data = LabelStudioData(str(path), val_annotations=str(path))
    if refuses:
        with pytest.raises(ConfigurationError, match="to_name: regions of several images, 'image', 'second'"):
            samples_of(data, tmp_path)
    else:
        assert {sample.image_id for sample in samples_of(data, tmp_path)[0]} == {"0", "1"}


CREATEML = [
    {"image": "0.png", "annotations": [{"label": "cat", "coordinates": {"x": 5, "y": 5, "width": 2, "height": 2}}]}
]
VIA3 = {"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}


@pytest.mark.parametrize(("content", "name"), [(CREATEML, "CreateML"), (VIA3, "VIA 3")])
def test_formats_without_a_reader_are_named(content: Any, name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    for data in (CocoData, LabelStudioData, ViaData):
        said = refused(lambda **more: data(str(file), val_annotations=str(file), **more), tmp_path)  # noqa: B023
        assert f"{file}: not " in said
        assert f"; this is {name}, which has no reader" in said


def test_long_and_large_groups_stay_apart_and_others_are_refused() -> None:
    groups: list[object] = [2**70, 2**71, "x" * 90 + "a", "x" * 90 + "b", 1, "1"]
    boxes = [("car", (i, i, i + 1.0, i + 1.0)) for i in range(len(groups))]
    assert join_groups(boxes, groups) == (boxes, 0)
    for group in (1.5, True, [1]):
        with pytest.raises(ValueError, match="group: expected an integer, a string or null"):
            join_groups(boxes[:1], [group])
