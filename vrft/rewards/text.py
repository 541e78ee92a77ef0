"""Rewards for the length and repetitiveness of completions.

They don't look at the answer: a wrong one can earn more than the truth. Add them to a reward that does, with a small
weight.
"""

from __future__ import annotations

from vrft.errors import ConfigurationError
from vrft.rewards.base import Reward
from vrft.types import Answer, Question


class Length(Reward):
    """1 for `shortest` to `longest` tokens, falling linearly to 0 at no tokens and at twice `longest`.

    Tokens are the policy's and include the end token, as in `train/completion_length`. A true answer longer than
    `longest` earns less than a wrong one within the range.
    """

    def __init__(self, weight: float = 1.0, shortest: int = 0, longest: int = 200) -> None:
        """Set the range of lengths.

        Args:
            weight: weight of the score in the sum of all rewards.
            shortest: fewest tokens with the full score.
            longest: most tokens with the full score.
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

    The text between the numbers of two boxes is the same, about 40 characters and more with a label. With a `size`
    below its number of tokens, a correct answer with many boxes scores less than one with few.
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
    """1 if the reasoning has at least `words` words, else its number of words / `words`. Any words count."""

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


def token_ids(reward: Reward, answer: Answer) -> tuple[int, ...]:
    """Return the tokens of a completion. Raises ConfigurationError if only its text is known."""
    if answer.token_ids is None:
        raise ConfigurationError(
            f"{type(reward).__name__} counts the policy's tokens, which are not known for completions from a file"
        )
    return answer.token_ids
