"""Objects that coordinates are too coarse for, against boxes parsed from target texts."""

from __future__ import annotations

import io
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from vrft.boxes import in_frame, iou_matrix, with_decimals
from vrft.data.record import Record
from vrft.doctor import precision
from vrft.doctor.precision import EVALUATION_IOU, Threshold, are_large, failures, remedy, thresholds
from vrft.errors import ConfigurationError
from vrft.policy.processor import Encoder
from vrft.rewards import DetectionDIoU, DetectionF1, DetectionGIoU, DetectionIoU, Format
from vrft.tasks import DetectionTask
from vrft.types import Detection, Frame

SIZE = (4000, 3000)
FRAMES = [Frame(1000, 1000), Frame(1008, 756), Frame(1, 1, 3), Frame(1000, 1000, 1)]


def record(*boxes: tuple[float, float, float, float]) -> Record:
    return Record((None,), "x.json: image 7", 7, "car", tuple(Detection(box, "car") for box in boxes), SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_an_object_fails_if_its_parsed_target_text_does_not_exceed_the_threshold(frame: Frame) -> None:
    task, rng, failed = DetectionTask(), random.Random(0), 0
    for least in (0.5, 0.75):
        limits = [Threshold("iou", DetectionIoU(), least)]
        for _ in range(150):
            x, y, w, h = rng.uniform(0, 3900), rng.uniform(0, 2900), rng.uniform(0.5, 40), rng.uniform(0.5, 40)
            one = record((x, y, x + w, y + h))
            value = task.parse(task.target_text(one, frame), one, frame).value
            assert isinstance(value, tuple)
            overlap = iou_matrix([value[0].box], [one.target[0].box])[0, 0]  # type: ignore[union-attr]
            found = list(failures(task, one, frame, limits))
            assert [failure.overlap for failure in found] == ([overlap] if overlap <= least else [])
            failed += len(found)
    assert 0 < failed < 300


@pytest.mark.parametrize("kind", [DetectionIoU, DetectionGIoU, DetectionDIoU])
@pytest.mark.parametrize("least", [0.0, 0.5, 0.9])
def test_objects_that_are_large_enough_by_their_sides_exceed_the_threshold(
    kind: type[DetectionIoU], least: float
) -> None:
    limits = [Threshold("reward", kind(threshold=least), least)]
    task, rng, skipped = DetectionTask(), random.Random(0), 0
    for frame in FRAMES * 200:
        x, y, w, h = rng.uniform(0, 3700), rng.uniform(0, 2700), *(10 ** rng.uniform(-1, 2.5) for _ in range(2))
        box = x, y, x + w, y + h
        if are_large(task, [Detection(box, "car")], SIZE, frame, limits):
            skipped += 1
            assert kind().overlap([box], [in_frame(box, SIZE, frame)]).item() > least
    assert 9 < skipped < 800
    wide, outside, thin = (Detection(box, "car") for box in ((0, 0, 600, 600), (-9, 0, 600, 600), (0, 0, 1, 600)))
    for objects in ([wide], [wide, outside], [wide, thin]):
        assert are_large(task, objects, SIZE, FRAMES[0], limits) == (objects == [wide])


@pytest.mark.parametrize("number", [99, 101])
def test_a_few_objects_of_many_are_no_problem(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "RecordData", SimpleNamespace)
    small, large = record((5, 5, 6, 6)), record((0, 0, 300, 300))
    few, none = SimpleNamespace(records=[small, *[large] * (number - 1)]), SimpleNamespace(records=[large])
    encoder = SimpleNamespace(frame_of_size=lambda size: FRAMES[0])
    module: Any = SimpleNamespace(task=DetectionTask(), rewards={"iou": DetectionIoU()}, encoder=encoder)
    data: Any = SimpleNamespace(train_set=lambda: none, val_set=lambda: few)
    console = Console(file=io.StringIO(), width=80)
    problems = list(precision.check_precision(module, data, console))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    said = f"1 of {number} objects (held out) are too small"
    assert [problem.startswith(said) for problem in problems] == ([True] if number == 99 else [])
    assert printed.startswith(f"note: {said}") == (number == 101)
    assert ("set model.policy.coordinate_decimals=1" in printed) == (number == 101)


def test_the_remedy_is_the_fewest_decimals_that_suffice() -> None:
    task, limits = DetectionTask(), [Threshold("iou", DetectionIoU(), 0.5)]
    some = record((1001, 2001, 1003, 2003), (10, 10, 400, 400), (5.03, 5.03, 5.22, 5.24))
    found = list(failures(task, some, Frame(1000, 1000), limits))
    assert [failure.place for failure in found] == ["object 1 of 3", "object 3 of 3"]
    said = remedy(task, found, limits)
    decimals = int(said.partition("coordinate_decimals=")[2][0])
    frames = [with_decimals(Frame(1000, 1000), n) for n in range(decimals + 1)]
    assert [not list(failures(task, some, frame, limits)) for frame in frames] == [*[False] * decimals, True]
    point = list(failures(task, record((5, 5, 5, 5)), Frame(1000, 1000), limits))
    assert remedy(task, point, limits) == "leave them out"


def test_the_thresholds_are_those_of_rewards_and_of_evaluation() -> None:
    rewards = {"iou": DetectionIoU(threshold=0.75), "f1": DetectionF1(), "giou": DetectionGIoU(), "format": Format()}
    module: Any = SimpleNamespace(rewards=rewards)
    found = thresholds(module)
    assert [(limit.name, limit.value) for limit in found[:3]] == [
        ("model.rewards.iou", 0.75),
        ("model.rewards.f1", 0.5),
        ("model.rewards.giou", 0.0),
    ]
    assert found[3].name == "evaluation"
    assert math.nextafter(found[3].value, 1) == EVALUATION_IOU  # an IoU of 0.5 counts in evaluation, not in rewards
    half = record((0, 0, 4, 1.5))  # its nearest box is 4 x 3 pixels
    assert list(failures(DetectionTask(), half, Frame(1000, 1000), found[3:])) == []
    assert len(list(failures(DetectionTask(), half, Frame(1000, 1000), found[1:2]))) == 1


def test_the_decimals_of_coordinates_can_be_set() -> None:
    assert Encoder(None, DetectionTask(), "thousandths", 1).frame_of_size(SIZE) == Frame(1000, 1000, 1)
    assert Encoder(None, DetectionTask(), "unit", 4).frame_of_size(SIZE) == Frame(1, 1, 4)
    assert Encoder(None, DetectionTask(), "unit").frame_of_size(SIZE) == Frame(1, 1, 3)
    with pytest.raises(ConfigurationError, match="coordinate_decimals: unit coordinates need at least 1, got 0"):
        Encoder(None, DetectionTask(), "unit", 0)
