"""The policy as its own judge (IPO, arXiv 2502.16182): the probability that it replies "Yes" about an answer."""

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

    The reward needs no labels. It adds no knowledge, but sharpens what the model already believes. By default, the
    judge is the reference, i.e. the initial weights, and stays fixed while the policy learns to please it. With
    `judge: policy`, both change together and may drift towards approving of anything; `model.beta` must then be above
    0.
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
        """Set the judge and the question.

        Args:
            judge: `reference`, which stays fixed (or moves, with `model.reference_decay`), or the current `policy`.
            question: text to ask, with the fields {question} (the text of the prompt), {completion}, {yes} and {no}.
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
        """Asks the model for the scores of N answers. Set by the module that has the policy."""

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
