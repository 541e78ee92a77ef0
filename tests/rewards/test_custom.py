"""Users' functions as rewards."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from tests.helpers.answers import (
    EXACT,
    ONE,
    answers,
    boxes,
    sample,
    tagged,
)
from vrft.rewards import (
    FunctionReward,
)
from vrft.tasks import DetectionTask
from vrft.types import Detection, Frame, Sample


def test_a_function_receives_completion_answer_target_size_and_metadata() -> None:
    seen = []
    about = Sample(0, Image.new("1", (500, 400)), 7, "cat", ONE, {"source": "web"})
    answer = DetectionTask().parse(tagged(boxes((EXACT, 1))), about, Frame(500, 400))

    def reward(*given: object) -> float:
        seen.append(given)
        return 0.25

    assert FunctionReward(reward).bounded_scores([answer], [about]) == [0.25]
    value = (Detection((10, 20, 300, 400), "cat", 1.0),)
    assert seen == [(tagged(boxes((EXACT, 1))), value, ONE, (500, 400), {"source": "web"})]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(0.3, 0.3, id="inside"),
        pytest.param(-3, 0, id="below"),
        pytest.param(1.5, 1, id="above"),
        pytest.param(True, 1, id="boolean"),
        pytest.param(None, None, id="does-not-apply"),
    ],
)
def test_a_functions_result_is_clipped_to_the_bounds(given: float | None, expected: float | None) -> None:
    reward = FunctionReward(lambda *_: given)
    assert reward.bounded_scores(answers("a"), [sample(ONE)]) == [expected]


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_causes_a_warning(fault: float) -> None:
    values = iter([fault, 0.5])
    reward = FunctionReward(lambda *_: next(values))
    with pytest.warns(UserWarning, match=f"FunctionReward returned {fault}; expected a finite score"):
        assert reward.bounded_scores(answers("a", "b"), [sample(ONE)] * 2) == [math.inf, 0.5]


def test_an_error_in_a_function_is_not_hidden() -> None:
    def broken(*_: object) -> float:
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        FunctionReward(broken).bounded_scores(answers("a"), [sample(ONE)])
