"""Work whose failure on one rank has to reach all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

from vrft.errors import ConfigurationError, RolloutFailed

Result = TypeVar("Result")


def raise_on_all_ranks(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """The result of a rank's work; if that of any rank fails, all of them raise its error."""
    error: RolloutFailed | ConfigurationError | None = None
    try:
        result = work()
    except (RolloutFailed, ConfigurationError) as problem:
        error = problem
    strategy = trainer.strategy
    rank = trainer.global_rank if error is not None else -1
    failed = int(strategy.reduce(torch.tensor(float(rank), device=strategy.root_device), reduce_op="max"))
    if failed >= 0:
        error = strategy.broadcast(error, src=failed)
        assert error is not None
        raise error
    return result


def on_rank_zero(trainer: Trainer, write: Callable[..., None], *args: Any) -> None:
    """Write on the first rank; all ranks wait for it, and raise the OSError that it raises."""
    error: OSError | None = None
    if trainer.is_global_zero:
        try:
            write(*args)
        except OSError as problem:
            error = problem
    error = trainer.strategy.broadcast(error)
    if error is not None:
        raise error
