"""Interfaces of rollout engines, and sampling settings."""

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
    """The distribution from which tokens are sampled.

    Attributes:
        temperature: divisor of the logits.
        top_p: sample from the most probable tokens up to this total probability; 1: off.
        top_k: sample from this many most probable tokens; 0: off.
        min_p: sample from tokens with at least this share of the largest probability; 0: off.
        greedy: always choose the most probable token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    greedy: bool = False

    @property
    def truncated(self) -> bool:
        """Whether top-p, top-k or min-p is on."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True)
class SamplingKey:
    """The key of a rollout's random numbers, which are the same for a row whatever rank or call samples it.

    Attributes:
        seed: seed of the run.
        rollout: index of the rollout.
        rank, world_size: prompt p of a rank has the index (first + p) * world_size + rank in the global batch.
        first: number of this rank's prompts in earlier calls for the same rollout.
        first_generation: number of completions of each of these prompts in earlier calls.
    """

    seed: int
    rollout: int
    rank: int = 0
    world_size: int = 1
    first: int = 0
    first_generation: int = 0

    def uniform(self, num_prompts: int, num_generations: int, num_tokens: int) -> Tensor:
        """Return a random number in [0, 1) for each token of each row, (N, T) float64."""
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
        """Sample N = P * G completions. Row p * G + g belongs to prompt p.

        Args:
            policy: the model to sample from, with its current weights.
            batch: P prompts.
            num_generations: completions per prompt, G.
            max_completion_length: number of tokens after which a completion is truncated.
            sampling: the sampling distribution.
            key: key of the random numbers; ignored by greedy decoding.
            on_token: called during sampling with the current number of tokens per row and, optionally, a text about
                the progress.
        """


class RemoteEngine(RolloutEngine):
    """An engine that samples in other processes, which have a copy of the policy's weights.

    Attributes:
        max_gap: maximum mean |engine's log-probability - trainer's|; above it, the run ends.
        one_step_ahead: sample for the next step while this one trains, with weights that are one step old.
        gpu_share: share of the memory of the trainer's GPU that the engine needs while it samples.
    """

    max_gap: float
    one_step_ahead: bool
    gpu_share: float = 0.0

    @property
    def wakings(self) -> int:
        """Number of times that servers were given their weights again after sleeping."""
        return 0

    def check(self, policy: Policy) -> None:
        """Raise ConfigurationError if servers can't sample from a policy with these settings. Called before loading."""

    @abstractmethod
    def connect(self, policy: Policy, task: Task, folder: Path, run: str, images: int = 1) -> None:
        """Check that the servers can sample from a policy.

        Args:
            policy: the loaded policy.
            task: the task that formats the prompts.
            folder: the run's folder, for weights.
            run: a unique name of the run, the same on all ranks.
            images: maximum number of images in a prompt, for servers that the engine starts.

        Raises:
            ConfigurationError: a server can't be reached, or can't sample from the policy.
        """

    @abstractmethod
    def write_weights(self, policy: Policy, first: bool) -> None:
        """Write a new version of the policy's weights. All ranks call this together; the rank with `first` writes."""

    @abstractmethod
    def update_servers(self) -> None:
        """Make all servers load the latest version of the weights. Skip servers that are unavailable."""

    def sleep(self) -> None:
        """Leave the trainer's GPU until the next call of `generate`, which then takes longer. Default: do nothing."""

    @abstractmethod
    def stop(self) -> None:
        """Make running calls of `generate` raise RolloutFailed soon."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the files of the latest version of the weights, if there is one."""

    def close(self) -> None:
        """End the servers that the engine has started. Default: do nothing."""
