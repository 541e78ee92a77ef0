"""Rollouts that are sampled in the background, one step ahead."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lightning.pytorch import Trainer
from torch import Tensor

from vrft.errors import RolloutFailed
from vrft.rollout.base import RemoteEngine
from vrft.training.grpo import mismatch
from vrft.types import Rollout


@dataclass(frozen=True)
class Pending:
    """Completions that are being sampled: of which samples, in which step it began, and what they will be."""

    samples: list[int]
    step: int
    rollout: Future[Rollout]


class RolloutPrefetcher:
    """At most one rollout that is sampled in the background."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.pending: Pending | None = None

    def submit(self, samples: list[int], step: int, sample: Callable[[], Rollout]) -> None:
        """Start."""
        self.pool = self.pool or ThreadPoolExecutor(1, "rollout")
        self.pending = Pending(samples, step, self.pool.submit(sample))

    def pop(self, samples: list[int]) -> Pending | None:
        """What was begun for these samples. Of others it is waited for and forgotten: it needs its weights."""
        if self.pending is not None and self.pending.samples != samples:
            self.join()
            self.pending = None
        pending, self.pending = self.pending, None
        return pending

    def join(self) -> None:
        """Until nothing is being sampled, so that weights can change."""
        if self.pending is not None:
            self.pending.rollout.exception()


def check_logprob_gap(trainer: Trainer, engine: RemoteEngine, log_ratio: Tensor, top_p: float) -> None:
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
