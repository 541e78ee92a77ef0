"""Grounding rewards, against their formulas and on answers without a box."""

from __future__ import annotations

import math
import random

import pytest
from PIL import Image

from tests.helpers.answers import (
    FRAME,
    ONE,
    overlap_of,
    sample,
    tagged,
)
from vrft.rewards import (
    CentreDistance,
    GroundingGIoU,
    GroundingIoU,
    PaperGroundingGIoU,
    PointInBox,
    Reward,
)
from vrft.tasks import GroundingTask
from vrft.types import Answer, Detection, Sample


@pytest.mark.parametrize("seed", range(4))
def test_paper_grounding_reward_is_1_plus_giou(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(250):
        x0, y0, u0, v0 = (rng.randrange(999) for _ in range(4))
        found = [x0, y0, rng.randint(x0 + 1, 1000), rng.randint(y0 + 1, 1000)]
        true = [u0, v0, rng.randint(u0 + 1, 1000), rng.randint(v0 + 1, 1000)]
        about = sample((Detection(tuple(side / 2 for side in true), "cat"),))
        answer = GroundingTask().parse(tagged(f"({found[0]},{found[1]}),({found[2]},{found[3]})"), about, FRAME)
        iou, giou = overlap_of(found, true)
        assert PaperGroundingGIoU().score(answer, about) == pytest.approx(1 + giou, abs=1e-9)
        assert GroundingGIoU().score(answer, about) == pytest.approx((1 + giou) / 2, abs=1e-9)
        assert GroundingIoU().score(answer, about) == pytest.approx(iou, abs=1e-9)
        assert PaperGroundingGIoU().bounded_scores([answer], [about]) == [pytest.approx(1 + giou, abs=1e-9)]


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        pytest.param("(10,20),(300,400)", 1, id="exact"),
        pytest.param("(290,390),(310,410)", 1, id="centre-on-the-corner"),
        pytest.param("(290,390),(312,410)", 0, id="centre-just-outside"),
        pytest.param("(0,0),(500,700)", 1, id="larger-box-around"),
        pytest.param("(600,20),(900,400)", 0, id="beside"),
    ],
)
def test_point_in_box(box: str, inside: float) -> None:
    about = sample(ONE)
    assert PointInBox().score(GroundingTask().parse(tagged(box), about, FRAME), about) == inside


@pytest.mark.parametrize("kind", [GroundingIoU, GroundingGIoU, PaperGroundingGIoU, PointInBox, CentreDistance])
def test_grounding_rewards_without_a_single_box_are_0(kind: type[Reward]) -> None:
    two = (*ONE, *ONE)
    assert kind().score(Answer("", "", None, True), sample(ONE)) == 0
    assert kind().score(Answer("", "", "cat", True), sample(ONE)) == 0
    assert kind().score(Answer("", "", two, True), sample(ONE)) == 0
    assert kind().score(Answer("", "", (), True), sample(ONE)) == 0


def test_centre_distance_is_in_diagonals_of_the_image() -> None:
    about = Sample(0, (Image.new("1", (30, 40)),), 0, "", (Detection((0, 0, 10, 10), ""),))
    answer = Answer("", "", (Detection((20, 30, 30, 40), ""),), True)
    assert CentreDistance().score(answer, about) == pytest.approx(1 - math.hypot(20, 30) / 50)
