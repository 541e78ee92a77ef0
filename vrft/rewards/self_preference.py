"""The policy as its own judge (IPO, arXiv 2502.16182): the probability of "Yes" when it is asked about an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from vrft.errors import ConfigurationError
from vrft.rewards.base import Reward
from vrft.rewards.wording import filled
from vrft.types import Answer, Question

QUESTION = """\
{question}

This is an answer to the question above:

{completion}

Is it a good answer? Look at the image, and reply with {yes} or {no}."""


class SelfPreference(Reward):
    """P(yes) / (P(yes) + P(no)) of the model's reply to "is this a good answer?" about the images and a completion.

    It needs no labels, and can't tell the model what it doesn't know: it sharpens what the model believes. The judge is
    the reference, i.e. the weights that training starts from, so that it doesn't change while the policy learns to
    please it. With `judge: policy` both change together and may drift into agreeing on anything; `model.beta` must then
    be above 0.
    """

    label_free = True

    def __init__(
        self,
        judge: Literal["reference", "policy"] = "reference",
        question: str = QUESTION,
        approval: str = "Yes",
        disapproval: str = "No",
        weight: float = 1.0,
    ) -> None:
        """Set who judges, and the question.

        Args:
            judge: the reference, which stays as it is at the start (or follows, with `model.reference_decay`), or the
                policy as it is.
            question: what to ask, with {question}, the text of the prompt, {completion}, {yes} and {no}.
            approval: reply that approves, {yes} in the question.
            disapproval: reply that disapproves, {no} in the question.
            weight: weight of the score in the sum of all rewards.
        """
        super().__init__(weight)
        if "{completion}" not in question:
            raise ConfigurationError("SelfPreference.question: expected {completion} in it, the answer to judge")
        if not approval.strip() or not disapproval.strip() or approval == disapproval:
            raise ConfigurationError(
                f"SelfPreference.approval: expected another word than disapproval={disapproval!r}, got {approval!r}"
            )
        self.judge, self.question, self.approval, self.disapproval = judge, question, approval, disapproval
        self.ask: Callable[[Sequence[Answer], Sequence[Question]], list[float]] | None = None
        """Asks the model. A module that has the policy sets it."""

    def text(self, question: str, completion: str) -> str:
        """Return the text to ask."""
        values = {"question": question, "completion": completion, "yes": self.approval, "no": self.disapproval}
        return filled(self.question, values)

    def score(self, answer: Answer, sample: Question) -> float | None:
        return self.scores([answer], [sample])[0]

    def scores(self, answers: Sequence[Answer], samples: Sequence[Question]) -> Sequence[float | None]:
        if self.ask is None:
            raise ConfigurationError("SelfPreference: expected a policy to ask, which is not here")
        return self.ask(answers, samples)
