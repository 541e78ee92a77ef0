"""Visual reinforcement fine-tuning: rollout, reward, advantage, loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from vrft.data.datamodule import data_of
from vrft.data.difficulty import Difficulty
from vrft.indices import index_on
from vrft.policy import Policy
from vrft.policy.processor import MicroBatch
from vrft.rewards import Reward
from vrft.rollout import RolloutEngine, Sampling, TransformersEngine
from vrft.tasks import Task
from vrft.training.checks import check_minibatches, check_settings
from vrft.training.collector import Collector
from vrft.training.entropy import EntropyBonus
from vrft.training.fixed_log_probs import FixedLogProbs
from vrft.training.grpo import Baseline, KLEstimator, LossType, ScaleRewards, completion_kl, masked_mean
from vrft.training.importance import ImportanceSampling
from vrft.training.loss_inputs import Minibatch, total_sums
from vrft.training.loss_preparation import LossPreparation
from vrft.training.module import VisionModule
from vrft.training.moving_reference import following
from vrft.training.objective import Aggregation, Objective
from vrft.training.optimization import Interval
from vrft.training.self_judge import check_self_judges
from vrft.types import PromptBatch, ScoredRollout
from vrft.utils.bounds import Fraction, NonNegative


class RFT(VisionModule):
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
        num_samples: int | None = None,
        difficulty: Difficulty | None = None,
        num_iterations: int = 1,
        num_minibatches: int = 1,
        loss_type: LossType = "grpo",
        beta: NonNegative = 0.04,
        kl_in_reward: bool = False,
        kl_estimator: KLEstimator = "k3",
        reference_decay: float | None = None,
        epsilon: NonNegative = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        sapo_temperature_pos: NonNegative = 1.0,
        sapo_temperature_neg: NonNegative = 1.05,
        scale_rewards: ScaleRewards = "group",
        leave_one_out: bool = False,
        baseline: Baseline = "group",
        multi_objective_aggregation: Aggregation = "sum_then_normalize",
        top_entropy_quantile: Fraction = 1.0,
        entropy_weight: NonNegative = 0.0,
        entropy_target: float | None = None,
        entropy_step: NonNegative = 0.005,
        temperature: NonNegative = 1.0,
        top_p: Fraction = 1.0,
        top_k: int = 0,
        min_p: Fraction = 0.0,
        max_completion_length: int = 256,
        mask_truncated_completions: bool = False,
        overlong_buffer: int = 0,
        max_extra_rollouts: int = 0,
        sft_weight: NonNegative = 0.0,
        max_tokens_per_micro_batch: int = 16384,
        max_grad_norm: NonNegative = 1.0,
        importance_sampling: ImportanceSampling | None = None,
        importance_cap: NonNegative = 2.0,
        lr_scheduler_interval: Interval = "step",
    ) -> None:
        """Set up the parts of training. Defaults are those of Visual-RFT unless another source is named.

        Args:
            task: phrases the prompts and parses the answers.
            policy: the model to train.
            rewards: rewards by name; training maximises their weighted sum.
            engine: samples the completions; default: the policy itself.
            optimizer: callable that makes an optimizer from the trainable parameters.
            lr_scheduler: callable that makes a schedule from the optimizer.
            num_generations: completions per prompt, G.
            num_samples: completions per prompt to sample and score, of which the `num_generations` whose rewards vary
                most are trained on (oversampling, PODS); default: `num_generations`.
            difficulty: ask prompts that are always or never answered correctly less often; default: each prompt once
                per pass.
            num_iterations: passes over each rollout; clipping matters above 1.
            num_minibatches: optimizer steps per pass, on equal parts of the prompts.
            loss_type: objective, see `vrft.training.grpo`; `grpo` is the mean over sequences, as in Visual-RFT.
            beta: weight of the KL divergence from the reference; with 0, no reference is kept unless SelfPreference
                needs it.
            kl_in_reward: subtract beta times the KL divergence of each completion from its reward, instead of adding
                the KL divergence of each token to the loss.
            kl_estimator: estimator of the KL divergence, k1, k2 or k3.
            reference_decay: use a moving average of the trained weights with this decay per training step, e.g. 0.99,
                as the reference; default: the initial policy.
            epsilon: clip range of the importance ratio.
            epsilon_high: upper clip range; default: `epsilon`. For cispo: the largest ratio, default 5.
            delta: largest ratio for negative advantages, which clipping leaves unbounded (INTELLECT-2: 4); for the loss
                types that clip the ratio of each token.
            sapo_temperature_pos: temperature of sapo's gate for positive advantages; the gate closes faster if larger.
            sapo_temperature_neg: temperature of sapo's gate for the other advantages.
            scale_rewards: divide advantages by the standard deviation of the group, of the batch, or not at all.
            leave_one_out: use the mean of the other completions of the group as the baseline (RLOO).
            baseline: subtract the mean of the group or of the batch (REINFORCE++, with `scale_rewards` batch).
            multi_objective_aggregation: normalise the sum of the rewards, or each reward within its group before
                summing (normalize_then_sum, GDPO), so that only their weights count, not their spread.
            top_entropy_quantile: share of the step's tokens to train on, those with the highest entropy; the KL term
                and the entropy bonus use all tokens. 0.2 in the paper; 1: all.
            entropy_weight: weight of the entropy bonus in the objective; with a target, the weight of the first step.
            entropy_target: increase the weight after steps whose mean entropy, in nats, is below this target, and
                decrease it after steps above it; default: keep the weight.
            entropy_step: change of the weight after a step.
            temperature: temperature of the sampling distribution, at which log-probabilities are trained too.
            top_p: sample from the most probable tokens up to this total probability; 1: off.
            top_k: sample from this many most probable tokens; 0: off.
            min_p: sample from tokens with at least this share of the largest probability; 0: off.
            max_completion_length: maximum number of tokens in a completion.
            mask_truncated_completions: leave truncated completions out of the loss.
            overlong_buffer: tokens before the limit over which the reward decreases by up to 1 (DAPO); 0: off.
            max_extra_rollouts: maximum number of further rollouts whose groups replace those with zero variance
                (dynamic sampling, DAPO). A step takes this many more batches from the loader.
            sft_weight: weight of the cross-entropy on the target texts of the same prompts, added to the loss; 0: off.
            max_tokens_per_micro_batch: maximum number of prompt and completion tokens in one forward and backward.
            max_grad_norm: maximum norm of the gradient (default of TRL; the paper has no value).
            importance_sampling: correction for an engine whose probabilities differ from the trainer's: truncate the
                ratio of each token, mask tokens whose ratio is too far from 1, the same with the ratio of whole
                completions (sequence_truncate, sequence_mask), or none; default: truncate for remote engines.
            importance_cap: largest importance ratio.
            lr_scheduler_interval: advance the schedule after each optimizer step or after each epoch.
        """
        super().__init__(
            task,
            policy,
            engine or TransformersEngine(),
            rewards,
            optimizer,
            lr_scheduler,
            max_completion_length,
            max_tokens_per_micro_batch,
            max_grad_norm,
            lr_scheduler_interval,
        )
        check_settings(
            num_generations=(num_generations, 2, float("inf")),
            num_samples=(num_samples or num_generations, num_generations, float("inf")),
            num_iterations=(num_iterations, 1, float("inf")),
            num_minibatches=(num_minibatches, 1, float("inf")),
            max_extra_rollouts=(max_extra_rollouts, 0, float("inf")),
            sft_weight=(sft_weight, 0, float("inf")),
            overlong_buffer=(overlong_buffer, 0, max_completion_length),
            temperature=(temperature, 1e-3, float("inf")),
            top_p=(top_p, 1e-6, 1),
            top_k=(top_k, 0, float("inf")),
            min_p=(min_p, 0, 1),
        )
        self.num_iterations, self.num_minibatches = num_iterations, num_minibatches
        self.group_size, self.batches_per_step = num_generations, 1 + max_extra_rollouts
        self.difficulty = difficulty
        if difficulty is not None:
            difficulty.check(rewards)
        self.objective = Objective(
            loss_type=loss_type,
            beta=beta,
            kl_in_reward=kl_in_reward,
            kl_estimator=kl_estimator,
            epsilon=epsilon,
            epsilon_high=epsilon_high,
            delta=delta,
            sapo_temperatures=(sapo_temperature_pos, sapo_temperature_neg),
            scale_rewards=scale_rewards,
            leave_one_out=leave_one_out,
            baseline=baseline,
            multi_objective_aggregation=multi_objective_aggregation,
            importance_sampling=importance_sampling or self.rollouts.importance_sampling,
            importance_cap=importance_cap,
            top_entropy_quantile=top_entropy_quantile,
            entropy_weight=entropy_weight,
            entropy_target=entropy_target,
            entropy_step=entropy_step,
        )
        self.objective.check(overlong_buffer=overlong_buffer, max_extra_rollouts=max_extra_rollouts)
        self.sampling = Sampling(temperature, top_p, top_k, min_p)
        self.sft_weight = sft_weight
        self.entropy_bonus = EntropyBonus(self, entropy_weight, entropy_target, entropy_step)
        self.moving_reference = following(policy, reference_decay, beta)
        self.reference_follows = self.moving_reference is not None
        self.keep_reference = (check_self_judges(rewards, beta) or beta > 0) and not self.reference_follows
        self.prefetches = self.rollouts.prefetches
        self.num_samples = num_samples or num_generations
        counts = self.num_samples, num_generations
        optimizer_steps = num_iterations * num_minibatches
        self.fixed_log_probs = FixedLogProbs(policy, self.optimization, self.step, temperature)
        reference = partial(self.fixed_log_probs.of_rollout, reference=True) if beta > 0 else None
        self.collect = Collector(
            self, self.objective, self.sampling, *counts, overlong_buffer, optimizer_steps, reference
        )
        self.prepare_loss = LossPreparation(
            self,
            self.objective,
            self.fixed_log_probs,
            num_minibatches,
            max_completion_length,
            mask_truncated_completions,
        )

    def setup(self, stage: str) -> None:
        check_minibatches(data_of(self.trainer), self.num_minibatches)

    def configure_model(self) -> None:
        super().configure_model()
        if self.moving_reference is not None:
            self.moving_reference.start()

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.moving_reference is None else [self.moving_reference]

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, ScoredRollout]:
        self.begin_step()  # seeds, timers
        scored = self.collect(batch)  # completions (N, T), rewards (P, G)
        scored.advantages = self.advantages(scored)  # (P, G), over all ranks
        minibatches = self.minibatches(scored)  # num_iterations x num_minibatches, with log-probabilities (N, T)
        for minibatch in minibatches:
            self.optimization.retry_smaller(minibatch.split, partial(self.backward_minibatch, minibatch))
            self.check_engine(minibatch)
            self.log_step(self.optimization.step())
        self.log_update(minibatches)
        self.end_step()
        return {"scored": scored}

    def advantages(self, scored: ScoredRollout) -> Tensor:
        """Return the advantage of each completion, (P, G)."""
        signal = self.objective.signal(scored, self.rewards)
        if self.objective.kl_in_reward:
            if scored.reference is None:
                scored.reference = self.fixed_log_probs.of_rollout(scored.batch, scored.rollout, reference=True)
            log_probs = self.fixed_log_probs.of_rollout(scored.batch, scored.rollout)
            kl = completion_kl(log_probs, scored.reference, scored.rollout.mask)  # (N,)
            signal = signal - self.objective.beta * kl.view_as(signal)
        gathered = self.all_gather(signal)
        assert isinstance(gathered, Tensor)
        everyone = gathered.view(-1, *signal.shape[1:])  # (P of all ranks, G), or (…, G, K)
        weights = signal.new_tensor([reward.weight for reward in self.rewards.values() if reward.weight])  # (K,)
        advantages = self.objective.advantages(everyone, weights)
        return advantages.view(-1, *scored.reward.shape)[self.global_rank].to(self.device)

    def minibatches(self, scored: ScoredRollout) -> list[Minibatch]:
        """Return a minibatch for each optimizer step, with all inputs of the loss.

        The first minibatch is on-policy: its old log-probabilities come from its own forward. The old log-probabilities
        of the others, and the reference's, are computed here, before the weights change.
        """
        self.policy.train()
        minibatches = self.prepare_loss(scored)
        if self.sft_weight > 0:
            for minibatch in minibatches:
                minibatch.targets = self.cross_entropy.targets(scored.batch.select(minibatch.chosen))
        minibatches[0].on_policy = True
        later = [minibatch.again() for _ in range(1, self.num_iterations) for minibatch in minibatches]
        return minibatches + later

    def backward_minibatch(self, minibatch: Minibatch, work: Sequence[MicroBatch]) -> None:
        """Accumulate the gradient of a minibatch by micro-batches. A retry after out of memory starts over."""
        minibatch.sums = []
        with self.step.phase("update", len(work)) as advance:
            for i, (micro, counts) in enumerate(self.optimization.padded(work)):
                minibatch.sums.append(self.backward_micro_batch(minibatch, micro, counts))
                advance(i + 1)
        if minibatch.targets is not None:
            split = minibatch.targets.split(self.optimization.max_tokens_per_micro_batch)
            minibatch.cross_entropy = self.cross_entropy.backward(minibatch.targets, split, self.sft_weight)

    def backward_micro_batch(self, minibatch: Minibatch, micro: MicroBatch, counts: bool) -> Tensor:
        """Accumulate the gradient of n rows, and return their sums of `SUMS`, (6,).

        A separate method, so that its return frees the graph. If not `counts`, the rows only pad this rank's work.
        """
        loss, sums = self.loss(minibatch, micro)
        self.optimization.backward(loss * counts)
        return sums * counts

    def loss(self, minibatch: Minibatch, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the loss of n rows, (), and the sums of `SUMS` over the rows, (6,)."""
        mine = minibatch.inputs.select(micro.rows)
        prompts = [minibatch.prompts[p] for p in micro.prompts]
        has_bonus = self.objective.has_bonus
        log_probs, entropy = self.policy(
            prompts, mine.ids, mine.mask, self.sampling.temperature, entropy_gradient=has_bonus
        )  # (n, T)
        if minibatch.on_policy:
            mine.old_log_probs = log_probs.detach()
            rows = index_on(log_probs.device, micro.rows)
            minibatch.inputs.old_log_probs[rows, : log_probs.shape[1]] = mine.old_log_probs
        loss, kl, clipped = self.objective.loss(log_probs, entropy, mine, self.entropy_bonus.weight)
        gap = masked_mean((mine.old_log_probs - mine.sampled_log_probs).abs(), mine.mask)
        per_row = [torch.ones_like(kl), kl, masked_mean(entropy, mine.mask), clipped, gap, mine.mask.any(1)]
        return loss, torch.stack(per_row).sum(1).detach()

    def check_engine(self, minibatch: Minibatch) -> None:
        """Raise RolloutFailed, before the optimizer step, if the engine's log-probabilities differ too much."""
        if minibatch.first_pass:
            max_tokens = self.optimization.max_tokens_per_micro_batch
            self.rollouts.check(partial(minibatch.log_ratio, max_tokens), self.sampling.top_p)

    def log_update(self, minibatches: Sequence[Minibatch]) -> None:
        """Log means over all minibatches of the step, and adapt the weight of the entropy bonus."""
        if (found := self.rollouts.mismatch(self.objective.importance_cap)) is not None:
            self.log("train/sampling_gap_max", found.gap_max, sync_dist=True, reduce_fx="max")
            for name in ("ratio_p01", "ratio_p50", "ratio_p99", "beyond"):
                self.log(f"train/importance/{name}", getattr(found, name), sync_dist=True)
        if losses := [minibatch.cross_entropy for minibatch in minibatches if minibatch.cross_entropy is not None]:
            self.log("train/sft_loss", torch.stack(losses).mean(), sync_dist=True)
        count, *sums, trained = total_sums(minibatches)
        self.entropy_bonus.adapt(entropy=sums[1], rows=trained)
        for name, value in zip(("kl", "entropy", "clip_fraction", "sampling_gap"), sums, strict=True):
            self.log(f"train/{name}", value / count, prog_bar=name == "kl", sync_dist=True)

    def state_names(self) -> set[str]:
        return super().state_names() | self.entropy_bonus.state_names()
