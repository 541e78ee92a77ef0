"""What a guard is: it keeps a few numbers of the first and the last rollouts, and says what is wrong with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vrft.types import Answer, Sample

WINDOW = 10
"""Rollouts that have to show a thing before it is said: one may be chance."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A training step, as guards see it."""

    metrics: Mapping[str, Tensor]
    """What was logged, the same on all ranks."""
    samples: Sequence[Sample] = ()  # P, of the first rank
    answers: Sequence[Answer] = ()  # N; empty in supervised fine-tuning
    weights: tuple[Tensor, Tensor] | None = None
    """Some of the weights before and after the step, flat."""
    limit: int = 0
    """Tokens of a completion."""
    reasoning: bool = True
    """Whether the task asks for it."""


class Guard(ABC):
    """One rule. What it keeps is plain values, part of a checkpoint, so that a continued run says the same."""

    name: ClassVar[str]
    """In `warnings.jsonl` and as `guards/NAME`."""
    least: ClassVar[int] = WINDOW
    """Recent steps before it judges."""

    def __init__(self) -> None:
        self.first: list[Any] = []
        self.recent: list[Any] = []
        self.raised = False
        """Whether what is wrong has been said and is not over yet."""

    def watch(self, seen: Seen) -> str | None:
        """What is wrong, in one sentence with numbers and what to do; None if nothing is, or not known yet."""
        kept = self.note(seen)
        if kept is not None:
            if len(self.first) < WINDOW:
                self.first.append(kept)
            self.recent = [*self.recent, kept][-WINDOW:]
        return self.judge(seen) if len(self.recent) >= self.least else None

    @abstractmethod
    def note(self, seen: Seen) -> Any | None:
        """What is kept of a step, as plain values; None if it says nothing about this."""

    @abstractmethod
    def judge(self, seen: Seen) -> str | None:
        """What is wrong with recent steps, at least `least` and at most `WINDOW`."""

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "recent": self.recent, "raised": self.raised}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.recent, self.raised = state["first"], state["recent"], state["raised"]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
