"""What training does when another process samples: measure how it differs, look ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from vrft.data.datamodule import ResumableLoader
from vrft.rollout import RemoteEngine, Sampling
from vrft.training.grpo import mismatch
from vrft.training.module import VisionModule
from vrft.types import PromptBatch, Rollout
from vrft.utils.distributed import raise_on_all_ranks


class RemoteRollouts(VisionModule):
    """Base of `RFT`. Without a remote engine it does nothing."""

    num_generations: int
    num_iterations: int
    num_minibatches: int
    sampling: Sampling
    importance_cap: float

    def from_ahead(self, batch: PromptBatch, advance: Callable[..., None]) -> Rollout:
        """The rollout that was begun a step ago, or a new one; and begin that of the next step."""
        pending = self.prefetcher.pop([sample.index for sample in batch.samples])
        if pending is None:
            rollout = self.completions(batch, self.num_generations, self.sampling, self.key(), advance)
        else:
            rollout = raise_on_all_ranks(self.trainer, pending.rollout.result)
        step = int(self.steps_done)
        self.log("train/staleness", 0.0 if pending is None else float(step - pending.step))
        loader = self.trainer.train_dataloader
        assert isinstance(loader, ResumableLoader)
        steps = self.num_iterations * self.num_minibatches
        if loader.next_batch is not None and self.trainer.global_step + steps != self.trainer.max_steps:
            self.begin_next(loader.next_batch.select(range(len(batch.samples))), step)
        return rollout

    def begin_next(self, batch: PromptBatch, step: int) -> None:
        """Sample for the step after this one, with the weights that this one begins with."""
        assert isinstance(self.engine, RemoteEngine)
        self.update_remote_weights(self.engine)
        settings = self.generation(self.sampling, replace(self.key(), rollout=step + 1), lambda *_: None)
        sample = partial(self.engine.generate, self.policy, batch, self.num_generations, **settings)
        self.prefetcher.submit([sample.index for sample in batch.samples], step, sample)

    def log_mismatch(self, log_ratio: Tensor) -> None:
        """Log how far the engine's log-probabilities were from the trainer's, over tokens (n,)."""
        found = mismatch(log_ratio, self.importance_cap)
        self.log("train/sampling_gap_max", found.gap_max, sync_dist=True, reduce_fx="max")
        for name in ("ratio_p01", "ratio_p50", "ratio_p99", "beyond"):
            self.log(f"train/importance/{name}", getattr(found, name), sync_dist=True)
