"""Next-token cross-entropy on the task's target texts: the loss of `SFT`, and an optional term in the loss of `RFT`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrft.indices import index_on
from vrft.policy import Policy
from vrft.policy.plain_text import plain_text
from vrft.policy.processor import MicroBatch, micro_batches
from vrft.policy.prompts import lengths_after_start
from vrft.tasks import Task
from vrft.training.checks import check_target_lengths
from vrft.training.optimization import Optimization
from vrft.training.step_state import StepState
from vrft.types import PromptBatch
from vrft.utils.own_code import noted, question_note


class Targets(NamedTuple):
    """A target text with its stop token for each of P prompts."""

    batch: PromptBatch  # P
    ids: Tensor  # (P, T), right-padded
    mask: Tensor  # (P, T), 1 at real tokens
    trainable: Tensor  # (P, T), 1 at real tokens that are not banned from sampling
    tokens: Tensor  # (), number of trainable tokens, averaged over ranks

    def split(self, max_tokens: int) -> list[MicroBatch]:
        """Return micro-batches of at most `max_tokens` tokens of prompts and targets."""
        lengths, room = lengths_after_start(self.batch.inputs, max_tokens)
        return micro_batches(lengths, self.mask.sum(1).tolist(), range(len(lengths)), room)


class CrossEntropy:
    """Tokenises the target texts of a batch and computes the gradient of their cross-entropy."""

    def __init__(
        self, module: LightningModule, task: Task, policy: Policy, optimization: Optimization, step: StepState
    ) -> None:
        self.module, self.task, self.policy = module, task, policy
        self.optimization, self.state = optimization, step

    def targets(self, batch: PromptBatch) -> Targets:
        """Tokenise the target texts of P prompts. All ranks call this together, once per batch."""
        texts = []
        for sample, frame in zip(batch.samples, batch.frames, strict=True):
            with noted(partial(question_note, sample.image_id, sample.query)):
                texts.append(self.task.target_text(sample, frame))
        end = self.policy.tokenizer.eos_token_id
        rows = [torch.tensor([*ids, end]) for ids in plain_text(self.policy.processor).ids(texts)]
        check_target_lengths(batch, rows, self.policy.max_positions)
        ids = pad_sequence(rows, batch_first=True).to(self.module.device)  # (P, T)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.module.device)  # (P, T)
        trainable = mask * ~torch.isin(ids, self.policy.banned_ids)
        tokens = self.module.trainer.strategy.reduce(trainable.sum().float(), reduce_op="mean")
        return Targets(batch, ids, mask, trainable, tokens.clamp(min=1))

    def backward(self, targets: Targets, work: Sequence[MicroBatch], weight: float = 1.0) -> Tensor:
        """Accumulate the gradient of weight * cross-entropy, averaged over the trainable tokens of all ranks.

        Returns:
            This rank's share of the unweighted cross-entropy, (). Its mean over ranks is the cross-entropy.
        """
        batch, ids, mask, trainable, tokens = targets
        total = torch.zeros((), device=self.module.device)
        with self.state.phase("update", len(work)) as advance:
            for i, ((prompts, rows), counts) in enumerate(self.optimization.padded(work)):
                inputs = [batch.inputs[p] for p in prompts]
                index = index_on(ids.device, rows)
                log_probs, _ = self.policy(inputs, ids[index], mask[index], temperature=1.0)  # (p, T)
                loss = -(log_probs * trainable[index]).sum() / tokens * counts
                self.optimization.backward(weight * loss)
                total += loss.detach()
                advance(i + 1)
        return total
