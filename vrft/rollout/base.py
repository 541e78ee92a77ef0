"""What makes completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vrft.policy import Policy
from vrft.tasks import Task
from vrft.types import PromptBatch, Rollout


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution that tokens are drawn from.

    Attributes:
        temperature: logits are divided by it.
        top_p: draw from the most probable tokens that together have this probability; 1 is off.
        top_k: draw from this many most probable tokens; 0 is off.
        min_p: draw from tokens with at least this share of the most probable one's probability; 0 is off.
        greedy: take the most probable token, always.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    greedy: bool = False

    @property
    def truncated(self) -> bool:
        """Whether some tokens can't be drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True)
class SamplingKey:
    """Where sampling key comes from: each row has its own, whatever rank or batch it is sampled in.

    Attributes:
        seed: of the run.
        rollout: number of the rollout.
        rank, world_size: prompt p of a rank is number (first + p) * world_size + rank of the global batch.
        first: prompts of this rank that were sampled for in the same rollout before.
        first_generation: completions of each of these prompts that were.
    """

    seed: int
    rollout: int
    rank: int = 0
    world_size: int = 1
    first: int = 0
    first_generation: int = 0

    def uniform(self, num_prompts: int, num_generations: int, num_tokens: int) -> Tensor:
        """One number in [0, 1) for each token of each row, (N, T) float64."""
        keys = [
            (self.seed, self.rollout, (self.first + p) * self.world_size + self.rank, self.first_generation + g)
            for p in range(num_prompts)
            for g in range(num_generations)
        ]
        return torch.from_numpy(np.stack([np.random.default_rng(key).random(num_tokens) for key in keys]))


class RolloutEngine(ABC):
    """Samples G completions for each prompt of a batch."""

    @abstractmethod
    def generate(
        self,
        policy: Policy,
        batch: PromptBatch,
        num_generations: int,
        *,
        max_completion_length: int,
        sampling: Sampling,
        key: SamplingKey,
        on_token: Callable[..., None],
    ) -> Rollout:
        """N = P * num_generations completions, row p * G + g for prompt p.

        Args:
            policy: what to sample from, with its current weights.
            batch: P prompts.
            num_generations: G.
            max_completion_length: tokens after which a completion is cut off.
            sampling: the distribution.
            key: that decides; greedy decoding needs none.
            on_token: called as tokens are made, with their number so far per row and, where it is known, a remark on
                how many rows are done.
        """


class RemoteEngine(RolloutEngine):
    """Samples elsewhere, with a copy of the policy's weights.

    Attributes:
        max_gap: mean |log-probability here - the trainer's| above which a run ends instead of learning from it.
        one_step_ahead: sample the next step's completions while this one trains, with weights that are one step old.
    """

    max_gap: float
    one_step_ahead: bool

    @abstractmethod
    def connect(self, policy: Policy, task: Task, folder: Path, run: str) -> None:
        """Get to know the policy, once it is loaded, and check that it can be sampled from.

        Args:
            policy: what will be sampled from.
            task: that asks.
            folder: the run's, for weights.
            run: a name that no other run has, the same on all ranks.

        Raises:
            ConfigurationError: it can't be.
        """

    @abstractmethod
    def write_weights(self, policy: Policy, first: bool) -> None:
        """Write the policy's weights, which have changed. All ranks call it together; the `first` one writes."""

    @abstractmethod
    def update_servers(self) -> None:
        """Let all that sample take the weights over that were published last, as far as they can at the moment."""

    @abstractmethod
    def stop(self) -> None:
        """Let what is being sampled end soon, by RolloutFailed."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the files of the weights that were published last, if any were."""
