"""The reference of a policy: a frozen copy of its model, or the model with the adapters that it started from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrft.policy.lora import without_adapters
from vrft.policy.weights import page_locked, replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lock_pages(reference: PreTrainedModel, device: torch.device) -> None:
    """Keep the parameters of a reference in CPU memory from which they are copied to a device again and again."""
    for parameter in reference.parameters():
        parameter.data = page_locked(parameter.data, device)


def on_device(reference: PreTrainedModel, device: torch.device) -> AbstractContextManager[None]:
    """Copy an offloaded reference to a device, and drop the copy at the end."""
    tensors = [*reference.parameters(), *reference.buffers()]
    return replaced({x: x.data.to(device, non_blocking=True) for x in tensors if x.device != device})


def reference_of(
    model: PreTrainedModel, copy: PreTrainedModel | None, start: Mapping[Tensor, Tensor] | None
) -> AbstractContextManager[PreTrainedModel]:
    """Return a context that yields the reference.

    Args:
        model: the policy's model.
        copy: a frozen copy of it at the start; None if adapters are trained.
        start: adapters at the start, by the parameters that train, empty if they were fresh; None without adapters.
    """
    if start is not None:
        return _model_at_start(model, start)
    assert copy is not None, "load(keep_reference=True) first"
    return nullcontext(copy)


@contextmanager
def _model_at_start(model: PreTrainedModel, adapters: Mapping[Tensor, Tensor]) -> Iterator[PreTrainedModel]:
    with replaced(adapters) if adapters else without_adapters(model):
        yield model
