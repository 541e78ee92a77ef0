"""Whole modules that train in addition to adapters: peft's `modules_to_save`, with a frozen original and a copy."""

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
"""Name of the adapter to which the copies belong."""


def is_whole(module: nn.Module) -> TypeGuard[ModulesToSaveWrapper]:
    """Return whether a module contains a frozen original and the copy that trains instead."""
    other = sys.modules.get("peft.utils.other")
    return other is not None and isinstance(module, other.ModulesToSaveWrapper)


def whole_modules(model: nn.Module) -> Iterator[ModulesToSaveWrapper]:
    """Yield the modules that train as a whole."""
    return (module for module in model.modules() if is_whole(module))


def originals(model: nn.Module) -> set[nn.Module]:
    """Return all modules in the frozen originals."""
    return {module for whole in whole_modules(model) for module in whole.original_module.modules()}


def copies_by_original(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter of the frozen originals with the parameter that trains instead."""
    for whole in whole_modules(model):
        yield from zip(whole.original_module.parameters(), whole.modules_to_save[NAME].parameters(), strict=True)


def fill_copies(model: nn.Module) -> None:
    """Copy the values of the originals to the copies, in separate memory."""
    for original, copy in copies_by_original(model):
        copy.data = original.detach().to(torch.float32, copy=True)


def chosen_modules(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """Return the modules whose names end in one of `names`, by peft's rule.

    Raises:
        ConfigurationError: no module has one of the names.
    """
    modules = dict(model.named_modules())
    for name in names:
        if not any(key.endswith(name) for key in modules):
            known = sorted({key.rpartition(".")[2] for key in modules if key and not key.rpartition(".")[2].isdigit()})
            raise ConfigurationError(f"{FIELD}: the model has no {name!r}; it has {', '.join(known)}")
    return {key: module for key, module in modules.items() if key.endswith(tuple(names))}


def check_whole_modules(model: nn.Module, names: Collection[str]) -> None:
    """Check the modules to train as a whole.

    Raises:
        ConfigurationError: no module has one of the names, or a module is inside another, is in four bits, or shares a
            weight.
    """
    chosen = chosen_modules(model, names)
    inside = {id(part): key for key, module in chosen.items() for part in module.modules() if part is not module}
    places = places_by_parameter(model)
    for key, module in chosen.items():
        if id(module) in inside:
            raise ConfigurationError(f"{FIELD}: {key} lies in {inside[id(module)]}, which trains too; name one of them")
        if any(is_in_four_bits(part) for part in module.modules()):
            raise ConfigurationError(f"{FIELD}: {key} is in four bits and can't be trained itself; leave it out")
        if other := other_owner(places, key, module):
            raise ConfigurationError(
                f"{FIELD}: {key} shares a weight with {other}, from which a copy that trains would part; leave it out"
            )


def places_by_parameter(model: nn.Module) -> dict[Tensor, list[str]]:
    """Return all names of each parameter; tied parameters have several."""
    places: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    return places


def other_owner(places: dict[Tensor, list[str]], name: str, module: nn.Module) -> str | None:
    """Return the name of another module that has a parameter of a module, or None.

    Args:
        places: names of the model's parameters, from `places_by_parameter`.
        name: name of the module in the model.
        module: the module.
    """
    elsewhere = (
        place for parameter in module.parameters() for place in places[parameter] if not place.startswith(f"{name}.")
    )
    return next((place.rpartition(".")[0] for place in elsewhere), None)
