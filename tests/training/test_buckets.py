"""The parameters that DistributedDataParallel ignores, since all ranks have them and vrft averages their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vrft.training.strategies import keep_out_of_buckets


def test_all_ranks_keep_the_first_of_the_smallest_trained_parameters() -> None:
    """A rank with another one would receive the weights of the first rank's."""
    policy: Any = nn.Module()
    policy.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    policy.large = nn.Linear(3, 2, bias=False)
    policy.biases = nn.ParameterList(torch.ones(2) for _ in range(20))
    policy.tied = nn.Module()
    policy.tied.first = policy.biases[0]
    module = nn.Module()
    module.policy = policy
    module.head = nn.Linear(3, 2, bias=False)
    module.register_buffer("steps", torch.zeros(()))
    keep_out_of_buckets(module, policy)
    ignored = {"policy.frozen", "policy.large.weight", *(f"policy.biases.{i}" for i in range(1, 20))}
    assert {*module._ddp_params_and_buffers_to_ignore} == ignored  # type: ignore[arg-type]
