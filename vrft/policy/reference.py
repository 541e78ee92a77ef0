"""The reference of a policy: a frozen copy of its model, or the same model with other values of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vrft.policy.lora import without_training
from vrft.policy.page_locked import move_to_cpu
from vrft.policy.weights import replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def trained_values(model: nn.Module, home: torch.device, *, offload: bool) -> dict[Tensor, Tensor]:
    """Return copies of the trainable parameters, keyed by the parameters.

    Args:
        model: the model.
        home: the device of the computation.
        offload: keep the copies in CPU memory.
    """
    moved = offload and home.type == "cuda"  # moving also copies
    values: dict[Tensor, Tensor] = {
        parameter: parameter.detach() if moved else parameter.detach().clone()
        for parameter in model.parameters()
        if parameter.requires_grad
    }
    if moved:
        move_to_cpu([*values.values()], home)
    return values


def on_device(
    reference: PreTrainedModel | None, start: Mapping[Tensor, Tensor], device: torch.device
) -> AbstractContextManager[None]:
    """Return a context in which an offloaded reference, or its values of trained weights, are copied to a device."""
    tensors = [*start.values()] if reference is None else [*reference.parameters(), *reference.buffers()]
    return replaced({x: x.data.to(device, non_blocking=True) for x in tensors if x.device != device})


def reference_of(
    model: PreTrainedModel, copy: PreTrainedModel | None, start: Mapping[Tensor, Tensor], adapted: bool
) -> AbstractContextManager[PreTrainedModel]:
    """Return a context that yields the reference.

    Args:
        model: the policy's model.
        copy: a frozen copy of the initial model, if it is the reference.
        start: the reference's values of the trained parameters; empty if the reference is `copy` or the model without
            adapters.
        adapted: whether adapters are trained.
    """
    if start or adapted:
        return _with_values(model, start)
    assert copy is not None, "load(keep_reference=True) first"
    return nullcontext(copy)


@contextmanager
def _with_values(model: PreTrainedModel, start: Mapping[Tensor, Tensor]) -> Iterator[PreTrainedModel]:
    with replaced(start) if start else without_training(model):
        yield model
