"""Next-token cross-entropy on target texts: all that `SFT` learns from, and a part of `RFT` where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrft.policy.processor import MicroBatch, micro_batches
from vrft.training.module import VisionModule
from vrft.types import PromptBatch


class Targets(NamedTuple):
    """Target texts with their end token, one for each of P prompts."""

    batch: PromptBatch  # P
    ids: Tensor  # (P, T), right-padded
    mask: Tensor  # (P, T), 1 at real tokens
    learnt: Tensor  # (P, T), 1 at those of them that can be sampled; the others have no log-probability to raise
    tokens: Tensor  # (), their number, the mean over ranks


class TargetLoss(VisionModule):
    """Base of what learns from the task's target texts; the prompt is not learnt."""

    def targets(self, batch: PromptBatch) -> Targets:
        """The target texts of a batch. All ranks count them together, so none may do it twice for want of memory."""
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
        ids, mask = ids.to(self.device), mask.to(self.device)
        learnt = mask * ~torch.isin(ids, self.policy.banned_ids)
        return Targets(
            batch, ids, mask, learnt, self.trainer.strategy.reduce(learnt.sum().float(), reduce_op="mean").clamp(min=1)
        )

    def target_micro_batches(self, targets: Targets) -> list[MicroBatch]:
        """Split prompts with one target text each by tokens."""
        lengths = [prompt["input_ids"].shape[1] for prompt in targets.batch.inputs]
        texts = targets.mask.sum(1).tolist()
        return micro_batches(lengths, texts, range(len(lengths)), self.max_tokens_per_micro_batch)

    def learn_targets(self, targets: Targets, work: Sequence[MicroBatch], weight: float = 1.0) -> Tensor:
        """Add the gradient of weight * cross-entropy, a mean over the tokens of all ranks.

        Args:
            targets: of P prompts.
            work: from `target_micro_batches`.
            weight: of this loss.

        Returns:
            The cross-entropy (), this rank's share of it; the mean over ranks is the whole.
        """
        batch, ids, mask, learnt, tokens = targets
        total = torch.zeros((), device=self.device)
        with self.phase("update", len(work)) as advance:
            for i in range(self.rounds(len(work))):
                prompts, rows = work[i % len(work)]
                inputs = [batch.inputs[p] for p in prompts]
                log_probs, _ = self.policy(inputs, ids[rows], mask[rows], temperature=1.0)  # (p, T)
                loss = -(log_probs * learnt[rows]).sum() / tokens * (i < len(work))
                self.add_gradient(weight * loss)
                total += loss.detach()
                advance(i + 1)
        return total
