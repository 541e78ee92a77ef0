"""Sample rollouts in the background, one step ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vrft.types import Rollout


@dataclass(frozen=True)
class Pending:
    """A rollout that is being sampled."""

    samples: list[int]  # indices of its P samples
    step: int  # the training step whose initial weights sample it
    rollout: Future[Rollout]


class RolloutPrefetcher:
    """Samples at most one rollout in the background."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.pending: Pending | None = None

    def submit(self, samples: list[int], step: int, sample: Callable[[], Rollout]) -> None:
        """Start sampling."""
        self.pool = self.pool or ThreadPoolExecutor(1, "rollout")
        self.pending = Pending(samples, step, self.pool.submit(sample))

    def pop(self, samples: list[int]) -> Pending | None:
        """Return the pending rollout if it is for these samples. Wait for any other rollout and drop it."""
        if self.pending is not None and self.pending.samples != samples:
            self.join()
            self.pending = None
        pending, self.pending = self.pending, None
        return pending

    def join(self) -> None:
        """Wait for the pending rollout, so that the weights can change."""
        if self.pending is not None:
            self.pending.rollout.exception()
