"""Visual reinforcement fine-tuning: rollout, reward, advantage, loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.processor import MicroBatch, micro_batches
from vrft.policy.prompts import Prompt
from vrft.rewards import Reward
from vrft.rollout import RemoteEngine, RolloutEngine, Sampling, TransformersEngine
from vrft.tasks import Task
from vrft.training.cross_entropy import TargetLoss, Targets
from vrft.training.grpo import (
    ImportanceSampling,
    KLEstimator,
    LossType,
    ScaleRewards,
    group_advantages,
    importance_weights,
    masked_mean,
    overlong_penalty,
    policy_loss,
    token_weights,
)
from vrft.training.loss_inputs import Experience, Rows
from vrft.training.prefetch import check_logprob_gap
from vrft.training.rollouts import RemoteRollouts
from vrft.types import PromptBatch, Rollout, ScoredRollout


class RFT(RemoteRollouts, TargetLoss):
    """GRPO on images with verifiable rewards (Visual-RFT, arXiv 2503.01785).

    P prompts on this rank, G = `num_generations`, N = P * G rows, T completion tokens.
    """

    def __init__(
        self,
        task: Task,
        policy: Policy,
        rewards: dict[str, Reward],
        engine: RolloutEngine | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        num_generations: int = 8,
        num_iterations: int = 1,
        num_minibatches: int = 1,
        loss_type: LossType = "grpo",
        beta: float = 0.04,
        kl_estimator: KLEstimator = "k3",
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        scale_rewards: ScaleRewards = "group",
        leave_one_out: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        max_completion_length: int = 256,
        mask_truncated_completions: bool = False,
        overlong_buffer: int = 0,
        max_extra_rollouts: int = 0,
        sft_weight: float = 0.0,
        max_tokens_per_micro_batch: int = 16384,
        max_grad_norm: float = 1.0,
        importance_sampling: ImportanceSampling | None = None,
        importance_cap: float = 2.0,
    ) -> None:
        """Defaults are Visual-RFT's unless said otherwise.

        Args:
            task: how to ask and how to read answers.
            policy: the model that is trained.
            rewards: named rewards; their weighted sum is what is maximised.
            engine: what samples completions; default: the policy itself.
            optimizer: makes an optimizer of the parameters that train.
            lr_scheduler: makes a schedule of the optimizer; it advances with each optimizer step.
            num_generations: completions per prompt, G.
            num_iterations: how often a rollout is gone through; above 1 clipping matters.
            num_minibatches: optimizer steps each time, on equal parts of the prompts.
            loss_type: what is minimised, see `vrft.training.grpo`: grpo is the official per-sequence mean.
            beta: weight of the KL divergence from the reference; 0 keeps no reference.
            kl_estimator: k1, k2 or k3.
            epsilon: clip range of the importance ratio.
            epsilon_high: upper clip range; default: `epsilon`. For cispo the largest ratio, default 5.
            scale_rewards: divide advantages by the standard deviation of the group, of the batch, or by none.
            leave_one_out: compare a completion with the others of its group only (RLOO).
            temperature: of the sampling distribution, which is also the one that is trained.
            top_p: sample from the most probable tokens that together have this probability; 1 is off.
            top_k: sample from this many most probable tokens; 0 is off.
            min_p: sample from tokens with at least this share of the most probable one's probability; 0 is off.
            max_completion_length: tokens after which a completion is cut off.
            mask_truncated_completions: leave completions that were cut off out of the loss.
            overlong_buffer: tokens before the limit from which the reward falls, by up to 1 (DAPO); 0 is off.
            max_extra_rollouts: dynamic sampling (DAPO): rollouts of further prompts that replace groups with equal
                rewards. A step takes this many more batches from the loader.
            sft_weight: weight of the cross-entropy on the task's target texts, which is added to the loss: `SFT` on the
                same prompts in the same step; 0 is off.
            max_tokens_per_micro_batch: prompts and completions in one forward and backward.
            max_grad_norm: gradients are scaled down to this norm (TRL's default; the paper gives none).
            importance_sampling: how to correct for an engine whose probabilities are not quite the trainer's: truncate
                the ratio, mask tokens where it is too far from 1, or none. Default: truncate, unless the policy itself
                samples.
            importance_cap: the largest ratio.
        """
        super().__init__(
            task,
            policy,
            engine or TransformersEngine(),
            rewards,
            optimizer,
            lr_scheduler,
            max_completion_length,
            max_grad_norm,
        )
        check_settings(
            num_generations=(num_generations, 2, float("inf")),
            num_iterations=(num_iterations, 1, float("inf")),
            num_minibatches=(num_minibatches, 1, float("inf")),
            max_extra_rollouts=(max_extra_rollouts, 0, float("inf")),
            sft_weight=(sft_weight, 0, float("inf")),
            overlong_buffer=(overlong_buffer, 0, max_completion_length),
            temperature=(temperature, 1e-3, float("inf")),
            top_p=(top_p, 1e-6, 1),
            top_k=(top_k, 0, float("inf")),
            min_p=(min_p, 0, 1),
            importance_cap=(importance_cap, 1, float("inf")),
        )
        self.num_generations, self.num_iterations = num_generations, num_iterations
        self.group_size = num_generations
        self.num_minibatches, self.batches_per_step = num_minibatches, 1 + max_extra_rollouts
        self.loss_type, self.beta, self.kl_estimator = loss_type, beta, kl_estimator
        self.epsilon, self.epsilon_high = epsilon, epsilon_high
        self.scale_rewards, self.leave_one_out = scale_rewards, leave_one_out
        self.sampling = Sampling(temperature, top_p, top_k, min_p)
        self.mask_truncated_completions, self.overlong_buffer = mask_truncated_completions, overlong_buffer
        self.sft_weight, self.max_tokens_per_micro_batch = sft_weight, max_tokens_per_micro_batch
        self.keep_reference = beta > 0
        self.prefetches = isinstance(self.engine, RemoteEngine) and self.engine.one_step_ahead
        by_default: ImportanceSampling = "truncate" if isinstance(self.engine, RemoteEngine) else "none"
        self.importance_sampling, self.importance_cap = importance_sampling or by_default, importance_cap

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and data.batch_size < self.num_minibatches:
            raise ConfigurationError(
                f"model.num_minibatches: {self.num_minibatches} parts of {data.batch_size} prompts (data.batch_size) "
                "can't be made"
            )

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, ScoredRollout]:
        self.seed_step()
        experience = self.sample(batch)  # completions (N, T) and rewards (P, G)
        advantages = self.advantages(experience.total)  # (P, G)
        self.update(experience, advantages)
        self.steps_done += 1
        samples, answers, rewards = experience.batch.samples, experience.answers, experience.rewards
        return {"scored": ScoredRollout(samples, answers, rewards, experience.total, advantages, experience.finite)}

    # ------------------------------------------------------------------------------------------- rollout and reward

    def sample(self, batch: PromptBatch) -> Experience:
        """Roll out and score the first P prompts; with dynamic sampling, others for those that teach nothing."""
        prompts = len(batch.samples) // self.batches_per_step  # P
        everything: Experience | None = None
        for start in range(0, len(batch.samples), prompts):
            part = batch.select(range(start, start + prompts))
            more = self.reward(*self.rollout(part, start))
            everything = more if everything is None else everything.join(more)
            enough = int((~everything.tied).sum()) >= prompts
            if self.trainer.strategy.reduce_boolean_decision(enough, all=True):
                break
        assert everything is not None
        self.log_experience(everything, prompts)
        return everything.refill(prompts)

    def rollout(self, batch: PromptBatch, first: int) -> tuple[PromptBatch, Rollout]:
        """Sample G completions of each prompt. `first`: prompts of this step before them."""
        with self.phase("rollout", self.max_completion_length) as advance:
            prepared = self.policy.prepare(batch)
            if self.prefetches and first == 0:
                rollout = self.from_ahead(prepared, advance)
            else:
                rollout = self.completions(prepared, self.num_generations, self.sampling, self.key(first), advance)
        self.check_sharing(batch, rollout.ids, rollout.mask)
        return prepared, rollout

    def reward(self, batch: PromptBatch, rollout: Rollout) -> Experience:
        """Read and score the completions."""
        with self.phase("reward", 1):
            answers, samples = self.parse(rollout.texts, batch)
            rewards, total = self.score(answers, samples)  # name -> (N,), (N,)
            if self.overlong_buffer:
                lengths = rollout.mask.sum(1).to(total.device)
                total = total + overlong_penalty(lengths, self.max_completion_length, self.overlong_buffer)
        return Experience(batch, rollout, answers, rewards, total.view(-1, self.num_generations))

    def advantages(self, total: Tensor) -> Tensor:
        """How much better than its group each completion is, given the rewards: (P, G) -> (P, G)."""
        gathered = self.all_gather(total)
        assert isinstance(gathered, Tensor)
        everyone = gathered.view(-1, self.num_generations)  # (P of all ranks, G)
        advantages = group_advantages(everyone, self.scale_rewards, self.leave_one_out)
        return advantages.view(-1, *total.shape)[self.global_rank].to(self.device)

    def log_experience(self, sampled: Experience, prompts: int) -> None:
        """Log all that was sampled, before any of it is left out."""
        self.log("train/completion_length", sampled.rollout.mask.sum(1).float().mean(), sync_dist=True)
        self.log("train/truncated", sampled.rollout.truncated.float().mean(), sync_dist=True)
        self.log("train/reward", sampled.total.nanmean(), prog_bar=True, sync_dist=True)
        for name, values in sampled.rewards.items():
            self.log(f"train/reward/{name}", values[values.isfinite()].mean(), prog_bar=True, sync_dist=True)
        self.log("train/reward_std", sampled.total.std(1).mean(), sync_dist=True)
        self.log("train/zero_variance_groups", sampled.tied.float().mean(), sync_dist=True)
        self.log("train/valid", sum(answer.valid for answer in sampled.answers) / len(sampled.answers), sync_dist=True)
        if self.batches_per_step > 1:
            self.log("train/extra_rollouts", len(sampled.total) / prompts - 1, sync_dist=True)

    # ------------------------------------------------------------------------------------------------------- update

    def update(self, experience: Experience, advantages: Tensor) -> None:
        """Learn from a rollout: `num_iterations` times an optimizer step per minibatch. advantages: (P, G)."""
        self.policy.train()
        prompts = experience.batch.inputs
        minibatches = [part.tolist() for part in torch.arange(len(prompts)).tensor_split(self.num_minibatches)]
        rows = self.rows(experience, advantages, [len(part) for part in minibatches])
        rows.old_log_probs = self.fixed_log_probs(prompts, rows, minibatches[1:])  # by then the weights will have moved
        if self.beta > 0:
            rows.reference = self.fixed_log_probs(prompts, rows, minibatches, reference=True)
        targets = [self.targets(experience.batch.select(part)) for part in minibatches] if self.sft_weight > 0 else None
        done: list[Tensor] = []
        cross_entropies: list[Tensor] = []
        ratios: list[Tensor] = []
        for iteration in range(self.num_iterations):
            for i, part in enumerate(minibatches):
                split = partial(self.micro_batches, prompts, rows, part)
                texts = targets[i] if targets else None
                learnt, cross_entropy = self.halving(
                    split, partial(self.learn, prompts, rows, texts, on_policy=iteration == i == 0)
                )
                done += learnt
                cross_entropies.append(cross_entropy)
                if isinstance(self.engine, RemoteEngine) and iteration == 0:
                    ratios.append(rows.log_ratio([n for micro in split() for n in micro.rows]))
                    check_logprob_gap(self.trainer, self.engine, ratios[-1], self.sampling.top_p)
                self.optimizer_step_and_log()
        if ratios:
            self.log_mismatch(torch.cat(ratios))
        if targets:
            self.log("train/sft_loss", torch.stack(cross_entropies).mean(), sync_dist=True)
        count, *sums = torch.stack(done).sum(0)
        for name, value in zip(("kl", "entropy", "clip_fraction", "sampling_gap"), sums, strict=True):
            self.log(f"train/{name}", value / count, prog_bar=name == "kl", sync_dist=True)

    def rows(self, experience: Experience, advantages: Tensor, minibatches: Sequence[int]) -> Rows:
        """What the loss needs of each row, but for log-probabilities. `minibatches`: prompts in each."""
        rollout = experience.rollout
        mask = rollout.mask * ~rollout.truncated[:, None] if self.mask_truncated_completions else rollout.mask
        weights = []
        for lengths in mask.sum(1).split([count * self.num_generations for count in minibatches]):
            tokens = self.trainer.strategy.reduce(lengths.sum().float(), reduce_op="mean")
            weights.append(token_weights(lengths, self.loss_type, self.max_completion_length, tokens))
        old = torch.zeros_like(rollout.log_probs)
        at_fault = ~experience.finite.to(advantages.device)  # (N,), of which no step may be made
        learnt = advantages.flatten().masked_fill(at_fault, torch.nan)
        return Rows(rollout.ids, mask, rollout.log_probs, old, learnt, torch.cat(weights))

    def micro_batches(self, prompts: Sequence[Prompt], rows: Rows, which: Sequence[int]) -> list[MicroBatch]:
        """Split prompts by tokens. Those that have no gradient are left out; one stays, so that no rank has none."""
        teaches = rows.mask.any(1) & ((rows.advantages != 0) | (self.beta > 0))  # (N,)
        groups = teaches.view(-1, self.num_generations).any(1).tolist()  # (P,)
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
        which = [p for p in which if groups[p]] or which[:1]
        return micro_batches(lengths, rows.mask.sum(1).tolist(), which, self.max_tokens_per_micro_batch)

    @torch.no_grad()
    def fixed_log_probs(
        self, prompts: Sequence[Prompt], rows: Rows, minibatches: Sequence[list[int]], *, reference: bool = False
    ) -> Tensor:
        """Log-probabilities (N, T) under the weights as they are or the reference's, 0 outside of `minibatches`."""

        def split() -> list[MicroBatch]:
            return [micro for part in minibatches for micro in self.micro_batches(prompts, rows, part)]

        def compute(work: Sequence[MicroBatch]) -> Tensor:
            log_probs = torch.zeros_like(rows.mask, dtype=torch.float32)
            with self.phase("reference" if reference else "old", len(work)) as advance:
                for i in range(self.rounds(len(work))):
                    which, part = work[i % len(work)]
                    mine = rows.take(part)
                    values, _ = self.policy(
                        [prompts[p] for p in which],
                        mine.ids,
                        mine.mask,
                        self.sampling.temperature,
                        reference=reference,
                        entropy=False,
                    )
                    log_probs[part, : values.shape[1]] = values
                    advance(i + 1)
            return log_probs

        if not minibatches:
            return torch.zeros_like(rows.mask, dtype=torch.float32)
        with self.policy.reference_on_device() if reference else nullcontext():
            return self.halving(split, compute)

    def learn(
        self, prompts: Sequence[Prompt], rows: Rows, texts: Targets | None, work: list[MicroBatch], *, on_policy: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Add the gradient of a minibatch. What `accumulate` says of each micro-batch, and the texts' cross-entropy."""
        done: list[Tensor] = []
        with self.phase("update", len(work)) as advance:
            for i in range(self.rounds(len(work))):
                micro = work[i % len(work)]
                done.append(self.accumulate(prompts, rows, micro, on_policy=on_policy, idle=i >= len(work)))
                advance(i + 1)
        if texts is None:
            return done, torch.zeros(())
        return done, self.learn_targets(texts, self.target_micro_batches(texts), self.sft_weight)

    def accumulate(
        self, prompts: Sequence[Prompt], rows: Rows, micro: MicroBatch, *, on_policy: bool, idle: bool
    ) -> Tensor:
        """Add the gradient of some rows. Their number, and sums of KL, entropy, clipped share and sampling gap (5,).

        `idle`: go through them for the sake of other ranks, and add nothing.
        """
        mine = rows.take(micro.rows)
        inputs = [prompts[p] for p in micro.prompts]
        log_probs, entropy = self.policy(inputs, mine.ids, mine.mask, self.sampling.temperature)  # (n, T)
        if on_policy:
            mine.old_log_probs = log_probs.detach()
            rows.old_log_probs[micro.rows, : log_probs.shape[1]] = mine.old_log_probs
        log_ratio = mine.old_log_probs - mine.sampled_log_probs  # (n, T)
        loss, kl, clipped = policy_loss(
            log_probs,
            mine.old_log_probs,
            mine.advantages,
            mine.mask,
            mine.weights,
            loss_type=self.loss_type,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            reference=mine.reference,
            beta=self.beta,
            kl_estimator=self.kl_estimator,
            correction=importance_weights(log_ratio, self.importance_sampling, self.importance_cap),
        )
        self.add_gradient(loss * (not idle))
        gap = log_ratio.abs()
        count = torch.ones_like(kl)
        per_row = [count, kl, masked_mean(entropy, mine.mask), clipped, masked_mean(gap, mine.mask)]
        return torch.stack(per_row).sum(1).detach() * (not idle)


def check_settings(**settings: tuple[float, float, float]) -> None:
    """Raise ConfigurationError for the first of (value, lowest, highest) that is out of its range."""
    for name, (value, lowest, highest) in settings.items():
        if not lowest <= value <= highest:
            upper = "" if highest == float("inf") else f" and at most {highest}"
            raise ConfigurationError(f"model.{name}: expected at least {lowest}{upper}, got {value}")
