"""What a task knows: how to ask, what the right answer looks like, how to read an answer. No data, no model."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from vrft.answers import split_blocks
from vrft.errors import ConfigurationError
from vrft.rewards import Format, Reward
from vrft.types import Answer, Frame, Question, Target

FIELDS = ("query", "width", "height", "numbers")

WITH_REASONING = " Reason first, then answer, in exactly this form:\n<think>your reasoning</think>"
WITHOUT_REASONING = " Give the answer alone, in exactly this form:\n"


class Task(ABC):
    """One instance is shared by data, model, rewards and evaluators. `frame` is the model's coordinate system."""

    prompt: ClassVar[str]
    """The question; what it may hold is named in `FIELDS`."""
    form: ClassVar[str]
    """What stands in the answer block, in braces doubled for `str.format`."""

    def __init__(self, template: str | None = None, system: str | None = None, reasoning: bool = True) -> None:
        """How to ask.

        Args:
            template: the user's turn, whole; {query}, {width}, {height} and {numbers} are filled in. Default: the
                task's own words and the form of the answer.
            system: the system's turn; default: none.
            reasoning: ask for reasoning before the answer; without it, the right format has none.
        """
        if template is None:
            lead = WITH_REASONING if reasoning else WITHOUT_REASONING
            template = f"{self.prompt}{lead}<answer>{self.form}</answer>"
        _check_fields(template)
        self.template, self.system, self.reasoning = template, system, reasoning

    def messages(self, sample: Question, frame: Frame) -> list[dict[str, Any]]:
        """Chat messages for a sample, in the processors' format; the image itself is handed over beside them."""
        content = [{"type": "image"}, {"type": "text", "text": self.question(sample, frame)}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return turns

    def question(self, sample: Question, frame: Frame) -> str:
        """The text of the user's turn."""
        numbers = f"numbers with {frame.decimals} decimals" if frame.decimals else "integers"
        return self.template.format(query=sample.query, width=frame.width, height=frame.height, numbers=numbers)

    def target_text(self, sample: Question, frame: Frame) -> str:
        """The completion that supervised fine-tuning teaches, and that earns the most."""
        answer = f"<answer>{self.answer_text(sample, frame)}</answer>"
        return f"<think>{self.reasoning_text(sample)}</think>{answer}" if self.reasoning else answer

    def answer_text(self, sample: Question, frame: Frame) -> str:
        """The right answer, as it stands in the answer block."""
        return str(sample.target)

    @abstractmethod
    def reasoning_text(self, sample: Question) -> str:
        """A short reasoning that leads to it."""

    def parse(self, text: str, sample: Question, frame: Frame) -> Answer:
        """Read a completion. Never raises: what can't be read has `value` None."""
        reasoning, content, well_formed = split_blocks(text, self.reasoning)
        value = None if content is None else self.read(content, sample, frame)
        return Answer(text, reasoning, value, well_formed)

    def read_solution(self, text: str, sample: Question, frame: Frame) -> Target | None:
        """What is right, out of a solution in the answer format, tagged or not; None if it can't be read."""
        block = split_blocks(text).answer
        return self.read_target(text.strip() if block is None else block, sample, frame)

    def read_target(self, content: str, sample: Question, frame: Frame) -> Target | None:
        """As `read`, of the answer block of a solution."""
        return self.read(content, sample, frame)

    @abstractmethod
    def read(self, content: str, sample: Question, frame: Frame) -> Target | None:
        """The value of an answer block, None if it can't be read."""

    def rewards(self) -> dict[str, Reward]:
        """The rewards that the paper gives for the task, by name."""
        return {"format": Format()}


def _check_fields(template: str) -> None:
    try:
        fields = [(name, spec or conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise ConfigurationError(f"task.template: {error}; write {{{{ and }}}} for literal braces") from error
    for name, form in fields:
        if name is not None and (name not in FIELDS or form):
            raise ConfigurationError(
                f"task.template: {{{name}}} can't be filled in; expected plain {{query}}, {{width}}, {{height}} or "
                "{numbers}, and {{ and }} for literal braces"
            )
