"""Share the failure of work on one rank with all ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from vrft.errors import ConfigurationError, RolloutFailed

Result = TypeVar("Result")


def raise_on_all_ranks(
    trainer: Trainer,
    work: Callable[[], Result],
    errors: tuple[type[Exception], ...] = (RolloutFailed, ConfigurationError),
) -> Result:
    """Return the result of this rank's work. If the work fails on any rank, raise the error on all ranks.

    Args:
        trainer: the trainer whose ranks call this together.
        work: the work of this rank.
        errors: types of errors to share; other errors are raised only on this rank.
    """
    error: Exception | None = None
    try:
        result = work()
    except errors as problem:
        error = problem
    strategy = trainer.strategy
    rank = trainer.global_rank if error is not None else -1
    failed = int(strategy.reduce(torch.tensor(float(rank), device=strategy.root_device), reduce_op="max"))
    if failed >= 0:
        error = strategy.broadcast(error, src=failed)
        assert error is not None
        raise error
    return result


def is_rank_zero() -> bool:
    """Return whether this process is the first rank. Works before there is a trainer."""
    return rank_zero_only(lambda: True, default=False)()


def is_first_node() -> bool:
    """Return whether this machine is the first of a run that is started manually on several machines.

    Lightning knows the rank of such a process only once there is a trainer, and reads the same environment variables.
    """
    return os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"


def on_rank_zero(trainer: Trainer, write: Callable[..., None], *args: Any) -> None:
    """Call `write` on rank zero. All ranks wait for it, and raise its OSError if it fails."""
    work = partial(write, *args) if trainer.is_global_zero else lambda: None
    raise_on_all_ranks(trainer, work, (OSError,))
