"""Annotations as tools write them: the boxes that were drawn, and errors that name the format and the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import formats
from tests.helpers.annotation_tools import TOOLS, voc_xml, write, write_voc_folder
from tests.helpers.data import assert_same_boxes, drawn, said_of, samples_of
from vrft.data import BoxCsvData, CocoData, CvatData, LabelStudioData, VocData, YoloData
from vrft.data.image_names import find_image
from vrft.errors import ConfigurationError
from vrft.types import Detection


@pytest.mark.parametrize("tool", TOOLS)
def test_the_boxes_of_every_tool_are_those_that_were_drawn(tool: str, tmp_path: Path) -> None:
    train, val = (str(write(tool, tmp_path / part, part)) for part in ("train", "val"))
    data = TOOLS[tool][0](train, val_annotations=val, test_annotations=val)
    for part, samples in zip(("train", "val"), samples_of(data, tmp_path), strict=True):
        true = drawn(part, 2)
        assert sum(len(sample.target) for sample in samples) == sum(map(len, true))
        for sample in samples:
            assert_same_boxes(sample.target, [box for box in true[int(sample.image_id)] if box.label == sample.query])
    labels = sorted({box.label for part in ("train", "val") for boxes in drawn(part, 2) for box in boxes})
    assert data.category_ids() == {name: number for number, name in enumerate(labels, 1)}
    assert "test" in data.splits()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_of_another_tool_is_named(tool: str, tmp_path: Path) -> None:
    path = write(tool, tmp_path / "x")
    with pytest.raises(ConfigurationError) as caught:
        samples_of(CocoData(str(path), str(tmp_path), val_fraction=0.5), tmp_path)
    expected = TOOLS[tool][0].__name__
    assert f"--data={expected}" in str(caught.value)
    other = LabelStudioData if tool == "cvat" else CvatData
    with pytest.raises(ConfigurationError, match=f"--data={expected}"):
        samples_of(other(str(path), val_fraction=0.5), tmp_path)


def change_json(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


def read(tool: str, path: Path, tmp_path: Path) -> str:
    """Return the error of reading a file."""
    with pytest.raises(ConfigurationError) as caught:
        samples_of(TOOLS[tool][0](str(path), val_fraction=0.5), tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<bndbox>", "<robndbox>", "object 0 (red): a rotated box"),
        ("<bndbox>", "<bndbox/><bndbox>", "object 0 (red): several bndbox; expected one"),
        ("<difficult>0", "<difficult>maybe", "object 0 (red): difficult: expected 0 or 1, got 'maybe'"),
        ("<xmin>", "<xmin>1_", "object 0 (red): xmin: expected a number, got '1_"),
        ("<xmin>", "<xmin>x", "object 0 (red): xmin: expected a number, got 'x"),
        ("<name>red", "<name> ", "box 0: expected a label, got ''"),
        ("<xmax>", "<xmax>9", "extends beyond its image of 56 x 56"),
        ("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>", "document type"),
        ("<annotation>", "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotation>", "document type"),
        ("</annotation>", "", "not well-formed XML"),
        ("<width>56", "<width>80", "is 56 x 56, expected 80 x 56"),
        ("<width>56", "<width>1" + "0" * 400, "expected width and height as whole numbers, got '10000"),
        ("<filename>0.png", "<filename>none", "x/none: no such image"),
        ("<name>red", "<name>caf\xe9", "line 15: byte 0xe9 is not utf-8"),
    ],
)
def test_a_bad_voc_file_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = write("voc_folder", tmp_path / "x")
    file = folder / "0.xml"
    text = file.read_text().replace(old, new, 1).replace("</bndbox>", "</robndbox>" if "rob" in new else "</bndbox>", 1)
    file.write_bytes(text.encode("latin-1"))
    if "none" in new:
        (folder / "0.png").unlink()
    message = read("voc", folder, tmp_path)
    assert f"{file}: " in message
    assert said in message


def test_voc_has_its_own_encoding_and_the_official_files_count_pixels_from_one(tmp_path: Path) -> None:
    folder = write_voc_folder(tmp_path, formats.scenes("train", 2))
    text = (folder / "0.xml").read_text().replace("red", "\u8f66")
    (folder / "0.xml").write_bytes(f"<?xml version='1.0' encoding='gbk'?>{text}".encode("gbk"))
    box = drawn("train")[1][0]
    official = voc_xml("1.png", [box]).replace("Unknown", "The VOC2012 Database")
    (folder / "1.xml").write_text(official)
    train, val = samples_of(VocData(str(folder), val_annotations=str(folder)), tmp_path)
    assert "\u8f66" in {sample.query for sample in train}
    x0, y0, x1, y1 = box.box
    assert [sample.target[0].box for sample in val if sample.image_id == "1"] == [(x0 - 1, y0 - 1, x1, y1)]


def test_lists_of_voc_have_names_with_blanks_and_a_second_column(tmp_path: Path) -> None:
    folder = write("voc_folder", tmp_path / "Annotations")
    names = ["cat (1)", "cat 1"]
    for i, name in enumerate(names):
        (folder / f"{i}.png").rename(folder / f"{name}.png")
        (folder / f"{i}.xml").rename(folder / f"{name}.xml")
        file = folder / f"{name}.xml"
        file.write_text(file.read_text().replace(f"{i}.png", f"{name}.png"))
    listed = tmp_path / "ImageSets" / "Main" / "train.txt"
    listed.parent.mkdir(parents=True)
    for lines in (names, ["cat (1)  1", "cat 1 -1"]):
        listed.write_text("\n".join(lines))
        train, _ = samples_of(VocData(str(listed), val_annotations=str(folder)), tmp_path)
        assert {sample.image_id for sample in train} == {*names}
    listed.write_text("cat (1)\ncat (2)\ncat 1 1\n")
    assert f"{listed}: line 2: no such file: {folder / 'cat (2).xml'}" in said_of(
        lambda **more: VocData(str(listed), val_fraction=0.5, **more), tmp_path
    )


def test_difficult_objects_of_voc_are_not_asked_about_and_ignored_in_evaluation(tmp_path: Path) -> None:
    folder = write("voc_folder", tmp_path / "x")
    file = folder / "0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    data = VocData(str(folder), val_annotations=str(folder), negatives=9.0)
    train, _ = samples_of(data, tmp_path)
    first = drawn("train")[0][0]
    assert (first.label, "0") not in {(sample.query, sample.image_id) for sample in train}
    truth = data.truth_tables()["annotations"]
    assert [row["bbox"][:2] for row in truth if row["iscrowd"]] == [pytest.approx(first.box[:2])]


BOMB = "<!DOCTYPE z [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
    f"<!ENTITY {y} '{f'&{x};' * 10}'>" for x, y in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize("content", [f"{BOMB}]><annotations>&k;</annotations>", "<a>" * 200_000])
def test_hostile_xml_is_refused_within_limits(content: str, tmp_path: Path) -> None:
    file = tmp_path / "annotations.xml"
    file.write_text(content)
    assert read("cvat", file, tmp_path).startswith(f"{file}: ")


POLYGON = '"name": "polygon", "all_points_x": {}, "all_points_y": [1, 5, 9]'


@pytest.mark.parametrize(
    ("tool", "old", "new", "said"),
    [
        ("cvat", "<box ", '<box rotation="30" ', "box 0 (red): rotated by 30 degrees"),
        ("cvat", "<box ", '<points points="1,2" ', "points 0 (red): a shape without a box"),
        ("cvat", 'xtl="', 'xtl="x', "box 0 (red): xtl: expected a number"),
        ("cvat", "<image ", "<track/><image ", "tracks of a video"),
        ("label_studio", '"rotation": 0', '"rotation": 5', "rotated by 5 degrees"),
        ("label_studio", '"type": "rectanglelabels"', '"type": "brushlabels"', "a region without a box"),
        ("label_studio", '"was_cancelled": true', '"was_cancelled": false', "2 annotations; expected one"),
        ("label_studio", '"original_width": 56', '"original_width": null', "expected width and height as whole"),
        ("label_studio", '"rectanglelabels": ["red"]', '"x2": 1', "a region without a label"),
        ("label_studio", '"rectanglelabels": ["red"]', '"rectanglelabels": []', "a region without a label"),
        ("cvat", "<box ", '<polygon points="1,2;nan,4;5,6" ', "polygon 0 (red): points: expected x,y;x,y"),
        ("cvat", 'xtl="', 'xtl="1_', "box 0 (red): xtl: expected a number"),
        ("label_studio", '"rectanglelabels": ["red"]', '"rectanglelabels": [null]', "expected a label, got None"),
        ("label_studio", '"rectanglelabels": ["red"]', '"rectanglelabels": [3]', "expected a label, got 3"),
        ("via", '"name": "rect"', '"name": "polygon"', "regions[0]: polygon: expected lists all_points_x and"),
        ("via", '"name": "rect"', POLYGON.format('["1", 2, 3]'), "regions[0]: points: expected finite numbers"),
        ("via", '"name": "rect"', POLYGON.format("[1, NaN, 3]"), "regions[0]: points: expected finite numbers"),
        ("via", '"name": "rect"', POLYGON.format("[[1], 2, 3]"), "regions[0]: points: expected finite numbers"),
        ("via", '"name": "rect"', POLYGON.format("[1, 2]"), "regions[0]: zip() argument 2 is longer"),
        ("via", '"region_attributes": {', '"region_attributes": "red", "x": {', "expected an object, got 'red'"),
        ("csv", ",red,", ",red,1_", "expected corners in pixels, got ['1_"),
        ("via", '"name": "rect"', '"name": "point"', "regions[0]: shape 'point' has no upright box"),
        ("via", '{"colour": ', '{"a": "b", "colour": ', "data.label_attribute names the category's"),
        ("csv", ",red,", ",,", "box 0: expected a label"),
        ("csv", ",red,", ",red,x", "expected corners in pixels, got ['x"),
        ("csv", "filename,width", "filename,Image Path,width", "columns 'filename' and 'Image Path' mean the same"),
        ("csv", "xmin", "x_mi", "no column for x0; expected one of xmin, x0, x1, left"),
    ],
)
def test_a_bad_entry_of_a_tool_is_named(tool: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    file = write(tool, tmp_path / "x")
    assert old in file.read_text()
    if old == new:
        return
    end = f"</{new[1:].split()[0]}>" if new.startswith(("<po", "<box")) else "</box>"
    file.write_text(file.read_text().replace(old, new, 1).replace("</box>", end, 1))
    message = read(tool, file, tmp_path)
    assert said in message
    assert str(file) in message


@pytest.mark.parametrize("names", [("cam1/0.png", "cam2/0.png"), ("cam2/0.png", "cam1/0.png"), ("0.png", "0.jpg")])
def test_two_entries_never_share_an_image(names: tuple[str, str], tmp_path: Path) -> None:
    picture = formats.scenes("train", 1)[0][0]
    for name in ("0.png", "1.png", "2.png"):
        formats.save(picture, tmp_path / "cam1" / name)
    rows = [f"{name},cat,{i},1,20,20\n" for i, name in enumerate((*names, "1.png", "2.png", "none.png"))]
    file = tmp_path / "x.csv"
    file.write_text("".join(["image,label,xmin,ymin,xmax,ymax\n", *rows]))
    said = said_of(lambda **more: BoxCsvData(str(file), str(tmp_path / "cam1"), val_fraction=0.5, **more), tmp_path)
    image = tmp_path / "cam1" / "0.png"
    for line, other in ((2, 3), (3, 2)):  # which of the two the image belongs to is unknown
        assert f"{file}: line {line}: {image} is also the image of {file}: line {other}; expected one" in said
    assert said.count("\n") == 3  # and the image that does not exist


def test_a_number_after_a_point_is_part_of_the_name_of_an_image(tmp_path: Path) -> None:
    picture = formats.scenes("train", 1)[0][0]
    formats.save(picture, tmp_path / "cam.png")
    assert find_image("cam.jpg", [tmp_path]) == tmp_path / "cam.png"
    assert find_image("cam.1", [tmp_path]) == tmp_path / "cam.1"
    formats.save(picture, tmp_path / "cam.1.png")
    assert find_image("cam.1", [tmp_path]) == tmp_path / "cam.1.png"


def per_region(tasks: Any, shape: dict[str, Any] | None = None) -> None:
    """Add a text, a choice and the bare shape to each labelled region, or to a region of this shape alone."""
    for task in tasks:
        minimal = "label" in task
        results = task["label"] if minimal else task["annotations"][1]["result"]
        for i, region in enumerate([*results] if shape is None else [{"type": "ellipse", "value": shape}]):
            if region.get("type") == "choices":
                continue
            value = {key: of for key, of in region.get("value", region).items() if not key.endswith("labels")}
            region["id"] = f"r{i}" if shape is None else "alone"
            for kind, more in (("textarea", {"text": ["a"]}), ("choices", {"choices": ["b"]}), ("rectangle", {})):
                whole = {**region, "type": kind, "value": value | more}
                results.insert(0, value | more if minimal else whole)


@pytest.mark.parametrize("tool", ["label_studio", "label_studio_min"])
def test_texts_about_a_region_and_its_bare_shape_are_not_further_regions(tool: str, tmp_path: Path) -> None:
    file = write(tool, tmp_path / "x")
    before, _ = samples_of(LabelStudioData(str(file), val_annotations=str(file)), tmp_path)
    change_json(file, per_region)
    after, _ = samples_of(LabelStudioData(str(file), val_annotations=str(file)), tmp_path)
    assert [sample.target for sample in before] == [sample.target for sample in after]
    ellipse = {"x": 50, "y": 50, "radiusX": 3, "radiusY": 3}
    change_json(file, lambda tasks: per_region(tasks, ellipse))
    assert "a region without a label" in read(tool, file, tmp_path)


@pytest.mark.parametrize("tool", ["labelme", "supervisely"])
def test_a_bad_shape_in_a_file_per_image_is_named(tool: str, tmp_path: Path) -> None:
    folder = write(tool, tmp_path / "x")
    file = next(file for file in sorted(folder.rglob("*.json")) if file.name.startswith("0"))
    text = file.read_text().replace('"rectangle"', '"point"', 1)
    file.write_text(text)
    assert f"{file}: " in read(tool, folder, tmp_path)
    file.write_text("{")
    assert f"{file}: " in read(tool, folder, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["objects"][0].update(classTitle=None), "box 0: expected a label, got None"),
        (lambda content: content["objects"].insert(0, "x"), "objects[0]: expected an object, got 'x'"),
        (lambda content: content.update(size=[1, 2]), "size: expected an object, got [1, 2]"),
    ],
)
def test_a_bad_object_of_supervisely_is_named(change: Any, said: str, tmp_path: Path) -> None:
    folder = write("supervisely", tmp_path / "x")
    file = min(folder.rglob("*.json"))
    change_json(file, change)
    assert f"{file}: {said}" in read("supervisely", folder, tmp_path)


def test_a_row_of_a_table_with_another_size_is_named(tmp_path: Path) -> None:
    file = write("csv", tmp_path / "x")
    lines = file.read_text().splitlines()
    other = lines[1].replace(",56,56,", ",60,56,")
    assert other != lines[1]
    file.write_text("\n".join([*lines, other]))
    said = f"{file}: line {len(lines) + 1}: the image is (60, 56), but (56, 56) in line 2"
    assert said in read("csv", file, tmp_path)


def test_a_row_of_a_table_without_corners_has_no_label(tmp_path: Path) -> None:
    for name, (picture, _) in zip("abc", formats.scenes("train", 3), strict=True):
        formats.save(picture, tmp_path / f"{name}.png")
    file = tmp_path / "x.csv"
    rows = "image,label,x1,y1,x2,y2\na.png,cat,1,1,9,9\nb.png,cat,1,1,9,9\nc.png,{},,,,\n"
    file.write_text(rows.format(""))
    data = BoxCsvData(str(file), val_annotations=str(file))
    samples_of(data, tmp_path)
    assert [len(image.boxes) for image in data.images("train").values()] == [1, 1, 0]
    file.write_text(rows.format("cat"))
    assert f"{file}: line 4: expected corners in pixels, got ['', " in said_of(
        lambda **more: BoxCsvData(str(file), val_annotations=str(file), **more), tmp_path
    )


def test_fractions_where_pixels_are_expected_are_refused(tmp_path: Path) -> None:
    formats.save(formats.scenes("train", 1)[0][0], tmp_path / "a.png")
    file = tmp_path / "x.csv"
    file.write_text("image,label,x1,y1,x2,y2\na.png,cat,.1,.1,.5,.6\n")
    assert "no coordinate is above 0.6; expected pixels" in read("csv", file, tmp_path)


def test_missing_paths_and_formats_without_a_reader_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.train_annotations: no such file or folder: none; expected a "):
        VocData("none", val_fraction=0.5)
    with pytest.raises(ConfigurationError, match=r"expected either held-out samples or data\.val_fraction"):
        VocData(str(tmp_path))
    (tmp_path / "data.yaml").write_text("names: [a]")
    with pytest.raises(ConfigurationError, match="this is YOLO: --data=YoloData"):
        samples_of(VocData(str(tmp_path), val_fraction=0.5), tmp_path)
    write("voc_folder", tmp_path / "x")
    with pytest.raises(ConfigurationError, match="this is Pascal VOC: --data=VocData"):
        YoloData(str(tmp_path / "x"))


@pytest.mark.parametrize("tool", ["voc_folder", "labelme", "supervisely"])
def test_images_without_annotations_are_counted(tool: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tool, tmp_path / "x")
    for image in [*(tmp_path / "x").rglob("1.png")]:
        formats.save(formats.scenes("val", 1)[0][0], image.with_name("more.png"))
    with caplog.at_level("INFO"):
        samples_of(TOOLS[tool][0](str(path), val_annotations=str(path)), tmp_path)
    assert "images without annotations: 2" in caplog.text  # one in each split


@pytest.mark.parametrize("images", ["val_images", "test_images"])
def test_images_without_their_annotations_are_an_error(images: str, tmp_path: Path) -> None:
    path = str(write("csv", tmp_path / "x"))
    for data in (CocoData, BoxCsvData):
        with pytest.raises(ConfigurationError, match=f"data.{images}: expected data.{images[:-7]}_annotations too"):
            data(path, val_fraction=0.5, **{images: str(tmp_path)})


def test_a_coco_file_lies_among_its_images_by_default(tmp_path: Path) -> None:
    tables, _ = formats.coco_tables(tmp_path, "train", 2)
    file = tmp_path / "_annotations.coco.json"  # as Roboflow exports it
    file.write_text(json.dumps(tables))
    train, _ = samples_of(CocoData(str(file), val_annotations=str(file)), tmp_path)
    assert {sample.image_id for sample in train} == {1, 2}


OUTLINED = {"labelme", "via", "cvat", "label_studio", "label_studio_min"}
"""Tools whose writers outline all objects but the first of an image."""


@pytest.mark.parametrize("tool", TOOLS)
def test_outlines_that_are_read_as_boxes_are_counted(
    tool: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [str(write(tool, tmp_path / part, part)) for part in ("train", "val")]
    with caplog.at_level("INFO"):
        samples_of(TOOLS[tool][0](files[0], val_annotations=files[1]), tmp_path)
    outlines = sum(len(boxes) - 1 for part in ("train", "val") for boxes in drawn(part, 2))  # all but the first box
    if tool in OUTLINED:
        assert f"; outlines read as their bounding boxes: {outlines}" in caplog.text
    else:
        assert "; outlines read as" not in caplog.text


def test_all_bad_objects_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    scene = (formats.scenes("train", 1)[0][0], [Detection((1.0, 1.0, 9.0, 9.0), "a")] * 15)
    folder = write_voc_folder(tmp_path / "x", [scene])
    file, text = folder / "0.xml", (folder / "0.xml").read_text()
    for broken in ("<xmin>x1.0", "<xmin>99.0", "<xmin>9.0"):  # no number, beyond the image, no area
        first, second, third = text.split("<xmin>1.0", 3)[:3]
        rest = text.removeprefix(f"{first}<xmin>1.0{second}<xmin>1.0{third}")
        file.write_text(f"{first}{broken}{second}<xmin>1.0{third}{rest.replace('<xmin>1.0', broken, 1)}")
        said = read("voc", folder, tmp_path)
        assert [f" {i} (a)" in said for i in range(4)] == [True, False, True, False], said
    file.write_text(text.replace("<xmin>1.0", "<xmin>x"))
    assert read("voc", folder, tmp_path).endswith("; and 5 more")


def test_fractions_are_no_percents(tmp_path: Path) -> None:
    path = write("label_studio", tmp_path / "x")

    def divide(value: Any) -> Any:
        names = ("x", "y", "width", "height", "points")
        if isinstance(value, dict):
            return {k: scaled(v) if k in names else divide(v) for k, v in value.items()}
        return [divide(each) for each in value] if isinstance(value, list) else value

    def scaled(value: Any) -> Any:
        return [scaled(each) for each in value] if isinstance(value, list) else value / 100

    change_json(path, divide)
    assert "expected percent, not fractions of the image" in read("label_studio", path, tmp_path)
