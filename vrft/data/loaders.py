"""Samplers and loaders with a seeded order, sharding over ranks, restarting workers and a resumable position."""

from __future__ import annotations

import signal
import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vrft.errors import ConfigurationError
from vrft.types import Sample

SIGCHLD: Any = getattr(signal, "SIGCHLD", None)
"""Signal of a worker's death. Windows has none; there, torch polls its workers every few seconds."""

MAX_CONSECUTIVE_DEATHS = 3
"""Number of worker deaths, with no batch in between, that ends a run."""


class ResumableSampler(Sampler[int]):
    """A fixed order of samples that can resume in the middle."""

    def __init__(self) -> None:
        self.start = 0
        """Samples to skip in the next pass, because an interrupted pass has yielded them."""

    @abstractmethod
    def order(self) -> Sequence[int]:
        """Return the indices of all samples in order."""

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        return iter(self.order()[start:])


class IndexSampler(ResumableSampler):
    """A sampler over a given list of indices."""

    def __init__(self, samples: Sequence[int]) -> None:
        super().__init__()
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def order(self) -> Sequence[int]:
        return self.samples


class PromptSampler(ResumableSampler):
    """A permutation of the dataset for each (seed, epoch), sharded over the ranks.

    Every rank gets the same number of full batches. A dataset smaller than one global batch is repeated to fill it, so
    that four images suffice for training.
    """

    def __init__(self, size: int, batch_size: int, rank: int, world_size: int, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.size, self.batch_size, self.rank, self.world_size = size, batch_size, rank, world_size
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def begin_pass(self) -> None:
        """Prepare the order of a pass that begins at its first sample."""

    def __len__(self) -> int:
        return max(1, self.size // (self.batch_size * self.world_size)) * self.batch_size

    def permutation(self) -> torch.Tensor:
        """Return the indices of the samples of a pass over the data in order, (size,)."""
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        return torch.randperm(self.size, generator=generator)

    def global_order(self) -> list[int]:
        """Return the indices of an epoch's samples on all ranks."""
        order = self.permutation()
        needed = len(self) * self.world_size
        indices: list[int] = order.repeat(-(-needed // self.size))[:needed].tolist()
        return indices

    def order(self) -> Sequence[int]:
        return self.global_order()[self.rank :: self.world_size]

    def global_batches(self) -> list[list[int]]:
        """Return the indices of the samples of each of an epoch's batches, on all ranks together."""
        order, size = self.global_order(), self.batch_size * self.world_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, besides seed and epoch, that determines the order of a pass."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""


class EpochSet(Dataset[Sample]):
    """A dataset whose samples depend on the epoch and the batch."""

    epoch = 0
    sampler: PromptSampler | None = None
    """The sampler of training; None outside of training."""


class WorkerRestartLoader(DataLoader[Sample]):
    """A DataLoader that restarts its workers where they were if one dies, e.g. by the out-of-memory killer."""

    dead_workers = 0
    first_batch = 0
    """Batches to skip in the next pass."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = self.batch_sampler  # for prediction, Lightning wraps the same sampler in another one
        yielded, self.first_batch = self.first_batch, 0
        deaths = 0
        while True:
            batches.sampler.start = yielded * batches.batch_size
            try:
                for batch in self._batches():
                    yielded, deaths = yielded + 1, 0
                    yield batch
                return
            except (RuntimeError, OSError, EOFError) as error:
                if self.num_workers == 0 or "in DataLoader worker process" in str(error):  # a live worker raised it
                    raise
                self.dead_workers, deaths = self.dead_workers + 1, deaths + 1
                if deaths == MAX_CONSECUTIVE_DEATHS:
                    raise ConfigurationError(
                        f"data.num_workers: {deaths} workers died in a row ({error}); {self.num_workers} may need more "
                        "memory than there is. With 0 the main process reads the data"
                    ) from error
                warnings.warn(f"a DataLoader worker died, restarting the workers: {error}", stacklevel=2)

    def _batches(self) -> Iterator[Any]:
        """Iterate over torch's loader, but detect dead workers while waiting for a batch, not in a signal handler.

        Torch's handler for SIGCHLD would raise in the middle of a training step. Torch installs it with the first
        loader with workers in a process, which may be another loader, e.g. of a user's callback.
        """
        before = None if SIGCHLD is None else signal.getsignal(SIGCHLD)
        batches: Any = super().__iter__()
        workers = batches._workers if self.num_workers else []
        if workers and handles_deaths():
            signal.signal(SIGCHLD, signal.SIG_DFL)
        try:
            while True:
                with raise_on_worker_death(workers):
                    try:
                        batch = next(batches)
                    except StopIteration:
                        return
                yield batch
        except KeyboardInterrupt:  # workers ignore signals, so the process would wait for the samples they read
            if handles_deaths():
                signal.signal(SIGCHLD, signal.SIG_DFL)  # torch's handler would raise another error for their deaths
            for worker in workers:
                worker.kill()
            raise
        finally:
            if workers:
                batches._shutdown_workers()
                if handles_deaths():
                    signal.signal(SIGCHLD, before or signal.SIG_DFL)


@contextmanager
def raise_on_worker_death(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Raise RuntimeError if a worker is dead or dies inside the block, which might wait for its batch forever."""

    def check(*_: Any) -> None:
        if dead := [worker.pid for worker in workers if worker.exitcode]:
            raise RuntimeError(f"worker {dead[0]} died")

    check()
    if not handles_deaths():
        yield
        return
    before = signal.signal(SIGCHLD, check)
    try:
        yield
    finally:
        signal.signal(SIGCHLD, before or signal.SIG_DFL)


def handles_deaths() -> bool:
    """Return whether this thread can set a handler for SIGCHLD: only the main thread can, and Windows has none."""
    return SIGCHLD is not None and threading.current_thread() is threading.main_thread()


class ResumableLoader(WorkerRestartLoader):
    """A loader whose position in the epoch is part of a checkpoint.

    The position counts samples over all ranks, so that a run can resume with another global batch size. Samples of a
    partial global batch are repeated.
    """

    sampler: PromptSampler

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.batch_size is not None
        self.global_batch = self.batch_size * self.sampler.world_size
        self.batches = 0
        """Batches yielded in this epoch."""
        self.prefetches = False
        """Read one batch ahead."""
        self.next_batch: Any = None
        """The prefetched batch that follows the last one yielded."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.first_batch == 0:
            self.sampler.begin_pass()
        if isinstance(self.dataset, EpochSet):
            self.dataset.epoch, self.dataset.sampler = self.sampler.epoch, self.sampler
        self.batches = self.first_batch
        batches = super().__iter__()
        self.next_batch = next(batches, None) if self.prefetches else None
        while (batch := self.next_batch if self.prefetches else next(batches, None)) is not None:
            self.next_batch = next(batches, None) if self.prefetches else None
            self.batches += 1
            yield batch

    def return_last_batch(self) -> None:
        """Uncount the last yielded batch, which was not trained on, so that a resumed run yields it again."""
        self.batches -= 1

    def state_dict(self) -> dict[str, Any]:
        samples = self.sampler.size if self.batches == len(self) else self.batches * self.global_batch
        return {"samples": samples, "epoch": self.sampler.epoch, **self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)
        finished = state["samples"] >= self.sampler.size
        self.batches = len(self) if finished else min(state["samples"] // self.global_batch, len(self))
        self.first_batch = self.batches % len(self)  # after an epoch's last batch, Lightning begins the next epoch
        self.sampler.set_epoch(state["epoch"])


def ignore_signals(worker: int) -> None:
    """Ignore stop signals in a worker. They often reach all processes, but the last step still needs data."""
    for number in signal.Signals:
        if number.name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            signal.signal(number, signal.SIG_IGN)
