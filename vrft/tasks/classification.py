"""Image classification."""

from __future__ import annotations

from vrft.rewards import Accuracy, Reward
from vrft.tasks.base import Task
from vrft.types import Frame, Question


class ClassificationTask(Task):
    """Name the class of an image. An answer may be any text; `Accuracy` compares it with the class name."""

    prompt = "What is shown in this image? Name the class as precisely as you can."
    form = "class name"

    def reasoning_text(self, sample: Question) -> str:
        return f"This is {sample.target}"

    def read(self, content: str, sample: Question, frame: Frame) -> str | None:
        return content or None

    def rewards(self) -> dict[str, Reward]:
        return {"accuracy": Accuracy(), **super().rewards()}
