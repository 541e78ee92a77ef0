"""Rewards for the length and repetitiveness of completions.

They ignore whether the answer is correct, so a wrong answer can earn more than the truth. Combine them, with a small
weight, with a reward for correctness.
"""

from __future__ import annotations

from vrft.errors import ConfigurationError
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Length(Reward):
    """1 from `shortest` to `longest` tokens, decreasing linearly to 0 at no tokens and at twice `longest`.

    Tokens are the policy's and include the stop token, as in `train/completion_length`. A correct answer longer than
    `longest` earns less than a wrong one within the range.
    """

    def __init__(self, weight: float = 1.0, shortest: int = 0, longest: int = 200) -> None:
        """Set the range of lengths.

        Args:
            weight: weight of the score in the sum of all rewards.
            shortest: minimum number of tokens for the full score.
            longest: maximum number of tokens for the full score.
        """
        super().__init__(weight)
        self.shortest, self.longest = shortest, longest

    def score(self, answer: Answer, sample: Question) -> float:
        tokens = len(token_ids(self, answer))
        if tokens < self.shortest:
            return tokens / self.shortest
        return 1 - max(tokens - self.longest, 0) / max(self.longest, 1)


class Repetition(Reward):
    """Share of distinct n-grams of `size` tokens: 1 for a completion that never repeats one.

    The text between the numbers of two boxes, about 40 characters or more with a label, repeats. If `size` is below its
    number of tokens, a correct answer with many boxes scores less than one with few boxes.
    """

    def __init__(self, weight: float = 1.0, size: int = 32) -> None:
        """Set the length of the n-grams.

        Args:
            weight: weight of the score in the sum of all rewards.
            size: tokens per n-gram.
        """
        super().__init__(weight)
        if size < 1:
            raise ConfigurationError(f"model.rewards: Repetition.size: expected at least 1, got {size}")
        self.size = size

    def score(self, answer: Answer, sample: Question) -> float:
        tokens = token_ids(self, answer)
        ngrams = [tokens[i : i + self.size] for i in range(len(tokens) - self.size + 1)]
        return len({*ngrams}) / len(ngrams) if ngrams else 1.0


class ReasoningPresent(Reward):
    """min(1, number of words in the reasoning / `words`), whatever the words are."""

    def __init__(self, weight: float = 1.0, words: int = 10) -> None:
        """Set the required length.

        Args:
            weight: weight of the score in the sum of all rewards.
            words: minimum number of words, separated by white space, for the full score.
        """
        super().__init__(weight)
        if words < 1:
            raise ConfigurationError(f"model.rewards: ReasoningPresent.words: expected at least 1, got {words}")
        self.words = words

    def score(self, answer: Answer, sample: Question) -> float:
        return len(answer.reasoning.split()) / self.words


def token_ids(reward: Reward, answer: Answer) -> tuple[int, ...]:
    """Return the tokens of a completion. Raise ConfigurationError if only its text is known."""
    if answer.token_ids is None:
        raise ConfigurationError(
            f"{type(reward).__name__} counts the policy's tokens, which are not known for completions from a file"
        )
    return answer.token_ids
