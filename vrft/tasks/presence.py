"""Ask which categories are in an image, to decide which of them to ask a detector for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vrft.answers import normalise_label
from vrft.tasks.base import Task
from vrft.types import Detection, Frame, Question
from vrft.utils.display import counted

NO_CATEGORIES = "None"


class PresenceTask(Task):
    """Name the categories of a comma-separated query that are in the image: `cat, dog`, or `None`.

    Each named category counts as a box around the whole image. Other words are ignored. A category can't be called
    "None".
    """

    answers_about_one_image = True
    prompt = "Which of these categories are in the image: {query}? Name all that are, with commas between, or say None."
    form = "category, category"

    def query_problem(self, query: str) -> str | None:
        no_category = normalise_label(NO_CATEGORIES)
        name = next((name for name in query.split(", ") if normalise_label(name) == no_category), None)
        return name and f"category {name!r} reads like the answer {NO_CATEGORIES} of {type(self).__name__}; rename it"

    def answer_text(self, sample: Question, frame: Frame) -> str:
        return ", ".join(names_of(sample.target)) or NO_CATEGORIES

    def reasoning_text(self, sample: Question) -> str:
        return counted(len(names_of(sample.target)), "category")

    def read(self, content: str, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        if not content:
            return None
        named = {normalise_label(part.strip(" []'\"")) for part in re.split(r"[,\n]", content)}
        width, height = sample.size
        everywhere = (0.0, 0.0, float(width), float(height))
        asked = [name for name in sample.query.split(", ") if normalise_label(name) in named]
        return tuple(Detection(everywhere, name, None) for name in asked)


def names_of(boxes: object) -> Sequence[str]:
    """Return the categories of boxes in order, without duplicates."""
    assert isinstance(boxes, tuple)
    return list(dict.fromkeys(box.label for box in boxes))
