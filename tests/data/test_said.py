"""The line that says what trains, what is held out and what was left out, and images that don't exist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import annotation_tools, formats
from tests.helpers.data import samples_of
from vrft.data import CocoData, ImageFolderData, RecordData, VocData, YoloData
from vrft.errors import ConfigurationError


def yolo(folder: Path) -> Path:
    """Write three images with a red box and one without a box for each part."""
    config = formats.write_yolo(folder, 4)
    for part, count in (("train", 4), ("val", 4)):
        for i in range(count):
            (folder / "labels" / part / f"{i}.txt").write_text("0 .5 .5 .2 .2\n" if i else "")
    return config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {},
            "data: 3 images with 3 boxes and 1 category to train on; 3 images with 3 boxes and 1 category held out; "
            "left out: images without boxes of these categories: 2",
        ),
        ({"shots": 2}, "2 images with 2 boxes and 1 category to train on; 3 images"),
        ({"shots": 2, "negatives": 0.5}, "data.shots=2 leaves out 1 of 3 training records"),
        ({"val_fraction": 0.3, "shots": 1}, "data.shots=1 leaves out 1 of 2 training records"),
        ({"val_fraction": 0.3}, "the held-out split of the files is left for `test`"),
    ],
)
def test_a_line_says_what_the_data_hold(
    settings: dict[str, float], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        samples_of(YoloData(str(yolo(tmp_path / "x")), **settings), tmp_path)
    assert said in caplog.text


def test_records_that_shots_leave_out_have_no_image_of_the_held_out_fold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Four images with a red and a blue box, two of which are held out with both, one for each category."""
    config = yolo(tmp_path / "x")
    for i in range(4):
        (tmp_path / "x" / "labels" / "train" / f"{i}.txt").write_text("0 .5 .5 .2 .2\n1 .3 .3 .2 .2\n")
    data = YoloData(str(config), val_shots=1, shots=1)
    with caplog.at_level("INFO"):
        samples_of(data, tmp_path)
    assert len({record.image for record in data.val_set().records}) == 2
    assert "data.shots=1 leaves out 2 of 4 training records" in caplog.text


def test_missing_images_stop_even_if_bad_records_are_skipped(tmp_path: Path) -> None:
    """The error speaks of the images and not of shots, which there are too few of."""
    config = yolo(tmp_path / "x")
    (tmp_path / "x" / "train.txt").write_text("".join(f"images/train/{i}.jpg\n" for i in range(4)))
    config.write_text(config.read_text().replace("train: images/train", "train: train.txt"))
    with pytest.raises(ConfigurationError, match=r"^4 missing images; check the folder of images, or leave them out "):
        samples_of(YoloData(str(config), shots=1, on_bad_record="skip"), tmp_path)
    with pytest.raises(ConfigurationError, match=r"no train records; expected at least one; 4 bad records skipped"):
        samples_of(YoloData(str(config), on_missing_image="skip"), tmp_path)


@pytest.mark.parametrize(("one", "other"), [("dog", "Dog"), ("hot dog", "hotdog "), ("caf\u00e9", "cafe\u0301")])
def test_names_that_differ_in_form_alone_are_named(one: str, other: str, tmp_path: Path) -> None:
    for i, (part, name) in enumerate([("train", one), ("train", "cat"), ("val", other)]):
        formats.save(formats.scenes("train", 3)[i][0], tmp_path / "x" / part / name / f"{i}.png")
    said = re.escape(f"1 pair of names that differ only in case, blanks or Unicode form, e.g. {one!r} and {other!r}")
    with pytest.warns(UserWarning, match=said):
        samples_of(ImageFolderData(str(tmp_path / "x")), tmp_path)


def beside_coco(folder: Path) -> RecordData:
    for name in ("train", "valid"):
        tables, _ = formats.coco_tables(folder / name, "train", 4)
        (folder / name / "_annotations.coco.json").write_text(json.dumps(tables))
    return CocoData(str(folder / "train" / "_annotations.coco.json"), val_fraction=0.5)


def beside_voc(folder: Path) -> RecordData:
    listed = annotation_tools.write_voc(folder, formats.scenes("train", 4))
    listed.with_name("val.txt").write_text("0\n")
    return VocData(str(listed), val_fraction=0.5)


def with_test_split(folder: Path) -> RecordData:
    config = yolo(folder)
    config.write_text(config.read_text() + "test: images/val\n")
    return YoloData(str(config), val_shots=1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(
            lambda folder: YoloData(str(yolo(folder)), val_fraction=0.3),
            "`val:` of {x}/data.yaml (3 images with 3 boxes and 1 category) isn't used before `test`, because "
            "data.val_fraction=0.3 holds out training images instead; data.val_fraction=null uses it",
            id="yolo",
        ),
        pytest.param(
            with_test_split,
            "and 1 category) isn't used, because data.val_shots=1 ",
            id="shots",
        ),
        pytest.param(
            beside_coco,
            "{x}/valid/_annotations.coco.json isn't used, because data.val_fraction=0.5 holds out training images "
            "instead; data.val_fraction=null with data.val_annotations={x}/valid/_annotations.coco.json uses it",
            id="coco",
        ),
        pytest.param(beside_voc, "{x}/ImageSets/Main/val.txt isn't used, because data.val_fraction=0.5", id="voc"),
    ],
)
def test_held_out_samples_of_the_files_that_are_not_used_are_named(
    make: Callable[[Path], RecordData], said: str, tmp_path: Path
) -> None:
    data = make(tmp_path / "x")
    with pytest.warns(UserWarning, match=re.escape(said.format(x=tmp_path / "x"))):
        samples_of(data, tmp_path)
