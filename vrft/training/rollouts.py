"""Obtain completions for training from the policy in this process or from servers with copies of its weights.

Only `rollouts_for` distinguishes engines.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vrft.data.datamodule import data_of
from vrft.errors import ConfigurationError, RolloutFailed
from vrft.policy import Policy
from vrft.rollout import RemoteEngine, RolloutEngine, Sampling, SamplingKey
from vrft.run_dir import RunDir
from vrft.tasks import Task
from vrft.training.gpu_room import GPURoom
from vrft.training.importance import ImportanceSampling, Mismatch, mismatch
from vrft.training.prefetch import RolloutPrefetcher
from vrft.training.step_state import StepState
from vrft.training.strategies import parallelism_of
from vrft.types import PromptBatch, Rollout
from vrft.utils.distributed import raise_on_all_ranks
from vrft.utils.out_of_memory import free_memory, is_out_of_memory

OnToken = Callable[..., None]


@dataclass(frozen=True)
class Generation:
    """Settings of a rollout."""

    num_generations: int  # G
    max_completion_length: int
    sampling: Sampling
    key: SamplingKey


class Rollouts:
    """Obtains completions from an engine for a module.

    Attributes:
        prefetches: whether the next step's rollout is sampled while this step trains.
        importance_sampling: default correction for the engine's distribution.
    """

    engine: RolloutEngine
    prefetches = False
    importance_sampling: ImportanceSampling = "none"

    @abstractmethod
    def generate(self, batch: PromptBatch, generation: Generation, on_token: OnToken) -> Rollout:
        """Return G completions for each of P prompts.

        Raises:
            torch.OutOfMemoryError: a single row does not fit in memory, or other ranks wait for this rank in a forward.
            RolloutFailed: the engine returns no completions, or completions of other weights, on any rank.
        """

    def prefetched(self, batch: PromptBatch, generation: Generation, on_token: OnToken) -> tuple[Rollout, int]:
        """Return the prefetched rollout of a batch, or else a new one, and the age of its weights in steps."""
        return self.generate(batch, generation, on_token), 0

    def prefetch(self, batch: PromptBatch, generation: Generation, then: Callable[[Rollout], None]) -> None:
        """Start sampling the rollout of the next step. The sampling thread passes the result to `then`."""

    def begin_step(self) -> None:
        """Reset the measurements of `check`."""

    def check(self, log_ratio: Callable[[], Tensor], top_p: float) -> None:
        """Raise RolloutFailed if the engine's log-probabilities are too far from the trainer's.

        Args:
            log_ratio: returns log pi_old - log pi_sampler of some tokens, 1-D.
            top_p: top-p of the sampling distribution.
        """

    def mismatch(self, cap: float) -> Mismatch | None:
        """Return the mismatch over all tokens that were checked in this step, or None if the policy itself samples."""
        return None

    def connect(self) -> None:
        """Prepare the engine after the policy is loaded."""

    def weights_changed(self) -> None:
        """Mark copies of the weights as outdated."""

    def begin_stage(self) -> None:
        """Check the engine again in its next rollout."""

    def end_stage(self) -> None:
        """Free the resources for the rollouts of an evaluation."""

    def interrupt(self) -> None:
        """Make rollouts that wait for other processes raise RolloutFailed. Can be called from any thread."""

    def release(self) -> None:
        """Stop sampling and free the engine's resources between stages."""

    def close(self) -> None:
        """End the processes that the engine has started, after the last stage."""


def rollouts_for(
    engine: RolloutEngine, module: LightningModule, policy: Policy, task: Task, step: StepState
) -> Rollouts:
    """Return the Rollouts for an engine."""
    if isinstance(engine, RemoteEngine):
        return RemoteRollouts(engine, module, policy, task)
    return LocalRollouts(engine, module, policy, step)


class LocalRollouts(Rollouts):
    """Samples in this process. If memory runs out, samples fewer completions at a time."""

    def __init__(self, engine: RolloutEngine, module: LightningModule, policy: Policy, step: StepState) -> None:
        self.engine, self.module, self.policy, self.state = engine, module, policy, step
        self.max_rollout_rows = sys.maxsize

    def generate(self, batch: PromptBatch, generation: Generation, on_token: OnToken) -> Rollout:
        rows = len(batch.samples) * generation.num_generations
        while True:
            try:
                return self._in_parts(batch, generation, on_token)
            except RuntimeError as error:
                if not is_out_of_memory(error) or parallelism_of(self.module.trainer).waits_for_all_ranks:
                    raise
                if min(self.max_rollout_rows, rows) == 1:
                    raise
            self.max_rollout_rows = min(self.max_rollout_rows, rows) // 2
            self.state.out_of_memory += 1
            self.policy.decoding.free()
            free_memory(f"rollouts are of at most {self.max_rollout_rows} completions at a time")

    def _in_parts(self, batch: PromptBatch, generation: Generation, on_token: OnToken) -> Rollout:
        """Sample at most `max_rollout_rows` rows at a time: several prompts, or part of a prompt's generations."""
        num_prompts, num_generations, key = len(batch.samples), generation.num_generations, generation.key
        prompts = max(1, self.max_rollout_rows // num_generations)
        generations = min(num_generations, self.max_rollout_rows)
        parts = [
            self.engine.generate(
                self.policy,
                batch.select(range(p, min(p + prompts, num_prompts))),
                min(generations, num_generations - g),
                max_completion_length=generation.max_completion_length,
                sampling=generation.sampling,
                key=replace(key, first=key.first + p, first_generation=g),
                on_token=on_token,
            )
            for p in range(0, num_prompts, prompts)
            for g in range(0, num_generations, generations)
        ]
        return Rollout.join(parts)


class RemoteRollouts(Rollouts):
    """Samples on servers with copies of the weights. Updates the copies and checks the servers' log-probabilities."""

    engine: RemoteEngine
    importance_sampling = "truncate"

    def __init__(self, engine: RemoteEngine, module: LightningModule, policy: Policy, task: Task) -> None:
        self.engine, self.module, self.policy, self.task = engine, module, policy, task
        engine.check(policy)
        self.prefetches = engine.one_step_ahead
        self.prefetcher = RolloutPrefetcher()
        self.room = GPURoom(module, policy)
        self.outdated = True  # whether the servers' weights differ from the policy's
        self.checked = False  # whether log-probabilities were compared in this stage
        self.checked_wakings = 0  # the engine's `wakings` at that time
        self.log_ratios: list[Tensor] = []

    @property
    def trainer(self) -> Trainer:
        return self.module.trainer

    def connect(self) -> None:
        run = self.trainer.strategy.broadcast(uuid4().hex[:8])
        folder = RunDir.of(self.trainer).path
        if self.engine.gpu_share and self.trainer.world_size > 1:
            raise ConfigurationError(
                f"model.engine.colocated: expected one process, got {self.trainer.world_size}; with several GPUs, name "
                "servers on other GPUs (model.engine.urls)"
            )
        self.room.make(self.engine.gpu_share)
        images = data_of(self.trainer).images_per_prompt()
        raise_on_all_ranks(self.trainer, partial(self.engine.connect, self.policy, self.task, folder, run, images))
        self.room.give_back()

    def generate(self, batch: PromptBatch, generation: Generation, on_token: OnToken) -> Rollout:
        self._update_weights()
        self.room.make(self.engine.gpu_share)
        rollout = raise_on_all_ranks(self.trainer, self._sample(batch, generation, on_token))
        if self.trainer.training:  # an evaluation is one long rollout
            self._leave_gpu()
        # in training, `check` compares the rollout of each step
        if not self.checked or (not self.trainer.training and self.checked_wakings < self.engine.wakings):
            self.checked, self.checked_wakings = True, self.engine.wakings
            self._check_first_prompt(batch, rollout, generation.sampling)
        return rollout

    def _leave_gpu(self) -> None:
        """Make the engine leave this GPU, and bring back the tensors that were offloaded for it."""
        self.engine.sleep()
        self.room.give_back()

    def _sample(self, batch: PromptBatch, generation: Generation, on_token: OnToken) -> Callable[[], Rollout]:
        return partial(
            self.engine.generate,
            self.policy,
            batch,
            generation.num_generations,
            max_completion_length=generation.max_completion_length,
            sampling=generation.sampling,
            key=generation.key,
            on_token=on_token,
        )

    def prefetched(self, batch: PromptBatch, generation: Generation, on_token: OnToken) -> tuple[Rollout, int]:
        pending = self.prefetcher.pop([sample.index for sample in batch.samples])
        if pending is None:
            return self.generate(batch, generation, on_token), 0
        rollout = raise_on_all_ranks(self.trainer, pending.rollout.result)
        return rollout, generation.key.rollout - pending.step

    def prefetch(self, batch: PromptBatch, generation: Generation, then: Callable[[Rollout], None]) -> None:
        """Start sampling the next step's rollout with the weights at the start of this step."""
        self._update_weights()
        step, key = generation.key.rollout, replace(generation.key, rollout=generation.key.rollout + 1)
        sample_next = self._sample(batch, replace(generation, key=key), lambda *_: None)

        def sample() -> Rollout:
            rollout = sample_next()
            then(rollout)
            return rollout

        self.prefetcher.submit([sample.index for sample in batch.samples], step, sample)

    def _update_weights(self) -> None:
        """Update the servers if the weights have changed, once no rollout with the old weights is running."""
        if not self.outdated:
            return
        self.prefetcher.join()
        first = self.trainer.is_global_zero
        raise_on_all_ranks(self.trainer, partial(self.engine.write_weights, self.policy, first))
        raise_on_all_ranks(self.trainer, self.engine.update_servers if first else lambda: None)
        self.outdated = False

    @torch.no_grad()
    def _check_first_prompt(self, batch: PromptBatch, rollout: Rollout, sampling: Sampling) -> None:
        """Compare the engine's log-probabilities of the first prompt with the trainer's own."""
        group = slice(0, len(rollout.ids) // len(batch.samples))
        ids, mask = rollout.ids[group], rollout.mask[group]
        own, _ = self.policy(batch.inputs[:1], ids, mask, sampling.temperature, entropy=False)  # (G, T)
        self._check_logprob_gap((own - rollout.log_probs[group])[mask.bool()], sampling.top_p)

    def begin_step(self) -> None:
        self.log_ratios = []

    def check(self, log_ratio: Callable[[], Tensor], top_p: float) -> None:
        self.log_ratios.append(log_ratio())
        self._check_logprob_gap(self.log_ratios[-1], top_p)

    def _check_logprob_gap(self, log_ratio: Tensor, top_p: float) -> None:
        """Raise RolloutFailed on all ranks if the mean |log-ratio| of tokens, 1-D, exceeds the engine's `max_gap`.

        Top-p truncation leaves at least a probability of top_p, by which the sampler divides: allow -log(top_p) more.
        """
        gap = float(self.trainer.strategy.reduce(mismatch(log_ratio, cap=1.0).gap, reduce_op="mean"))
        allowed = self.engine.max_gap - math.log(top_p)
        if gap > allowed:
            raise RolloutFailed(
                f"the rollout engine's log-probabilities differ from the trainer's by {gap:.3g} on average, more than "
                f"{allowed:.3g} (model.engine.max_gap): completions of other weights can't be trained on. Prompts, "
                "image tokens and the version of the weights agree, so frozen parts may differ: another checkpoint, a "
                "head that is tied on one side, adapters or images that one side leaves out"
            )

    def mismatch(self, cap: float) -> Mismatch | None:
        return mismatch(torch.cat(self.log_ratios), cap)

    def weights_changed(self) -> None:
        self.outdated = True

    def begin_stage(self) -> None:
        self.checked = False

    def end_stage(self) -> None:
        self._leave_gpu()

    def interrupt(self) -> None:
        self.engine.stop()

    def release(self) -> None:
        """Stop sampling and remove the files of the weights, which are as large as the model."""
        self.engine.stop()
        self.outdated, self.checked = True, False
        if self.trainer.is_global_zero:
            self.engine.remove()
        self.room.give_back()

    def close(self) -> None:
        self.engine.close()
