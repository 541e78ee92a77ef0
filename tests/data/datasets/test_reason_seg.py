"""ReasonSeg: instructions, targets and broken annotations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import formats
from tests.helpers.data import assert_same_boxes, drawn, refused, said_of, samples_of
from vrft.data import (
    ReasonSegData,
)
from vrft.errors import ConfigurationError
from vrft.tasks import GroundingTask
from vrft.types import Detection


def reason_seg(folder: Path, **changes: Any) -> Path:
    """Write ReasonSeg with changes to the annotation of a training image."""
    formats.write_reason_seg(folder)
    content = {"text": "what?", "is_sentence": True, "shapes": [shape([[1, 1], [5, 1], [5, 9]])]} | changes
    shutil.copy(folder / "train" / "0.jpg", folder / "train" / "x.jpg")
    (folder / "train" / "x.json").write_text(json.dumps(content))
    return folder


def shape(points: Any, label: Any = "target") -> dict[str, Any]:
    return {"label": label, "points": points}


def flat(box: Detection) -> list[float]:
    return [value for point in formats.corners(box.box) for value in point]


def test_an_instruction_asks_for_the_hull_of_its_targets(tmp_path: Path) -> None:
    folder = formats.write_reason_seg(tmp_path / "x", val_split="test")
    train, val = samples_of(ReasonSegData(str(folder), val_split="test"), tmp_path, GroundingTask())
    assert (len(train), len(val)) == (8, 8)
    for part, samples in (("train", train), ("val", val)):
        for i, sample in enumerate(samples):
            boxes = drawn(part)[i // 2]
            assert sample.image_id == i // 2
            assert_same_boxes(sample.target, boxes[:1])
            assert sample.target[0].label == ""
            assert sample.metadata["polygons"] == [flat(boxes[0])]
            assert sample.metadata["ignore"] == [flat(box) for box in boxes[1:]]
    assert {sample.query for sample in train[:2]} == {"What is red?", "the object which has the colour red"}


def test_all_targets_count_and_flags_do_not(tmp_path: Path) -> None:
    shapes = [
        shape([[1, 1], [5, 1], [5, 9]], "TARGET"),
        shape([[20, 30], [25.5, 30], [22, 40]]),
        shape([[0, 0], [50, 0], [50, 50]], "Ignore-2"),
        shape("none", "flag"),
        shape([[0, 0]], "targets"),
    ]
    folder = reason_seg(tmp_path / "x", text=["one", "two"], shapes=shapes)
    train, _ = samples_of(ReasonSegData(str(folder)), tmp_path, GroundingTask())
    assert [(sample.query, sample.target[0].box) for sample in train[-2:]] == [
        ("one", (1, 1, 25.5, 40)),
        ("two", (1, 1, 25.5, 40)),
    ]
    assert train[-1].metadata["ignore"] == [[0, 0, 50, 0, 50, 50]]


def test_an_older_encoding_and_a_target_over_the_edge_are_read(tmp_path: Path) -> None:
    folder = reason_seg(tmp_path / "x", shapes=[shape([[-9, 10], [70, 10], [30, 99]])])
    file = folder / "train" / "x.json"
    file.write_bytes(file.read_bytes().replace(b"what?", "caf\xe9\u2019s?".encode("cp1252")))
    said = said_of(lambda **more: ReasonSegData(str(folder), **more), tmp_path, GroundingTask())
    assert said == f"{file}: line 1: byte 0xe9 is not utf-8; data.encoding sets another encoding, such as gbk, " + (
        "shift_jis or cp1252\n"
    )
    train, _ = samples_of(ReasonSegData(str(folder), second_encoding="cp1252"), tmp_path, GroundingTask())
    assert (train[-1].query, train[-1].target[0].box) == ("caf\xe9\u2019s?", (0, 10, 56, 56))


TRIANGLE = [[1, 1], [5, 1], [5, 9]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": None}, "text: expected an instruction or a list of them, got None"),
        ({"text": []}, "text: expected an instruction or a list of them, got ["),
        ({"text": ["a", 3]}, "text: expected an instruction"),
        ({"text": " "}, "text: expected an instruction or a list of them, got ' '"),
        ({"text": "\ud800"}, "text: expected an instruction"),  # half a surrogate pair can't be written to a file
        ({"shapes": {}}, "shapes: expected a list, got a dict"),
        ({"shapes": []}, "shapes: no polygon with the label 'target'"),
        ({"shapes": [shape(TRIANGLE, "ignore")]}, "shapes: no polygon with the label 'target'"),
        ({"shapes": [3]}, "shapes[0]: expected a label and points"),
        ({"shapes": [shape(TRIANGLE, 3)]}, "shapes[0]: expected a label and points"),
        ({"shapes": [shape(TRIANGLE), shape(TRIANGLE[:2])]}, "shapes[1].points: expected at least 3, got 2"),
        ({"shapes": [shape([[1, 1], [5, float("nan")], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, float("inf")], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, 10**400], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, "2"], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5, True], [5, 9]])]}, "shapes[0].points: expected finite numbers"),
        ({"shapes": [shape([[1, 1], [5], [5, 9]])]}, "shapes[0].points: expected [[x, y], ...]"),
        ({"shapes": [shape(None)]}, "shapes[0].points: expected [[x, y], ...]"),
        ({"shapes": [shape(TRIANGLE), shape(TRIANGLE[:1], "ignore")]}, "shapes[1].points: expected at least 3"),
        ({"shapes": [shape([[60, 1], [70, 1], [70, 9]])]}, "text[0]: no target in its image of 56 x 56"),
        ({"shapes": [shape([[5, 1], [5, 3], [5, 9]])]}, "text[0]: no target in its image of 56 x 56"),
    ],
)
def test_a_bad_annotation_of_reason_seg_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = reason_seg(tmp_path / "x", **changes)
    listed = said_of(lambda **more: ReasonSegData(str(folder), **more), tmp_path, GroundingTask())
    assert listed.startswith(f"{folder / 'train' / 'x.json'}: {said}")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{", b"[" * 100_000, b"\x81", b'{"text": 1' + b"0" * 5000 + b"}"]
)
def test_an_invalid_json_file_is_named(content: bytes, tmp_path: Path) -> None:
    folder = reason_seg(tmp_path / "x")
    (folder / "train" / "x.json").write_bytes(content)
    listed = said_of(lambda **more: ReasonSegData(str(folder), **more), tmp_path, GroundingTask())
    assert listed.startswith(f"{folder / 'train' / 'x.json'}: ")


def test_missing_parts_of_reason_seg_are_named(tmp_path: Path) -> None:
    folder = formats.write_reason_seg(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"data\.root: no such folder"):
        ReasonSegData(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"data\.val_split: no such folder: .*test"):
        ReasonSegData(str(folder), val_split="test")
    (folder / "train" / "2.jpg").unlink()
    listed = said_of(lambda **more: ReasonSegData(str(folder), **more), tmp_path, GroundingTask())
    assert f"{folder / 'train' / '2.jpg'}: no such image" in listed
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    assert "no JSON files" in refused(lambda **more: ReasonSegData(str(folder), **more), tmp_path)


def test_polygons_in_fractions_are_refused_and_hulls_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        samples_of(ReasonSegData(str(reason_seg(tmp_path / "x"))), tmp_path, GroundingTask())
    assert "; outlines read as their bounding boxes: " in caplog.text
    folder = reason_seg(tmp_path / "y", shapes=[shape([[0.1, 0.1], [0.5, 0.1], [0.5, 0.9]])])
    for file in (folder / "train").glob("*.json"):
        if file.name != "x.json":
            file.unlink()
    with pytest.raises(ConfigurationError, match=r"train: no coordinate is above 0\.9; expected pixels, not fractions"):
        samples_of(ReasonSegData(str(folder)), tmp_path, GroundingTask())
