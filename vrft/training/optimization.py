"""Run an optimizer step: backward of micro-batches, averaging of gradients, clipping, step or skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Adam, AdamW, Optimizer

from vrft.policy.processor import MicroBatch
from vrft.training.loss_scale import LossScale
from vrft.training.step_state import StepState
from vrft.training.strategies import parallelism_of
from vrft.utils.out_of_memory import free_memory, is_out_of_memory

Interval = Literal["step", "epoch"]
Result = TypeVar("Result")
Split = Callable[[int], list[MicroBatch]]
"""Splits the work of a step into micro-batches of at most the given number of tokens."""


def use_fused_kernels(optimizer: Optimizer) -> None:
    """Use the fused kernels of Adam and AdamW on a GPU, unless the config says otherwise.

    Torch's default on a GPU, foreach, needs temporary memory as large as the weights.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    undecided = optimizer.defaults.get("fused") is None and optimizer.defaults.get("foreach") is None
    if type(optimizer) in (Adam, AdamW) and undecided and all(parameter.is_cuda for parameter in parameters):
        for settings in (optimizer.defaults, *optimizer.param_groups):
            settings["fused"] = True


class OptimizerStep(NamedTuple):
    """The result of an optimizer step, for logging."""

    learning_rate: float
    grad_norm: Tensor  # (), before clipping
    skipped: bool  # whether the step was skipped because a loss or gradient on some rank was NaN or infinite


class Optimization:
    """Accumulates gradients over micro-batches and steps the optimizer and its schedule.

    Attributes:
        max_tokens_per_micro_batch: maximum number of tokens in one forward and backward; halved when out of memory.
        schedule_interval: unit of the schedule, an optimizer step or an epoch.
        free_kept: frees cached memory when out of memory.
        loss_scale: scales losses in float16.
    """

    def __init__(
        self,
        module: LightningModule,
        step: StepState,
        max_grad_norm: float,
        max_tokens_per_micro_batch: int,
        schedule_interval: Interval,
        free_kept: Callable[[], None],
        loss_scale: LossScale,
    ) -> None:
        self.module, self.state = module, step
        self.max_grad_norm, self.max_tokens_per_micro_batch = max_grad_norm, max_tokens_per_micro_batch
        self.schedule_interval, self.free_kept = schedule_interval, free_kept
        self.loss_scale = loss_scale
        self.finite = torch.ones((), dtype=torch.bool)

    def begin_step(self) -> None:
        """Reset the state of the last training step."""
        self.finite = torch.ones((), dtype=torch.bool, device=self.module.device)

    def retry_smaller(self, split: Split, compute: Callable[[list[MicroBatch]], Result]) -> Result:
        """Return `compute(split(max_tokens))`. If memory runs out, halve the number of tokens and start over.

        A retry discards all gradients, so none may have been accumulated before. Later micro-batches keep the smaller
        size.

        Raises:
            torch.OutOfMemoryError: micro-batches already have one row each, or other ranks wait for this rank in a
                forward.
        """
        while True:
            work = split(self.max_tokens_per_micro_batch)
            try:
                return compute(work)
            except RuntimeError as error:
                if not is_out_of_memory(error) or parallelism_of(self.module.trainer).waits_for_all_ranks:
                    raise
                while split(self.max_tokens_per_micro_batch) == work:
                    if self.max_tokens_per_micro_batch == 0:
                        raise
                    self.max_tokens_per_micro_batch //= 2
            self.state.out_of_memory += 1
            self.free_kept()
            free_memory(f"micro-batches have at most {self.max_tokens_per_micro_batch} tokens")
            for parameter in self.module.parameters():
                parameter.grad = None
            self.finite.fill_(True)

    def padded(self, work: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
        """Yield each micro-batch with True, then repetitions with False until all ranks have had equally many.

        Repetitions are needed if each forward is a collective. They must not contribute to gradients or statistics.
        """
        for i in range(parallelism_of(self.module.trainer).rounds(len(work))):
            yield work[i % len(work)], i < len(work)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch. Ranks exchange gradients in `step`."""
        self.finite &= loss.detach().isfinite()
        with parallelism_of(self.module.trainer).no_sync():
            self.module.manual_backward(self.loss_scale.scaled(loss))

    def step(self) -> OptimizerStep:
        """Average gradients over ranks, clip, step, advance the schedule and zero the gradients.

        If a loss or gradient on any rank is NaN or infinite, all ranks skip the step and the schedule. In float16, an
        infinite gradient of a finite loss is not an error: the loss scale was too large.
        """
        module, strategy = self.module, self.module.trainer.strategy
        optimizer = module.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        with self.state.phase("optimizer", 1):
            parallelism_of(module.trainer).average_gradients([p for p in module.parameters() if p.requires_grad])
            self.loss_scale.unscale(optimizer.optimizer)
            parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            learning_rate = float(optimizer.param_groups[0]["lr"])  # torchao's is a tensor that the schedule changes
            finite = strategy.reduce_boolean_decision(bool(self.finite & norm.isfinite()), all=True)
            losses_finite = finite or strategy.reduce_boolean_decision(bool(self.finite), all=True)
            if finite:
                optimizer.step()
            overflowed = self.loss_scale.update(finite, losses_finite)
            optimizer.zero_grad()
        self.finite.fill_(True)
        self.state.overflowed_steps += overflowed
        self.state.skipped_steps += not finite and not overflowed
        if finite:
            self.advance_schedule("step")
        return OptimizerStep(learning_rate, norm, not finite)

    def advance_schedule(self, after: Interval) -> None:
        """Advance the schedule if `after`, the optimizer step or epoch that has just ended, is its unit."""
        scheduler = self.module.lr_schedulers()
        if scheduler is not None and after == self.schedule_interval:
            scheduler.step()  # type: ignore[union-attr]
