"""The correct answer, as the model has to write it, earns the most in every frame, however small the object."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tasks.test_tasks import FRAMES, Asked
from vrft.rewards import (
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    GroundingGIoU,
    GroundingIoU,
    PaperConfidence,
    PaperGroundingGIoU,
    PointInBox,
    Reward,
)
from vrft.tasks import DetectionTask, GroundingTask, MultiCategoryDetectionTask
from vrft.types import Detection, Frame

DETECTION: list[Reward] = [
    DetectionIoU(),
    DetectionIoU(threshold=0.999, matching="optimal"),
    DetectionGIoU(),
    DetectionDIoU(threshold=0.999, matching="confidence"),
    DetectionF1(threshold=0.95),
    PaperConfidence(),
]
GROUNDING: list[Reward] = [GroundingIoU(), GroundingGIoU(), PaperGroundingGIoU(), PointInBox()]
SIZES = st.tuples(st.integers(8, 6000), st.integers(8, 6000))
SIDES = st.one_of(st.floats(0.01, 4), st.floats(0.01, 6000))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[float, ...]]]:
    """Draw an image's size and boxes in it, half of them with sides below 4 pixels."""
    size = draw(SIZES)
    boxes = []
    for _ in range(draw(st.integers(1, 5))):
        w, h = (min(draw(SIDES), float(length)) for length in size)
        x, y = draw(st.floats(0, size[0] - w)), draw(st.floats(0, size[1] - h))
        boxes.append((x, y, x + w, y + h))
    return size, boxes


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scenes(), FRAMES)
@example(((4000, 3000), [(1001.0, 2001.0, 1003.0, 2003.0), (5.0, 5.0, 7.0, 7.0)]), Frame(1000, 1000))
@example(((4000, 3000), [(1001.0, 2001.0, 1003.0, 2003.0)]), Frame(1008, 756))
@example(((4000, 3000), [(1001.0, 2001.0, 1003.0, 2003.0)]), Frame(1, 1, 3))
def test_the_correct_answer_earns_the_highest_reward(
    scene: tuple[tuple[int, int], list[tuple[float, ...]]], frame: Frame
) -> None:
    size, boxes = scene
    target = tuple(Detection(box, "car") for box in boxes)  # type: ignore[arg-type]
    for task, rewards in (
        (DetectionTask(), DETECTION),
        (MultiCategoryDetectionTask(), DETECTION),
        (GroundingTask(), GROUNDING),
    ):
        about = Asked(target[:1] if rewards is GROUNDING else target, "car", size)
        answer = task.parse(task.target_text(about, frame), about, frame)
        seen = replace(about, target=task.scored_target(about, frame))
        assert {type(reward): reward.score(answer, seen) for reward in rewards} == {
            type(reward): pytest.approx(reward.bounds[1], abs=1e-9) for reward in rewards
        }


def test_texts_are_scored_as_they_are() -> None:
    assert DetectionTask().scored_target(Asked("Boeing 737-200"), Frame(1000, 1000)) == "Boeing 737-200"


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (Frame(1000, 1000), "[250, 500, 750, 1000]"),
        (Frame(1000, 1000, 1), "[250.0, 500.0, 750.0, 1000.0]"),
        (Frame(1, 1, 3), "[0.250, 0.500, 0.750, 1.000]"),
        (Frame(80, 60), "[20, 30, 60, 60]"),
    ],
)
def test_prompt_and_target_have_the_same_number_of_decimals(frame: Frame, said: str) -> None:
    about = Asked((Detection((160, 240, 480, 480), "car"),), "car")
    for decimals, confidence in ((2, "1.00"), (1, "1.0"), (0, "1")):
        for kind in (DetectionTask, MultiCategoryDetectionTask):
            task = kind(confidence_decimals=decimals)
            assert f"'Position': {said}, 'Confidence': {confidence}}}" in task.target_text(about, frame)
            form = f"{0:.{decimals}f}"
            question = task.question(about, frame)
            assert f"from 0 to 1 in the form {form}. If" in question
            assert f"'Confidence': {form}}}]" in question
    a, b, c, d = said.strip("[]").split(", ")
    assert f"<answer>({a},{b}),({c},{d})</answer>" in GroundingTask().target_text(about, frame)
