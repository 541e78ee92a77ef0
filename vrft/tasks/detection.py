"""Detect all objects of one or several categories."""

from __future__ import annotations

import json
from collections.abc import Sequence

from vrft.answers import NO_OBJECTS, Item, boxes_error, normalise_label, read_boxes
from vrft.boxes import Box, from_frame, to_frame
from vrft.rewards import DetectionConfidence, DetectionIoU, Reward
from vrft.tasks.base import Task, number_text
from vrft.types import Detection, Frame, Question
from vrft.utils.bounds import Decimals
from vrft.utils.display import counted

COORDINATES = (
    " Give each one as a box [x1, y1, x2, y2] in {numbers}, with x from 0 (left) to {width} (right) and y from 0 (top) "
    "to {height} (bottom), and your confidence from 0 to 1 in the form {confidence}. If there are none, answer No "
    "Objects."
)


class DetectionTask(Task):
    """Visual-RFT's detection of one category per prompt: `[{'Position': [x1, y1, x2, y2], 'Confidence': c}]`.

    The category may be any text (open-vocabulary detection). Labels in an answer are ignored.
    """

    answers_about_one_image = True
    prompt = "Find all objects of the category '{query}' in the image." + COORDINATES
    form = "[{{'Position': [x1, y1, x2, y2], 'Confidence': {confidence}}}]"

    def __init__(
        self,
        template: str | None = None,
        system: str | None = None,
        reasoning: bool = True,
        confidence_decimals: Decimals = 2,
    ) -> None:
        """Set the prompt.

        Args:
            template: text of the user turn, with the fields {query}, {width}, {height}, {numbers} and {confidence}.
                Default: the task's question and answer format.
            system: text of the system turn; default: none.
            reasoning: ask for reasoning before the answer. If false, a completion consists of the answer block only.
            confidence_decimals: decimals of confidences in the prompt and in target texts.
        """
        super().__init__(template, system, reasoning)
        self.confidence_decimals = confidence_decimals

    def answer_text(self, sample: Question, frame: Frame) -> str:
        return self.target_boxes(sample, frame)

    def target_boxes(self, sample: Question, frame: Frame, labels: Sequence[str] = ()) -> str:
        """Format the boxes of a target, with labels if given."""
        assert isinstance(sample.target, tuple)
        boxes = [to_frame(true.box, sample.size, frame) for true in sample.target]
        return boxes_text(boxes, [1.0] * len(boxes), labels, frame.decimals, self.confidence_decimals)

    def reasoning_text(self, sample: Question) -> str:
        return f"{len(sample.target)} {sample.query}"

    def read(self, content: str, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        return self._detections(read_boxes(content, frame), sample, frame)

    def read_error(self, content: str, sample: Question, frame: Frame) -> str:
        if error := boxes_error(content, frame):
            return error
        labels = self.labels(read_boxes(content, frame) or [], sample)
        if None in labels:
            return f"box {labels.index(None) + 1} has no label"
        return super().read_error(content, sample, frame)

    def read_target(self, content: str, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        found = self._detections(read_boxes(content, frame, is_solution=True), sample, frame)
        return None if found is None else tuple(box._replace(score=1.0) for box in found)

    def _detections(self, items: list[Item] | None, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        if items is None:
            return None
        labels = self.labels(items, sample)
        if None in labels:
            return None
        return tuple(
            Detection(from_frame(item.box, sample.size, frame), label or "", item.confidence)
            for item, label in zip(items, labels, strict=True)
        )

    def labels(self, items: Sequence[Item], sample: Question) -> list[str | None]:
        """Return the category of each box, None where a required label is missing."""
        return [sample.query] * len(items)

    def rewards(self) -> dict[str, Reward]:
        return {"iou": DetectionIoU(weight=0.5), "confidence": DetectionConfidence(weight=3.0), **super().rewards()}


class MultiCategoryDetectionTask(DetectionTask):
    """Detect several categories in one prompt: `[{'Label': 'cat', 'Position': …, 'Confidence': c}]`.

    The query names the categories, separated by commas.
    """

    prompt = "Find all objects of these categories in the image: {query}." + COORDINATES
    form = "[{{'Label': 'category', 'Position': [x1, y1, x2, y2], 'Confidence': {confidence}}}]"

    def answer_text(self, sample: Question, frame: Frame) -> str:
        assert isinstance(sample.target, tuple)
        return self.target_boxes(sample, frame, [true.label for true in sample.target])

    def reasoning_text(self, sample: Question) -> str:
        return counted(len(sample.target), "object")

    def labels(self, items: Sequence[Item], sample: Question) -> list[str | None]:
        names = sample.query.split(", ")
        known = {normalise_label(name): name for name in reversed(names)} | {name: name for name in names}
        stated = [item.label for item in items]  # exact matches first, because names may differ in case only
        return [
            None if label is None else known.get(label, known.get(normalise_label(label), label)) for label in stated
        ]


def boxes_text(
    boxes: Sequence[Box],
    confidences: Sequence[float],
    labels: Sequence[str] = (),
    decimals: int = 0,
    confidence_decimals: int = 2,
) -> str:
    """Format boxes as in Visual-RFT, with labels if given. Numbers have exactly `decimals` decimals.

    >>> boxes_text([(0, 10, 500, 1000)], [0.9])
    "[{'Position': [0, 10, 500, 1000], 'Confidence': 0.90}]"
    >>> boxes_text([(0, 0.5, 0.25, 1)], [1.0], ["cat"], decimals=3, confidence_decimals=1)
    "[{'Label': 'cat', 'Position': [0.000, 0.500, 0.250, 1.000], 'Confidence': 1.0}]"
    """
    if not boxes:
        return NO_OBJECTS
    named = [f"'Label': {_quoted(label)}, " for label in labels] or [""] * len(boxes)
    items = (
        f"{{{name}'Position': [{', '.join(number_text(v, decimals) for v in box)}], "
        f"'Confidence': {number_text(c, confidence_decimals)}}}"
        for name, box, c in zip(named, boxes, confidences, strict=True)
    )
    return f"[{', '.join(items)}]"


def _quoted(label: str) -> str:
    return repr(label) if label.isprintable() else json.dumps(label)  # repr's escapes are not valid JSON
