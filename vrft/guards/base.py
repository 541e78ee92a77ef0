"""The base class of guards, which compare statistics of the first and the latest training steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vrft.types import Answer, Sample

WINDOW = 10
"""Number of steps in a window; a single step may show a problem by chance."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The data of a training step that guards receive."""

    metrics: Mapping[str, Tensor]
    """Logged metrics, the same on all ranks."""
    samples: Sequence[Sample] = ()  # P, of the first rank
    answers: Sequence[Answer] = ()  # N; empty in supervised fine-tuning
    weights: tuple[Tensor, Tensor] | None = None
    """A sample of the weights, flattened, before and after the step."""
    limit: int = 0
    """`model.max_completion_length`, in tokens."""
    reasoning: bool = True
    """Whether the task asks for reasoning."""


class Guard(ABC):
    """Base class of guards. Checkpoints keep the statistics, so that a resumed run gives the same warnings."""

    name: ClassVar[str]
    """Name in `warnings.jsonl` and of the metric `guards/NAME`."""
    min_steps: ClassVar[int] = WINDOW
    """Number of recent steps required for a warning."""

    def __init__(self) -> None:
        self.first: list[Any] = []
        self.recent: list[Any] = []
        self.raised = False
        """Whether the current problem has been reported."""

    def watch(self, seen: Observation) -> str | None:
        """Record a step. Return a warning with numbers and remedies, or None if there is no problem."""
        kept = self.note(seen)
        if kept is not None:
            if len(self.first) < WINDOW:
                self.first.append(kept)
            self.recent = [*self.recent, kept][-WINDOW:]
        return self.judge(seen) if len(self.recent) >= self.min_steps else None

    @abstractmethod
    def note(self, seen: Observation) -> Any | None:
        """Return the statistics of a step as plain values, or None to skip the step."""

    @abstractmethod
    def judge(self, seen: Observation) -> str | None:
        """Return a warning about the recent steps, of which there are `min_steps` to `WINDOW`, or None."""

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "recent": self.recent, "raised": self.raised}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.recent, self.raised = state["first"], state["recent"], state["raised"]


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)
