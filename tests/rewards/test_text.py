"""Rewards of the text: format, length, repetition and reasoning."""

from __future__ import annotations

import pytest

from tests.helpers.answers import (
    FRAME,
    ONE,
    sample,
    tagged,
)
from vrft.rewards import (
    Format,
    Length,
    ReasoningPresent,
    Repetition,
)
from vrft.tasks import ClassificationTask, DetectionTask
from vrft.types import Answer


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


@pytest.mark.parametrize(
    ("words", "expected"),
    [(0, 0), (1, 0.25), (4, 1), (10, 1), (11, 0.9), (15, 0.5), (20, 0), (500, 0)],
)
def test_length(words: int, expected: float) -> None:
    answer = Answer(" word\n" * words, "", None, False)
    assert Length(shortest=4, longest=10).bounded_scores([answer], [sample(ONE)]) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        pytest.param("a b c d e", 2, 1, id="no-repetition"),
        pytest.param("a b a b", 2, 2 / 3, id="one-bigram-twice"),
        pytest.param("so so so so so", 2, 1 / 4, id="one-word"),
        pytest.param("So SO so", 2, 1 / 2, id="case-is-ignored"),
        pytest.param("a b c", 4, 1, id="too-short"),
        pytest.param("", 4, 1, id="empty"),
    ],
)
def test_repetition(text: str, size: int, expected: float) -> None:
    assert Repetition(size=size).score(Answer(text, "", None, False), sample(ONE)) == pytest.approx(expected)


@pytest.mark.parametrize(("reasoning", "expected"), [("", 0), ("a b", 0.5), ("a b c d", 1), ("a " * 99, 1)])
def test_reasoning_present(reasoning: str, expected: float) -> None:
    about = sample(ONE)
    answer = DetectionTask().parse(f"{tagged('No Objects', reasoning)} these words do not count", about, FRAME)
    assert ReasoningPresent(words=4).bounded_scores([answer], [about]) == [expected]
