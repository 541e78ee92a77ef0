"""What a task knows: how to ask, what the right answer looks like, how to read an answer. No data, no model."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from typing import Any

from vrft.answers import split_blocks
from vrft.errors import ConfigurationError
from vrft.types import Answer, Frame, Sample, Target

FIELDS = ("query", "width", "height")


class Task(ABC):
    """One instance is shared by data, model, rewards and evaluators. `frame` is the model's coordinate system."""

    def __init__(self, template: str, system: str | None = None) -> None:
        _check_fields(template)
        self.template = template
        self.system = system

    def messages(self, sample: Sample, frame: Frame) -> list[dict[str, Any]]:
        """Chat messages for a sample, in the processors' format; the image itself is handed over beside them."""
        content = [{"type": "image"}, {"type": "text", "text": self.question(sample, frame)}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return turns

    def question(self, sample: Sample, frame: Frame) -> str:
        """The text of the user's turn."""
        return self.template.format(query=sample.query, width=frame.width, height=frame.height)

    @abstractmethod
    def target_text(self, sample: Sample, frame: Frame) -> str:
        """The completion that supervised fine-tuning teaches."""

    def parse(self, text: str, sample: Sample, frame: Frame) -> Answer:
        """Read a completion. Never raises: what can't be read has `value` None."""
        reasoning, content, well_formed = split_blocks(text)
        value = None if content is None else self.read(content, sample, frame)
        return Answer(text, reasoning, value, well_formed)

    @abstractmethod
    def read(self, content: str, sample: Sample, frame: Frame) -> Target | None:
        """The value of an answer block, None if it can't be read."""


def _check_fields(template: str) -> None:
    try:
        fields = [(name, spec or conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise ConfigurationError(f"task.template: {error}; write {{{{ and }}}} for literal braces") from error
    for name, form in fields:
        if name is not None and (name not in FIELDS or form):
            raise ConfigurationError(
                f"task.template: {{{name}}} can't be filled in; expected plain {{query}}, {{width}} or {{height}}, "
                "and {{ and }} for literal braces"
            )
