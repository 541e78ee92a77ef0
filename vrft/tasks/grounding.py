"""Locate the single object that an instruction refers to."""

from __future__ import annotations

from vrft.answers import Item, boxes_error, read_boxes
from vrft.boxes import from_frame, to_frame
from vrft.errors import ConfigurationError
from vrft.rewards import GroundingIoU, Reward
from vrft.tasks.base import Task, number_text
from vrft.types import Detection, Frame, Question


class GroundingTask(Task):
    """Visual-RFT's reasoning grounding: one box `(x1,y1),(x2,y2)`. An answer with several boxes is invalid."""

    answers_about_one_image = True
    prompt = (
        "Find what is meant in the image: '{query}'. Give one box by its upper left and its lower right corner in "
        "{numbers}, with x from 0 (left) to {width} (right) and y from 0 (top) to {height} (bottom)."
    )
    form = "(x1,y1),(x2,y2)"

    def answer_text(self, sample: Question, frame: Frame) -> str:
        if not isinstance(sample.target, tuple) or len(sample.target) != 1:
            raise ConfigurationError(f"task: GroundingTask expects one target box, got {sample.target!r:.200}")
        box = to_frame(sample.target[0].box, sample.size, frame)
        x0, y0, x1, y1 = (number_text(v, frame.decimals) for v in box)
        return f"({x0},{y0}),({x1},{y1})"

    def reasoning_text(self, sample: Question) -> str:
        return sample.query

    def read(self, content: str, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        return self._detection(read_boxes(content, frame), sample, frame)

    def read_error(self, content: str, sample: Question, frame: Frame) -> str:
        if error := boxes_error(content, frame):
            return error
        count = len(read_boxes(content, frame) or ())
        return f"it has {count} boxes, expected one" if count != 1 else super().read_error(content, sample, frame)

    def read_target(self, content: str, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        found = self._detection(read_boxes(content, frame, is_solution=True), sample, frame)
        return None if found is None else (found[0]._replace(score=1.0),)

    @staticmethod
    def _detection(items: list[Item] | None, sample: Question, frame: Frame) -> tuple[Detection, ...] | None:
        if items is None or len(items) != 1:
            return None
        return (Detection(from_frame(items[0].box, sample.size, frame), "", items[0].confidence),)

    def rewards(self) -> dict[str, Reward]:
        return {"iou": GroundingIoU(), **super().rewards()}
