"""Read weights on the first rank and distribute them to the others, which never have more than their share.

A rank without values has parameters and buffers on the meta device. All ranks call each function together.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vrft.errors import ConfigurationError
from vrft.policy.page_locked import move_to_cpu
from vrft.policy.vlm import Policy
from vrft.policy.weights import final_dtype, replace_parameters

READER = 0
"""The rank that reads the checkpoint."""


def is_reader() -> bool:
    """Return whether this rank reads the checkpoint."""
    return dist.get_rank() == READER


def read_once(policy: Policy, keep_reference: bool) -> None:
    """Read a policy on the first rank, and build the same model without values on the others.

    Raises:
        ConfigurationError: a rank can't read the checkpoint. All ranks raise the error of the first rank that failed.
            A rank with an error of another type raises this error.
    """
    try:
        policy.read(keep_reference, values=is_reader())
    except ConfigurationError as problem:
        raise_first(problem)
    except Exception as problem:
        said = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        share(ConfigurationError(f"model.policy.checkpoint: rank {dist.get_rank()} can't read it: {said}"))
        raise
    else:
        raise_first(None)
    for model in policy.models:
        tie_as_reader(model)


def share(error: ConfigurationError | None) -> list[ConfigurationError | None]:
    """Return the errors of all ranks, so that no rank waits for weights that another rank can't send."""
    errors: list[ConfigurationError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return errors


def raise_first(error: ConfigurationError | None) -> None:
    """Raise the error of the first rank that has one."""
    if first := next(filter(None, share(error)), None):
        raise first


def tie_as_reader(model: nn.Module) -> None:
    """Tie the parameters that are tied on the first rank, which depends on values for some checkpoints."""
    first_names: dict[Tensor, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    ties = [[(name, first_names.setdefault(parameter, name)) for name, parameter in names]]
    dist.broadcast_object_list(ties, READER)
    for name, first in ties[0]:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


def replicate(policy: Policy, model: nn.Module, device: torch.device) -> None:
    """Give each rank a replica of the first rank's model.

    Args:
        policy: the policy after `read_once`.
        model: the policy's model or reference.
        device: device of the communication and of the replica. The weights of an offloaded reference are in CPU memory.
    """
    offloaded = model is policy.reference and policy.offload_reference

    def replica(parameter: nn.Parameter) -> nn.Parameter:
        value = broadcast(parameter.detach(), device, final_dtype(parameter, policy.dtype))
        return nn.Parameter(value.cpu() if offloaded else value, parameter.requires_grad)

    replace_parameters(model, replica)
    if offloaded:
        move_to_cpu([*model.parameters()], device)
    replicate_buffers(model, device)


def replicate_buffers(model: nn.Module, device: torch.device) -> None:
    """Give each rank the buffers of the first rank's model."""
    for module in model.modules():
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, broadcast(buffer, device, buffer.dtype))


def broadcast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a copy of the first rank's tensor in a dtype. Other ranks pass a tensor of this shape without values."""
    if is_reader():
        value = tensor.to(device, dtype, copy=True).contiguous()
    else:
        value = torch.empty_like(tensor, dtype=dtype, device=device)
    dist.broadcast(value, READER)
    return value


def take_weights(policy: Policy) -> dict[str, Tensor]:
    """Return the parameters by name, and leave the policy with parameters without values."""
    weights = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    replace_parameters(
        policy,
        lambda p: nn.Parameter(torch.empty_like(p, dtype=final_dtype(p, policy.dtype), device="meta"), p.requires_grad),
    )
    return weights


def allocate(policy: Policy, home: torch.device) -> None:
    """Allocate uninitialised memory on `home` for the sharded parameters of a policy."""

    def allocated(parameter: nn.Parameter) -> nn.Parameter:
        sharded = cast(DTensor, parameter)
        local = torch.empty_like(sharded.to_local(), device=home)
        mesh, placements = sharded.device_mesh, sharded.placements
        memory = DTensor.from_local(local, mesh, placements, shape=sharded.shape, stride=sharded.stride())
        return nn.Parameter(memory, parameter.requires_grad)

    replace_parameters(policy, allocated)


@torch.no_grad()
def scatter(policy: Policy, weights: dict[str, Tensor], device: torch.device) -> None:
    """Fill the sharded parameters of a policy. `weights` is emptied.

    Args:
        policy: the policy, sharded by FSDP2 and allocated.
        weights: parameters by name, with values on the first rank only.
        device: device of the communication.
    """
    for name, parameter in policy.named_parameters():
        local = cast(DTensor, parameter).to_local()
        local.copy_(own_share(weights.pop(name), local.shape, device))


def own_share(weight: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Return this rank's shard of the first rank's weight, split along the first dimension like FSDP2.

    Args:
        weight: the full weight, with values on the first rank only.
        shape: shape of this rank's shard, which is empty if there are more ranks than rows.
        device: device of the communication.
    """
    if is_reader():
        first, *others = weight.chunk(dist.get_world_size())
        for rank, part in enumerate(others, start=1):
            dist.send(part.to(device).contiguous(), rank)
        return first
    share = torch.empty(shape, dtype=weight.dtype, device=device)
    if share.numel() > 0:
        dist.recv(share, READER)
    return share
