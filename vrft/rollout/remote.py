"""Engines that are not the trainer: their weights are copies, and their arithmetic is their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vrft.errors import ConfigurationError
from vrft.grpo import mismatch
from vrft.policy import Policy
from vrft.rollout.base import RolloutEngine
from vrft.tasks import Task
from vrft.types import Rollout

Result = TypeVar("Result")


class RolloutFailed(RuntimeError):
    """No completions that can be trained on: a run saves what it has learnt and ends with this message."""


class RolloutRefused(RolloutFailed, ConfigurationError):
    """The same, for a reason that the user can mend."""


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
    def publish(self, policy: Policy, first: bool) -> None:
        """Write the policy's weights, which have changed. All ranks call it together; the `first` one writes."""

    @abstractmethod
    def take_over(self) -> None:
        """Let all that sample take the weights over that were published last, as far as they can at the moment."""

    @abstractmethod
    def stop(self) -> None:
        """Let what is being sampled end soon, by RolloutFailed."""

    @abstractmethod
    def clear(self) -> None:
        """Remove the files of the weights that were published last, if any were."""


@dataclass(frozen=True)
class Pending:
    """Completions that are being sampled: of which samples, in which step it began, and what they will be."""

    samples: list[int]
    step: int
    rollout: Future[Rollout]


class Ahead:
    """At most one rollout that is sampled in the background."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.pending: Pending | None = None

    def begin(self, samples: list[int], step: int, sample: Callable[[], Rollout]) -> None:
        """Start."""
        self.pool = self.pool or ThreadPoolExecutor(1, "rollout")
        self.pending = Pending(samples, step, self.pool.submit(sample))

    def take(self, samples: list[int]) -> Pending | None:
        """What was begun for these samples. Of others it is waited for and forgotten: it needs its weights."""
        if self.pending is not None and self.pending.samples != samples:
            self.wait()
            self.pending = None
        pending, self.pending = self.pending, None
        return pending

    def wait(self) -> None:
        """Until nothing is being sampled, so that weights can change."""
        if self.pending is not None:
            self.pending.rollout.exception()


def refuse_gap(trainer: Trainer, engine: RemoteEngine, log_ratio: Tensor, top_p: float) -> None:
    """Raise RolloutFailed on all ranks if log-ratios of tokens (n,) are beyond what an engine may differ by.

    What top-p leaves out may be up to 1 - top_p of the probability; the sampler's are larger by as much.
    """
    gap = float(trainer.strategy.reduce(mismatch(log_ratio, cap=1.0).gap, reduce_op="mean"))
    allowed = engine.max_gap - math.log(top_p)
    if gap > allowed:
        raise RolloutFailed(
            f"the rollout engine's log-probabilities differ from the trainer's by {gap:.3g} on average, more than "
            f"{allowed:.3g} (model.engine.max_gap): completions of other weights are of no use. Prompts, "
            "image tokens and the version of the weights agree, so what does not train may differ: another "
            "checkpoint, a head that is tied on one side, adapters or images that one side leaves out"
        )


def together(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """The result of a rank's work; if that of any rank fails, all of them raise its error."""
    error: RolloutFailed | ConfigurationError | None = None
    try:
        result = work()
    except (RolloutFailed, ConfigurationError) as problem:
        error = problem
    strategy = trainer.strategy
    rank = trainer.global_rank if error is not None else -1
    failed = int(strategy.reduce(torch.tensor(float(rank), device=strategy.root_device), reduce_op="max"))
    if failed >= 0:
        error = strategy.broadcast(error, src=failed)
        assert error is not None
        raise error
    return result
