"""More boxes than an answer may have: a limit of answers, not a bad record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.data import samples_of
from vrft.answers import MAX_BOXES
from vrft.data import JsonlData, YoloData
from vrft.data.record import Record, Tile
from vrft.data.record_checks import limit_targets
from vrft.data.tiles import tiles_of
from vrft.errors import ConfigurationError
from vrft.evaluators import CocoEvaluator
from vrft.evaluators.coco import Row
from vrft.tasks import DetectionTask
from vrft.tasks.detection import boxes_text
from vrft.types import Detection, Frame

COUNT = 381
SIDE = 400


def crowded(folder: Path) -> Path:
    """Write YOLO data whose images have 381 cells of rising size, and one with two."""
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for name, count in (("a", COUNT), ("b", 2)):
            Image.new("RGB", (SIDE, SIDE)).save(folder / "images" / split / f"{name}.png")
            lines = [
                f"0 {(i % 20) / 20 + 0.02} {i // 20 / 20 + 0.02} 0.01 {0.01 + i * 1e-5:.5f}\n" for i in range(count)
            ]
            (folder / "labels" / split / f"{name}.txt").write_text("".join(lines))
    config = folder / "data.yaml"
    config.write_text("train: images/train\nval: images/val\nnames: [cell]\n")
    return config


def test_the_largest_boxes_train_and_all_are_evaluated(tmp_path: Path) -> None:
    data = YoloData(str(crowded(tmp_path / "x")))
    with pytest.warns(UserWarning, match="boxes, the limit of an answer") as warned:
        train, val = samples_of(data, tmp_path)
    said = [str(warning.message) for warning in warned]
    assert any(f"1 of 2 training records with more than {MAX_BOXES} boxes, the limit of" in text for text in said)
    assert any(f"up to {COUNT} in {tmp_path}/x/labels/train/a.txt. They train on their" in text for text in said)
    assert any(f"1 of 2 evaluated records with more than {MAX_BOXES} boxes" in text for text in said)
    assert [len(sample.target) for sample in train] == [MAX_BOXES, 2]
    heights = [box.box[3] - box.box[1] for box in train[0].target]
    assert heights == sorted(heights)  # the last ones are the largest, in the order of the file
    assert heights[0] == pytest.approx(SIDE * (0.01 + (COUNT - MAX_BOXES) * 1e-5))
    assert [len(sample.target) for sample in val] == [COUNT, 2]
    task = DetectionTask()
    assert task.parse(task.target_text(train[0], FRAME), train[0], FRAME).valid
    evaluator = CocoEvaluator()
    evaluator.check(data)
    rows = [Row(sample.image_id, tuple(sample.target[:MAX_BOXES]), 1.0, True) for sample in val]
    numbers = evaluator.measure(rows)
    assert numbers["AR100"] == pytest.approx((MAX_BOXES + 2) / (COUNT + 2))


FRAME = Frame(1000, 1000)


def test_tiles_show_every_box_once_with_its_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    config = crowded(folder)
    image = folder / "images" / "train" / "a.png"
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([x % 256, y % 256, x // 256 + 2 * (y // 256)], axis=-1).astype(np.uint8)  # each says where it is
    Image.fromarray(pixels).save(image)
    with pytest.warns(UserWarning, match=r"1 of 2 training records .* They train as 4 tiles, parts of their images"):
        train, val = samples_of(YoloData(str(config), too_many_boxes="tiles"), tmp_path)
    assert [len(sample.target) for sample in val] == [COUNT, 2]  # held-out images are whole
    found = []
    for sample in train:
        assert len(sample.target) <= MAX_BOXES
        if sample.image_id == "a":
            shown = np.asarray(sample.images[0])
            x, y = shown[0, 0, :2].tolist() + shown[0, 0, 2] // np.array([1, 2]) % 2 * 256
            assert (shown == pixels[y : y + shown.shape[0], x : x + shown.shape[1]]).all()
            found += [tuple(v + (x, y)[i % 2] for i, v in enumerate(box.box)) for box in sample.target]
    whole = [box.box for sample in val if sample.image_id == "a" for box in sample.target]
    assert np.allclose(sorted(found), sorted(whole), atol=1e-6)


def test_a_box_is_clipped_to_the_tile_of_its_centre_and_small_tiles_keep_the_largest(tmp_path: Path) -> None:
    boxes = tuple(Detection((90.0, i / 4, 120.0, i / 4 + 1), "x", 1.0) for i in range(MAX_BOXES + 1))
    record = Record((tmp_path,), "here", 1, "x", boxes, (200, 200))
    (tile,) = tiles_of(record)
    assert tile.tile == Tile((100, 0, 200, 100), (200, 200))
    assert (tile.size, tile.location) == ((100, 100), "here: tile of 100 x 100 at 100, 0")
    assert tile.target[0].box == (0.0, 0.0, 20.0, 1.0)
    with pytest.warns(UserWarning, match=r"They train as 1 tiles.*\. 1 of them can't be .* without 1 smaller box$"):
        (limited,) = limit_targets([record], "tiles")
    assert len(limited.target) == MAX_BOXES


def test_they_can_be_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.too_many_boxes: 1 of 2 .* up to 381 in .*a\.txt"):
        samples_of(YoloData(str(crowded(tmp_path / "x")), too_many_boxes="refuse"), tmp_path)


def test_a_solution_may_have_any_number_of_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    boxes = [(i, 0.0, i + 5.0 + i / COUNT, 9.0) for i in range(COUNT)]
    row = {"image": "a.png", "problem": "cells", "solution": boxes_text(boxes, [1.0] * COUNT)}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    data = JsonlData(str(tmp_path / "x.jsonl"), str(tmp_path / "x.jsonl"))
    with pytest.warns(UserWarning, match="They train on their 100 largest boxes"):
        train, val = samples_of(data, tmp_path)
    assert (len(train[0].target), len(val[0].target)) == (MAX_BOXES, COUNT)
    assert isinstance(val[0].target[0], Detection)
