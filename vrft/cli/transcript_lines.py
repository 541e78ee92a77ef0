"""Read targets and coordinate systems from the lines of a run's `transcripts.jsonl`."""

from __future__ import annotations

from typing import Any

from vrft.data.files import brief, is_number
from vrft.tasks import DetectionTask, GroundingTask, Task
from vrft.types import Detection, Frame, Target


def read_target(value: Any, task: Task) -> Target:
    """Read a target from a transcript. Raise ValueError if it is not a target of the task."""
    boxes = isinstance(task, DetectionTask | GroundingTask)
    if not boxes and isinstance(value, str):
        return value
    if not boxes or not isinstance(value, list):
        raise ValueError(f"expected {'a list of boxes' if boxes else 'a text'}, got {brief(value)}")
    return tuple(_read_box(item) for item in value)


def _read_box(item: Any) -> Detection:
    box, label = item[:2] if isinstance(item, list) and len(item) == 3 else (None, None)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)) or not isinstance(label, str):
        raise ValueError(f"expected boxes [[x0, y0, x1, y1], label, score], got {brief(item)}")
    x0, y0, x1, y1 = map(float, box)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {brief(box)} has no area")
    return Detection((x0, y0, x1, y1), label)


def read_frame(value: Any) -> Frame:
    """Read a coordinate system from a transcript. Raise ValueError if it is invalid."""
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(part, int) and not isinstance(part, bool) for part in value)
        or min(value[:2]) < 1
        or not 0 <= value[2] <= 9
    ):
        raise ValueError(f"expected [width, height, decimals], got {brief(value)}")
    return Frame(*value)
