"""Prompts, target texts and parsed answers of the tasks."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrft.boxes import iou_matrix
from vrft.errors import ConfigurationError
from vrft.tasks import (
    ClassificationTask,
    CountingTask,
    DetectionTask,
    GroundingTask,
    MazeTask,
    MultiCategoryDetectionTask,
    MultipleChoiceTask,
    Task,
)
from vrft.types import Detection, Frame, Target

FRAME = Frame(1000, 700)
TASKS = [
    DetectionTask,
    MultiCategoryDetectionTask,
    GroundingTask,
    ClassificationTask,
    MultipleChoiceTask,
    CountingTask,
]


@dataclass
class Asked:
    """A question without an image, which tasks don't need."""

    target: Target
    query: str = "fire hydrant"
    size: tuple[int, int] = (640, 480)
    metadata: dict[str, Any] = field(default_factory=dict)
    image_id: int = 0
    num_images: int = 1
    image_index: int | None = None


sample = Asked


def detections(*boxes: tuple[float, float, float, float]) -> tuple[Detection, ...]:
    return tuple(Detection(box, "fire hydrant") for box in boxes)


def test_the_question_names_category_and_frame() -> None:
    question = DetectionTask().question(sample(()), FRAME)
    assert "'fire hydrant'" in question
    assert "0 (left) to 1000 (right)" in question
    assert "0 (top) to 700 (bottom)" in question
    assert "[{'Position': [x1, y1, x2, y2], 'Confidence': 0.00}]" in question


def test_a_query_with_braces_stays_unchanged() -> None:
    assert ClassificationTask("{query}?").question(sample("a", "{width}"), FRAME) == "{width}?"


def test_literal_braces_are_doubled() -> None:
    assert DetectionTask("{query} {{'x': {width}}}").question(sample(()), FRAME) == "fire hydrant {'x': 1000}"


def test_the_question_asks_for_decimals_in_a_frame_with_decimals() -> None:
    assert "in integers, with x from 0 (left) to 1000" in DetectionTask().question(sample(()), FRAME)
    unit = Frame(1, 1, 3)
    assert "in numbers with 3 decimals, with x from 0 (left) to 1 (right)" in DetectionTask().question(sample(()), unit)
    assert "in numbers with 3 decimals" in GroundingTask().question(sample(()), unit)


@pytest.mark.parametrize("kind", TASKS)
def test_the_format_has_reasoning_if_the_task_asks_for_it(kind: type[Task]) -> None:
    about = sample(RIGHT[kind], metadata={"choices": ["red", "blue"]})
    silent, thinking = kind(reasoning=False), kind()
    assert "<think>your reasoning</think><answer>" in thinking.question(about, FRAME)
    assert "think" not in silent.question(about, FRAME)
    assert "<answer>" in silent.question(about, FRAME)
    assert "think" not in silent.target_text(about, FRAME)
    assert silent.target_text(about, FRAME) in thinking.target_text(about, FRAME)
    for task, other in ((silent, thinking), (thinking, silent)):
        own, others = (task.parse(t.target_text(about, FRAME), about, FRAME) for t in (task, other))
        assert own.valid
        assert not others.well_formed
        assert own.value == others.value


@pytest.mark.parametrize("kind", TASKS)
def test_the_target_text_earns_the_highest_rewards(kind: type[Task]) -> None:
    task, about = kind(), sample(RIGHT[kind])
    answer = task.parse(task.target_text(about, FRAME), about, FRAME)
    assert {name: reward.score(answer, about) for name, reward in task.rewards().items()} == {
        name: pytest.approx(1, abs=0.01) for name in task.rewards()
    }


RIGHT: dict[type[Task], Target] = {
    DetectionTask: (Detection((30, 40, 320, 440), "fire hydrant"),),
    MultiCategoryDetectionTask: (Detection((30, 40, 320, 440), "fire hydrant"), Detection((0, 0, 64, 48), "car")),
    GroundingTask: (Detection((30, 40, 320, 440), ""),),
    ClassificationTask: "Boeing 737-200",
    MultipleChoiceTask: "B",
    CountingTask: "3",
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(
    ("template", "named"),
    [
        pytest.param("Find {category}", "{category}", id="unknown-field"),
        pytest.param("Find {}", "{}", id="positional-field"),
        pytest.param("Find {query.upper}", "{query.upper}", id="attribute"),
        pytest.param("as [{'Position': [1, 2]}]", "{'Position'}", id="json-not-doubled"),
        pytest.param("Find {query", "{{ and }}", id="unclosed-brace"),
        pytest.param("Find {query: the category}", "query", id="format-specifier"),
    ],
)
def test_a_wrong_template_is_refused_with_the_fields_name(kind: type[Task], template: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind(template)
    assert str(caught.value).startswith("task.template: ")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        pytest.param([(30, 40, 320, 440)], (640, 480), id="one"),
        pytest.param([(0, 0, 640, 480), (200.5, 100.25, 399.75, 301.1)], (640, 480), id="whole-image-and-fractions"),
        pytest.param([(1000, 900, 2500, 2000)], (4000, 3000), id="image-larger-than-frame"),
        pytest.param([(3, 4, 29, 17)], (31, 23), id="image-smaller-than-frame"),
        pytest.param([], (640, 480), id="no-boxes"),
    ],
)
def test_the_target_text_is_the_correct_answer(
    boxes: list[tuple[float, float, float, float]], size: tuple[int, int]
) -> None:
    about = sample(detections(*boxes), size=size)
    answer = DetectionTask().parse(DetectionTask().target_text(about, FRAME), about, FRAME)
    assert answer.valid
    assert isinstance(answer.value, tuple)
    assert [(label, score) for _, label, score in answer.value] == [("fire hydrant", 1.0)] * len(boxes)
    assert (iou_matrix([box for box, _, _ in answer.value], boxes).diagonal() > 0.95).all()


def test_the_target_text_can_be_parsed_if_a_box_is_thinner_than_a_unit_of_the_frame() -> None:
    about = sample(detections((11, 100, 12, 200), (500, 500, 900, 900)), size=(4000, 3000))
    assert DetectionTask().parse(DetectionTask().target_text(about, FRAME), about, FRAME).valid


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_messages_have_an_image_and_a_question(system: str | None) -> None:
    task = DetectionTask("Where is {query}?", system)
    *before, user = task.messages(sample(()), FRAME)
    assert user == {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "Where is fire hydrant?"}],
    }
    expected = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    assert before == (expected if system else [])


@pytest.mark.parametrize(
    ("text", "value", "valid"),
    [
        pytest.param("<think>red</think><answer> pink primrose\n</answer>", "pink primrose", True, id="as-asked"),
        pytest.param("<answer>rose</answer>", "rose", False, id="no-reasoning"),
        pytest.param("<think>red</think><answer>\n</answer>", None, False, id="empty"),
        pytest.param("rose", None, False, id="no-tags"),
    ],
)
def test_a_class_name_is_read(text: str, value: str | None, valid: bool) -> None:
    answer = ClassificationTask().parse(text, sample("rose"), FRAME)
    assert (answer.text, answer.value, answer.valid) == (text, value, valid)


LETTERS = {"choices": ["red", "blue"]}


@pytest.mark.parametrize(
    ("kind", "content", "value"),
    [
        pytest.param(MultipleChoiceTask, "b", "B", id="choice-letter"),
        pytest.param(MultipleChoiceTask, "Blue.", "B", id="choice-by-text"),
        pytest.param(MultipleChoiceTask, "green", None, id="unknown-choice"),
        pytest.param(CountingTask, " 03 ", "3", id="count"),
        pytest.param(CountingTask, "three", None, id="count-in-words"),
        pytest.param(CountingTask, "", None, id="no-count"),
        pytest.param(GroundingTask, "No Objects", None, id="grounding-without-box"),
        pytest.param(GroundingTask, "(0,0),(500,350),(0,0),(500,350)", None, id="grounding-with-two-boxes"),
    ],
)
def test_short_answers_are_read(kind: type[Task], content: str, value: str | None) -> None:
    answer = kind().parse(f"<think>a</think><answer>{content}</answer>", sample("B", metadata=LETTERS), FRAME)
    assert (answer.value, answer.valid) == (value, value is not None)


def test_choices_follow_the_question_with_their_letters() -> None:
    task = MultipleChoiceTask("{query}")
    assert task.question(sample("B", "Which?", metadata=LETTERS), FRAME) == "Which?\nA. red\nB. blue"
    assert task.question(sample("B", "Which?"), FRAME) == "Which?"


@pytest.mark.parametrize(
    ("content", "score"),
    [
        pytest.param("(0,0),(500,350)", None, id="corners"),
        pytest.param('[{"bbox_2d": [0, 0, 500, 350], "label": "dog"}]', None, id="qwen"),
        pytest.param("[{'Position': [0, 0, 500, 350], 'Confidence': 0.5}]", 0.5, id="paper"),
    ],
)
@pytest.mark.parametrize(("kind", "label"), [(DetectionTask, "fire hydrant"), (GroundingTask, "")])
def test_boxes_are_read_in_pixels_in_all_forms(kind: type[Task], label: str, content: str, score: float | None) -> None:
    found = kind().parse(f"<answer>{content}</answer>", sample(()), FRAME).value
    assert found == (Detection((0, 0, 320, 240), label, score),)


@pytest.mark.parametrize(
    ("item", "label"),
    [
        pytest.param("'Label': 'car'", "Car", id="other-case"),
        pytest.param("'Label': 'fire-hydrant'", "fire hydrant", id="hyphen"),
        pytest.param("'Label': 'dog'", "dog", id="label-outside-the-query"),
        pytest.param("'Label': ''", "", id="empty-label"),
    ],
)
def test_labels_of_several_categories(item: str, label: str) -> None:
    about = sample((), "fire hydrant, Car")
    text = f"<answer>[{{{item}, 'Position': [0, 0, 500, 350], 'Confidence': 1}}]</answer>"
    assert MultiCategoryDetectionTask().parse(text, about, FRAME).value == (Detection((0, 0, 320, 240), label, 1.0),)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("[{'Position': [0, 0, 500, 350], 'Confidence': 1}]", id="paper"),
        pytest.param("(0,0),(500,350)", id="corners"),
        pytest.param('[{"bbox_2d": [0, 0, 500, 350], "label": "car"}, {"bbox_2d": [0, 0, 5, 5]}]', id="one-of-two"),
    ],
)
def test_with_several_categories_a_box_without_label_invalidates_the_answer(content: str) -> None:
    about = sample((), "fire hydrant, car")
    assert MultiCategoryDetectionTask().parse(f"<answer>{content}</answer>", about, FRAME).value is None


@pytest.mark.parametrize(
    ("kind", "text", "target"),
    [
        pytest.param(DetectionTask, "<answer>No Objects</answer>", (), id="no-objects"),
        pytest.param(DetectionTask, "No Objects", (), id="no-tags"),
        pytest.param(
            DetectionTask,
            "<answer>[{'Position': [0, 0, 500, 350]}]</answer>",
            (Detection((0, 0, 320, 240), "fire hydrant", 1.0),),
            id="box-without-confidence",
        ),
        pytest.param(
            DetectionTask,
            "[{'Position': [0, 0, 500, 350], 'Confidence': 0.2}]",
            (Detection((0, 0, 320, 240), "fire hydrant", 1.0),),
            id="confidence-of-a-solution-is-1",
        ),
        pytest.param(DetectionTask, "[{'Position': [0, 0, 500]}]", None, id="unreadable"),
        pytest.param(
            GroundingTask, "<think>a</think>(0,0),(500,350)", None, id="grounding-with-reasoning-but-without-tags"
        ),
        pytest.param(GroundingTask, " (0,0),(500,350)\n", (Detection((0, 0, 320, 240), ""),), id="grounding"),
        pytest.param(ClassificationTask, "<answer> pink primrose </answer>", "pink primrose", id="class"),
        pytest.param(ClassificationTask, "pink primrose", "pink primrose", id="class-without-tags"),
        pytest.param(ClassificationTask, "<answer></answer>", None, id="empty"),
        pytest.param(CountingTask, "<answer>07</answer>", "7", id="count"),
        pytest.param(MultipleChoiceTask, "blue", "B", id="text-of-a-choice"),
    ],
)
def test_solutions_are_read(kind: type[Task], text: str, target: Target | None) -> None:
    assert kind().read_solution(text, sample("", metadata=LETTERS), FRAME) == target


@pytest.mark.parametrize(
    ("solution", "target"),
    [
        ("left down right", "left down right"),
        ("<answer>Left, down, right</answer>", "left down right"),
        ("left left left", None),  # through the outer wall
        ("down", None),  # through the wall before the target
        ("left down", None),  # ends before the target
        ("left right left down right", None),  # no shortest way
        ("left down right up", None),  # a wall after the target
        ("left down right left right", None),  # passes the target
        ("go left", None),
    ],
)
def test_the_solution_of_a_maze_is_a_shortest_way(solution: str, target: str | None) -> None:
    asked = sample("", "0-0:RD 0-1:L 1-0:UR 1-1:L from 0-1 to 1-1")
    assert MazeTask().read_solution(solution, asked, FRAME) == target


@pytest.mark.parametrize(
    ("solution", "reasoning"),
    [
        pytest.param("left left down", "0-2:L 0-1:RL 0-0:RD 1-0:UR path 0-2:L 0-1:RL 0-0:RD 1-0:UR", id="no dead end"),
        pytest.param(
            "left left down right down",
            "0-2:L 0-1:RL 0-0:RD 1-0:UR 1-1:RDL 1-2:L 1-1:RDL 2-1:U path 0-2:L 0-1:RL 0-0:RD 1-0:UR 1-1:RDL 2-1:U",
            id="a dead end is in the search and not in the path",
        ),
    ],
)
def test_the_reasoning_about_a_maze_searches_and_then_names_the_path(solution: str, reasoning: str) -> None:
    target = "2-1" if "right" in solution else "1-0"
    about = sample(solution, f"0-0:RD 0-1:RL 0-2:L 1-0:UR 1-1:RDL 1-2:L 2-0: 2-1:U 2-2: from 0-2 to {target}")
    text = MazeTask().target_text(about, FRAME)
    assert text == f"<think>search {reasoning}</think><answer>{solution}</answer>"
    assert MazeTask().parse(text, about, FRAME).value == solution


def test_the_reasoning_about_a_maze_with_loops_searches_the_path() -> None:
    about = sample("down", "0-0:RD 0-1:DL 1-0:UR 1-1:UL from 0-0 to 1-0")
    search = "0-0:RD 0-1:DL 1-1:UL 0-1:DL 0-0:RD 1-0:UR"  # back from 1-1, since 0-0 is nearer to 1-0
    text = f"<think>search {search} path 0-0:RD 1-0:UR</think><answer>down</answer>"
    assert MazeTask().target_text(about, FRAME) == text


def test_a_label_with_any_characters_can_be_parsed_from_the_target_text() -> None:
    labels = [
        "cat's",
        'a "b"',
        'it\'s "x"',
        "back\\slash",
        "hot\u00a0dog",
        "a\nb",
        "\u2028",
        "🐈",
        "\x00",
        "猫",
        "]}, {",
    ]
    about = sample(tuple(Detection((30, 40, 320, 440), label) for label in labels), "cat")
    found = MultiCategoryDetectionTask().parse(MultiCategoryDetectionTask().target_text(about, FRAME), about, FRAME)
    assert isinstance(found.value, tuple)
    assert [label for _, label, _ in found.value] == labels


def boxes_of(size: tuple[int, int]) -> st.SearchStrategy[tuple[float, ...]]:
    sides = [st.tuples(st.floats(0, length), st.floats(0, length)).map(sorted) for length in size]
    return st.tuples(*sides).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))


FRAMES = st.one_of(
    st.just(Frame(1000, 1000)),
    st.tuples(st.integers(28, 3584), st.integers(28, 3584)).map(lambda sides: Frame(*sides)),
    st.integers(1, 5).map(lambda decimals: Frame(1, 1, decimals)),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.tuples(st.integers(8, 6000), st.integers(8, 4000)), FRAMES, st.data())
def test_boxes_survive_target_text_and_parsing_within_a_unit_in_every_frame(
    size: tuple[int, int], frame: Frame, data: st.DataObject
) -> None:
    boxes = data.draw(st.lists(boxes_of(size), min_size=1, max_size=5))
    about = sample(tuple(Detection(box, "fire hydrant") for box in boxes), "car, fire hydrant", size)
    unit = [size[i % 2] / (frame[i % 2] * 10**frame.decimals) * (1 + 1e-9) for i in range(4)]
    one = sample((about.target[0],), about.query, size)
    for task in (DetectionTask(), MultiCategoryDetectionTask(), GroundingTask(reasoning=False)):
        about = one if isinstance(task, GroundingTask) else about
        answer = task.parse(task.target_text(about, frame), about, frame)
        assert answer.valid
        assert isinstance(answer.value, tuple)
        assert len(answer.value) == (1 if isinstance(task, GroundingTask) else len(boxes))
        for found, box in zip(answer.value, boxes, strict=False):
            assert all(abs(a - b) <= u for a, b, u in zip(found.box, box, unit, strict=True))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(min_size=1).filter(lambda name: name.strip() and "<" not in name), st.integers(0, 10**9 - 1))
def test_names_and_counts_survive_target_text_and_parsing(name: str, count: int) -> None:
    for task, target in ((ClassificationTask(), name), (CountingTask(), str(count))):
        about = sample(target)
        answer = task.parse(task.target_text(about, FRAME), about, FRAME)
        assert (answer.value, answer.valid) == (target.strip(), True)


def test_the_target_text_has_the_correct_class() -> None:
    task, about = ClassificationTask(), sample("Boeing 737-200")
    answer = task.parse(task.target_text(about, FRAME), about, FRAME)
    assert (answer.value, answer.valid) == ("Boeing 737-200", True)


def test_categories_that_differ_in_case_alone_are_told_apart() -> None:
    boxes = ", ".join(
        f"{{'Label': '{label}', 'Position': [0, 0, 500, 500], 'Confidence': 1.0}}"
        for label in ("cat", "Cat", "CAT", "Dog House")
    )
    answer = MultiCategoryDetectionTask().parse(f"<answer>[{boxes}]</answer>", sample((), "Cat, cat, dog-house"), FRAME)
    assert [box.label for box in answer.value or ()] == ["cat", "Cat", "cat", "dog-house"]
