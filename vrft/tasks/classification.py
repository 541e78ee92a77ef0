"""Name the class of an image."""

from __future__ import annotations

from vrft.tasks.base import Task
from vrft.types import Frame, Sample

PROMPT = (
    "What is shown in this image? Name the class as precisely as you can. Reason first, then answer with the name "
    "alone, in exactly this form:\n<think>your reasoning</think><answer>class name</answer>"
)


class ClassificationTask(Task):
    """One class name per image. The answer may be any text: an exact match is asked of it by `Accuracy`."""

    def __init__(self, template: str = PROMPT, system: str | None = None) -> None:
        """`template`: the question; {query} is empty unless the data set has questions of its own."""
        super().__init__(template, system)

    def target_text(self, sample: Sample, frame: Frame) -> str:
        return f"<think>This is {sample.target}</think><answer>{sample.target}</answer>"

    def read(self, content: str, sample: Sample, frame: Frame) -> str | None:
        return content or None
