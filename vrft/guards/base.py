"""The guard base class: keeps statistics of the first and the latest training steps and warns about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vrft.types import Answer, Sample

WINDOW = 10
"""Number of steps kept; a single one may show a problem by chance."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One training step as input of the guards."""

    metrics: Mapping[str, Tensor]
    """Logged metrics, the same on all ranks."""
    samples: Sequence[Sample] = ()  # P, of the first rank
    answers: Sequence[Answer] = ()  # N; empty in supervised fine-tuning
    weights: tuple[Tensor, Tensor] | None = None
    """A sample of the weights before and after the step, flat."""
    limit: int = 0
    """`model.max_completion_length`, in tokens."""
    reasoning: bool = True
    """Whether the task asks for reasoning."""


class Guard(ABC):
    """Base class of guards. Statistics are plain values and part of a checkpoint, so that a resumed run warns alike."""

    name: ClassVar[str]
    """Name in `warnings.jsonl` and of the metric `guards/NAME`."""
    min_steps: ClassVar[int] = WINDOW
    """Number of recent steps required for a warning."""

    def __init__(self) -> None:
        self.first: list[Any] = []
        self.recent: list[Any] = []
        self.raised = False
        """Whether the problem has been reported and persists."""

    def watch(self, seen: Observation) -> str | None:
        """Record a step and return a warning with numbers and remedies, or None if there is no problem (yet)."""
        kept = self.note(seen)
        if kept is not None:
            if len(self.first) < WINDOW:
                self.first.append(kept)
            self.recent = [*self.recent, kept][-WINDOW:]
        return self.judge(seen) if len(self.recent) >= self.min_steps else None

    @abstractmethod
    def note(self, seen: Observation) -> Any | None:
        """Return the statistics to keep of a step as plain values, or None to skip the step."""

    @abstractmethod
    def judge(self, seen: Observation) -> str | None:
        """Return a warning about the recent steps, at least `min_steps` and at most `WINDOW`, or None."""

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "recent": self.recent, "raised": self.raised}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.recent, self.raised = state["first"], state["recent"], state["raised"]


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)
