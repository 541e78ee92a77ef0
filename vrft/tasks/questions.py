"""Questions with a short answer: a letter or a number."""

from __future__ import annotations

from vrft.answers import read_choice, read_count
from vrft.rewards import Accuracy, CountError, Reward
from vrft.tasks.base import Task
from vrft.types import Frame, Question
from vrft.utils.literals import excerpt


class MultipleChoiceTask(Task):
    """A multiple-choice question, answered by a letter.

    The query contains the choices, or `metadata["choices"]` lists their texts. In the latter case, the text of a choice
    is accepted for its letter.
    """

    prompt = "{query}"
    form = "letter"

    def question(self, sample: Question, frame: Frame) -> str:
        asked = super().question(sample, frame)
        lines = [f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(sample.metadata.get("choices", ()))]
        return "\n".join([asked, *lines])

    def reasoning_text(self, sample: Question) -> str:
        return f"{sample.target} is right"

    def read(self, content: str, sample: Question, frame: Frame) -> str | None:
        return read_choice(content, sample.metadata.get("choices", ()))

    def read_error(self, content: str, sample: Question, frame: Frame) -> str:
        return f"expected a letter, got {excerpt(content) or 'nothing'}"

    def rewards(self) -> dict[str, Reward]:
        return {"accuracy": Accuracy(), **super().rewards()}


class CountingTask(Task):
    """Count objects. The answer is an integer in digits."""

    prompt = "How many are there in the image: {query}? Answer with a whole number in digits."
    form = "number"

    def reasoning_text(self, sample: Question) -> str:
        return f"{sample.target} {sample.query}"

    def read(self, content: str, sample: Question, frame: Frame) -> str | None:
        return read_count(content)

    def read_error(self, content: str, sample: Question, frame: Frame) -> str:
        return f"expected a whole number of at most nine digits, got {excerpt(content) or 'nothing'}"

    def rewards(self) -> dict[str, Reward]:
        return {"accuracy": Accuracy(), "error": CountError(), **super().rewards()}
