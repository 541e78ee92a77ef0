"""Make room for a server on the trainer's GPU by offloading optimizer states and the reference if necessary."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vrft.policy import Policy
from vrft.policy.page_locked import move_to_cpu


class GPURoom:
    """Moves optimizer states and the reference to CPU memory while a server needs the GPU's memory.

    The tensors remain the same objects with the same values.
    """

    def __init__(self, module: LightningModule, policy: Policy) -> None:
        self.module, self.policy = module, policy
        self.moved: list[Tensor] = []

    def make(self, share: float) -> None:
        """Empty torch's cache and, if less than `share` of the GPU's memory is then free, offload tensors."""
        device = self.policy.device
        if share == 0 or self.moved or device.type != "cuda":
            return
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        if free < share * total:
            self.leave(device)
            torch.cuda.empty_cache()

    def leave(self, device: torch.device) -> None:
        """Move the tensors that only an update needs from a device to CPU memory."""
        self.moved = [tensor for tensor in self.movable() if tensor.device == device]
        move_to_cpu(self.moved, device)

    def give_back(self) -> None:
        """Move everything back."""
        for tensor in self.moved:
            tensor.data = tensor.data.to(self.policy.device, non_blocking=True)
        self.moved = []

    def movable(self) -> list[Tensor]:
        """Return the tensors that only an update needs."""
        optimizers: list[Optimizer] = self.module.trainer.optimizers
        tensors = [tensor for optimizer in optimizers for tensor in state_tensors(optimizer)]
        tensors += self.policy.start.values()  # the weights of a moving reference, or of the initial adapter
        return tensors + ([] if self.policy.reference is None else [*self.policy.reference.parameters()])


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return the plain tensors in an optimizer's states, except paged tensors."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor for value in states if isinstance(value, Tensor) for tensor in plain_tensors(value)]


def plain_tensors(state: Any) -> list[Tensor]:
    """Return a state, or its inner tensors if it is low-bit (torchao) or sharded; an empty list if it is paged."""
    if is_traceable_wrapper_subclass(state):
        parts = [getattr(state, name) for name in state.__tensor_flatten__()[0]]  # a shard also has the device mesh
        return [tensor for part in parts if isinstance(part, Tensor) for tensor in plain_tensors(part)]
    return [] if is_paged(state) else [state]


def is_paged(state: Tensor) -> bool:
    """Return whether a state is in bitsandbytes' unified memory, which CUDA pages; such a tensor has this attribute."""
    return bool(getattr(state, "is_paged", False))
