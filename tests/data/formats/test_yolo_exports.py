"""YOLO as tools export it: paths of other machines, lists, names in all forms, and labels that are no boxes.

Where Ultralytics documents a rule, it is the reference: `../train/images` beside `train/`, `kpt_shape`, `nc`, 1 %.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.helpers import formats
from tests.helpers.data import assert_same_boxes, drawn, refused, said_of, samples_of
from vrft.data import YoloData
from vrft.data.datasets.scenes import COLOURS
from vrft.errors import ConfigurationError


def roboflow(folder: Path, paths: str = "../{}/images", count: int = 2) -> Path:
    """Write an export of Roboflow: train/, valid/ and test/, each with images/ and labels/."""
    names = list(COLOURS)
    for part, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        for i, (picture, boxes) in enumerate(formats.scenes(part, count)):
            formats.save(picture, folder / name / "images" / f"{part}{i}.png")
            lines = []
            for box in boxes:
                x0, y0, x1, y1 = (value / formats.SIZE for value in box.box)
                lines.append(f"{names.index(box.label)}.000000 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}")
            labels = folder / name / "labels" / f"{part}{i}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("\r\n".join(lines))
    entries = "".join(f"{key}: {paths.format(name)}\n" for key, name in (("train", "train"), ("val", "valid")))
    config = folder / "data.yaml"
    config.write_text(f"{entries}test: {paths.format('test')}\n\nnc: {len(names)}\nnames: {names}\n")
    return config


@pytest.mark.parametrize(
    "paths",
    [
        "../{}/images",  # Roboflow's, meant without the `../`
        "{}/images",
        "/home/someone/set.v2i.yolov8/{}/images",
        "C:\\Users\\someone\\set.v2i.yolov8\\{}\\images",
        "[{0}/images, {0}/images/.]",  # a list, whose folders are equal
    ],
)
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_paths_of_another_machine_lead_to_the_folders_beside_data_yaml(paths: str, stage: str, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    config = roboflow(tmp_path / "up" / "set", paths)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, samples = samples_of(YoloData(str(config)), tmp_path, stage=stage)
    part = "val" if stage == "fit" else "test"
    assert {sample.image_id for sample in samples} == {f"{part}0", f"{part}1"}
    for sample in samples:
        true = drawn(part, 2)[int(str(sample.image_id)[-1])]
        assert_same_boxes(sample.target, [box for box in true if box.label == sample.query])
    instead = [str(warning.message) for warning in said if "is read instead" in str(warning.message)]
    assert len(instead) == (0 if paths.startswith(("{}", "[")) else 3 if stage == "fit" else 1)


def test_the_folder_images_alone_never_stands_for_a_split(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    config.write_text(config.read_text().replace("images/train", "/there/train/images"))
    assert "train: no such file or folder" in refused(lambda **more: YoloData(str(config), **more), tmp_path)


def test_splits_may_be_files_that_list_images(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    lines = ["./images/train/0.png", "images/train/1.png", "D:\\there\\images\\train\\2.png", ""]
    (tmp_path / "x" / "train.txt").write_text("\n".join(lines))
    config.write_text(config.read_text().replace("train: images/train", "train: train.txt"))
    train, _ = samples_of(YoloData(str(config)), tmp_path)
    assert {sample.image_id for sample in train} == {"0", "1", "2"}
    (tmp_path / "x" / "train.txt").write_text("images/train/0.png\nimages/train/none.png\n")
    assert "none.png: no such image" in said_of(lambda **more: YoloData(str(config), **more), tmp_path)


def test_a_listed_path_that_exists_is_never_another_image(tmp_path: Path) -> None:
    folders = [formats.write_yolo(tmp_path / name).parent for name in "AB"]
    config = folders[0] / "data.yaml"
    config.write_text(config.read_text().replace("train: images/train", "train: train.txt"))
    listed = [folder / "images" / "train" / "1.png" for folder in folders]
    for other in (str(listed[1]), "../B/images/train/1.png"):
        (folders[0] / "train.txt").write_text(f"{listed[0]}\nimages/train/1.png\n{other}\n")
        data = YoloData(str(config), allow_outside=True)
        assert [image.image.resolve() for image in data.images("train").values()] == [path.resolve() for path in listed]


@pytest.mark.parametrize("first", ["images/train/1.png", "/there/A/images/train/1.png"])
def test_different_listed_paths_that_lead_to_one_image_are_an_error(first: str, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    config.write_text(config.read_text().replace("train: images/train", "train: train.txt"))
    lines = [first, "/there/B/images/train/1.png"]
    for order in (lines, lines[::-1]):
        (config.parent / "train.txt").write_text("\n".join(order))
        said = refused(lambda **more: YoloData(str(config), **more), tmp_path)
        assert f"train.txt: line 2: {order[1]!r} and {order[0]!r} both lead to " in said


@pytest.mark.parametrize(
    "names", ["[red, green, blue]", "{0: red, 1: green, 2: blue}", "{'0': red, '1': green, '2': blue}"]
)
def test_names_have_three_forms(names: str, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    for file in (tmp_path / "x" / "labels").rglob("*.txt"):
        file.write_text("2 .5 .5 .2 .2\n")
    config.write_text(f"train: images/train\nval: images/val\nnc: 3\nnames: {names}\n")
    data = YoloData(str(config))
    train, _ = samples_of(data, tmp_path)
    assert {sample.query for sample in train} == {"blue"}
    assert data.category_ids() == {"red": 0, "green": 1, "blue": 2}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("nc: 3\nnames: [red, green]", "nc: 3 classes, but there are 2 names"),
        ("names: {0: red, '0': green}", "class 0 has two names, 'red' and 'green'"),
        ("kpt_shape: [17]\nnames: [red]", "kpt_shape: expected [number of keypoints, 2 or 3], got [17]"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: str, said: str, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    config.write_text(f"train: images/train\nval: images/val\n{settings}\n")
    assert said in refused(lambda **more: YoloData(str(config), **more), tmp_path)


def labelled(tmp_path: Path, line: str, more: str = "", **settings: bool) -> YoloData:
    """Return data whose labels are all one line."""
    config = formats.write_yolo(tmp_path / "x")
    for file in (tmp_path / "x" / "labels").rglob("*.txt"):
        file.write_text(line)
    config.write_text(config.read_text() + more)
    return YoloData(str(config), **settings)


POSE = "0 .5 .5 .25 .5 " + ".1 .1 2 .9 .9 2"
QUAD = "0 .5 .1 .9 .5 .5 .9 .1 .5"


@pytest.mark.parametrize(
    ("line", "more", "box"),
    [
        (POSE, "kpt_shape: [2, 3]\n", (21, 14, 35, 42)),  # not the hull of the keypoints
        ("0 .5 .5 1.01 1.01", "", (0, 0, 56, 56)),
        ("0 .98 .5 .10 .2", "", (52.08, 22.4, 56, 33.6)),  # Ultralytics checks the four numbers, not the corners
        ("0 0 1.01 .5 .5", "", (0, 42.56, 14, 56)),
        ("0 .98 .5 .10 .2 .9 .9 2", "kpt_shape: [1, 3]\n", (52.08, 22.4, 56, 33.6)),
        ("0 .1 .1 .6 .1 .6 .5 .1 .5", "", (5.6, 5.6, 33.6, 28)),  # an upright box, whatever it is
        ("0 .1 .1 .6 .1 .3 .5", "", (5.6, 5.6, 33.6, 28)),
        (f"{QUAD}\n0 .1 .1 .6 .1 .3 .5", "", (5.6, 5.6, 50.4, 50.4)),  # outlines in the same data
    ],
)
def test_boxes_of_poses_and_outlines(line: str, more: str, box: tuple[float, ...], tmp_path: Path) -> None:
    train, _ = samples_of(labelled(tmp_path, line, more), tmp_path)
    assert train[0].target[0].box == pytest.approx(box)


@pytest.mark.parametrize(
    ("line", "more", "said"),
    [
        (POSE, "kpt_shape: [3, 3]\n", "class, x, y, width, height and 3 x 3 numbers, got 11 numbers"),
        ("0 .5 .5 .2 .2", "kpt_shape: [2, 3]\n", "expected a pose by kpt_shape"),
        (QUAD, "", "four points: an oriented box (OBB)"),
        ("0 .5 .5 .2 .2 .93", "", "a saved prediction (class, x, y, width, height, confidence)"),
        ("0 .5 .5 .2 .2 .93 7", "", "a saved prediction (class, x, y, width, height, confidence and track)"),
        ("0 .5 .5 1.02 .2", "", "extends beyond its image"),
        ("0 .5 -.02 .2 .2", "", "extends beyond its image"),
        ("0 1.009 .5 .01 .2", "", "has no area in its image"),
        ("0 .9 .1 1.03 .1 .95 .5", "", "extends beyond its image"),
        ("0.5 .5 .5 .2 .2", "", "no class has number '0.5'"),
    ],
)
def test_what_is_no_box_is_refused_by_name(line: str, more: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad records") as caught:
        samples_of(labelled(tmp_path, line, more), tmp_path)
    assert said in str(caught.value)


def test_oriented_boxes_can_be_read_as_outlines(tmp_path: Path) -> None:
    train, _ = samples_of(labelled(tmp_path, QUAD, outlines=True), tmp_path)
    assert train[0].target[0].box == pytest.approx((5.6, 5.6, 50.4, 50.4))


def test_a_triangle_that_ends_in_a_whole_number_can_be_read_as_an_outline(tmp_path: Path) -> None:
    triangle = "0 .5 .2 .1 .6 .9 1"
    with pytest.raises(ConfigurationError, match=r"track\), not a label: .* data\.outlines=true reads it"):
        samples_of(labelled(tmp_path, triangle), tmp_path)
    train, _ = samples_of(labelled(tmp_path, triangle, outlines=True), tmp_path)
    assert train[0].target[0].box == pytest.approx((5.6, 11.2, 50.4, 56))


@pytest.mark.parametrize("more", ["", " .4 .6 .93 .8", " .8 7"])
def test_saved_poses_are_not_taken_for_outlines(more: str, tmp_path: Path) -> None:
    line = f"0 .5 .5 .4 .4 .4 .4 .91 .6 .6 .95{more}"  # keypoints have a confidence, the pose also a track
    with pytest.raises(ValueError, match="numbers after the class look like poses"):
        samples_of(labelled(tmp_path, line), tmp_path)


def test_poses_without_kpt_shape_are_not_taken_for_outlines(tmp_path: Path) -> None:
    line = "0 .5 .5 .4 .4 .4 .4 .6 .6 .5 .65"  # a box and three keypoints, or an outline of five points
    with pytest.raises(ValueError, match="4 labels of 10 numbers after the class look like poses; set kpt_shape"):
        samples_of(labelled(tmp_path, line), tmp_path)
    train, _ = samples_of(labelled(tmp_path, line, "kpt_shape: [3, 2]\n"), tmp_path)
    assert train[0].target[0].box == pytest.approx((16.8, 16.8, 39.2, 39.2))


def test_a_folder_without_any_label_file_is_an_error(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    (tmp_path / "x" / "labels").rename(tmp_path / "x" / "label")
    assert "none of 4 images has a label file; expected e.g. " in refused(
        lambda **more: YoloData(str(config), **more), tmp_path
    )
