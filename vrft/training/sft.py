"""Supervised fine-tuning on the same tasks and data, as a baseline for RFT."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from vrft.policy import Policy
from vrft.rewards import Reward
from vrft.rollout import RolloutEngine, TransformersEngine
from vrft.tasks import Task
from vrft.training.module import VisionModule
from vrft.training.optimization import Interval
from vrft.training.self_judge import asks_reference
from vrft.types import PromptBatch
from vrft.utils.bounds import NonNegative


class SFT(VisionModule):
    """Next-token cross-entropy on the task's target text; prompt tokens have no loss."""

    def __init__(
        self,
        task: Task,
        policy: Policy,
        rewards: dict[str, Reward],
        engine: RolloutEngine | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_completion_length: int = 256,
        max_tokens_per_micro_batch: int = 16384,
        max_grad_norm: NonNegative = 1.0,
        lr_scheduler_interval: Interval = "step",
    ) -> None:
        """Set up the parts of training.

        Args:
            task: phrases the prompts and the target texts.
            policy: the model to train.
            rewards: rewards by name that score held-out answers; they are not trained on.
            engine: decodes held-out answers; default: the policy itself.
            optimizer: callable that makes an optimizer from the trainable parameters.
            lr_scheduler: callable that makes a schedule from the optimizer.
            max_completion_length: maximum number of tokens in a held-out answer.
            max_tokens_per_micro_batch: maximum number of prompt and target tokens in one forward and backward.
            max_grad_norm: maximum norm of the gradient.
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
        self.keep_reference = asks_reference(rewards)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.begin_step()  # seeds, timers
        self.policy.train()
        targets = self.cross_entropy.targets(batch)  # (P, T)
        self.check_sharing(self.trainer, self.policy, batch, targets.ids, targets.mask)
        loss = self.optimization.retry_smaller(targets.split, partial(self.cross_entropy.backward, targets))
        self.log_step(self.optimization.step())
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.end_step()
