"""Replace a model's parameters, e.g. by copies in another dtype or by parameters without values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vrft.errors import ConfigurationError

Model = TypeVar("Model", bound=nn.Module)
TRAINED_DTYPE = "model.policy.trained_dtype"


def check_trained_dtype(trained: torch.dtype, dtype: torch.dtype, adapters: bool) -> None:
    """Raise ConfigurationError for trained weights in bfloat16 if the compute dtype differs or adapters are trained.

    Args:
        trained: dtype of the trained weights.
        dtype: compute dtype.
        adapters: whether adapters are trained instead of the model's weights.
    """
    if trained != torch.float32 and (adapters or dtype != trained):
        raise ConfigurationError(
            f"{TRAINED_DTYPE}: bfloat16 is for training all weights with model.policy.dtype=bfloat16, without "
            "model.policy.lora; expected float32"
        )


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
    """Replace each parameter by `make(parameter)`. Tied parameters stay tied.

    `parameter.data = …` can't move a parameter from or to the meta device, and `module.to` would untie parameters.
    """
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            places.setdefault(parameter, []).append((owner, name))
    while places:  # free the old parameter before making the next one
        parameter, owners = places.popitem()
        made = make(parameter)
        for owner, name in owners:
            setattr(owner, name, made)


def final_dtype(parameter: Tensor, dtype: torch.dtype, trained: torch.dtype = torch.float32) -> torch.dtype:
    """Return the dtype of a parameter during training: `trained` if it is trained, otherwise `dtype`.

    Weights in four bits keep their dtype.
    """
    if not parameter.is_floating_point():
        return parameter.dtype
    return trained if parameter.requires_grad else dtype


@torch.no_grad()
def own_weights(modules: Iterable[nn.Module], dtype: torch.dtype, trained: torch.dtype) -> None:
    """Copy each parameter to separate memory, in the dtype `trained` if it is trained and in `dtype` otherwise.

    A reference in the policy's dtype would otherwise share memory with the policy and be trained with it. On a CPU,
    weights that were read in their stored dtype are memory-mapped, so a run would change if the file did.
    """
    used: set[int] = set()
    for module in modules:
        for parameter in module.parameters():
            shared = parameter.device.type == "cpu" or parameter.data_ptr() in used
            parameter.data = parameter.data.to(final_dtype(parameter, dtype, trained), copy=shared)
            used.add(parameter.data_ptr())


def frozen_copy(model: Model, dtype: torch.dtype, device: torch.device | None = None) -> Model:
    """Return a copy of a model for inference, with parameters in `dtype`.

    Parameters that already have this dtype and device share memory with the original.

    Args:
        model: the model.
        dtype: dtype of the copy's parameters.
        device: device of the copy's parameters; default: unchanged. Buffers are never moved.
    """
    parameters = {id(p): p.detach().to(device, dtype) for p in model.parameters()}
    memo: dict[int, Any] = {key: nn.Parameter(value, requires_grad=False) for key, value in parameters.items()}
    return copy.deepcopy(model, memo).eval()
