"""Check that trained weights in bfloat16 have an optimizer with stochastic rounding, without which updates are lost."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.weights import TRAINED_DTYPE
from vrft.training.checkpoint_state import set_learning_rate
from vrft.training.strategies import SingleProcess, parallelism_of

SIDE = 512
"""Rows and columns of the matrix on which an optimizer is tested."""

SMALL_RATE = 1e-5
"""A learning rate whose updates are far below half a unit in the last place of a bfloat16 weight of 1, 2e-3."""


def check_rounding(
    policy: Policy, trainer: Trainer, make_optimizer: OptimizerCallable, reference_follows: bool
) -> None:
    """Check that weights in bfloat16 can be trained with this optimizer, trainer and reference.

    Args:
        policy: the policy; nothing is checked if it trains weights in float32.
        trainer: the run's trainer.
        make_optimizer: callable that makes an optimizer from parameters.
        reference_follows: whether the reference is a moving average of the weights.

    Raises:
        ConfigurationError: updates would be lost, or ranks would round their replicas differently.
    """
    if policy.trained_dtype == torch.float32:
        return
    if trainer.world_size > 1 or type(parallelism_of(trainer)) is not SingleProcess:
        raise ConfigurationError(
            f"{TRAINED_DTYPE}: expected float32 with {type(trainer.strategy).__name__}, whose ranks would round their "
            "replicas of the weights by different random numbers; bfloat16 needs one process without trainer.strategy"
        )
    if reference_follows:
        raise ConfigurationError(f"{TRAINED_DTYPE}: expected float32 with model.reference_decay, whose average rounds")
    if not rounds_stochastically(make_optimizer):
        raise ConfigurationError(
            f"{TRAINED_DTYPE}: bfloat16 loses small updates unless the optimizer rounds stochastically, which "
            "model.optimizer doesn't; --config optimizer/adamw_8bit_stochastic selects one that does"
        )


def rounds_stochastically(make_optimizer: OptimizerCallable) -> bool:
    """Return whether an optimizer step far below the precision of bfloat16 changes some of many equal weights."""
    weight = nn.Parameter(torch.ones(SIDE, SIDE, dtype=torch.bfloat16))
    optimizer = make_optimizer([weight])
    for group in optimizer.param_groups:
        set_learning_rate(group, SMALL_RATE)
    weight.grad = torch.ones_like(weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer.step()
    return len(weight.detach().unique()) > 1
