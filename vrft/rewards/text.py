"""Rewards for the length and repetitiveness of completions, independent of their answers."""

from __future__ import annotations

from vrft.errors import ConfigurationError
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Length(Reward):
    """1 for a completion of `shortest` to `longest` words, falling linearly to 0 at no words and at twice `longest`."""

    def __init__(self, weight: float = 1.0, shortest: int = 0, longest: int = 200) -> None:
        """Set the range of lengths.

        Args:
            weight: weight of the score in the sum of all rewards.
            shortest: fewest words with the full score; words are separated by white space.
            longest: most words with the full score.
        """
        super().__init__(weight)
        self.shortest, self.longest = shortest, longest

    def score(self, answer: Answer, sample: Question) -> float:
        words = len(answer.text.split())
        if words < self.shortest:
            return words / self.shortest
        return 1 - max(words - self.longest, 0) / max(self.longest, 1)


class Repetition(Reward):
    """Share of distinct n-grams of `size` words: 1 for a completion that never repeats one."""

    def __init__(self, weight: float = 1.0, size: int = 4) -> None:
        """Set the length of the n-grams.

        Args:
            weight: weight of the score in the sum of all rewards.
            size: words per n-gram.
        """
        super().__init__(weight)
        if size < 1:
            raise ConfigurationError(f"model.rewards: Repetition.size: expected at least 1, got {size}")
        self.size = size

    def score(self, answer: Answer, sample: Question) -> float:
        words = answer.text.lower().split()
        ngrams = [tuple(words[i : i + self.size]) for i in range(len(words) - self.size + 1)]
        return len({*ngrams}) / len(ngrams) if ngrams else 1.0


class ReasoningPresent(Reward):
    """1 if the reasoning has at least `words` words, else its number of words / `words`."""

    def __init__(self, weight: float = 1.0, words: int = 10) -> None:
        """Set the required length.

        Args:
            weight: weight of the score in the sum of all rewards.
            words: fewest words with the full score; words are separated by white space.
        """
        super().__init__(weight)
        if words < 1:
            raise ConfigurationError(f"model.rewards: ReasoningPresent.words: expected at least 1, got {words}")
        self.words = words

    def score(self, answer: Answer, sample: Question) -> float:
        return len(answer.reasoning.split()) / self.words
