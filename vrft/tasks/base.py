"""The base class of tasks: prompt, target text and answer parser, independent of data and model."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar

from vrft.answers import format_error, split_blocks
from vrft.boxes import in_frame
from vrft.errors import ConfigurationError
from vrft.rewards import Format, Reward
from vrft.types import Answer, Detection, Frame, Question, Target
from vrft.utils.own_code import check_overrides, noted, question_note

TEMPLATE_FIELDS = ("query", "width", "height", "numbers", "confidence")

MAX_PROBLEM = 300
"""Maximum number of characters in the reason why an answer is invalid."""

WITH_REASONING = " Reason first, then answer, in exactly this form:\n<think>your reasoning</think>"
WITHOUT_REASONING = " Give the answer alone, in exactly this form:\n"


class Task(ABC):
    """Base class of tasks. Data, model, rewards and evaluators share one instance.

    The `frame` that methods receive is the model's coordinate system.
    """

    prompt: ClassVar[str]
    """The question, a template with `TEMPLATE_FIELDS` in braces."""
    form: ClassVar[str]
    """The format of the answer block, with braces doubled for `str.format`."""
    confidence_decimals: int = 2
    """Decimals of confidences in prompts and target texts."""
    answers_about_one_image: ClassVar[bool] = False
    """Whether an answer refers to one image even if the question shows several, as boxes do."""

    def __init__(self, template: str | None = None, system: str | None = None, reasoning: bool = True) -> None:
        """Set the prompt.

        Args:
            template: text of the user turn, with the fields {query}, {width}, {height}, {numbers} and {confidence}.
                Default: the task's question and answer format.
            system: text of the system turn; default: none.
            reasoning: ask for reasoning before the answer. If false, a completion consists of the answer block only.
        """
        check_overrides(self, Task)
        if template is None:
            lead = WITH_REASONING if reasoning else WITHOUT_REASONING
            template = f"{self.prompt}{lead}<answer>{self.form}</answer>"
        _check_fields(template)
        self.template, self.system, self.reasoning = template, system, reasoning

    def messages(self, sample: Question, frame: Frame) -> list[dict[str, Any]]:
        """Return the chat messages for a sample, with a placeholder for each image; images are passed separately."""
        text = self.image_note(sample) + self.question(sample, frame)
        content = [*({"type": "image"} for _ in range(sample.num_images)), {"type": "text", "text": text}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return turns

    def image_note(self, sample: Question) -> str:
        """Return a sentence that says which of several images to answer about; empty if there is one image."""
        if sample.num_images == 1 or not self.answers_about_one_image:
            return ""
        place = sample.num_images if sample.image_index is None else sample.image_index + 1
        return f"Image {place} of {sample.num_images} is meant. "

    def question(self, sample: Question, frame: Frame) -> str:
        """Return the text of the user turn."""
        return self.template.format(query=sample.query, **self.fields(frame))

    def fields(self, frame: Frame) -> dict[str, Any]:
        """Return the values of the template's fields other than the query."""
        return {
            "width": frame.width,
            "height": frame.height,
            "numbers": numbers_in_words(frame.decimals),
            "confidence": number_text(0, self.confidence_decimals),
        }

    def query_problem(self, query: str) -> str | None:
        """Return why a query is invalid for the task, or None. Records with an invalid query are bad records."""
        return None

    def target_text(self, sample: Question, frame: Frame) -> str:
        """Return the correct completion: the target of supervised fine-tuning, with the highest reward."""
        answer = f"<answer>{self.answer_text(sample, frame)}</answer>"
        return f"<think>{self.reasoning_text(sample)}</think>{answer}" if self.reasoning else answer

    def scored_target(self, sample: Question, frame: Frame) -> Target:
        """Return the target for rewards: boxes are rounded to the frame, as in the target text.

        The correct answer therefore has IoU 1 with it, however small the object. Evaluators use the exact target.
        """
        if isinstance(sample.target, str):
            return sample.target
        return tuple(true._replace(box=in_frame(true.box, sample.size, frame)) for true in sample.target)

    def answer_text(self, sample: Question, frame: Frame) -> str:
        """Return the content of the correct answer block."""
        return str(sample.target)

    @abstractmethod
    def reasoning_text(self, sample: Question) -> str:
        """Return short reasoning for the correct answer."""

    def parse(self, text: str, sample: Question, frame: Frame) -> Answer:
        """Parse a completion. If the answer can't be parsed, `value` is None and `problem` gives the reason."""
        reasoning, content, well_formed = split_blocks(text, self.reasoning)
        value, problems = None, []
        if content is not None:
            with noted(partial(question_note, sample.image_id, sample.query, text)):
                value = self._checked(self.read(content, sample, frame))
                if value is None:
                    problems.append(self.read_error(content, sample, frame))
        if not text.strip():
            problems.append("it is empty")
        elif not well_formed:
            problems.append(format_error(text, self.reasoning))
        return Answer(text, reasoning, value, well_formed, problem="; ".join(problems)[:MAX_PROBLEM] or None)

    def read_solution(self, text: str, sample: Question, frame: Frame) -> Target | None:
        """Parse the target from a solution in the answer format, with or without tags. Return None if it is invalid."""
        block = split_blocks(text).answer
        return self.read_target(text.strip() if block is None else block, sample, frame)

    def read_target(self, content: str, sample: Question, frame: Frame) -> Target | None:
        """Parse the answer block of a solution, see `read`."""
        return self.read(content, sample, frame)

    def _checked(self, value: Target | None) -> Target | None:
        """Return the result of `read`. Raise ConfigurationError if it is not a Target or None."""
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, tuple) and all(isinstance(found, Detection) for found in value):
            return value
        raise ConfigurationError(
            f"{type(self).__name__}.read returned {value!r}; expected a tuple of vrft.types.Detection, a text or None"
        )

    @abstractmethod
    def read(self, content: str, sample: Question, frame: Frame) -> Target | None:
        """Parse the content of an answer block. Return None if it is invalid."""

    def read_error(self, content: str, sample: Question, frame: Frame) -> str:
        """Return the reason why `read` returned None."""
        is_empty = not content.strip()
        return f"the answer block {'is empty' if is_empty else 'has another form than the prompt asks for'}"

    def rewards(self) -> dict[str, Reward]:
        """Return the default rewards of the task by name."""
        return {"format": Format()}


def numbers_in_words(decimals: int) -> str:
    """Return the words for coordinates with `decimals` decimals in a prompt.

    >>> numbers_in_words(0), numbers_in_words(1), numbers_in_words(3)
    ('integers', 'numbers with 1 decimal', 'numbers with 3 decimals')
    """
    if not decimals:
        return "integers"
    return f"numbers with {decimals} decimal{'s' if decimals > 1 else ''}"


def number_text(value: float, decimals: int) -> str:
    """Format a number for target texts, with exactly as many decimals as the prompt asks for.

    >>> number_text(1, 2), number_text(12.0, 0)
    ('1.00', '12')
    """
    return f"{value:.{decimals}f}"


def _check_fields(template: str) -> None:
    try:
        fields = [(name, spec or conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise ConfigurationError(f"task.template: {error}; write {{{{ and }}}} for literal braces") from error
    for name, form in fields:
        if name is not None and (name not in TEMPLATE_FIELDS or form):
            raise ConfigurationError(
                f"task.template: {{{name}}} can't be filled in; expected plain {{query}}, {{width}}, {{height}}, "
                "{numbers} or {confidence}, and {{ and }} for literal braces"
            )
