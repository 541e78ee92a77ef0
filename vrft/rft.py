"""Visual reinforcement fine-tuning: rollout, reward, advantage, loss."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from vrft.errors import ConfigurationError
from vrft.grpo import group_advantages, masked_mean, policy_loss, tied_groups
from vrft.module import VisionModule
from vrft.policy import Policy
from vrft.policy.processor import micro_batches, select_prompts
from vrft.rewards import Reward
from vrft.rollout import RolloutEngine, TransformersEngine
from vrft.tasks import Task
from vrft.types import PromptBatch, Rollout, ScoredRollout


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
        num_iterations: int = 1,
        beta: float = 0.04,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        scale_rewards: bool = True,
        temperature: float = 1.0,
        max_completion_length: int = 256,
        max_tokens_per_micro_batch: int = 16384,
        max_grad_norm: float = 1.0,
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
            num_iterations: optimizer steps per rollout; above 1 clipping matters.
            beta: weight of the KL divergence from the reference; 0 keeps no reference.
            epsilon: clip range of the importance ratio.
            epsilon_high: upper clip range; default: `epsilon`.
            scale_rewards: divide advantages by the group's standard deviation.
            temperature: of the sampling distribution, which is also the one that is trained.
            max_completion_length: tokens after which a completion is cut off.
            max_tokens_per_micro_batch: prompts and completions in one forward and backward; a group is never split.
            max_grad_norm: gradients are scaled down to this norm (TRL's default; the paper gives none).
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
        if num_generations < 2:
            raise ConfigurationError(f"model.num_generations: expected at least 2 to compare, got {num_generations}")
        self.num_generations, self.num_iterations = num_generations, num_iterations
        self.beta, self.epsilon, self.epsilon_high = beta, epsilon, epsilon_high
        self.scale_rewards, self.temperature = scale_rewards, temperature
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.keep_reference = beta > 0

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, ScoredRollout]:
        self.seed_step()
        rollout = self.rollout(batch)  # ids, mask (N, T)
        scored = self.reward(rollout, batch)  # rewards and advantages (P, G)
        self.update(batch, rollout, scored.advantages.flatten())
        self.steps_done += 1
        return {"scored": scored}

    def rollout(self, batch: PromptBatch) -> Rollout:
        """Sample G completions of each prompt."""
        with self.phase("rollout", self.max_completion_length) as advance:
            rollout = self.engine.generate(
                self.policy,
                batch,
                self.num_generations,
                max_completion_length=self.max_completion_length,
                temperature=self.temperature,
                noise=self.noise(),
                on_token=advance,
            )
        self.log("train/completion_length", rollout.mask.sum(1).float().mean())
        self.log("train/truncated", rollout.truncated.float().mean())
        return rollout

    def reward(self, rollout: Rollout, batch: PromptBatch) -> ScoredRollout:
        """Read and score the completions, and compare each with its group."""
        with self.phase("reward", 1):
            answers, samples = self.parse(rollout.texts, batch)
            rewards, total = self.score(answers, samples)  # name -> (N,), (N,)
        groups = total.view(-1, self.num_generations)  # (P, G)
        advantages = group_advantages(groups, self.scale_rewards)  # (P, G)
        self.log("train/reward", groups.mean(), prog_bar=True)
        for name, values in rewards.items():
            self.log(f"train/reward/{name}", values.nanmean(), prog_bar=True)
        self.log("train/reward_std", groups.std(1).mean())
        self.log("train/zero_variance_groups", tied_groups(groups).float().mean())
        self.log("train/valid", sum(answer.valid for answer in answers) / len(answers))
        return ScoredRollout(batch.samples, answers, rewards, groups, advantages)

    def update(self, batch: PromptBatch, rollout: Rollout, advantages: Tensor) -> None:
        """`num_iterations` optimizer steps, each on the whole rollout, a few prompts at a time. advantages: (N,)."""
        self.policy.train()
        advantages = advantages.to(self.device)
        rows = len(advantages)
        chunks = list(micro_batches(batch.inputs, rollout.mask, self.max_tokens_per_micro_batch))
        old: list[Tensor] = []  # (n, T) per chunk, of the weights that sampled
        reference: list[Tensor | None] = []
        parts: list[Tensor] = []  # (3,) per chunk: sums of KL, entropy and clipped share over rows
        with self.phase("update", self.num_iterations * len(chunks)) as advance:
            for iteration in range(self.num_iterations):
                for i, prompts in enumerate(chunks):
                    inputs = select_prompts(batch.inputs, prompts)
                    group = slice(prompts.start * self.num_generations, prompts.stop * self.num_generations)
                    mask = rollout.mask[group]
                    mask = mask[:, : int(mask.sum(1).max())]  # (n, T)
                    ids = rollout.ids[group, : mask.shape[1]]  # (n, T)
                    log_probs, entropy = self.policy(inputs, ids, mask, self.temperature)  # (n, T)
                    if iteration == 0:
                        old.append(log_probs.detach())
                        reference.append(self.reference_log_probs(inputs, ids, mask))
                    loss, kl, clipped = policy_loss(
                        log_probs,
                        old[i],
                        advantages[group],
                        mask,
                        reference=reference[i],
                        beta=self.beta,
                        epsilon=self.epsilon,
                        epsilon_high=self.epsilon_high,
                    )
                    self.manual_backward(loss / rows)
                    parts.append(torch.stack([kl.sum(), masked_mean(entropy, mask).sum(), clipped.sum()]).detach())
                    advance(iteration * len(chunks) + i + 1)
                self.optimizer_step_and_log()
        kl, entropy, clipped = torch.stack(parts).sum(0) / (rows * self.num_iterations)
        self.log("train/kl", kl, prog_bar=True)
        self.log("train/entropy", entropy)
        self.log("train/clip_fraction", clipped)

    @torch.no_grad()
    def reference_log_probs(self, inputs: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor | None:
        """Log-probabilities under the reference (n, T); None if beta is 0."""
        if self.beta == 0:
            return None
        log_probs: Tensor = self.policy(inputs, ids, mask, self.temperature, reference=True)[0]
        return log_probs
