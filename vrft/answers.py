"""Parsers of model output: tags, boxes and labels.

The text is untrusted: nothing is evaluated, parsing takes linear time, and every failure gives None.

The answer is the last complete <answer> block outside the reasoning. The tags are well formed if the whole text is
`<think>…</think><answer>…</answer>`, each tag once, with only white space around and between the blocks; if no
reasoning is asked for, `<answer>…</answer>` alone.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from vrft.types import Frame

MAX_CHARACTERS = 20_000
"""Limit on an answer's length: 100 boxes in the paper's format take about 8,000 characters."""

MAX_BOXES = 100
"""Limit on an answer's boxes: COCO's own on detections per image."""

NO_OBJECTS = "No Objects"

_TAG = re.compile(r"</?(?:think|answer)>")
_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_FENCE = re.compile(r"```[a-z]*\n(.*)```", re.DOTALL)
_TOKEN = re.compile(
    r"""\s+|[][{}(),:]|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'"""
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPE = re.compile(r'\\.|"')


class Blocks(NamedTuple):
    """Reasoning, the text of the answer (None if there is no complete block) and whether the tags are well formed."""

    reasoning: str
    answer: str | None
    well_formed: bool


def split_blocks(text: str, reasoning: bool = True) -> Blocks:
    """Split a completion at its tags. `reasoning`: whether the format has a reasoning block.

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
    tags = list(_TAG.finditer(text))
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


class Item(NamedTuple):
    """A box of an answer, in the model's frame."""

    box: tuple[float, float, float, float]
    confidence: float | None = None
    label: str | None = None


def read_boxes(answer: str, frame: Frame, *, is_solution: bool = False) -> list[Item] | None:
    """Parse the boxes of an answer, or of a solution, whose confidences are optional; None if it is invalid.

    Three forms are accepted, as JSON or a Python literal: the paper's
    `[{'Position': [x0, y0, x1, y1], 'Confidence': c}, …]`, with a 'Label' if several categories are asked for; Qwen's
    `[{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}, …]`, optionally in a code fence; and `(x0,y0),(x1,y1)`.
    `No Objects` and an empty list give no boxes.

    One invalid box invalidates the whole answer: corners out of order or outside the frame, a confidence outside 0..1,
    a missing or unknown key, or a value that is not a finite number. So do more than `MAX_BOXES` boxes or
    `MAX_CHARACTERS` characters, except in a solution. Duplicate boxes are kept.

    >>> read_boxes("[{'Position': [0, 10, 500, 1000], 'Confidence': 0.9}]", Frame(1000, 1000))
    [Item(box=(0.0, 10.0, 500.0, 1000.0), confidence=0.9, label=None)]
    >>> read_boxes("(0,10),(500,1000)", Frame(1000, 1000))
    [Item(box=(0.0, 10.0, 500.0, 1000.0), confidence=None, label=None)]
    >>> read_boxes("No Objects", Frame(1000, 1000))
    []
    """
    if len(answer) > MAX_CHARACTERS and not is_solution:
        return None
    if normalise_label(answer) == normalise_label(NO_OBJECTS):
        return []
    fenced = _FENCE.fullmatch(answer.strip())
    text = (fenced[1] if fenced else answer).strip()
    items = _read_literal(f"[{text}]") if text.startswith("(") else _read_literal(text)
    if not isinstance(items, list):
        return None
    if text.startswith("("):
        items = _pair_corners(items)
    if len(items) > MAX_BOXES and not is_solution:
        return None
    boxes = [_read_item(item, frame, is_solution) for item in items]
    return None if None in boxes else [box for box in boxes if box is not None]


def _read_literal(text: str) -> Any:
    """Parse JSON or a Python literal of lists, tuples, dicts, strings and numbers; None if it is invalid.

    A Python literal is translated to JSON token by token: nothing is evaluated, and the time is linear.
    """
    tokens, position = [], 0
    while found := _TOKEN.match(text, position):
        tokens.append(found.group())
        position = found.end()
    tokens = [token for token in tokens if not token.isspace()]
    if position != len(text) or not _brackets_match(tokens):
        return None
    tokens = ["", *map(_as_json, tokens), ""]
    triples = zip(tokens, tokens[1:], tokens[2:], strict=False)
    kept = [b for a, b, c in triples if b != "," or c not in ("]", "}") or a in ("[", "{")]  # `[1,]` is `[1]`
    try:
        return json.loads(" ".join(kept), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None


def _brackets_match(tokens: Sequence[str]) -> bool:
    """Return whether every `(` and `[` is closed by its own kind. JSON's parser checks the rest."""
    opened = []
    for token in tokens:
        if token in ("(", "["):
            opened.append(token)
        elif token in (")", "]") and (not opened or opened.pop() + token not in ("()", "[]")):
            return False
    return True


def _as_json(token: str) -> str:
    if token[0] == "'":
        return f'"{_ESCAPE.sub(_requote, token[1:-1])}"'
    return {"(": "[", ")": "]"}.get(token, token)


def _requote(found: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(found.group(), found.group())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _pair_corners(points: list[Any]) -> list[Any]:
    """Turn consecutive pairs of points into boxes. Anything else becomes an item that is rejected later."""
    pairs = itertools.zip_longest(points[::2], points[1::2])
    return [{"bbox_2d": [*a, *b] if _is_point(a) and _is_point(b) else None} for a, b in pairs]


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _read_item(item: Any, frame: Frame, is_solution: bool) -> Item | None:
    if not isinstance(item, dict):
        return None
    if "Position" in item and item.keys() <= {"Label", "Position", "Confidence"}:
        box, confidence, label = item["Position"], item.get("Confidence"), item.get("Label")
    elif "bbox_2d" in item and item.keys() <= {"bbox_2d", "label", "confidence"}:
        box, confidence, label = item["bbox_2d"], item.get("confidence"), item.get("label")
    else:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return None
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= frame.width and 0 <= y0 < y1 <= frame.height):
        return None
    if confidence is not None and not (_is_number(confidence) and 0 <= confidence <= 1):
        return None
    if ("Position" in item and confidence is None and not is_solution) or not _is_label(label):
        return None
    return Item((float(x0), float(y0), float(x1), float(y1)), None if confidence is None else float(confidence), label)


def _is_label(value: Any) -> bool:
    """Return whether a value is None or valid Unicode text: JSON can escape half a surrogate pair."""
    return value is None or (isinstance(value, str) and not _SURROGATE.search(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def normalise_label(text: str) -> str:
    """Normalise to NFKC and lower case, with runs of white space, hyphens and underscores as one space.

    One full stop at the end is dropped.

    >>> normalise_label(" Boeing_737-200. ")
    'boeing 737 200'
    """
    text = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text)).strip()
    return text.removesuffix(".").rstrip().lower()


def read_count(text: str) -> str | None:
    """Parse a whole number of at most nine digits and drop leading zeros; None if the text is something else.

    >>> read_count(" 012 ")
    '12'
    """
    found = re.fullmatch(r"([0-9]{1,9})\s*\.?", text.strip())
    return str(int(found[1])) if found else None


def read_choice(text: str, choices: Sequence[str] = ()) -> str | None:
    """Parse a multiple-choice answer to its letter: `B`, `(b)`, `B.`, `B) red` or a choice's text; None if invalid.

    A single letter always means the letter, even if it is the text of another choice.

    >>> read_choice("(b)"), read_choice("red", ["blue", "red"]), read_choice("Both")
    ('B', 'B', None)
    """
    named = [normalise_label(choice) for choice in choices]
    alone = re.fullmatch(r"\(?[A-Za-z][).:]?", text.strip())
    if not alone and normalise_label(text) in named:
        return chr(ord("A") + named.index(normalise_label(text)))
    found = re.match(r"\s*\(?([A-Za-z])(?:[).:]|\s*$)", text)
    return found[1].upper() if found else None
