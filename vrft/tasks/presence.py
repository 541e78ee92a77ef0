"""Say which of some categories are in an image: what decides which of them are asked for next."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vrft.answers import normalise_label
from vrft.tasks.base import Task
from vrft.types import Detection, Frame, Question

NOTHING = "None"


class PresenceTask(Task):
    """The names of the categories that are in the image, `cat, dog`, or `None`; the query names all, with commas.

    What is named counts as a box of the whole image. Words that are no category asked for are passed over.
    """

    prompt = "Which of these categories are in the image: {query}? Name all that are, with commas between, or say None."
    form = "category, category"

    def answer_text(self, sample: Question, frame: Frame) -> str:
        return ", ".join(names_of(sample.target)) or NOTHING

    def reasoning_text(self, sample: Question) -> str:
        return f"{len(names_of(sample.target))} categories"

    def read(self, content: str, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        if not content:
            return None
        named = {normalise_label(part.strip(" []'\"")) for part in re.split(r"[,\n]", content)}
        width, height = sample.size
        everywhere = (0.0, 0.0, float(width), float(height))
        asked = [name for name in sample.query.split(", ") if normalise_label(name) in named]
        return tuple(Detection(everywhere, name, None) for name in asked)


def names_of(boxes: object) -> Sequence[str]:
    """The categories of boxes, each once, in their order."""
    assert isinstance(boxes, tuple)
    return list(dict.fromkeys(box.label for box in boxes))
