"""What is asked, what is taught and what is read."""

import pytest
from PIL import Image

from vrft.boxes import iou_matrix
from vrft.errors import ConfigurationError
from vrft.tasks import ClassificationTask, DetectionTask, Task
from vrft.types import Detection, Frame, Sample, Target

FRAME = Frame(1000, 700)


def sample(target: Target, query: str = "fire hydrant", size: tuple[int, int] = (640, 480)) -> Sample:
    return Sample(0, Image.new("1", size), 0, query, target)


def detections(*boxes: tuple[float, float, float, float]) -> tuple[Detection, ...]:
    return tuple(Detection(box, "fire hydrant") for box in boxes)


def test_the_question_names_category_and_frame() -> None:
    question = DetectionTask().question(sample(()), FRAME)
    assert "'fire hydrant'" in question
    assert "0 (left) to 1000 (right)" in question
    assert "0 (top) to 700 (bottom)" in question
    assert "[{'Position': [x1, y1, x2, y2], 'Confidence': 0.00}]" in question


def test_a_query_with_braces_stays_as_it_is() -> None:
    assert ClassificationTask("{query}?").question(sample("a", "{width}"), FRAME) == "{width}?"


def test_literal_braces_are_doubled() -> None:
    assert DetectionTask("{query} {{'x': {width}}}").question(sample(()), FRAME) == "fire hydrant {'x': 1000}"


@pytest.mark.parametrize("kind", [ClassificationTask, DetectionTask])
@pytest.mark.parametrize(
    ("template", "named"),
    [
        pytest.param("Find {category}", "{category}", id="unknown-field"),
        pytest.param("Find {}", "{}", id="positional-field"),
        pytest.param("Find {query.upper}", "{query.upper}", id="attribute"),
        pytest.param("as [{'Position': [1, 2]}]", "{'Position'}", id="json-not-doubled"),
        pytest.param("Find {query", "{{ and }}", id="unclosed-brace"),
        pytest.param("Find {query: the category}", "query", id="text-behind-a-colon"),
    ],
)
def test_a_wrong_template_is_refused_and_the_field_named(kind: type[Task], template: str, named: str) -> None:
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
        pytest.param([], (640, 480), id="nothing-to-find"),
    ],
)
def test_the_taught_answer_is_the_right_one(
    boxes: list[tuple[float, float, float, float]], size: tuple[int, int]
) -> None:
    about = sample(detections(*boxes), size=size)
    answer = DetectionTask().parse(DetectionTask().target_text(about, FRAME), about, FRAME)
    assert answer.valid
    assert isinstance(answer.value, tuple)
    assert [(label, score) for _, label, score in answer.value] == [("fire hydrant", 1.0)] * len(boxes)
    assert (iou_matrix([box for box, _, _ in answer.value], boxes).diagonal() > 0.95).all()


def test_the_taught_answer_can_be_read_where_a_box_is_thinner_than_a_unit_of_the_frame() -> None:
    about = sample(detections((11, 100, 12, 200), (500, 500, 900, 900)), size=(4000, 3000))
    assert DetectionTask().parse(DetectionTask().target_text(about, FRAME), about, FRAME).valid


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_messages_are_an_image_and_a_question(system: str | None) -> None:
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
        pytest.param("<answer>rose</answer>", "rose", False, id="readable-but-no-reasoning"),
        pytest.param("<think>red</think><answer>\n</answer>", None, False, id="empty"),
        pytest.param("rose", None, False, id="no-tags"),
    ],
)
def test_a_class_name_is_read(text: str, value: str | None, valid: bool) -> None:
    answer = ClassificationTask().parse(text, sample("rose"), FRAME)
    assert (answer.text, answer.value, answer.valid) == (text, value, valid)


def test_the_taught_class_is_the_right_one() -> None:
    task, about = ClassificationTask(), sample("Boeing 737-200")
    answer = task.parse(task.target_text(about, FRAME), about, FRAME)
    assert (answer.value, answer.valid) == ("Boeing 737-200", True)
