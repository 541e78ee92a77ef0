"""Collect the scored completions of a training step: sampling, parsing, scoring and dynamic sampling (DAPO)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vrft.data.datamodule import train_loader_of
from vrft.data.difficulty import DifficultySampler
from vrft.rewards import Reward
from vrft.rollout import Sampling
from vrft.training.grpo import overlong_penalty, replace_zero_variance
from vrft.training.module import VisionModule
from vrft.training.objective import Objective
from vrft.training.oversampling import max_variance_subset
from vrft.training.rollouts import Generation
from vrft.training.scoring import finite_means, parse_completions
from vrft.training.self_judge import SelfJudge, self_judges
from vrft.types import Answer, PromptBatch, Rollout, Sample, ScoredRollout
from vrft.utils.distributed import raise_on_all_ranks


class Collector:
    """Samples S completions for each prompt of a step, scores them, and keeps G to train on."""

    def __init__(
        self,
        module: VisionModule,
        objective: Objective,
        sampling: Sampling,
        num_samples: int,
        num_generations: int,
        overlong_buffer: int,
        optimizer_steps: int,
        reference: Callable[[PromptBatch, Rollout], Tensor] | None,
    ) -> None:
        """Set the parameters that all steps share.

        Args:
            module: the trained module.
            objective: defines which groups have zero variance.
            sampling: the sampling distribution.
            num_samples: completions per prompt to sample and score, S.
            num_generations: completions per prompt to train on, G.
            overlong_buffer: tokens before the limit over which the reward decreases by up to 1; 0: off.
            optimizer_steps: optimizer steps per training step.
            reference: returns the log-probabilities of completions under the reference, (N, T); None if not needed.
        """
        self.module, self.objective, self.sampling = module, objective, sampling
        self.num_samples, self.num_generations = num_samples, num_generations
        self.overlong_buffer = overlong_buffer
        self.optimizer_steps, self.reference = optimizer_steps, reference

    def __call__(self, batch: PromptBatch) -> ScoredRollout:
        """Sample and score the first P prompts. Dynamic sampling replaces groups with zero variance by later ones."""
        prompts = len(batch.samples) // self.module.batches_per_step  # P
        scored = self.score(*self.rollout(batch.select(range(prompts)), 0))
        for start in range(prompts, len(batch.samples), prompts):
            enough = int((~self.zero_variance(scored)).sum()) >= prompts
            if self.module.trainer.strategy.reduce_boolean_decision(enough, all=True):
                break
            more = batch.select(range(start, start + prompts))
            scored = scored.join(self.score(*self.rollout(more, start)))
        zero_variance = self.zero_variance(scored)  # (P or more,)
        self.log(scored, zero_variance, prompts)
        self.record_success(scored)
        scored = scored.select(replace_zero_variance(zero_variance, prompts))
        if self.num_samples == self.num_generations:
            return scored
        return scored.keep(max_variance_subset(scored.reward, self.num_generations).tolist())

    def record_success(self, scored: ScoredRollout) -> None:
        """Add the completions of all ranks to the success rates, which weight the prompts in the next pass."""
        if (difficulty := self.module.difficulty) is None:
            return
        sampler = train_loader_of(self.module.trainer).sampler
        assert isinstance(sampler, DifficultySampler)
        successes, answers = difficulty.successes(scored.rewards[difficulty.reward].view_as(scored.reward))
        own = torch.tensor([sample.index for sample in scored.samples], device=successes.device)
        everyone = self.module.all_gather(torch.stack([own, successes, answers], 1).to(self.module.device))
        assert isinstance(everyone, Tensor)
        sampler.rates.record(everyone.view(-1, 3).tolist())
        _, right, asked = everyone.view(-1, 3).sum(0).tolist()
        self.module.log("train/success_rate", right / max(asked, 1))

    def zero_variance(self, scored: ScoredRollout) -> Tensor:
        """Return which groups have zero variance, (P,) bool."""
        return self.objective.zero_variance(self.objective.signal(scored, self.module.rewards))

    @property
    def remote(self) -> list[Reward]:
        """The rewards that other processes compute."""
        return [reward for reward in self.module.rewards.values() if reward.remote]

    @property
    def overlaps(self) -> bool:
        """Whether to run the reference while remote rewards score.

        False if the reference is not needed for all sampled completions, or if completions are prefetched, because
        these are scored in advance.
        """
        runs_for_all = self.num_samples == self.num_generations and self.module.batches_per_step == 1
        return bool(self.remote) and runs_for_all and not self.module.prefetches

    def rollout(self, batch: PromptBatch, first: int) -> tuple[PromptBatch, Rollout]:
        """Sample S completions for each prompt. `first`: number of this step's prompts that were sampled before."""
        module, length = self.module, self.module.max_completion_length
        generation = Generation(self.num_samples, length, self.sampling, module.sampling_key(first))
        with module.step.phase("rollout", length) as advance:
            prepared = module.policy.prepare(batch)
            if module.prefetches and first == 0:
                rollout = self.prefetched_rollout(prepared, generation, advance)
            else:
                rollout = module.rollouts.generate(prepared, generation, advance)
        module.check_sharing(module.trainer, module.policy, batch, rollout.ids, rollout.mask)
        return prepared, rollout

    def prefetched_rollout(self, batch: PromptBatch, generation: Generation, advance: Callable[..., None]) -> Rollout:
        """Return the rollout that was sampled during the last step, and start sampling the rollout of the next step."""
        module = self.module
        rollout, staleness = module.rollouts.prefetched(batch, generation, advance)
        module.log("train/staleness", float(staleness))
        next_batch = train_loader_of(module.trainer).next_batch
        if next_batch is not None and module.trainer.global_step + self.optimizer_steps != module.trainer.max_steps:
            prompts = next_batch.select(range(len(batch.samples)))
            module.rollouts.prefetch(prompts, generation, partial(self.score_ahead, prompts))
        return rollout

    def score_ahead(self, batch: PromptBatch, rollout: Rollout) -> None:
        """Make remote rewards score the next step's completions while this step trains."""
        if self.remote:
            answers, samples = parse_completions(self.module.task, rollout, batch)
            for reward in self.remote:
                reward.ahead(answers, samples)

    def score(self, batch: PromptBatch, rollout: Rollout) -> ScoredRollout:
        """Parse and score the completions. Remote rewards run concurrently with other rewards and the reference."""
        module = self.module
        with module.step.phase("reward", 1):
            answers, samples = parse_completions(module.task, rollout, batch)
            for reward in [] if module.prefetches else self.remote:
                reward.ahead(answers, samples)
        reference = self.reference(batch, rollout) if self.reference is not None and self.overlaps else None
        with module.step.phase("reward", 1):
            rewards, total = module.score(answers, samples)  # name -> (N,), (N,)
            if self.overlong_buffer:
                lengths = rollout.mask.sum(1).to(total.device)
                total = total + overlong_penalty(lengths, module.max_completion_length, self.overlong_buffer)
            self.log_preference_gap(rewards, answers, samples)
        scored = ScoredRollout(batch, rollout, answers, rewards, total.view(-1, self.num_samples))
        scored.reference = reference
        return scored

    def log_preference_gap(
        self, rewards: Mapping[str, Tensor], answers: Sequence[Answer], samples: Sequence[Sample]
    ) -> None:
        """Log `SelfJudge.gap` of the first answers to each prompt, for the first SelfPreference reward.

        Raises:
            RewardFailed: the judge can't be asked about an answer, on this rank or on another.
        """
        for name, reward in [*self_judges(self.module.rewards).items()][:1]:
            assert isinstance(reward.ask, SelfJudge)
            firsts = slice(None, None, self.num_samples)
            ask = partial(reward.ask.gap, rewards[name][firsts].tolist(), answers[firsts], samples[firsts])
            gap = raise_on_all_ranks(self.module.trainer, ask)
            self.module.log("train/self_preference_gap", gap, sync_dist=True)

    def log(self, scored: ScoredRollout, zero_variance: Tensor, prompts: int) -> None:
        """Log statistics of all sampled completions, before oversampling and dynamic sampling drop some.

        Args:
            scored: all sampled completions.
            zero_variance: whether each group has zero variance, bool.
            prompts: number of prompts to train on, P.
        """
        module = self.module
        module.log("train/completion_length", scored.rollout.mask.sum(1).float().mean(), sync_dist=True)
        module.log("train/truncated", scored.rollout.truncated.float().mean(), sync_dist=True)
        rewards = {"reward": scored.reward} | {f"reward/{name}": values for name, values in scored.rewards.items()}
        for name, mean in finite_means(rewards, module.trainer.strategy).items():
            module.log(f"train/{name}", mean, prog_bar=True)
        module.log("train/reward_std", scored.reward.std(1).mean(), sync_dist=True)
        module.log("train/zero_variance_groups", zero_variance.float().mean(), sync_dist=True)
        module.log("train/valid", sum(answer.valid for answer in scored.answers) / len(scored.answers), sync_dist=True)
        if module.batches_per_step > 1:
            module.log("train/extra_rollouts", len(scored.reward) / prompts - 1, sync_dist=True)
