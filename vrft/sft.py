"""Supervised fine-tuning on the same tasks and data: the baseline, and how the built-in policies were made."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrft.module import VisionModule
from vrft.policy import Policy
from vrft.policy.processor import MicroBatch, micro_batches
from vrft.rewards import Reward
from vrft.rollout import RolloutEngine, TransformersEngine
from vrft.tasks import Task
from vrft.types import PromptBatch


class SFT(VisionModule):
    """Next-token cross-entropy on the task's target text; the prompt is not learnt."""

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
        max_grad_norm: float = 1.0,
    ) -> None:
        """Sets up the baseline.

        Args:
            task: how to ask, and the target text.
            policy: the model that is trained.
            rewards: scores of held-out answers; they are not trained on.
            engine: what decodes held-out answers; default: the policy itself.
            optimizer: makes an optimizer of the parameters that train.
            lr_scheduler: makes a schedule of the optimizer; it advances with each optimizer step.
            max_completion_length: tokens after which a held-out answer is cut off.
            max_tokens_per_micro_batch: prompts and targets in one forward and backward.
            max_grad_norm: gradients are scaled down to this norm.
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
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.seed_step()
        self.policy.train()
        ids, mask = self.targets(batch)  # (P, T)
        self.check_sharing(batch, ids, mask)
        lengths = [prompt["input_ids"].shape[1] for prompt in batch.inputs]
        everyone = range(len(lengths))
        tokens = self.trainer.strategy.reduce(mask.sum().float(), reduce_op="mean")

        def split() -> list[MicroBatch]:
            return micro_batches(lengths, mask.sum(1).tolist(), everyone, self.max_tokens_per_micro_batch)

        def learn(work: list[MicroBatch]) -> Tensor:
            total = torch.zeros((), device=self.device)
            with self.phase("update", len(work)) as advance:
                for i in range(self.rounds(len(work))):
                    prompts, rows = work[i % len(work)]
                    inputs = [batch.inputs[p] for p in prompts]
                    log_probs, _ = self.policy(inputs, ids[rows], mask[rows], temperature=1.0)  # (p, T)
                    loss = -log_probs.sum() / tokens * (i < len(work))
                    self.add_gradient(loss)
                    total += loss.detach()
                    advance(i + 1)
            return total

        total = self.halving(split, learn)
        self.optimizer_step_and_log()
        self.log("train/loss", total, prog_bar=True, sync_dist=True)
        self.steps_done += 1

    def targets(self, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        """Token ids of the target texts with their end token, right-padded, and their mask; both (P, T)."""
        texts = [
            self.task.target_text(sample, frame) for sample, frame in zip(batch.samples, batch.frames, strict=True)
        ]
        tokenizer = self.policy.tokenizer
        rows = [
            torch.tensor([*ids, tokenizer.eos_token_id])
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return ids.to(self.device), mask.to(self.device)
