"""Rewards of class names and counts (defects D3 and D4)."""

from __future__ import annotations

import pytest

from tests.helpers.answers import (
    FRAME,
    sample,
    tagged,
)
from vrft.rewards import (
    Accuracy,
    CountError,
)
from vrft.tasks import ClassificationTask, CountingTask


def test_an_answer_with_ten_classes_is_wrong() -> None:
    names = [f"class {i}" for i in range(10)]
    for name in names:
        about = sample(name)
        assert Accuracy().score(ClassificationTask().parse(tagged(", ".join(names)), about, FRAME), about) == 0


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param(tagged("Boeing 717"), "Boeing 717", 1, id="same"),
        pytest.param(tagged("boeing_737-200."), "Boeing 737-200", 1, id="case-separators-full-stop"),
        pytest.param(tagged("737 200"), "737-200", 1, id="space-for-hyphen"),
        pytest.param("<think>hm</think>\n<answer>\nrose\n</answer>", "rose", 1, id="D3-own-line"),
        pytest.param("<answer>rose</answer>", "rose", 1, id="no-think-only-costs-format"),
        pytest.param(tagged(""), "rose", 0, id="D4-empty"),
        pytest.param(tagged(" \n"), "rose", 0, id="D4-white-space"),
        pytest.param(tagged("7"), "Boeing 717", 0, id="D4-part-of-the-class"),
        pytest.param(tagged("-"), "737-200", 0, id="D4-hyphen"),
        pytest.param(tagged("Boeing 737 200"), "737-200", 0, id="D4-more-than-the-class"),
        pytest.param(tagged("rose, tulip, lily"), "rose", 0, id="D4-list-of-classes"),
        pytest.param(tagged("rose"), "pink primrose", 0, id="D4-class-inside-another"),
        pytest.param(tagged("pink primrose"), "rose", 0, id="D4-other-class-around-it"),
        pytest.param("<think>not a rose</think><answer>\ntulip\n</answer>", "rose", 0, id="D3-named-in-reasoning-only"),
        pytest.param("It is a rose", "rose", 0, id="named-without-tags"),
        pytest.param(tagged("Boeing 560"), "Cessna 560", 0, id="D1-same-number"),
    ],
)
def test_accuracy(text: str, target: str, expected: float) -> None:
    about = sample(target)
    assert Accuracy().score(ClassificationTask().parse(text, about, FRAME), about) == expected


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        pytest.param("puma", "Mountain lion", 1, id="alias"),
        pytest.param("MOUNTAIN_LION", "Mountain lion", 1, id="the-name-itself"),
        pytest.param("cougar.", "Mountain lion", 1, id="alias-normalised"),
        pytest.param("Mountain lion", "puma", 0, id="aliases-go-one-way"),
        pytest.param("puma, cougar", "Mountain lion", 0, id="two-aliases-at-once"),
        pytest.param("puma", "cat", 0, id="alias-of-another-class"),
        pytest.param("", "Mountain lion", 0, id="empty"),
    ],
)
def test_aliases(text: str, target: str, expected: float) -> None:
    about = sample(target)
    reward = Accuracy(aliases={"mountain-lion": ["Puma", "Cougar"]})
    assert reward.score(ClassificationTask().parse(tagged(text), about, FRAME), about) == expected


@pytest.mark.parametrize(
    ("text", "target", "accuracy", "error"),
    [
        pytest.param("4", "4", 1, 1, id="right"),
        pytest.param("04.", "4", 1, 1, id="normalised"),
        pytest.param("3", "4", 0, 0.75, id="one-too-few"),
        pytest.param("5", "4", 0, 0.75, id="one-too-many"),
        pytest.param("8", "4", 0, 0, id="twice-as-many"),
        pytest.param("400", "4", 0, 0, id="many-more-is-cut-off"),
        pytest.param("0", "4", 0, 0, id="none-of-four"),
        pytest.param("0", "0", 1, 1, id="none-of-none"),
        pytest.param("1", "0", 0, 0, id="one-of-none"),
        pytest.param("four", "4", 0, 0, id="in-words"),
        pytest.param("-4", "4", 0, 0, id="negative"),
        pytest.param("3", "many", 0, 0, id="truth-is-not-a-number"),
    ],
)
def test_counts(text: str, target: str, accuracy: float, error: float) -> None:
    about = sample(target)
    answer = CountingTask().parse(tagged(text), about, FRAME)
    assert Accuracy().bounded_scores([answer], [about]) == [accuracy]
    assert CountError().bounded_scores([answer], [about]) == [error]
