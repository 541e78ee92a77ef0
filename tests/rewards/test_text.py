"""Rewards of the text: format, length, repetition and reasoning."""

from __future__ import annotations

import pytest

from tests.helpers.answers import (
    FRAME,
    ONE,
    sample,
    tagged,
)
from vrft.errors import ConfigurationError
from vrft.policy.tiny import build_tokenizer
from vrft.rewards import (
    Format,
    Length,
    ReasoningPresent,
    Repetition,
    Reward,
)
from vrft.tasks import ClassificationTask, DetectionTask
from vrft.types import Answer, Detection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("<think>a</think><answer>b</answer>", 1, id="as-asked"),
        pytest.param("<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1, id="white-space-around"),
        pytest.param("<think></think><answer></answer>", 1, id="empty-blocks"),
        pytest.param("<think>a</think><think>c</think><answer>b</answer>", 0, id="two-reasonings"),
        pytest.param("<think>a</think><answer>b</answer><answer>c</answer>", 0, id="two-answers"),
        pytest.param("<think>a<think>c</think><answer>b</answer>", 0, id="opened-twice"),
        pytest.param("<think>a</think><answer>b</answer></answer>", 0, id="closed-twice"),
        pytest.param("<think>a <answer>b</answer></think>", 0, id="answer-inside"),
        pytest.param("<answer>b</answer><think>a</think>", 0, id="wrong-order"),
        pytest.param("Sure! <think>a</think><answer>b</answer>", 0, id="text-before"),
        pytest.param("<think>a</think> So: <answer>b</answer>", 0, id="text-between"),
        pytest.param("<think>a</think><answer>b</answer> Done.", 0, id="text-after"),
        pytest.param("<think>a</think><answer>b", 0, id="not-closed"),
        pytest.param("<think>a</think>", 0, id="no-answer"),
        pytest.param("<THINK>a</THINK><ANSWER>b</ANSWER>", 0, id="upper-case"),
        pytest.param("", 0, id="empty"),
    ],
)
def test_format(text: str, expected: float) -> None:
    about = sample("b")
    assert Format().score(ClassificationTask().parse(text, about, FRAME), about) == expected


def of_tokens(*ids: int) -> Answer:
    return Answer("one word", "", None, False, token_ids=ids)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0), (1, 0.25), (4, 1), (10, 1), (11, 0.9), (15, 0.5), (20, 0), (500, 0)],
)
def test_length(tokens: int, expected: float) -> None:
    found = Length(shortest=4, longest=10).bounded_scores([of_tokens(*[7] * tokens)], [sample(ONE)])
    assert found == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("ids", "size", "expected"),
    [
        pytest.param([1, 2, 3, 4, 5], 2, 1, id="no-repetition"),
        pytest.param([1, 2, 1, 2], 2, 2 / 3, id="one-bigram-twice"),
        pytest.param([5] * 5, 2, 1 / 4, id="one-token"),
        pytest.param([1, 2, 3], 4, 1, id="too-short"),
        pytest.param([], 4, 1, id="empty"),
    ],
)
def test_repetition(ids: list[int], size: int, expected: float) -> None:
    assert Repetition(size=size).score(of_tokens(*ids), sample(ONE)) == pytest.approx(expected)


def test_a_text_without_spaces_is_repetitive_and_long() -> None:
    answer = of_tokens(*[1, 2] * 300)
    assert Repetition().score(answer, sample(ONE)) < 0.01
    assert Length().bounded_scores([answer], [sample(ONE)]) == [0]


def test_correct_answers_with_many_boxes_do_not_repeat_themselves() -> None:
    about = sample(tuple(Detection((x, y, x + 30, y + 30), "cat") for x in range(0, 450, 50) for y in (10, 200)))
    ids = build_tokenizer()(DetectionTask().target_text(about, FRAME))["input_ids"]
    assert len(ids) > 200
    assert Repetition().score(of_tokens(*ids), about) == 1


@pytest.mark.parametrize("reward", [Length(), Repetition()])
def test_tokens_of_a_text_alone_are_not_known(reward: Reward) -> None:
    with pytest.raises(ConfigurationError, match=f"{type(reward).__name__} counts the policy's tokens"):
        reward.score(Answer("a b", "", None, False), sample(ONE))


@pytest.mark.parametrize(("reasoning", "expected"), [("", 0), ("a b", 0.5), ("a b c d", 1), ("a " * 99, 1)])
def test_reasoning_present(reasoning: str, expected: float) -> None:
    about = sample(ONE)
    answer = DetectionTask().parse(f"{tagged('No Objects', reasoning)} these words do not count", about, FRAME)
    assert ReasoningPresent(words=4).bounded_scores([answer], [about]) == [expected]
