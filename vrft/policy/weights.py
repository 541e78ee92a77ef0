"""Replace the values of a model's parameters: copies in another dtype, and stand-ins without values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def replaced(weights: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Replace the data of each parameter (key) by another tensor (value)."""
    originals = {parameter: parameter.data for parameter in weights}
    for parameter, value in weights.items():
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in originals.items():
            parameter.data = value


def replace_parameters(module: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]) -> None:
    """Replace each parameter by `make` of it; tied parameters stay tied.

    `parameter.data = …` can't move a parameter from or to the meta device, and `module.to` would untie.
    """
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            places.setdefault(parameter, []).append((owner, name))
    while places:  # the old parameter is freed before the next one is made
        parameter, owners = places.popitem()
        made = make(parameter)
        for owner, name in owners:
            setattr(owner, name, made)


def final_dtype(parameter: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a parameter has in training: float32 if it is trained, otherwise `dtype`."""
    return torch.float32 if parameter.requires_grad else dtype


@torch.no_grad()
def own_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Give each parameter memory of its own, in float32 if it is trained and in `dtype` otherwise.

    On a CPU, weights that were read in their stored dtype are the file itself, mapped to memory: a run would change
    with the file.
    """
    for parameter in module.parameters():
        mapped = parameter.device.type == "cpu"
        parameter.data = parameter.data.to(final_dtype(parameter, dtype), copy=mapped)


def frozen_copy(model: Model, dtype: torch.dtype) -> Model:
    """Return a copy of a model for inference, with parameters in `dtype`.

    Parameters that have this dtype already share their memory with the original's.
    """
    memo = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo).eval()
