"""The reason, in words, why a completion is not valid."""

import time

import pytest

from tests.tasks.test_tasks import sample
from vrft.answers import MAX_BOXES, boxes_error, read_boxes, without_details
from vrft.tasks import CountingTask, DetectionTask, GroundingTask, MultiCategoryDetectionTask, MultipleChoiceTask, Task
from vrft.tasks.base import MAX_PROBLEM
from vrft.types import Frame

FRAME = Frame(1000, 800)
NO_OBJECT = "box 2: expected an object with 'Position' or 'bbox_2d', got a list"
OTHER_KEY = "box 1: 'Area' does not belong in a box with 'Position'"
UNSURE = "box 1: expected a confidence from 0 to 1"
GOOD = "{'Position': [10, 20, 300, 400], 'Confidence': 0.9}"


def asked(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


def one(position: str, rest: str = ", 'Confidence': 1") -> str:
    return asked(f"[{{'Position': {position}{rest}}}]")


@pytest.mark.parametrize(
    ("task", "text", "problem"),
    [
        (DetectionTask, asked(f"[{GOOD}]"), None),
        (DetectionTask, asked("No Objects"), None),
        (DetectionTask, "", "it is empty"),
        (DetectionTask, "I see a cat.", "<think> is missing"),
        (DetectionTask, "<think>so</think><answer>[]", "</answer> is missing"),
        (DetectionTask, asked("[]") + " ok", "there is text around the tags, or they are out of order"),
        (DetectionTask, asked("two cats"), "expected a list of boxes, got 'two cats'"),
        (DetectionTask, asked(""), "expected a list of boxes, got nothing"),
        (DetectionTask, asked(GOOD), "expected a list of boxes, got an object"),
        (DetectionTask, asked(f"[{GOOD}, {{'Position': [10, 20"), "it ends before the list is closed"),
        (DetectionTask, asked("[{'Position': [10 20]}]"), "expecting ',' delimiter at character 19, at '20]}]'"),
        (DetectionTask, asked("[{'Position': [10, 20, 30, x]}]"), "unexpected 'x]}]' at character 28"),
        (DetectionTask, asked("[{'Position: [1]}]"), "a text that isn't closed, \"'Position: [1]}]\" at character 3"),
        (DetectionTask, asked("[{'Position': [1, 2)}]"), "')' at character 20 closes no bracket of its kind"),
        (DetectionTask, asked("[{'a': 1, 'a': 2}]"), "the key 'a' appears twice in an object"),
        (DetectionTask, asked(f"[{'9' * 5000}]"), "a number has too many digits"),
        (DetectionTask, asked("[" * 9_000 + "]" * 9_000), "its brackets are nested too deeply"),
        (DetectionTask, asked("[" * 101 + "]" * 101), "its brackets are nested too deeply"),
        (DetectionTask, asked("x" * 20_001), "it has 20001 characters, more than 20000"),
        (DetectionTask, asked(f"[{', '.join([GOOD] * (MAX_BOXES + 1))}]"), "it has 101 boxes, more than 100"),
        (DetectionTask, asked(f"[{GOOD}, [1, 2, 3, 4]]"), NO_OBJECT),
        (DetectionTask, asked("[{'Confidence': 1}]"), "box 1 has neither 'Position' nor 'bbox_2d'"),
        (DetectionTask, one("[1, 2, 3]"), "box 1: 3 coordinates, expected 4"),
        (DetectionTask, one("'1, 2'"), "box 1: expected 4 coordinates, got a text"),
        (DetectionTask, one("[1, 2, 3, '4']"), "box 1: expected numbers as coordinates, got a text"),
        (DetectionTask, one("[1, 2, 1001, 3]"), "box 1: x from 1 to 1001 is not within 0 to 1000"),
        (DetectionTask, one("[1, 2, 3, 801]"), "box 1: y from 2 to 801 is not within 0 to 800"),
        (DetectionTask, one("[9, 2, 3, 4]"), "box 1: x from 9 to 3 is out of order or without extent"),
        (DetectionTask, asked("[{'Position': [1, 2, 3, 4]}]"), "box 1 has no 'Confidence'"),
        (DetectionTask, one("[1, 2, 3, 4], 'Confidence': 1.5", ""), f"{UNSURE}, got 1.5"),
        (DetectionTask, one("[1, 2, 3, 4], 'Confidence': 'high'", ""), f"{UNSURE}, got a text"),
        (DetectionTask, one("[1, 2, 3, 4]", ", 'Confidence': 1, 'Area': 5"), OTHER_KEY),
        (DetectionTask, "<answer>cat</answer>", "expected a list of boxes, got 'cat'; <think> is missing"),
        (MultiCategoryDetectionTask, asked(f"[{GOOD}]"), "box 1 has no label"),
        (GroundingTask, asked("(1,2),(3,4),(1,2),(3,4)"), "it has 2 boxes, expected one"),
        (GroundingTask, asked("(1,2),(3,900)"), "box 1: y from 2 to 900 is not within 0 to 800"),
        (GroundingTask, asked("(1,2),(3"), "it ends before the list is closed"),
        (GroundingTask, asked("(1,2),(3,x)"), "unexpected 'x)]' at character 10"),
        (MultipleChoiceTask, asked("both"), "expected a letter, got 'both'"),
        (CountingTask, asked("three"), "expected a whole number of at most nine digits, got 'three'"),
    ],
)  # fmt: skip
def test_a_completion_says_why_it_is_not_valid(task: type[Task], text: str, problem: str | None) -> None:
    answer = task().parse(text, sample(()), FRAME)
    assert answer.problem == problem
    assert answer.valid == (problem is None)


@pytest.mark.parametrize("text", ["[" * 100_000, "'" * 100_001, "{'a':" * 50_000, "9" * 100_000, "\ud800\u202e<b>" * 9])
def test_reasons_of_hostile_answers_are_short_and_quick(text: str) -> None:
    start = time.process_time()
    for task in (DetectionTask, GroundingTask, CountingTask, MultipleChoiceTask):
        problem = task().parse(asked(text), sample(()), FRAME).problem
        assert problem is not None
        assert len(problem) <= MAX_PROBLEM
        assert problem.isprintable()
    assert time.process_time() - start < 2


@pytest.mark.parametrize("end", range(len(GOOD) + 2))
def test_every_beginning_of_an_answer_has_a_reason(end: int) -> None:
    text = f"[{GOOD}]"[:end]
    assert read_boxes(text, FRAME) is None
    assert boxes_error(text, FRAME)


def test_reasons_are_counted_by_kind() -> None:
    kinds = {
        without_details(str(boxes_error(f"[{{'Position': [{x}, 2, 3], 'Confidence': 1}}]", FRAME))) for x in range(9)
    }
    assert len(kinds) == 1


class OwnTask(CountingTask):
    """Reads yes and no, and has no explanation of its own."""

    def read(self, content, sample, frame):  # type: ignore[no-untyped-def]
        return content if content in ("yes", "no") else None

    read_error = Task.read_error


def test_a_task_without_an_explanation_has_a_general_one() -> None:
    task = OwnTask(template="{query}")
    said = [task.parse(asked(text), sample("yes"), FRAME).problem for text in ("yes", "maybe", " ")]
    expected = ["the answer block has another form than the prompt asks for", "the answer block is empty"]
    assert said == [None, *expected]
