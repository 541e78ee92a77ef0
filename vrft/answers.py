"""Reading model text: tags, boxes and labels.

The text is hostile by assumption: nothing is evaluated, time is linear, and what can't be read has one result, None.

The answer is the last complete <answer> block outside the reasoning. The tags are well formed if the whole text is
`<think>…</think><answer>…</answer>`, each tag once, with nothing but white space around and between the blocks.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from vrft.types import Frame

MAX_CHARACTERS = 20_000
"""Longer answers are not read: 100 boxes in the paper's format take about 8,000 characters."""

MAX_BOXES = 100
"""Answers with more boxes are not read: COCO's own limit of detections per image."""

NO_OBJECTS = "No Objects"

_TAG = re.compile(r"</?(?:think|answer)>")
_WELL_FORMED = ["<think>", "</think>", "<answer>", "</answer>"]


class Blocks(NamedTuple):
    """Reasoning, the text of the answer (None if there is no complete block) and whether the tags are well formed."""

    reasoning: str
    answer: str | None
    well_formed: bool


def split_blocks(text: str) -> Blocks:
    """Cut a completion at its tags.

    >>> split_blocks("<think>two</think><answer>[]</answer>")
    Blocks(reasoning='two', answer='[]', well_formed=True)
    >>> split_blocks("<think>maybe <answer>cat</answer></think>")
    Blocks(reasoning='maybe <answer>cat</answer>', answer=None, well_formed=False)
    """
    text = text.strip()
    reasoning, outside = [], []
    position = 0
    while (start := text.find("<think>", position)) >= 0:
        end = text.find("</think>", start)
        end = len(text) if end < 0 else end
        outside.append(text[position:start])
        reasoning.append(text[start + len("<think>") : end].strip())
        position = end + len("</think>")
    outside.append(text[position:])
    return Blocks("\n".join(reasoning), _last_answer("\n".join(outside)), _tags_are_well_formed(text))


def _last_answer(text: str) -> str | None:
    start = text.rfind("<answer>", 0, max(0, text.rfind("</answer>")))
    return text[start + len("<answer>") : text.find("</answer>", start)].strip() if start >= 0 else None


def _tags_are_well_formed(text: str) -> bool:
    tags = list(_TAG.finditer(text))
    if [tag.group() for tag in tags] != _WELL_FORMED:
        return False
    between = text[tags[1].end() : tags[2].start()]
    return tags[0].start() == 0 and not between.strip() and tags[3].end() == len(text)


def read_boxes(answer: str, frame: Frame) -> list[tuple[tuple[float, ...], float]] | None:
    """The paper's `[{'Position': [x0, y0, x1, y1], 'Confidence': c}, …]`, or `No Objects`, as (box, confidence) pairs.

    All or nothing: one box with corners out of order or outside the frame, a confidence outside 0..1 or anything that
    is not a finite number makes the whole answer unreadable. A box that is given twice counts twice.

    >>> read_boxes("[{'Position': [0, 10, 500, 1000], 'Confidence': 0.9}]", Frame(1000, 1000))
    [((0.0, 10.0, 500.0, 1000.0), 0.9)]
    >>> read_boxes("No Objects", Frame(1000, 1000))
    []
    """
    if answer == NO_OBJECTS:
        return []
    if len(answer) > MAX_CHARACTERS:
        return None
    try:
        items = json.loads(answer.replace("'", '"'))
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or len(items) > MAX_BOXES:
        return None
    boxes = [_read_box(item, frame) for item in items]
    return None if None in boxes else [box for box in boxes if box is not None]


def _read_box(item: Any, frame: Frame) -> tuple[tuple[float, ...], float] | None:
    if not isinstance(item, dict) or item.keys() != {"Position", "Confidence"}:
        return None
    position, confidence = item["Position"], item["Confidence"]
    if not isinstance(position, list) or len(position) != 4 or not all(map(_is_number, [*position, confidence])):
        return None
    x0, y0, x1, y1 = position
    if not (0 <= x0 < x1 <= frame.width and 0 <= y0 < y1 <= frame.height and 0 <= confidence <= 1):
        return None
    return (float(x0), float(y0), float(x1), float(y1)), float(confidence)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def normalise_label(text: str) -> str:
    """Lower case; runs of white space, hyphens and underscores become one space; one full stop at the end is dropped.

    >>> normalise_label(" Boeing_737-200. ")
    'boeing 737 200'
    """
    return re.sub(r"[\s_-]+", " ", text).strip().removesuffix(".").rstrip().lower()
