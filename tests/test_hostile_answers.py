"""Parsing hostile text never raises, never takes long and gives no box outside the image."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.questions import FRAME, QWEN, box
from vrft.answers import (
    MAX_BOXES,
    MAX_CHARACTERS,
    Item,
    read_boxes,
    split_blocks,
)
from vrft.tasks import (
    ClassificationTask,
    CountingTask,
    DetectionTask,
    GroundingTask,
    MultiCategoryDetectionTask,
    MultipleChoiceTask,
    Task,
)
from vrft.tasks.detection import boxes_text
from vrft.types import Answer, Detection, Sample, Target

pytestmark = pytest.mark.slow(seconds=0.2)

IMAGE = Image.new("1", (640, 480))
SAMPLE = Sample(0, (IMAGE,), 0, "cat", ())
CAT = (Detection((6.4, 12, 192, 240), "cat"),)
TARGETS: list[tuple[Task, str, Target]] = [
    (DetectionTask(), "cat", CAT),
    (MultiCategoryDetectionTask(), "cat, dog", (*CAT, Detection((50, 60, 90, 100), "dog"))),
    (GroundingTask(), "what purrs", CAT),
    (ClassificationTask(), "", "Boeing 737-200"),
    (MultipleChoiceTask(), "Which is it?", "B"),
    (CountingTask(), "cats", "12"),
]
QUESTIONS = [
    pytest.param(task, Sample(0, (IMAGE,), 0, query, target, {"choices": ["red", "blue"]}), id=type(task).__name__)
    for task, query, target in TARGETS
]
HOSTILE = {
    "opening-brackets": "[" * 1_000_000,
    "opening-parentheses": "(" * 1_000_000,
    "nested-objects": "[{'Position': " * 70_000,
    "opening-tags": "<answer>" * 125_000,
    "closing-tags": "</answer>" * 111_000,
    "reasoning-opened-again-and-again": "<think>" * 140_000,
    "empty-reasoning": "<think></think>" * 66_000,
    "half-tags": "<" * 1_000_000,
    "one-count-far-from-its-full-stop": f"5{' ' * 1_000_000}.x",
    "letter-far-from-its-end": f"B{' ' * 1_000_000}x y",
    "separators": "_-" * 500_000 + "a b c d",
    "digits": "9" * 1_000_000,
    "fences": "```json\n" * 125_000,
}
AS_LONG_AS_IS_READ = {
    "brackets": "[" * MAX_CHARACTERS,
    "pairs-of-brackets": "[" * (MAX_CHARACTERS // 2) + "]" * (MAX_CHARACTERS // 2),
    "parentheses": "(" * MAX_CHARACTERS,
    "escaped-apostrophes": "'" + "\\'" * (MAX_CHARACTERS // 2 - 1),
    "escaped-quotes": '"' + '\\"' * (MAX_CHARACTERS // 2 - 1),
    "backslashes": "'" + "\\" * (MAX_CHARACTERS - 1),
    "an-open-string-per-line": "'a\n" * (MAX_CHARACTERS // 3),
    "numbers": "[" + "1," * (MAX_CHARACTERS // 2 - 1) + "]",
    "corners": "(1,2)," * (MAX_CHARACTERS // 6),
    "commas": "[" + "," * (MAX_CHARACTERS - 2) + "]",
    "spaces": "[" + " " * (MAX_CHARACTERS - 2) + "x",
    "digits": "[" + "9" * (MAX_CHARACTERS - 2) + "]",
    "fences": "```\n" * (MAX_CHARACTERS // 4),
    "objects": "[" + "{}," * (MAX_CHARACTERS // 3 - 1) + "]",
}


@pytest.mark.parametrize("content", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
@pytest.mark.parametrize(("task", "about"), QUESTIONS)
def test_a_megabyte_of_rubbish_takes_linear_time(task: Task, about: Sample, content: str) -> None:
    started = time.thread_time()
    answer = task.parse(f"<think>x</think><answer>{content}</answer>", about, FRAME)
    scores = {name: reward.score(answer, about) for name, reward in task.rewards().items()}
    assert time.thread_time() - started < 5  # they take 0.1 s
    assert isinstance(task, ClassificationTask | MultipleChoiceTask) or answer.value is None
    right = answer_of(task, about)
    assert all(score <= task.rewards()[name].score(right, about) for name, score in scores.items())


@pytest.mark.parametrize("content", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_a_megabyte_of_rubbish_without_an_answer_takes_linear_time(content: str) -> None:
    started = time.thread_time()
    answer, well_formed = split_blocks(content)[1:]
    assert time.thread_time() - started < 5  # they take 0.1 s
    assert not answer
    assert not well_formed


def answer_of(task: Task, about: Sample) -> Answer:
    """Return the parsed correct answer."""
    return task.parse(task.target_text(about, FRAME), about, FRAME)


@pytest.mark.parametrize("content", [pytest.param(text, id=name) for name, text in AS_LONG_AS_IS_READ.items()])
def test_rubbish_of_the_longest_parsed_length_takes_linear_time(content: str) -> None:
    assert len(content) <= MAX_CHARACTERS
    seconds = []
    for _ in range(3):  # a collection of the process's garbage takes longer
        started = time.thread_time()
        assert read_boxes(content, FRAME) is None
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.5  # they take 0.04 s


def test_a_megabyte_before_and_after_the_answer_takes_linear_time_too() -> None:
    rest = "<think>a</think>" * 31_000
    started = time.thread_time()
    answer = DetectionTask().parse(f"{rest}<answer>[{box()}]</answer>{rest}", SAMPLE, FRAME)
    assert time.thread_time() - started < 5  # they take 0.1 s
    assert answer.value == (Detection(pytest.approx((6.4, 12, 192, 240)), "cat", 0.9),)


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "(", ")", ", ", box(), box(confidence="NaN"), QWEN]
PIECES += ["No Objects", "(1,2)", "```json\n", "\n```", "'", '"', "\\", "B", "12", "Boeing 737-200", "'Label': 'dog'"]
NUMBERS = st.floats(0, 1000) | st.floats() | st.integers() | st.booleans()
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map("".join)
ANSWERS = st.lists(st.lists(NUMBERS, min_size=5, max_size=5).map(sorted), max_size=3).map(
    lambda rows: f"<answer>[{', '.join(box(str(row[1:]), str(row[0] / 1000)) for row in rows)}]</answer>"
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS | ANSWERS)
def test_parsed_boxes_are_inside_the_image(text: str) -> None:
    check_boxes(DetectionTask().parse(text, SAMPLE, FRAME).value)


def check_boxes(value: Target | None) -> None:
    if value is None:
        return
    assert isinstance(value, tuple)
    for (x0, y0, x1, y1), label, score in value:
        assert 0 <= x0 <= x1 <= 640
        assert 0 <= y0 <= y1 <= 480
        assert score is None or 0 <= score <= 1
        assert label == "cat"


@pytest.mark.parametrize(("task", "about"), QUESTIONS)
def test_any_text_can_be_parsed_and_scored(task: Task, about: Sample) -> None:
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(TEXTS.map(lambda text: f"<think>a</think><answer>{text}</answer>") | TEXTS | ANSWERS | st.text())
    def check(text: str) -> None:
        answer = task.parse(text, about, FRAME)
        assert answer.text == text
        for reward in task.rewards().values():
            score = reward.score(answer, about)
            assert score is not None
            assert math.isfinite(score)
            bounded = reward.bounded_scores([answer], [about])[0]
            assert reward.bounds[0] <= bounded <= reward.bounds[1]

    check()


def intervals(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True).map(sorted)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(intervals(1000), intervals(800), st.floats(0, 1), st.text()), max_size=MAX_BOXES))
def test_boxes_survive_formatting_and_parsing(rows: list[tuple[list[int], list[int], float, str]]) -> None:
    boxes = [(x[0], y[0], x[1], y[1]) for x, y, _, _ in rows]
    confidences = [confidence for _, _, confidence, _ in rows]
    labels = [label for _, _, _, label in rows]
    expected = [Item(box, round(c, 2), label) for box, c, label in zip(boxes, confidences, labels, strict=True)]
    bare = [item._replace(label=None) for item in expected]
    assert read_boxes(boxes_text(boxes, confidences), FRAME) == bare
    text = boxes_text(boxes, confidences, labels)
    assert read_boxes(text, FRAME) == (expected if len(text) <= MAX_CHARACTERS else None)


def mutated(text: str, rng: random.Random) -> str:
    """Return `text` after one to four random edits."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([1, 1, 1, 3, 20]))
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:start] + rng.choice(ACCIDENTS) + text[start:]
        elif kind == 2:
            text = text[:end] + text[start:]
        elif kind == 3:
            text = text[:start] + text[start:end][::-1] + text[end:]
        else:
            other = rng.randrange(len(text) + 1)
            text = text[:other] + text[start:end] + text[other:]
    return text


ACCIDENTS = [
    *"[](){},:'\"\\-.0919eE \n`",
    "NaN",
    "Infinity",
    "1e999",
    "True",
    "null",
    "</answer>",
    "<answer>",
    "<think>",
]


@pytest.mark.parametrize(("task", "about"), QUESTIONS)
def test_mutated_answers_are_parsed_without_an_error_in_milliseconds(task: Task, about: Sample) -> None:
    count, rng = 30_000 // len(QUESTIONS), random.Random(0)
    valid = task.target_text(about, FRAME)
    forms = (
        [valid, f"<think>so</think><answer>\n```json\n[{QWEN}, {QWEN}]\n```</answer>"]
        if "Position" in valid
        else [valid]
    )
    texts = [mutated(forms[i % len(forms)], rng) for i in range(count)]
    started = time.thread_time()
    answers = [task.parse(text, about, FRAME) for text in texts]
    assert (time.thread_time() - started) / count < 0.005  # at most 0.2 ms each
    readable = sum(answer.value is not None for answer in answers)
    assert count / 20 < readable < count  # some edits are harmless, some are not
    assert sum(answer.valid for answer in answers) < readable
    for answer in answers[::10]:
        for reward in task.rewards().values():
            assert 0 <= reward.bounded_scores([answer], [about])[0] <= 1
        if isinstance(answer.value, tuple):
            assert all(0 <= x0 <= x1 <= 640 and 0 <= y0 <= y1 <= 480 for (x0, y0, x1, y1), _, _ in answer.value)
