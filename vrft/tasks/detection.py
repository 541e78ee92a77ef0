"""Find every object of one category."""

from __future__ import annotations

from vrft.answers import NO_OBJECTS, read_boxes
from vrft.boxes import from_frame, to_frame
from vrft.tasks.base import Task
from vrft.types import Detection, Frame, Sample

PROMPT = (
    "Find all objects of the category '{query}' in the image. Give each one as a box [x1, y1, x2, y2] in integers, "
    "with x from 0 (left) to {width} (right) and y from 0 (top) to {height} (bottom), and your confidence from 0 to 1 "
    "with two decimals. If there are none, answer No Objects. Reason first, then answer, in exactly this form:\n"
    "<think>your reasoning</think><answer>[{{'Position': [x1, y1, x2, y2], 'Confidence': 0.00}}]</answer>"
)


class DetectionTask(Task):
    """Visual-RFT's detection: one category per prompt, `[{'Position': [x1, y1, x2, y2], 'Confidence': c}]`."""

    def __init__(self, template: str = PROMPT, system: str | None = None) -> None:
        """`template`: the question; {query} is the category, {width} and {height} the size of the coordinate frame."""
        super().__init__(template, system)

    def target_text(self, sample: Sample, frame: Frame) -> str:
        assert isinstance(sample.target, tuple)
        boxes = [to_frame(true.box, sample.image.size, frame) for true in sample.target]
        return f"<think>{len(boxes)} {sample.query}</think><answer>{boxes_text(boxes, [1.0] * len(boxes))}</answer>"

    def read(self, content: str, sample: Sample, frame: Frame) -> tuple[Detection, ...] | None:
        boxes = read_boxes(content, frame)
        if boxes is None:
            return None
        return tuple(Detection(from_frame(box, sample.image.size, frame), sample.query, c) for box, c in boxes)


def boxes_text(boxes: list[tuple[int, int, int, int]], confidences: list[float]) -> str:
    """Boxes in the paper's format.

    >>> boxes_text([(0, 10, 500, 1000)], [0.9])
    "[{'Position': [0, 10, 500, 1000], 'Confidence': 0.9}]"
    """
    if not boxes:
        return NO_OBJECTS
    items = (
        f"{{'Position': {list(box)}, 'Confidence': {round(c, 2)}}}" for box, c in zip(boxes, confidences, strict=True)
    )
    return f"[{', '.join(items)}]"
