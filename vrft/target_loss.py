"""Next-token cross-entropy on target texts: all that `SFT` learns from, and a part of `RFT` where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrft.module import VisionModule
from vrft.policy.processor import MicroBatch, micro_batches
from vrft.types import PromptBatch


class TargetLoss(VisionModule):
    """Base of what learns from the task's target texts; the prompt is not learnt."""

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

    def target_micro_batches(self, batch: PromptBatch, mask: Tensor) -> list[MicroBatch]:
        """Split prompts with one target text each by tokens. mask: (P, T)."""
        lengths = [prompt["input_ids"].shape[1] for prompt in batch.inputs]
        return micro_batches(lengths, mask.sum(1).tolist(), range(len(lengths)), self.max_tokens_per_micro_batch)

    def learn_targets(
        self, batch: PromptBatch, ids: Tensor, mask: Tensor, work: Sequence[MicroBatch], weight: float = 1.0
    ) -> Tensor:
        """Add the gradient of weight * cross-entropy, a mean over the tokens of all ranks.

        Args:
            batch: P prompts.
            ids: of their target texts (P, T).
            mask: 1 at real tokens (P, T).
            work: from `target_micro_batches`.
            weight: of this loss.

        Returns:
            The cross-entropy (), this rank's share of it; the mean over ranks is the whole.
        """
        tokens = self.trainer.strategy.reduce(mask.sum().float(), reduce_op="mean")
        total = torch.zeros((), device=self.device)
        with self.phase("update", len(work)) as advance:
            for i in range(self.rounds(len(work))):
                prompts, rows = work[i % len(work)]
                inputs = [batch.inputs[p] for p in prompts]
                log_probs, _ = self.policy(inputs, ids[rows], mask[rows], temperature=1.0)  # (p, T)
                loss = -log_probs.sum() / tokens * (i < len(work))
                self.add_gradient(weight * loss)
                total += loss.detach()
                advance(i + 1)
        return total
