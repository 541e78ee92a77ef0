"""What makes completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vrft.policy import Policy
from vrft.types import PromptBatch, Rollout


@dataclass(frozen=True, slots=True)
class Noise:
    """Where sampling noise comes from: each row has its own, whatever rank or batch it is sampled in.

    Attributes:
        seed: of the run.
        rollout: number of the rollout.
        rank, world_size: prompt p of a rank is number p * world_size + rank of the global batch.
    """

    seed: int
    rollout: int
    rank: int = 0
    world_size: int = 1

    def uniform(self, num_prompts: int, num_generations: int, num_tokens: int) -> Tensor:
        """One number in [0, 1) for each token of each row, (N, T) float64."""
        keys = [
            (self.seed, self.rollout, p * self.world_size + self.rank, g)
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
        temperature: float,
        noise: Noise | None,
        on_token: Callable[[int], None],
    ) -> Rollout:
        """N = P * num_generations completions, row p * G + g for prompt p.

        Args:
            policy: what to sample from, with its current weights.
            batch: P prompts.
            num_generations: G.
            max_completion_length: tokens after which a completion is cut off.
            temperature: logits are divided by it.
            noise: of the sampling; None decodes greedily.
            on_token: called as tokens are made, with their number so far per row.
        """
