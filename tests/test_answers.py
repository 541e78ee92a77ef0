"""Reading hostile text: what is read, what is not, and that reading never raises or takes long."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrft.answers import MAX_BOXES, MAX_CHARACTERS, Blocks, normalise_label, read_boxes, split_blocks
from vrft.tasks import DetectionTask
from vrft.tasks.detection import boxes_text
from vrft.types import Frame, Sample

FRAME = Frame(1000, 800)
SAMPLE = Sample(0, Image.new("1", (640, 480)), 0, "cat", ())
HUGE, HUGER = f"[10, 20, 300, {'9' * 400}]", f"[-{'9' * 5000}, 20, 300, 400]"
READ = [((10.0, 20.0, 300.0, 400.0), 0.9)]


def box(position: str = "[10, 20, 300, 400]", confidence: str = "0.9") -> str:
    return f"{{'Position': {position}, 'Confidence': {confidence}}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("<think>a</think><answer>b</answer>", Blocks("a", "b", True), id="as-asked"),
        pytest.param("<think>a</think>\n<answer>\nb\n</answer>\n", Blocks("a", "b", True), id="own-lines"),
        pytest.param("<think></think><answer></answer>", Blocks("", "", True), id="empty-blocks"),
        pytest.param("<think>a</think><answer>b</answer><answer>c</answer>", Blocks("a", "c", False), id="last-wins"),
        pytest.param("<think>a</think><answer>b</answer><answer>c", Blocks("a", "b", False), id="last-complete-wins"),
        pytest.param("<answer>b</answer></answer>", Blocks("", "b", False), id="stray-closing-tag-ends-no-block"),
        pytest.param("<answer>a<answer>b</answer>", Blocks("", "b", False), id="innermost-opening"),
        pytest.param("<think><answer>b</answer></think>", Blocks("<answer>b</answer>", None, False), id="inside-think"),
        pytest.param("<think>a <answer>b</answer>", Blocks("a <answer>b</answer>", None, False), id="unclosed-think"),
        pytest.param("<answer>b</answer><think>a", Blocks("a", "b", False), id="answer-before-unclosed-think"),
        pytest.param("<answer>b</answer>", Blocks("", "b", False), id="no-think"),
        pytest.param("<think>a</think>b", Blocks("a", None, False), id="no-answer-tags"),
        pytest.param("<think>a</think><answer>b", Blocks("a", None, False), id="unclosed-answer"),
        pytest.param("b</answer>", Blocks("", None, False), id="unopened-answer"),
        pytest.param("</answer>b<answer>", Blocks("", None, False), id="tags-reversed"),
        pytest.param("", Blocks("", None, False), id="empty-text"),
        pytest.param("So: <think>a</think><answer>b</answer>", Blocks("a", "b", False), id="text-before"),
        pytest.param("<think>a</think><answer>b</answer> Done", Blocks("a", "b", False), id="text-after"),
        pytest.param("<think>a</think> so <answer>b</answer>", Blocks("a", "b", False), id="text-between"),
        pytest.param("<answer>b</answer><think>a</think>", Blocks("a", "b", False), id="wrong-order"),
        pytest.param("<Think>a</Think><Answer>b</Answer>", Blocks("", None, False), id="tags-are-lower-case"),
    ],
)
def test_split_blocks(text: str, expected: Blocks) -> None:
    assert split_blocks(text) == expected


def test_an_answer_in_a_second_reasoning_block_is_no_answer() -> None:
    assert split_blocks("<think>a</think><think>or <answer>b</answer></think>").answer is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("No Objects", [], id="no-objects"),
        pytest.param("[]", [], id="empty-list"),
        pytest.param(f"[{box()}]", READ, id="as-asked"),
        pytest.param(f"[{box()}]".replace("'", '"'), READ, id="double-quotes"),
        pytest.param(f"[\n  {box()}\n]", READ, id="several-lines"),
        pytest.param(f"[{box()}, {box()}]", READ * 2, id="duplicate-counts-twice"),
        pytest.param(f"[{box('[0, 0, 1000, 800]', '0')}]", [((0.0, 0.0, 1000.0, 800.0), 0.0)], id="whole-frame"),
        pytest.param(f"[{box('[10.5, 20, 300, 400]', '1')}]", [((10.5, 20.0, 300.0, 400.0), 1.0)], id="fractions"),
        pytest.param(f"[{', '.join([box()] * MAX_BOXES)}]", READ * MAX_BOXES, id="as-many-as-allowed"),
        pytest.param(f"[{box()}]".ljust(MAX_CHARACTERS), READ, id="as-long-as-allowed"),
    ],
)
def test_readable_boxes(answer: str, expected: list[tuple[tuple[float, ...], float]]) -> None:
    assert read_boxes(answer, FRAME) == expected


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("", id="empty"),
        pytest.param("no boxes here", id="prose"),
        pytest.param(f"[{box()}, {{'Position': [10, 20", id="truncated-list"),
        pytest.param(f"```json\n[{box()}]\n```", id="code-fence"),
        pytest.param(box(), id="no-list"),
        pytest.param("[10, 20, 300, 400]", id="list-of-numbers"),
        pytest.param("[null]", id="null-item"),
        pytest.param(f"[{box()}, null]", id="one-bad-item-spoils-all"),
        pytest.param(f"[[{box()}]]", id="nested-list"),
        pytest.param(f"[{box('[[10, 20, 300, 400]]')}]", id="nested-position"),
        pytest.param(f"[{box(confidence='[0.9]')}]", id="confidence-in-list"),
        pytest.param(f"[{box(confidence='NaN')}]", id="confidence-nan"),
        pytest.param(f"[{box(confidence='Infinity')}]", id="confidence-infinity"),
        pytest.param(f"[{box(confidence='1e999')}]", id="confidence-overflows"),
        pytest.param(f"[{box(confidence='9' * 400)}]", id="confidence-400-digits"),
        pytest.param(f"[{box(confidence='9' * 5000)}]", id="confidence-5000-digits"),
        pytest.param(f"[{box('[NaN, 20, 300, 400]')}]", id="corner-nan"),
        pytest.param(f"[{box('[10, 20, Infinity, 400]')}]", id="corner-infinity"),
        pytest.param(f"[{box('[-1e999, 20, 300, 400]')}]", id="corner-overflows"),
        pytest.param(f"[{box(HUGE)}]", id="corner-400-digits"),
        pytest.param(f"[{box(HUGER)}]", id="corner-5000-digits"),
        pytest.param(f"[{box(confidence='true')}]", id="confidence-boolean"),
        pytest.param(f"[{box('[false, 20, 300, 400]')}]", id="corner-boolean"),
        pytest.param(f"[{box(confidence='null')}]", id="confidence-null"),
        pytest.param(f"""[{box(confidence="'0.9'")}]""", id="confidence-string"),
        pytest.param(f"""[{box("['10', 20, 300, 400]")}]""", id="corner-string"),
        pytest.param(f"""[{box("'10, 20, 300, 400'")}]""", id="position-string"),
        pytest.param(f"[{box('[10, 20, 300]')}]", id="three-numbers"),
        pytest.param(f"[{box('[10, 20, 300, 400, 500]')}]", id="five-numbers"),
        pytest.param(f"[{box('[300, 400, 10, 20]')}]", id="reversed-corners"),
        pytest.param(f"[{box('[300, 20, 10, 400]')}]", id="reversed-x"),
        pytest.param(f"[{box('[10, 20, 10, 400]')}]", id="no-width"),
        pytest.param(f"[{box('[10, 20, 300, 20]')}]", id="no-height"),
        pytest.param(f"[{box('[-1, 20, 300, 400]')}]", id="left-of-frame"),
        pytest.param(f"[{box('[10, 20, 1001, 400]')}]", id="right-of-frame"),
        pytest.param(f"[{box('[10, 20, 300, 801]')}]", id="below-frame"),
        pytest.param(f"[{box(confidence='1.01')}]", id="confidence-above-1"),
        pytest.param(f"[{box(confidence='-0.01')}]", id="confidence-below-0"),
        pytest.param("[{'Position': [10, 20, 300, 400]}]", id="missing-confidence"),
        pytest.param("[{'Confidence': 0.9}]", id="missing-position"),
        pytest.param("[{'Position': [10, 20, 300, 400], 'Confidence': 0.9, 'Label': 'cat'}]", id="extra-key"),
        pytest.param("[{'bbox_2d': [10, 20, 300, 400], 'Confidence': 0.9}]", id="other-key"),
        pytest.param(f"[{', '.join([box()] * (MAX_BOXES + 1))}]", id="one-box-too-many"),
        pytest.param(f"[{box()}]".ljust(MAX_CHARACTERS + 1), id="one-character-too-long"),
        pytest.param("__import__('os').getcwd()", id="code"),
    ],
)
def test_unreadable_boxes(answer: str) -> None:
    assert read_boxes(answer, FRAME) is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("[" * 1_000_000, id="opening-brackets"),
        pytest.param("[" * MAX_CHARACTERS, id="deepest-list-that-is-looked-at"),
        pytest.param("[{'Position': " * 70_000, id="nested-objects"),
        pytest.param("<answer>" * 125_000, id="opening-tags"),
        pytest.param("<" * 1_000_000, id="half-tags"),
    ],
)
def test_a_megabyte_of_rubbish_is_refused_quickly(content: str) -> None:
    text = f"<think>x</think><answer>{content}</answer>"
    started = time.process_time()
    answer = DetectionTask().parse(text, SAMPLE, FRAME)
    assert time.process_time() - started < 1
    assert answer.value is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Boeing 737", "boeing 737", id="case"),
        pytest.param(" \tcat\n", "cat", id="outer-space"),
        pytest.param("737-200", "737 200", id="hyphen"),
        pytest.param("pink__primrose", "pink primrose", id="run-of-underscores"),
        pytest.param("great  - _ dane", "great dane", id="mixed-run"),
        pytest.param("hot\u00a0dog", "hot dog", id="no-break-space"),
        pytest.param("cat.", "cat", id="full-stop"),
        pytest.param("cat...", "cat..", id="one-full-stop-only"),
        pytest.param("cat .", "cat", id="space-before-full-stop"),
        pytest.param("St. Bernard", "st. bernard", id="inner-full-stop-stays"),
        pytest.param("", "", id="empty"),
    ],
)
def test_normalise_label(text: str, expected: str) -> None:
    assert normalise_label(text) == expected


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "[", "]", box(), box(confidence="NaN"), ", ", "No Objects"]
NUMBERS = st.floats(0, 1000) | st.floats() | st.integers() | st.booleans()
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map("".join)
ANSWERS = st.lists(st.lists(NUMBERS, min_size=5, max_size=5).map(sorted), max_size=3).map(
    lambda rows: f"<answer>[{', '.join(box(str(row[1:]), str(row[0] / 1000)) for row in rows)}]</answer>"
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS | ANSWERS)
def test_parse_reads_boxes_inside_the_image_or_nothing(text: str) -> None:
    value = DetectionTask().parse(text, SAMPLE, FRAME).value
    if value is None:
        return
    assert isinstance(value, tuple)
    for (x0, y0, x1, y1), label, score in value:
        assert 0 <= x0 <= x1 <= 640
        assert 0 <= y0 <= y1 <= 480
        assert 0 <= score <= 1
        assert label == "cat"


def intervals(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True).map(sorted)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(intervals(1000), intervals(800), st.floats(0, 1)), max_size=MAX_BOXES))
def test_boxes_survive_writing_and_reading(rows: list[tuple[list[int], list[int], float]]) -> None:
    boxes = [(x[0], y[0], x[1], y[1]) for x, y, _ in rows]
    confidences = [confidence for _, _, confidence in rows]
    expected = [(box, round(confidence, 2)) for box, confidence in zip(boxes, confidences, strict=True)]
    assert read_boxes(boxes_text(boxes, confidences), FRAME) == expected
