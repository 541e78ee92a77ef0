"""YOLO: boxes, outlines, broken labels and broken settings."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import formats
from tests.helpers.data import assert_same_boxes, drawn, refused, said_of, samples_of
from vrft.data import (
    YoloData,
)
from vrft.errors import ConfigurationError


def test_yolo_labels_are_boxes_and_outlines(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    data = YoloData(str(config))
    train, val = samples_of(data, tmp_path)
    for part, samples in (("train", train), ("val", val)):
        expected = Counter((str(i), box.label) for i, boxes in enumerate(drawn(part)) for box in boxes)
        assert {(sample.image_id, sample.query): len(sample.target) for sample in samples} == expected
        for sample in samples:
            true = [box for box in drawn(part)[int(sample.image_id)] if box.label == sample.query]
            assert_same_boxes(sample.target, true)
    assert list(data.ordered_categories()) == list(formats.COLOURS)


def test_yolo_categories_and_negatives(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x", 6)
    (tmp_path / "x" / "labels" / "train" / "1.txt").unlink()  # an image without objects
    data = YoloData(str(config), categories=["green", "red"], val_categories=["red"], negatives=1.0)
    train, val = samples_of(data, tmp_path)
    found = [sample for sample in train if sample.target]
    absent = [sample for sample in train if not sample.target]
    assert {sample.query for sample in train} == {"red", "green"}
    assert {sample.query for sample in val} == {"red"}
    assert 0 < len(absent) <= len(found)
    assert "1" not in {sample.image_id for sample in found}
    assert all(sample.target for sample in val)
    assert "data.val_categories: 'blu' is not in" in refused(
        lambda **more: YoloData(str(config), val_categories=["blu"], **more), tmp_path
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("9 .5 .5 .2 .2", "no class has number '9'; there are 8"),
        ("-1 .5 .5 .2 .2", "no class has number '-1'"),
        ("red .5 .5 .2 .2", "no class has number 'red'"),
        ("00000000009 .5 .5 .2 .2", "no class has number '00000000009'"),
        ("0", "expected class, x, y, width and height"),
        ("0 .5 .5 .2", "expected class, x, y, width and height"),
        ("0 .5 .5 .2 .2 .9", "6 numbers: a saved prediction (class, x, y, width, height, confidence)"),
        ("0 .5 .5 .2 x", "could not convert string to float"),
        ("0 .5 .5 .2 nan", "expected finite numbers"),
        ("0 .5 .5 .2 inf", "expected finite numbers"),
        ("0 .5 .5 .2 1e999", "expected finite numbers"),
        ("0 .5 .5 0 .2", "has no area"),
        ("0 .5 .5 -.2 .2", "has no area"),
        ("0 .9 .5 1.4 .2", "extends beyond its image"),
        ("0 30 30 10 10", "extends beyond its image"),  # pixels
        ("0 .1 .1 .5 .1 .3 .1", "has no area"),  # an outline without height
    ],
)
def test_a_bad_label_is_named_and_its_image_left_out(line: str, said: str, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    file = tmp_path / "x" / "labels" / "train" / "1.txt"
    file.write_text(f"0 .5 .5 .2 .2\n\n{line}\n")
    listed = said_of(lambda **more: YoloData(str(config), **more), tmp_path)
    assert listed.startswith(f"{file}: line 3: ")
    assert said in listed
    train, _ = samples_of(YoloData(str(config), on_bad_record="skip"), tmp_path)
    assert {sample.image_id for sample in train} == {"0", "2", "3"}


def test_a_repeated_label_counts_once_and_rounding_is_clipped(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    (tmp_path / "x" / "labels" / "train" / "0.txt").write_text("0 .5 .5 1.0004 1\n" * 2)
    train, _ = samples_of(YoloData(str(config)), tmp_path)
    assert [box.box for box in train[0].target] == [(0, 0, 56, 56)]


@pytest.mark.parametrize("content", [b"\x81\x8d 1", b"\xff\xfe0\x00 \x00"])
def test_labels_that_are_not_text_are_named(content: bytes, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    file = tmp_path / "x" / "labels" / "train" / "1.txt"
    file.write_bytes(content)
    assert said_of(lambda **more: YoloData(str(config), **more), tmp_path).startswith(f"{file}: ")
    file.unlink()
    file.mkdir()
    assert f"{file}: can't be read" in said_of(lambda **more: YoloData(str(config), **more), tmp_path)
    file.rmdir()
    (tmp_path / "x" / "images" / "train" / "2.png").write_bytes(b"no image")
    assert "2.png: not a readable image" in said_of(lambda **more: YoloData(str(config), **more), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names: expected a list"),
        ("[1]", "names: expected a list"),
        ("train: images/train\nnames: red", "names: expected a list"),
        ("train: images/train\nnames: [red, yes]", "names: expected a number and a text, got 1 and True"),
        ("train: images/train\nnames: {a: red}", "names: expected a number and a text, got 'a' and 'red'"),
        ("train: images/train\nnames: [[red]]", "names: expected a number and a text, got 0 and ['red']"),
        (
            "train: 3\nnames: [red]",
            "a file that lists images, or a list of these, got 3",
        ),
        ("path: [a]\ntrain: images/train\nnames: [red]", "path: expected a folder, got ['a']"),
        ("train: images/none\nnames: [red]", "train: no such file or folder"),
        ('train: "a\\0b"\nnames: [red]', "train: no such file or folder"),
        ("names: {1: [", "is not valid YAML"),
        ("names: !!python/object/apply:os.system [true]", "is not valid YAML"),
        ("names: 2020-99-99", "is not valid YAML"),
        ("names: !!float ''", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("train: a\nnames: [red]\nnames: [blue]", "is not valid YAML: line 3: the key 'names' is in line 2 already"),
        ("a: &a [x]\nb: &b [*a, *a]\nnames: [*b]\ntrain: x", "got 0 and a list"),
    ],
)
def test_a_bad_data_yaml_is_an_error(text: str, said: str, tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    config.write_text(text)
    message = refused(lambda **more: YoloData(str(config), **more), tmp_path)
    assert message.startswith(f"data.config: {config}")
    assert said in message


def test_names_of_yolo_may_have_gaps_and_settings_are_checked(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    (tmp_path / "x" / "labels" / "val" / "0.txt").write_text("70 .5 .5 .2 .2\n")
    config.write_text(config.read_text() + "  70: kite\n")
    _, val = samples_of(YoloData(str(config)), tmp_path)
    assert val[0].query == "kite"
    with pytest.raises(ConfigurationError, match=r"data\.config: no such file"):
        YoloData(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigurationError, match=r"data\.negatives: expected at least 0"):
        YoloData(str(config), negatives=-1.0)


def test_a_folder_of_another_data_set_is_not_taken_for_the_one_inside(tmp_path: Path) -> None:
    """Beside Roboflow's export lies another data set, to which its `../train/images` leads."""
    for folder in (tmp_path, tmp_path / "x"):
        formats.write_yolo(folder, 2)
        for kind in ("images", "labels"):
            (folder / "train").mkdir(exist_ok=True)
            (folder / kind / "train").rename(folder / "train" / kind)
    config = tmp_path / "x" / "data.yaml"
    config.write_text(config.read_text().replace("train: images/train", "train: ../train/images"))
    other = f"'../train/images' leads to {tmp_path}/train/images, outside of the folder of this file, which has "
    with pytest.raises(ConfigurationError, match=re.escape(f"{other}train/images; if that is meant, write `train: ")):
        samples_of(YoloData(str(config)), tmp_path)
    with pytest.warns(UserWarning, match=re.escape(other)):
        samples_of(YoloData(str(config), allow_outside=True), tmp_path)


def test_all_bad_lines_of_a_label_file_are_named_and_outlines_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = formats.write_yolo(tmp_path / "x", 3)
    labels = tmp_path / "x" / "labels" / "train" / "0.txt"
    good = labels.read_text()
    labels.write_text("99 .5 .5 .2 .2\n0 .5 .5 .2 .2\n0 5 5 2 2\n")
    said = said_of(lambda **more: YoloData(str(config), **more), tmp_path).splitlines()
    assert said[0].startswith(f"{labels}: line 1: no class has number")
    assert said[1].startswith(f"{labels}: line 3: the box")
    assert len(said) == 2
    labels.write_text(good + "0 .1 .1 .4 .1 .2 .4\n0 .1 .1 .4 .1 .2 .4\n")
    outlines = 1 + sum(len(boxes) for part in formats.PARTS for boxes in drawn(part, 3)[-1:])
    with caplog.at_level("INFO"):
        samples_of(YoloData(str(config)), tmp_path)
    assert f"outlines read as their bounding boxes: {outlines}" in caplog.text
