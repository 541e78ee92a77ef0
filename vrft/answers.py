"""Parsers of model output: tags, boxes and labels.

The text is untrusted: nothing is evaluated, parsing takes linear time, and invalid text gives None. `format_error`
and `boxes_error` return the reason.

The answer is the last complete <answer> block outside the reasoning. The tags are well formed if the whole text is
`<think>…</think><answer>…</answer>`, or `<answer>…</answer>` if the format has no reasoning: each tag once, with only
white space around and between the blocks.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from vrft.types import Frame
from vrft.utils.display import counted
from vrft.utils.literals import Unreadable, excerpt, read_literal

MAX_CHARACTERS = 20_000
"""Maximum length of an answer: 100 boxes in the format of Visual-RFT take about 8,000 characters."""

MAX_BOXES = 100
"""Maximum number of boxes in an answer, the same as COCO's maximum of detections per image."""

NO_OBJECTS = "No Objects"

_TAG = re.compile(r"</?(?:think|answer)>")
_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_FENCE = re.compile(r"```[a-z]*\n(.*)```", re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_DETAIL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?[0-9][0-9.e+]*""")


class Blocks(NamedTuple):
    """Reasoning, the text of the answer (None if there is no complete block) and whether the tags are well formed."""

    reasoning: str
    answer: str | None
    well_formed: bool


def split_blocks(text: str, reasoning: bool = True) -> Blocks:
    """Split a completion into reasoning and answer. `reasoning` tells whether the format has a reasoning block.

    >>> split_blocks("<think>two</think><answer>[]</answer>")
    Blocks(reasoning='two', answer='[]', well_formed=True)
    >>> split_blocks("<think>maybe <answer>cat</answer></think>")
    Blocks(reasoning='maybe <answer>cat</answer>', answer=None, well_formed=False)
    """
    text = text.strip()
    inside, outside = [], []
    position = 0
    while (start := text.find("<think>", position)) >= 0:
        end = text.find("</think>", start)
        end = len(text) if end < 0 else end
        outside.append(text[position:start])
        inside.append(text[start + len("<think>") : end].strip())
        position = end + len("</think>")
    outside.append(text[position:])
    return Blocks("\n".join(inside), _last_answer("\n".join(outside)), _tags_are_well_formed(text, reasoning))


def _last_answer(text: str) -> str | None:
    start = text.rfind("<answer>", 0, max(0, text.rfind("</answer>")))
    return text[start + len("<answer>") : text.find("</answer>", start)].strip() if start >= 0 else None


def _tags_are_well_formed(text: str, reasoning: bool) -> bool:
    tags = list(itertools.islice(_TAG.finditer(text), len(_TAGS) + 1))  # untrusted text may have thousands of tags
    if [tag.group() for tag in tags] != (_TAGS if reasoning else _TAGS[2:]):
        return False
    between = text[tags[1].end() : tags[2].start()] if reasoning else ""
    return tags[0].start() == 0 and not between.strip() and tags[-1].end() == len(text)


def format_error(text: str, reasoning: bool = True) -> str:
    """Explain why the tags of a completion are not well formed.

    >>> format_error("<answer>cat</answer>"), format_error("Sure! <think>x</think><answer>cat</answer>")
    ('<think> is missing', 'there is text around the tags, or they are out of order')
    """
    found = [tag.group() for tag in _TAG.finditer(text)]
    wanted = _TAGS if reasoning else _TAGS[2:]
    for count, problem in ((0, "is missing"), (2, "appears more than once")):
        for tag in wanted:
            if min(found.count(tag), 2) == count:
                return f"{tag} {problem}"
    if extra := [tag for tag in found if tag not in wanted]:
        return f"{extra[0]} is not part of the format"
    return "there is text around the tags, or they are out of order"


def without_details(reason: str) -> str:
    """Replace numbers and quoted texts in a reason, so that reasons of one kind are counted together.

    >>> without_details("box 3: 5 coordinates, expected 4")
    'box …: … coordinates, expected …'
    """
    return _DETAIL.sub("…", reason)


class Item(NamedTuple):
    """A box of an answer, in the model's frame."""

    box: tuple[float, float, float, float]
    confidence: float | None = None
    label: str | None = None


def read_boxes(answer: str, frame: Frame, *, is_solution: bool = False) -> list[Item] | None:
    """Parse the boxes of an answer. Return None if the answer is invalid.

    Three forms are accepted, each as JSON or as a Python literal:

    - Visual-RFT's `[{'Position': [x0, y0, x1, y1], 'Confidence': c}, …]`, with an optional 'Label';
    - Qwen's `[{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}, …]`, optionally in a code fence;
    - `(x0,y0),(x1,y1)`.

    `No Objects` and an empty list give no boxes. Duplicate boxes are kept.

    One invalid box invalidates the whole answer: corners out of order or outside the frame, a confidence outside 0..1,
    a missing or unknown key, or a value that is not a finite number. More than `MAX_BOXES` boxes or `MAX_CHARACTERS`
    characters invalidate it too.

    Args:
        answer: the text of the answer.
        frame: the coordinate system of the boxes.
        is_solution: the text is ground truth, with optional confidences and any number of boxes and characters.

    >>> read_boxes("[{'Position': [0, 10, 500, 1000], 'Confidence': 0.9}]", Frame(1000, 1000))
    [Item(box=(0.0, 10.0, 500.0, 1000.0), confidence=0.9, label=None)]
    >>> read_boxes("(0,10),(500,1000)", Frame(1000, 1000))
    [Item(box=(0.0, 10.0, 500.0, 1000.0), confidence=None, label=None)]
    >>> read_boxes("No Objects", Frame(1000, 1000))
    []
    """
    try:
        return _parse_boxes(answer, frame, is_solution)
    except Unreadable:
        return None


def boxes_error(answer: str, frame: Frame) -> str | None:
    """Explain why the boxes of an answer can't be read. Return None if they can.

    >>> boxes_error("[{'Position': [0, 10, 500], 'Confidence': 0.9}]", Frame(1000, 1000))
    'box 1: 3 coordinates, expected 4'
    >>> boxes_error("(0,10),(500,1200)", Frame(1000, 1000))
    'box 1: y from 10 to 1200 is not within 0 to 1000'
    """
    try:
        _parse_boxes(answer, frame, is_solution=False)
    except Unreadable as error:
        return str(error)
    return None


def _parse_boxes(answer: str, frame: Frame, is_solution: bool) -> list[Item]:
    """Return the boxes of an answer. Raise Unreadable if it is invalid."""
    if len(answer) > MAX_CHARACTERS and not is_solution:
        raise Unreadable(f"it has {len(answer)} characters, more than {MAX_CHARACTERS}")
    if normalise_label(answer) == normalise_label(NO_OBJECTS):
        return []
    fenced = _FENCE.fullmatch(answer.strip())
    text = (fenced[1] if fenced else answer).strip()
    are_pairs = text.startswith("(")
    items = read_literal(f"[{text}]", offset=-1) if are_pairs else read_literal(text)
    if not isinstance(items, list):
        raise Unreadable(f"expected a list of boxes, got {_kind(items)}")
    if are_pairs:
        items = _pair_corners(items)
    if len(items) > MAX_BOXES and not is_solution:
        raise Unreadable(f"it has {len(items)} boxes, more than {MAX_BOXES}")
    return [_read_item(item, frame, is_solution, f"box {i}") for i, item in enumerate(items, 1)]


def _pair_corners(points: list[Any]) -> list[Any]:
    """Turn consecutive pairs of points into boxes. Anything else becomes an item that is rejected later."""
    pairs = itertools.zip_longest(points[::2], points[1::2])
    return [{"bbox_2d": [*a, *b] if _is_point(a) and _is_point(b) else None} for a, b in pairs]


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _read_item(item: Any, frame: Frame, is_solution: bool, name: str) -> Item:
    """Return a box of an answer. Raise Unreadable, with a message that begins with `name`, if it is invalid."""
    box, confidence, label = _fields(item, name)
    if not isinstance(box, list):
        raise Unreadable(f"{name}: expected 4 coordinates, got {_kind(box)}")
    if len(box) != 4:
        raise Unreadable(f"{name}: {counted(len(box), 'coordinate')}, expected 4")
    if wrong := [value for value in box if not _is_number(value)]:
        raise Unreadable(f"{name}: expected numbers as coordinates, got {_kind(wrong[0])}")
    x0, y0, x1, y1 = box
    for axis, low, high, size in (("x", x0, x1, frame.width), ("y", y0, y1, frame.height)):
        if not 0 <= low < high <= size:
            order = f"is not within 0 to {size}" if low < high else "is out of order or without extent"
            raise Unreadable(f"{name}: {axis} from {_short(low)} to {_short(high)} {order}")
    if confidence is not None and not (_is_number(confidence) and 0 <= confidence <= 1):
        stated = _short(confidence) if _is_number(confidence) else _kind(confidence)
        raise Unreadable(f"{name}: expected a confidence from 0 to 1, got {stated}")
    if "Position" in item and confidence is None and not is_solution:
        raise Unreadable(f"{name} has no 'Confidence'")
    if label is not None and (not isinstance(label, str) or _SURROGATE.search(label)):
        raise Unreadable(f"{name}: its label is no text")  # JSON can escape half a surrogate pair
    return Item((float(x0), float(y0), float(x1), float(y1)), None if confidence is None else float(confidence), label)


def _fields(item: Any, name: str) -> tuple[Any, Any, Any]:
    """Return box, confidence and label of an item. Raise Unreadable if it has no box or has unknown keys."""
    if not isinstance(item, dict):
        raise Unreadable(f"{name}: expected an object with 'Position' or 'bbox_2d', got {_kind(item)}")
    place = next((key for key in ("Position", "bbox_2d") if key in item), None)
    if place is None:
        raise Unreadable(f"{name} has neither 'Position' nor 'bbox_2d'")
    names = ("Confidence", "Label") if place == "Position" else ("confidence", "label")
    if unknown := [key for key in item if key not in (place, *names)]:
        raise Unreadable(f"{name}: {excerpt(unknown[0]) or 'an empty key'} does not belong in a box with {place!r}")
    return item[place], item.get(names[0]), item.get(names[1])


def _kind(value: Any) -> str:
    """Name the type of a JSON value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: float) -> str:
    """Return a number in at most 12 characters, since an untrusted number may have thousands of digits."""
    text = str(value)
    return text if len(text) <= 12 else f"{text[:11]}…"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def normalise_label(text: str) -> str:
    """Normalise text to NFKC and lower case, collapse white space, hyphens and underscores, drop one final full stop.

    >>> normalise_label(" Boeing_737-200. ")
    'boeing 737 200'
    """
    text = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text)).strip()
    return text.removesuffix(".").rstrip().lower()


def read_count(text: str) -> str | None:
    """Parse an integer of at most nine digits and drop leading zeros. Return None for any other text.

    >>> read_count(" 012 ")
    '12'
    """
    found = re.fullmatch(r"([0-9]{1,9})\s*\.?", text.strip())
    return str(int(found[1])) if found else None


def read_choice(text: str, choices: Sequence[str] = ()) -> str | None:
    """Parse a multiple-choice answer to its letter: `B`, `(b)`, `B.`, `B) red` or the text of a choice.

    Return None if the text is none of these. A single letter is always read as the letter, even if it is also the text
    of another choice.

    >>> read_choice("(b)"), read_choice("red", ["blue", "red"]), read_choice("Both")
    ('B', 'B', None)
    """
    named = [normalise_label(choice) for choice in choices]
    alone = re.fullmatch(r"\(?[A-Za-z][).:]?", text.strip())
    if not alone and normalise_label(text) in named:
        return chr(ord("A") + named.index(normalise_label(text)))
    found = re.match(r"\s*\(?([A-Za-z])(?:[).:]|\s*$)", text)
    return found[1].upper() if found else None
