"""The base class of data modules, and typed access to a trainer's parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from vrft.data.difficulty import Difficulty, DifficultySampler
from vrft.data.loaders import IndexSampler, PromptSampler, ResumableLoader, WorkerRestartLoader, ignore_signals
from vrft.errors import ConfigurationError
from vrft.tasks import Task
from vrft.types import PromptBatch, Sample
from vrft.utils.own_code import check_overrides


class TrainedModule(Protocol):
    """The interface of the trainer's module that loaders and evaluators use."""

    task: Task
    batches_per_step: int
    """Number of loader batches that are joined into one training step."""

    difficulty: Difficulty | None
    """Sampling of prompts by success rate; None: each prompt once per pass."""

    @property
    def prefetches(self) -> bool:
        """Whether a training step needs the batch of the next one."""

    @property
    def encoder(self) -> Callable[[list[Sample]], PromptBatch]:
        """The loaders' collate function."""

    def compare_prompts(self, batch: PromptBatch) -> PromptBatch:
        """Find shared prefixes of the prompts, before the batch is moved to a GPU."""

    @property
    def logged_step(self) -> int:
        """The step for loggers: the number of rollouts before the current one."""


def module_of(trainer: Trainer) -> TrainedModule:
    """Return the trainer's module, typed."""
    return cast(TrainedModule, trainer.lightning_module)


def data_of(trainer: Trainer) -> VisionData:
    """Return the trainer's data module, typed."""
    data: VisionData = trainer.datamodule  # type: ignore[attr-defined]  # Lightning doesn't declare it
    return data


def train_loader_of(trainer: Trainer) -> ResumableLoader:
    """Return the trainer's loader of training batches, typed."""
    return cast(ResumableLoader, trainer.train_dataloader)


class VisionData(LightningDataModule):
    """Base class of data modules: a training and a held-out dataset, which a subclass provides.

    `batch_size` counts prompts per rank and step. The policy's encoder turns samples into prompts in the workers.
    """

    shuffle = True

    def __init__(self, batch_size: int, eval_batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        check_overrides(self, VisionData)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.predicts: Literal["train", "val", "test"] = "val"
        """Samples that `predict` asks about: training, held-out or test samples."""

    @abstractmethod
    def train_set(self) -> Dataset[Sample]:
        """Return the training samples."""

    @abstractmethod
    def val_set(self) -> Dataset[Sample]:
        """Return the held-out samples."""

    def train_dataloader(self) -> ResumableLoader:
        samples = self.train_set()
        if not len(samples):  # type: ignore[arg-type]
            raise ConfigurationError("data: expected at least one training sample")
        rank, world_size = self._rank_and_world_size()
        assert self.trainer is not None
        module = module_of(self.trainer)
        batch_size = self.batch_size * module.batches_per_step
        settings = len(samples), batch_size, rank, world_size, self.seed, self.shuffle  # type: ignore[arg-type]
        sampler = PromptSampler(*settings)
        if module.difficulty is not None:
            sampler = DifficultySampler(*settings, module.difficulty, self.train_fingerprints())
        loader = ResumableLoader(samples, batch_size=batch_size, sampler=sampler, **self._workers())
        loader.prefetches = module.prefetches
        return loader

    def train_fingerprints(self) -> Sequence[int] | None:
        """Return a hash of each training sample, by which a resumed run recognises it. Default: None, unknown."""
        return None

    def images_per_turn(self) -> list[int]:
        """Return the maximum number of images of each few-shot example, then of a question. Call after `setup`."""
        return [1]

    def images_per_prompt(self) -> int:
        """Return the largest number of images in a prompt. Call after `setup`."""
        return sum(self.images_per_turn())

    def test_set(self) -> Dataset[Sample]:
        """Return the samples of a test; by default, the held-out samples."""
        return self.val_set()

    def evaluated_set(self) -> Dataset[Sample]:
        """Return the samples that the current command asks about: test samples or held-out samples."""
        return self.test_set() if self.is_testing else self.val_set()

    @property
    def is_testing(self) -> bool:
        """Whether the current command asks about test samples."""
        trainer = self.trainer
        return trainer is not None and (trainer.testing or (trainer.predicting and self.predicts == "test"))

    def val_dataloader(self) -> DataLoader[Sample]:
        samples = self.evaluated_set()
        size = len(samples)  # type: ignore[arg-type]
        sampler = IndexSampler([index % size for index in self.rank_range(size)])
        return WorkerRestartLoader(samples, batch_size=self.eval_batch_size, sampler=sampler, **self._workers())

    def rank_range(self, size: int) -> range:
        """Return this rank's shard of `size` held-out samples, contiguous to keep questions about an image together.

        All shards have the same length; an index of `size` or more repeats a sample of another rank.
        """
        rank, world_size = self._rank_and_world_size()
        shard_size = -(-size // world_size)
        return range(rank * shard_size, (rank + 1) * shard_size)

    def is_owned_by_rank(self, sample: Sample) -> bool:
        """Return whether a held-out sample belongs to this rank's shard. Other ranks may repeat it as padding."""
        return sample.index in self.rank_range(len(self.evaluated_set()))  # type: ignore[arg-type]

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def on_before_batch_transfer(self, batch: PromptBatch, dataloader_idx: int) -> PromptBatch:
        assert self.trainer is not None
        return module_of(self.trainer).compare_prompts(batch)

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        def move(key: str, value: torch.Tensor) -> torch.Tensor:
            # the CPU computes the vision tower's indices from the grid of patches
            return value if key.endswith("_grid_thw") else value.to(device, non_blocking=True)

        return batch.map(move)

    def _rank_and_world_size(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _workers(self) -> dict[str, Any]:
        assert self.trainer is not None
        encoder = module_of(self.trainer).encoder
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "collate_fn": encoder,
            "worker_init_fn": ignore_signals,
            "pin_memory": on_gpu,
        }
