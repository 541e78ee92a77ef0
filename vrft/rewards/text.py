"""Rewards of how an answer is written, whatever it says."""

from __future__ import annotations

from vrft.errors import ConfigurationError
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Length(Reward):
    """1 for a completion of `shortest` to `longest` words, falling evenly to 0 at none and at twice the longest."""

    def __init__(self, weight: float = 1.0, shortest: int = 0, longest: int = 200) -> None:
        """Words are what stands between white space."""
        super().__init__(weight)
        self.shortest, self.longest = shortest, longest

    def score(self, answer: Answer, sample: Question) -> float:
        words = len(answer.text.split())
        if words < self.shortest:
            return words / self.shortest
        return 1 - max(words - self.longest, 0) / max(self.longest, 1)


class Repetition(Reward):
    """1 less the share of runs of `size` words that were there before: 1 for a text that never repeats itself."""

    def __init__(self, weight: float = 1.0, size: int = 4) -> None:
        """A text shorter than two runs can't repeat one."""
        super().__init__(weight)
        if size < 1:
            raise ConfigurationError(f"model.rewards: Repetition.size: expected at least 1, got {size}")
        self.size = size

    def score(self, answer: Answer, sample: Question) -> float:
        words = answer.text.lower().split()
        runs = [tuple(words[i : i + self.size]) for i in range(len(words) - self.size + 1)]
        return len({*runs}) / len(runs) if runs else 1.0


class ReasoningPresent(Reward):
    """1 if the reasoning has at least `words` words, less in proportion to what is missing."""

    def __init__(self, weight: float = 1.0, words: int = 10) -> None:
        """Words are what stands between white space."""
        super().__init__(weight)
        if words < 1:
            raise ConfigurationError(f"model.rewards: ReasoningPresent.words: expected at least 1, got {words}")
        self.words = words

    def score(self, answer: Answer, sample: Question) -> float:
        return len(answer.reasoning.split()) / self.words
