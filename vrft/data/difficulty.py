"""Sample prompts by difficulty: prompts that are always or never answered correctly are drawn less often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vrft.data.loaders import PromptSampler
from vrft.errors import ConfigurationError
from vrft.rewards import Reward
from vrft.utils import notices

MEMORY = 0.9
"""Decay of a prompt's counts whenever it is asked again, because the policy changes."""


@dataclass(frozen=True)
class Difficulty:
    """Ask prompts that are always or never answered correctly less often.

    A prompt with the success rate p has the weight floor + (1 - floor) 4 p (1 - p), which is 1 at p = 1/2 and `floor`
    at p = 0 and p = 1. p = (successes + 1) / (completions + 2), so that a new prompt has the weight 1. Each pass over
    the data asks prompts in proportion to their weights at its beginning: at least `floor` times as often as without
    weights, and at most 1 / `floor` times.

    Attributes:
        reward: name of the reward that defines success.
        success: smallest score of that reward that counts as a success.
        floor: smallest weight, above 0 and at most 1.
    """

    reward: str
    success: float = 0.5
    floor: float = 0.2

    def check(self, rewards: Mapping[str, Reward]) -> None:
        """Raise ConfigurationError if the run lacks `reward`, or `success` or `floor` is out of range."""
        if self.reward not in rewards:
            raise ConfigurationError(
                f"model.difficulty.reward: expected one of model.rewards, {', '.join(rewards)}, got {self.reward}"
            )
        check_success("model.difficulty.success", self.success, self.reward, rewards[self.reward])
        if not 0 < self.floor <= 1:
            raise ConfigurationError(f"model.difficulty.floor: expected above 0 and at most 1, got {self.floor}")

    def successes(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many completions of each prompt succeed and how many have a score, (P, G) -> (P,) and (P,).

        Scores that are NaN (the reward does not apply) or infinite (the reward failed) are not counted.
        """
        known = scores.isfinite()
        return ((scores >= self.success) & known).sum(1), known.sum(1)


def check_success(field: str, success: float, name: str, reward: Reward) -> None:
    """Raise ConfigurationError if all or none of a reward's possible scores reach the threshold."""
    lowest, highest = reward.bounds
    if not lowest < success <= highest:  # NaN too
        raise ConfigurationError(
            f"{field}: expected above {lowest:g} and at most {highest:g}, the bounds of {name}, got {success}"
        )


class SuccessRates:
    """Success rate of each sample of a dataset; recent answers count more."""

    def __init__(self, size: int) -> None:
        self.successes = torch.zeros(size, dtype=torch.float64)
        self.answers = torch.zeros(size, dtype=torch.float64)

    def record(self, rows: Iterable[Sequence[int]]) -> None:
        """Add the completions of a step.

        Args:
            rows: (sample, successes, completions) of each group of all ranks, in any order.
        """
        successes, answers = Counter[int](), Counter[int]()
        for sample, right, count in rows:
            successes[sample] += right
            answers[sample] += count
        for sample, count in answers.items():
            if count:
                self.successes[sample] = MEMORY * self.successes[sample] + successes[sample]
                self.answers[sample] = MEMORY * self.answers[sample] + count

    def weights(self, floor: float) -> Tensor:
        """Return the weight of each sample, (size,), see `Difficulty`."""
        p = (self.successes + 1) / (self.answers + 2)
        return floor + (1 - floor) * 4 * p * (1 - p)


def draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` indices in random order, in which i occurs n_i = count w_i / sum(w) times on average.

    Systematic sampling: i occurs n_i times, rounded down or up. Independent draws would leave out a third of the
    indices if all weights are equal.
    """
    order = torch.randperm(len(weights), generator=generator)
    ends = (weights[order] * (count / weights.sum())).cumsum(0)
    positions = torch.arange(count, dtype=ends.dtype) + torch.rand((), dtype=ends.dtype, generator=generator)
    drawn = order[torch.searchsorted(ends, positions, right=True).clamp(max=len(order) - 1)]
    return drawn[torch.randperm(count, generator=generator)]


class DifficultySampler(PromptSampler):
    """A draw by difficulty for each (seed, epoch), sharded over the ranks like a permutation.

    The weights are fixed at the beginning of a pass, and so is the order: workers read ahead, and a resumed run
    continues in the same order.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool,
        difficulty: Difficulty,
        fingerprints: Sequence[int] | None = None,
    ) -> None:
        """Begin without rates. `fingerprints`: hash of each sample, by which a resumed run finds its rate again."""
        super().__init__(size, batch_size, rank, world_size, seed, shuffle)
        self.difficulty = difficulty
        self.rates = SuccessRates(size)
        self.fingerprints = torch.zeros(size, dtype=torch.long) if fingerprints is None else torch.tensor(fingerprints)
        self.begin_pass()

    def begin_pass(self) -> None:
        self.weights = self.rates.weights(self.difficulty.floor)

    def permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        return draw(self.weights, max(self.size, len(self) * self.world_size), generator)

    def state_dict(self) -> dict[str, Any]:
        known = {"successes": self.rates.successes, "answers": self.rates.answers}
        return {**known, "weights": self.weights, "fingerprints": self.fingerprints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "weights" not in state:  # the run began without `model.difficulty`
            return
        if len(state["weights"]) != self.size:
            raise ConfigurationError(
                f"ckpt_path: its success rates are of {len(state['weights'])} training samples, and data has "
                f"{self.size}; expected the same samples with model.difficulty"
            )
        self.rates.successes, self.rates.answers = state["successes"].clone(), state["answers"].clone()
        self.weights = state["weights"].clone()
        others = state.get("fingerprints", self.fingerprints) != self.fingerprints
        if count := int(others.sum()):
            for values in (self.rates.successes, self.rates.answers):
                values[others] = 0.0
            notices.warn(
                f"ckpt_path: {count} of {self.size} training samples differ from those of the checkpoint; their "
                "success rates (model.difficulty) start over"
            )
