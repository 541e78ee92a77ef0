"""The reference of a policy: a frozen copy of its model, or the same model with other values of its trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vrft.policy.lora import without_training
from vrft.policy.weights import page_locked, replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lock_pages(reference: PreTrainedModel, device: torch.device) -> None:
    """Keep the parameters of a reference in CPU memory from which they are copied to a device again and again."""
    for parameter in reference.parameters():
        parameter.data = page_locked(parameter.data, device)


def trained_values(model: nn.Module, home: torch.device, *, offload: bool) -> dict[Tensor, Tensor]:
    """Return copies of the parameters that train, by these parameters.

    Args:
        model: the model.
        home: the device of the computation.
        offload: keep the copies in CPU memory.
    """

    def copied(parameter: Tensor) -> Tensor:
        value = parameter.detach().clone()
        return page_locked(value, home) if offload else value

    return {parameter: copied(parameter) for parameter in model.parameters() if parameter.requires_grad}


def on_device(
    reference: PreTrainedModel | None, start: Mapping[Tensor, Tensor], device: torch.device
) -> AbstractContextManager[None]:
    """Copy an offloaded reference, or the values of what trains in it, to a device; drop the copies at the end."""
    tensors = [*start.values()] if reference is None else [*reference.parameters(), *reference.buffers()]
    return replaced({x: x.data.to(device, non_blocking=True) for x in tensors if x.device != device})


def reference_of(
    model: PreTrainedModel, copy: PreTrainedModel | None, start: Mapping[Tensor, Tensor], adapted: bool
) -> AbstractContextManager[PreTrainedModel]:
    """Return a context that yields the reference.

    Args:
        model: the policy's model.
        copy: a frozen copy of it at the start, if that is the reference.
        start: values of the parameters that train in it; empty if it is a copy or the model without adapters.
        adapted: adapters train.
    """
    if start or adapted:
        return _with_values(model, start)
    assert copy is not None, "load(keep_reference=True) first"
    return nullcontext(copy)


@contextmanager
def _with_values(model: PreTrainedModel, start: Mapping[Tensor, Tensor]) -> Iterator[PreTrainedModel]:
    with replaced(start) if start else without_training(model):
        yield model
