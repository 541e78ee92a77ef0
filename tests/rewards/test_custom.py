"""Users' functions as rewards."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from tests.helpers.answers import (
    EXACT,
    ONE,
    answers,
    boxes,
    sample,
    tagged,
)
from vrft.errors import ConfigurationError
from vrft.rewards import FunctionReward
from vrft.tasks import DetectionTask
from vrft.types import Detection, Frame, Sample


def test_a_function_receives_completion_answer_target_size_and_metadata() -> None:
    seen = []
    about = Sample(0, (Image.new("1", (500, 400)),), 7, "cat", ONE, {"source": "web"})
    answer = DetectionTask().parse(tagged(boxes((EXACT, 1))), about, Frame(500, 400))

    def reward(**given: object) -> float:
        seen.append(given)
        return 0.25

    assert FunctionReward(reward).bounded_scores([answer], [about]) == [0.25]
    value = (Detection((10, 20, 300, 400), "cat", 1.0),)
    text = tagged(boxes((EXACT, 1)))
    expected = {"completion": text, "answer": value, "target": ONE, "size": (500, 400), "metadata": {"source": "web"}}
    assert seen == [expected]


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
    reward = FunctionReward(lambda **_: given)
    assert reward.bounded_scores(answers("a"), [sample(ONE)]) == [expected]


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_causes_a_warning(fault: float) -> None:
    values = iter([fault, 0.5])
    reward = FunctionReward(lambda **_: next(values))
    with pytest.warns(UserWarning, match=f"FunctionReward returned {fault}; expected a finite score"):
        assert reward.bounded_scores(answers("a", "b"), [sample(ONE)] * 2) == [math.inf, 0.5]


def test_an_error_in_a_function_has_a_note_with_the_sample_and_the_completion() -> None:
    def broken(**_: object) -> float:
        raise KeyError("label")

    about = sample(ONE)
    with pytest.raises(KeyError, match="label") as raised:
        FunctionReward(broken).bounded_scores(answers("a" * 300), [about])
    completion = f"{'a' * 200!r} and 100 characters more"
    assert raised.value.__notes__ == [f"image {about.image_id}, query {about.query!r}, completion {completion}"]


def wants_another_argument(completion: str, truth: object) -> float:
    return 1.0


def wants_too_few_arguments(completion: str, answer: object) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("function", "reason"),
    [(wants_another_argument, "required argument: 'truth'"), (wants_too_few_arguments, "keyword argument 'target'")],
)
def test_a_function_that_cannot_be_called_with_the_arguments_is_refused(
    function: Callable[..., float], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"FunctionReward\.function: .*\.{function.__name__}\(.*{reason}"):
        FunctionReward(function)


def test_a_function_may_take_some_of_the_arguments() -> None:
    def short(completion: str, **_: object) -> float:
        return 1 / len(completion)

    assert FunctionReward(short).bounded_scores(answers("four"), [sample(ONE)]) == [0.25]


@pytest.mark.parametrize("given", ["good", [0.5], torch.zeros(2)], ids=["text", "list", "tensor"])
def test_a_result_that_is_no_number_is_refused(given: object) -> None:
    reward = FunctionReward(lambda **_: given)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match=r"FunctionReward returned .*; expected a number, or None"):
        reward.bounded_scores(answers("a"), [sample(ONE)])
