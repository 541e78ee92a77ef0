"""Loaders that every data source shares: seeded order, sharding over ranks, a position that a checkpoint can keep."""

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
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from vrft.errors import ConfigurationError
from vrft.types import PromptBatch, Sample

MAX_DEATHS = 3
"""Workers that may die one after the other, without a batch between them, before a run ends."""


class ResumableSampler(Sampler[int]):
    """A fixed order of samples that can be gone on with from the middle."""

    def __init__(self) -> None:
        self.start = 0
        """Samples to leave out the next time, because they have been handed out before."""

    @abstractmethod
    def order(self) -> Sequence[int]:
        """All samples."""

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        return iter(self.order()[start:])


class IndexSampler(ResumableSampler):
    """A list of samples."""

    def __init__(self, samples: Sequence[int]) -> None:
        super().__init__()
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def order(self) -> Sequence[int]:
        return self.samples


class PromptSampler(ResumableSampler):
    """A permutation of the data set for each (seed, epoch), dealt out to the ranks in turn.

    Every rank gets the same number of full batches. A data set smaller than one global batch is repeated to fill it, so
    that four images are enough to train on.
    """

    def __init__(self, size: int, batch_size: int, rank: int, world_size: int, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.size, self.batch_size, self.rank, self.world_size = size, batch_size, rank, world_size
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, self.size // (self.batch_size * self.world_size)) * self.batch_size

    def order(self) -> Sequence[int]:
        order = torch.arange(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
            order = torch.randperm(self.size, generator=generator)
        needed = len(self) * self.world_size
        order = order.repeat(-(-needed // self.size))[:needed]
        dealt: list[int] = order[self.rank :: self.world_size].tolist()
        return dealt


class AugmentedSet(Dataset[Sample]):
    """Samples that are different in every epoch."""

    epoch = 0


class WorkerRestartLoader(DataLoader[Sample]):
    """A DataLoader whose workers may die, by the hand of a system short of memory: others take over where they were."""

    dead_workers = 0
    first_batch = 0
    """Batches to leave out the next time."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = self.batch_sampler  # Lightning makes another one to predict, around the same sampler
        handed_out, self.first_batch = self.first_batch, 0
        deaths = 0
        while True:
            batches.sampler.start = handed_out * batches.batch_size
            try:
                for batch in self._batches():
                    handed_out, deaths = handed_out + 1, 0
                    yield batch
                return
            except (RuntimeError, OSError, EOFError) as error:
                if self.num_workers == 0 or "in DataLoader worker process" in str(error):  # what a worker raised
                    raise
                self.dead_workers, deaths = self.dead_workers + 1, deaths + 1
                if deaths == MAX_DEATHS:
                    raise ConfigurationError(
                        f"data.num_workers: {deaths} workers died one after the other ({error}); is there memory for "
                        f"{self.num_workers}? With 0 the run itself reads the data"
                    ) from error
                warnings.warn(f"a worker that reads data died, others go on: {error}", stacklevel=2)

    def _batches(self) -> Iterator[Any]:
        """Torch's own. A death is found while a batch is waited for, not by a handler in the middle of a step."""
        before = signal.getsignal(signal.SIGCHLD)
        batches: Any = super().__iter__()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        workers = batches._workers if self.num_workers else []
        while True:
            with deaths_raise(workers):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch


@contextmanager
def deaths_raise(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """RuntimeError if a worker has died or dies meanwhile: of what it was sending, the rest would be waited for."""

    def look(*_: Any) -> None:
        if dead := [worker.pid for worker in workers if worker.exitcode]:
            raise RuntimeError(f"worker {dead[0]} died")

    look()
    if threading.current_thread() is not threading.main_thread():  # no other can have handlers
        yield
        return
    before = signal.signal(signal.SIGCHLD, look)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


class ResumableLoader(WorkerRestartLoader):
    """A loader that tells a checkpoint how much of the epoch all ranks have had, and goes on from there.

    That is counted in samples, so that a run can go on with another global batch. If what it has had is no multiple of
    that, it is given the remainder again.
    """

    sampler: PromptSampler

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.batch_size is not None
        self.global_batch = self.batch_size * self.sampler.world_size
        self.batches = 0  # of this epoch that were handed out
        self.prefetches = False
        """Read each batch before it is asked for."""
        self.next_batch: Any = None
        """The batch after the last one that was handed out, if it was read ahead."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if isinstance(self.dataset, AugmentedSet):
            self.dataset.epoch = self.sampler.epoch
        self.batches = self.first_batch
        batches = super().__iter__()
        self.next_batch = next(batches, None) if self.prefetches else None
        while (batch := self.next_batch if self.prefetches else next(batches, None)) is not None:
            self.next_batch = next(batches, None) if self.prefetches else None
            self.batches += 1
            yield batch

    def take_back(self) -> None:
        """The last batch that was handed out was not trained on."""
        self.batches -= 1

    def state_dict(self) -> dict[str, int]:
        samples = self.sampler.size if self.batches == len(self) else self.batches * self.global_batch
        return {"samples": samples, "epoch": self.sampler.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        whole = state["samples"] >= self.sampler.size
        self.batches = len(self) if whole else min(state["samples"] // self.global_batch, len(self))
        self.first_batch = self.batches % len(self)  # after an epoch's last batch, Lightning begins the next epoch
        self.sampler.set_epoch(state["epoch"])


class VisionData(LightningDataModule):
    """A train and a held-out set of samples. A subclass says where they come from.

    `batch_size` is prompts per rank and step; the policy turns samples into prompts in the loader's workers.
    """

    shuffle = True

    def __init__(self, batch_size: int, eval_batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed

    @abstractmethod
    def train_set(self) -> Dataset[Sample]:
        """Samples to train on."""

    @abstractmethod
    def val_set(self) -> Dataset[Sample]:
        """Held-out samples."""

    def train_dataloader(self) -> ResumableLoader:
        samples = self.train_set()
        if not len(samples):  # type: ignore[arg-type]
            raise ConfigurationError("data: there is nothing to train on")
        rank, world_size = self._rank_and_world_size()
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        batch_size = self.batch_size * module.batches_per_step
        sampler = PromptSampler(len(samples), batch_size, rank, world_size, self.seed, self.shuffle)  # type: ignore[arg-type]
        loader = ResumableLoader(samples, batch_size=batch_size, sampler=sampler, **self._workers())
        loader.prefetches = module.prefetches
        return loader

    def val_dataloader(self) -> DataLoader[Sample]:
        samples = self.val_set()
        size = len(samples)  # type: ignore[arg-type]
        mine = IndexSampler([index % size for index in self.rank_range(size)])
        return WorkerRestartLoader(samples, batch_size=self.eval_batch_size, sampler=mine, **self._workers())

    def rank_range(self, size: int) -> range:
        """This rank's held-out samples: a part of the whole, so that questions about one image stay together.

        Ranks take equal steps; what is beyond `size` is a sample of another rank, taken again.
        """
        rank, world_size = self._rank_and_world_size()
        each = -(-size // world_size)
        return range(rank * each, (rank + 1) * each)

    def is_owned_by_rank(self, sample: Sample) -> bool:
        """Whether this rank is the one whose answer to a held-out sample counts in means over all ranks."""
        return sample.index in self.rank_range(len(self.val_set()))  # type: ignore[arg-type]

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        inputs = [
            {key: value.to(device, non_blocking=True) for key, value in prompt.items()} for prompt in batch.inputs
        ]
        return PromptBatch(batch.samples, batch.frames, inputs)

    def _rank_and_world_size(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _workers(self) -> dict[str, Any]:
        assert self.trainer is not None
        encoder = self.trainer.lightning_module.encoder
        return {"num_workers": self.num_workers, "collate_fn": encoder, "worker_init_fn": ignore_signals}


def ignore_signals(worker: int) -> None:
    """A signal that stops a run often reaches all of its processes; its last step still needs the loaders' workers."""
    for number in signal.Signals:
        if number.name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            signal.signal(number, signal.SIG_IGN)
