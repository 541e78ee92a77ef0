"""Parsing of answers: valid and invalid ones."""

from __future__ import annotations

import pytest

from tests.helpers.questions import FRAME, QWEN, box
from vrft.answers import (
    MAX_BOXES,
    MAX_CHARACTERS,
    Blocks,
    Item,
    normalise_label,
    read_boxes,
    read_choice,
    read_count,
    split_blocks,
)
from vrft.types import Frame

HUGE, HUGER = f"[10, 20, 300, {'9' * 400}]", f"[-{'9' * 5000}, 20, 300, 400]"
BOX = (10.0, 20.0, 300.0, 400.0)
READ = [Item(BOX, 0.9)]


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


def test_an_answer_in_a_second_reasoning_block_does_not_count() -> None:
    assert split_blocks("<think>a</think><think>or <answer>b</answer></think>").answer is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("<answer>b</answer>", Blocks("", "b", True), id="as-asked"),
        pytest.param("\n<answer>\nb</answer> ", Blocks("", "b", True), id="own-lines"),
        pytest.param("<think>a</think><answer>b</answer>", Blocks("a", "b", False), id="unrequested-reasoning"),
        pytest.param("<think></think><answer>b</answer>", Blocks("", "b", False), id="empty-reasoning"),
        pytest.param("So <answer>b</answer>", Blocks("", "b", False), id="text-before"),
        pytest.param("<answer>b</answer>!", Blocks("", "b", False), id="text-after"),
        pytest.param("<answer>a</answer><answer>b</answer>", Blocks("", "b", False), id="two-answers"),
        pytest.param("b", Blocks("", None, False), id="no-tags"),
    ],
)
def test_split_blocks_without_reasoning(text: str, expected: Blocks) -> None:
    assert split_blocks(text, reasoning=False) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("No Objects", [], id="no-objects"),
        pytest.param("[]", [], id="empty-list"),
        pytest.param(f"[{box()}]", READ, id="as-asked"),
        pytest.param(f"[{box()}]".replace("'", '"'), READ, id="double-quotes"),
        pytest.param(f"[\n  {box()}\n]", READ, id="several-lines"),
        pytest.param(f"[{box()}, {box()}]", READ * 2, id="duplicate-counts-twice"),
        pytest.param(f"[{box('[0, 0, 1000, 800]', '0')}]", [Item((0.0, 0.0, 1000.0, 800.0), 0.0)], id="whole-frame"),
        pytest.param(f"[{box('[10.5, 20, 300, 400]', '1')}]", [Item((10.5, 20.0, 300.0, 400.0), 1.0)], id="fractions"),
        pytest.param(f"[{box('[1e1, 2.0E+1, 3000e-1, 400]', '9e-1')}]", READ, id="exponents"),
        pytest.param(f"[{', '.join([box()] * MAX_BOXES)}]", READ * MAX_BOXES, id="as-many-as-allowed"),
        pytest.param(f"[{box()}]".ljust(MAX_CHARACTERS), READ, id="as-long-as-allowed"),
    ],
)
def test_readable_boxes(answer: str, expected: list[Item]) -> None:
    assert read_boxes(answer, FRAME) == expected


UNSURE, CALLED, SURE_CALLED = Item(BOX), Item(BOX, None, "cat"), Item(BOX, 0.9, "cat")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(" no objects. ", [], id="no-objects-normalised"),
        pytest.param("```json\n[]\n```", [], id="fenced-empty-list"),
        pytest.param(f"```json\n[{box()}]\n```", READ, id="paper-in-a-fence"),
        pytest.param(f"```\n[{box()}]\n```\n", READ, id="fence-without-language"),
        pytest.param(f"```python\n\n  [{box()}]```", READ, id="fence-closed-on-the-same-line"),
        pytest.param(f"[{box('(10, 20, 300, 400)')}]", READ, id="position-is-a-tuple"),
        pytest.param(f"[{box('[10, 20, 300, 400,]')},]", READ, id="trailing-commas"),
        pytest.param(f"[{box()[:-1]}, }}]", READ, id="trailing-comma-in-an-object"),
        pytest.param(
            "[{'Confidence': 0.9, 'Label': 'cat', 'Position': [10, 20, 300, 400]}]",
            [SURE_CALLED],
            id="label-and-other-order",
        ),
        pytest.param(f"[{QWEN}]", [CALLED], id="qwen"),
        pytest.param(f"```json\n[\n\t{QWEN}\n]\n```", [CALLED], id="qwen-in-a-fence"),
        pytest.param(f"[{QWEN}, {QWEN}]", [CALLED] * 2, id="two-of-qwen"),
        pytest.param(f'[{QWEN[:-1]}, "confidence": 0.9}}]', [SURE_CALLED], id="qwen-with-confidence"),
        pytest.param('[{"bbox_2d": [10, 20, 300, 400]}]', [UNSURE], id="qwen-without-label"),
        pytest.param(QWEN.join("[]").replace('"', "'"), [CALLED], id="qwen-in-single-quotes"),
        pytest.param("(10,20),(300,400)", [UNSURE], id="corner-pair"),
        pytest.param("( 10, 20 ),\n(300.0 , 400)", [UNSURE], id="corner-pair-with-spaces"),
        pytest.param("(10,20),(300,400),", [UNSURE], id="corner-pair-with-trailing-comma"),
        pytest.param("(10,20),(300,400),(10,20),(300,400)", [UNSURE] * 2, id="two-corner-pairs"),
        pytest.param("```\n\n(10,20),(300,400)\n```", [UNSURE], id="corner-pair-in-a-fence"),
        pytest.param(
            "[{'Position': [10, 20, 300, 400], 'Confidence': 0.9, 'Label': \"the cat's\"}]",
            [Item(BOX, 0.9, "the cat's")],
            id="apostrophe-in-double-quotes",
        ),
        pytest.param(
            "[{'Position': [10, 20, 300, 400], 'Confidence': 0.9, 'Label': 'the \\'cat\\'s'}]",
            [Item(BOX, 0.9, "the 'cat's")],
            id="escaped-apostrophe",
        ),
        pytest.param(
            "[{'Position': [10, 20, 300, 400], 'Confidence': 0.9, 'Label': 'a \"cat\"'}]",
            [Item(BOX, 0.9, 'a "cat"')],
            id="double-quotes-in-single-quotes",
        ),
        pytest.param(
            "[{'Position': [10, 20, 300, 400], 'Confidence': 0.9, 'Label': ']}, ((\\\\'}]",
            [Item(BOX, 0.9, "]}, ((\\")],
            id="brackets-commas-and-a-backslash-in-a-string",
        ),
    ],
)
def test_other_accepted_forms(answer: str, expected: list[Item]) -> None:
    assert read_boxes(answer, FRAME) == expected


def test_a_solution_needs_no_confidence_and_an_answer_does() -> None:
    text = "[{'Position': [10, 20, 300, 400]}]"
    assert (read_boxes(text, FRAME, is_solution=True), read_boxes(text, FRAME)) == ([UNSURE], None)


def test_a_frame_with_decimals_ends_at_one() -> None:
    unit = Frame(1, 1, 3)
    assert read_boxes("(0.01,0.02),(0.3,1)", unit) == [Item((0.01, 0.02, 0.3, 1.0))]
    assert read_boxes("(0.01,0.02),(0.3,1.001)", unit) is None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("", id="empty"),
        pytest.param("no boxes here", id="prose"),
        pytest.param(f"[{box()}, {{'Position': [10, 20", id="truncated-list"),
        pytest.param(box(), id="no-list"),
        pytest.param("[10, 20, 300, 400]", id="list-of-numbers"),
        pytest.param("[null]", id="null-item"),
        pytest.param(f"[{box()}, null]", id="one-bad-item-invalidates-all"),
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
        pytest.param("[{'Position': [10, 20, 300, 400], 'Confidence': 0.9, 'Area': 5}]", id="unknown-key"),
        pytest.param("[{'Position': [10, 20, 300, 400], 'Confidence': 0.9, 'label': 'cat'}]", id="key-of-other-form"),
        pytest.param(f"[{box()[:-1]}, 'Confidence': 0.9}}]", id="key-twice"),
        pytest.param(f"[{box()[:-1]}, 'bbox_2d': [10, 20, 300, 400]}}]", id="both-forms-in-one-box"),
        pytest.param(f"[{box()[:-1]}, 'Label': 5}}]", id="label-is-a-number"),
        pytest.param(f"[{box()[:-1]}, 'Label': ['cat']}}]", id="label-is-a-list"),
        pytest.param(f"[{box()[:-1]}, 'Label': None}}]", id="label-is-none"),
        pytest.param(f'[{QWEN[:-1]}, "confidence": 1.5}}]', id="qwen-confidence-above-1"),
        pytest.param(f'[{QWEN[:-1]}, "confidence": "high"}}]', id="qwen-confidence-in-words"),
        pytest.param(QWEN, id="qwen-without-a-list"),
        pytest.param(f"[{box(confidence='True')}]", id="confidence-python-boolean"),
        pytest.param(f"[{box('[10, 20, 300, 1e400]')}]", id="corner-1e400"),
        pytest.param(f"[{box('[10, 20, 300, -Infinity]')}]", id="corner-minus-infinity"),
        pytest.param(f"[{box('[10, 20, 300, float(400)]')}]", id="call"),
        pytest.param(f"[{box('[10, 20, 300, 200 + 200]')}]", id="arithmetic"),
        pytest.param(f"[{box('[1 0, 20, 300, 400]')}]", id="number-with-a-space-inside"),
        pytest.param(f"[{box('[010, 20, 300, 400]')}]", id="leading-zero"),
        pytest.param(f"[{box('[10, 20, 300, 0x190]')}]", id="hexadecimal"),
        pytest.param(f"[{box('[10, 20, 300, 4_00]')}]", id="underscore-in-number"),
        pytest.param(f"[{box('[10, 20, 300, ٤]')}]", id="digits-of-another-script"),
        pytest.param(f"[{box('(10, 20, 300, 400]')}]", id="tuple-closed-as-list"),
        pytest.param(f"[{box()})", id="list-closed-as-tuple"),
        pytest.param(f"[{box()}]]", id="one-bracket-too-many"),
        pytest.param(f"[{box()} {box()}]", id="no-comma-between-boxes"),
        pytest.param(f"[{box()},, {box()}]", id="two-commas"),
        pytest.param(f"[{box()},,]", id="two-trailing-commas"),
        pytest.param("[,]", id="a-comma-alone-is-no-empty-list"),
        pytest.param("{}", id="empty-object"),
        pytest.param("()", id="no-corners"),
        pytest.param("0", id="number"),
        pytest.param("'[]'", id="list-in-a-string"),
        pytest.param("No Objects No Objects", id="no-objects-twice"),
        pytest.param(f"No Objects [{box()}]", id="no-objects-and-a-box"),
        pytest.param(f"[{box()}] # the cat", id="comment"),
        pytest.param(f"```json\n[{box()}]", id="fence-not-closed"),
        pytest.param(f"```json [{box()}]```", id="fence-on-one-line"),
        pytest.param(f"Here: ```json\n[{box()}]\n```", id="text-before-the-fence"),
        pytest.param(f"```json\n[{box()}]\n``` ok ```", id="text-inside-the-fence"),
        pytest.param("(10,20)", id="one-corner"),
        pytest.param("(10,20),(300,400),(10,20)", id="three-corners"),
        pytest.param("(10,20,300,400)", id="corners-in-one-tuple"),
        pytest.param("(10),(20,300,400)", id="corners-of-one-and-three"),
        pytest.param("(),(10,20,300,400)", id="corners-of-none-and-four"),
        pytest.param("(10,20),300,400", id="corner-without-brackets"),
        pytest.param("(10,20)(300,400)", id="no-comma-between-corners"),
        pytest.param("((10,20),(300,400))", id="pair-in-a-tuple"),
        pytest.param("[(10,20),(300,400)]", id="pair-in-a-list"),
        pytest.param("(300,400),(10,20)", id="pair-reversed"),
        pytest.param("(10,20),(10,400)", id="pair-without-width"),
        pytest.param("(10,20),(300,801)", id="pair-out-of-frame"),
        pytest.param("('10',20),(300,400)", id="corner-of-a-string"),
        pytest.param("(10,20),(300,400), No Objects", id="pair-and-no-objects"),
        pytest.param(f"[{box()[:-1]}, 'Label': 'the cat's'}}]", id="apostrophe-not-escaped"),
        pytest.param(f"[{box()[:-1]}, 'Label': 'cat}}]", id="string-not-closed"),
        pytest.param(f"[{box()[:-1]}, 'Label': 'c\nat'}}]", id="line-break-in-a-string"),
        pytest.param("(10,20),(300,400)," * (MAX_BOXES + 1), id="one-pair-too-many"),
        pytest.param("[" + "(" * 9_000 + ")" * 9_000 + "]", id="9000-tuples-deep"),
        pytest.param(f"[{box()[:-1]}, 'Label': {'[' * 9_000}{']' * 9_000}}}]", id="9000-lists-deep-in-a-label"),
        pytest.param("[{'bbox_2d': [10, 20, 300, 400], 'Confidence': 0.9}]", id="other-key"),
        pytest.param(f"[{', '.join([box()] * (MAX_BOXES + 1))}]", id="one-box-too-many"),
        pytest.param(f"[{box()}]".ljust(MAX_CHARACTERS + 1), id="one-character-too-long"),
        pytest.param(f"[{box()[:-1]}, 'Label': '\\ud800'}}]", id="half-a-surrogate-pair"),
        pytest.param("__import__('os').getcwd()", id="code"),
    ],
)
def test_unreadable_boxes(answer: str) -> None:
    assert read_boxes(answer, FRAME) is None


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
        pytest.param("ｃａｔ　２", "cat 2", id="full-width-forms"),
        pytest.param("ﬁre", "fire", id="ligature"),
        pytest.param("cafe\u0301", "caf\u00e9", id="accent-apart"),
        pytest.param("straße", "straße", id="sharp-s-stays"),
        pytest.param("!?", "!?", id="other-punctuation-stays"),
    ],
)
def test_normalise_label(text: str, expected: str) -> None:
    assert normalise_label(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("12", "12", id="as-asked"),
        pytest.param(" 012.\n", "12", id="zeros-space-full-stop"),
        pytest.param("12 .", "12", id="space-before-full-stop"),
        pytest.param("000", "0", id="zeros"),
        pytest.param("999999999", "999999999", id="nine-digits"),
        pytest.param("1000000000", None, id="ten-digits"),
        pytest.param("-1", None, id="negative"),
        pytest.param("+1", None, id="sign"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("1.0", None, id="decimals"),
        pytest.param("1e3", None, id="exponent"),
        pytest.param("1,000", None, id="thousands"),
        pytest.param("1 2", None, id="two-numbers"),
        pytest.param("two", None, id="word"),
        pytest.param("2 cats", None, id="number-and-word"),
        pytest.param("٣", None, id="digit-of-another-script"),
        pytest.param("²", None, id="superscript"),
        pytest.param("2..", None, id="two-full-stops"),
        pytest.param("", None, id="empty"),
    ],
)
def test_read_count(text: str, expected: str | None) -> None:
    assert read_count(text) == expected


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        pytest.param("B", [], "B", id="letter"),
        pytest.param(" b\n", [], "B", id="lower-case"),
        pytest.param("(b)", [], "B", id="in-brackets"),
        pytest.param("(B", [], "B", id="half-a-bracket"),
        pytest.param("B.", [], "B", id="full-stop"),
        pytest.param("B: red", [], "B", id="colon-and-text"),
        pytest.param("B) red", ["blue", "green"], "B", id="letter-takes-precedence"),
        pytest.param("Red.", ["blue", "red"], "B", id="text-of-a-choice"),
        pytest.param("fire_hydrant", ["car", "Fire hydrant"], "B", id="text-normalised"),
        pytest.param("A.C. Milan", ["Inter", "A.C. Milan"], "B", id="text-that-begins-like-a-letter"),
        pytest.param("A", ["C", "B", "A"], "A", id="letter-that-is-also-a-text"),
        pytest.param("(a).", ["x", "(a)."], "B", id="text-in-brackets-and-full-stop"),
        pytest.param("Both", ["blue", "red"], None, id="word-that-begins-with-a-letter"),
        pytest.param("B red", [], None, id="letter-without-a-mark"),
        pytest.param("A or B", [], None, id="two-letters"),
        pytest.param("reddish", ["blue", "red"], None, id="more-than-the-text"),
        pytest.param("1", [], None, id="number"),
        pytest.param("é", [], None, id="letter-with-accent"),
        pytest.param("Б", [], None, id="letter-of-another-script"),
        pytest.param("", [], None, id="empty"),
        pytest.param("()", [], None, id="brackets-alone"),
    ],
)
def test_read_choice(text: str, choices: list[str], expected: str | None) -> None:
    assert read_choice(text, choices) == expected
