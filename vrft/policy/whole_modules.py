"""Whole modules that train beside adapters: peft's `modules_to_save`, a trained copy beside the frozen original."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from vrft.errors import ConfigurationError
from vrft.policy.four_bits import is_in_four_bits

if TYPE_CHECKING:
    from peft.utils.other import ModulesToSaveWrapper

FIELD = "model.policy.lora.modules_to_save"
NAME = "default"
"""Name of the adapter that the copies belong to."""


def is_whole(module: nn.Module) -> TypeGuard[ModulesToSaveWrapper]:
    """Return whether a module holds a frozen original and the copy that trains in its place."""
    other = sys.modules.get("peft.utils.other")
    return other is not None and isinstance(module, other.ModulesToSaveWrapper)


def whole_modules(model: nn.Module) -> Iterator[ModulesToSaveWrapper]:
    """Yield the modules that train as a whole."""
    return (module for module in model.modules() if is_whole(module))


def originals(model: nn.Module) -> set[nn.Module]:
    """Return all modules inside the frozen originals."""
    return {module for whole in whole_modules(model) for module in whole.original_module.modules()}


def copies_by_original(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter of the frozen originals with the one that trains in its place."""
    for whole in whole_modules(model):
        yield from zip(whole.original_module.parameters(), whole.modules_to_save[NAME].parameters(), strict=True)


def fill_copies(model: nn.Module) -> None:
    """Give the copies the values of their originals, in memory of their own."""
    for original, copy in copies_by_original(model):
        copy.data = original.detach().to(torch.float32, copy=True)


def chosen_modules(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """Return the modules whose names end in one of some names, as peft chooses them.

    Raises:
        ConfigurationError: a name is no module's.
    """
    modules = dict(model.named_modules())
    for name in names:
        if not any(key.endswith(name) for key in modules):
            known = sorted({key.rpartition(".")[2] for key in modules if key and not key.rpartition(".")[2].isdigit()})
            raise ConfigurationError(f"{FIELD}: the model has no {name!r}; it has {', '.join(known)}")
    return {key: module for key, module in modules.items() if key.endswith(tuple(names))}


def check_whole_modules(model: nn.Module, names: Collection[str]) -> None:
    """Check modules that are to train as a whole.

    Raises:
        ConfigurationError: a name is no module's; one lies in another, is in four bits, or shares a weight.
    """
    chosen = chosen_modules(model, names)
    inside = {id(part): key for key, module in chosen.items() for part in module.modules() if part is not module}
    places: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    for key, module in chosen.items():
        if id(module) in inside:
            raise ConfigurationError(f"{FIELD}: {key} lies in {inside[id(module)]}, which trains too; name one of them")
        if any(is_in_four_bits(part) for part in module.modules()):
            raise ConfigurationError(f"{FIELD}: {key} is in four bits and can't be trained itself; leave it out")
        for parameter in module.parameters():
            if elsewhere := [name for name in places[parameter] if not name.startswith(f"{key}.")]:
                raise ConfigurationError(
                    f"{FIELD}: {key} shares a weight with {elsewhere[0]}, from which a copy that trains would part; "
                    "leave it out"
                )
