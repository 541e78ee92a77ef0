"""The layers that get adapters: linear layers whose weights belong to no other module."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from vrft.errors import ConfigurationError
from vrft.policy.whole_modules import other_owner, places_by_parameter

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

FIELD = "model.policy.lora.target_modules"


def check_names(model: nn.Module, targets: str | Iterable[str]) -> None:
    """Raise ConfigurationError if `targets` is no regular expression, or a list with a name that no module has."""
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ConfigurationError(f"{FIELD}: {targets!r} is not a regular expression: {error}") from error
        return
    names = [f".{name}" for name, _ in model.named_modules()]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in names):
            raise ConfigurationError(f"{FIELD}: the model has no {target!r}; it has {linear_names(model)}")


def check_adapted(model: PreTrainedModel, config: LoraConfig, field: str) -> None:
    """Check the modules that would get adapters.

    Decoding merges adapters into weights, so a module with the same weight would compute with the adapter too.

    Args:
        model: the model, without adapters.
        config: peft's settings.
        field: the setting that names the modules, for messages.

    Raises:
        ConfigurationError: there is no such module, or one is not a linear layer or shares its weight.
    """
    chosen = adapted_modules(model, config)
    if not chosen:
        raise ConfigurationError(
            f"{field}: no layer matches; expected a list of names, or a regular expression for whole names; the model "
            f"has {linear_names(model)}"
        )
    places = places_by_parameter(model)
    for name, module in chosen.items():
        if not isinstance(module, nn.Linear):
            raise ConfigurationError(
                f"{field}: {name} ({type(module).__name__}) is not a linear layer; name linear layers only, if "
                "necessary by more of their names, e.g. attn.proj"
            )
        if other := other_owner(places, name, module):
            raise ConfigurationError(
                f"{field}: {name} shares a weight with {other}, which would change too when a rollout merges the "
                "adapter; leave it out"
            )


def adapted_modules(model: PreTrainedModel, config: LoraConfig) -> dict[str, nn.Module]:
    """Return the modules that peft would adapt, by name."""
    from peft.tuners.tuners_utils import check_target_module_exists

    modules = {name: module for name, module in model.named_modules() if name}
    targets = config.target_modules
    if isinstance(targets, str) and targets.lower() == "all-linear":
        head = model.get_output_embeddings()
        return {
            name: module for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head
        }
    return {name: module for name, module in modules.items() if check_target_module_exists(config, name)}


def linear_names(model: nn.Module) -> str:
    """Return the last parts of the names of a model's linear layers, for a message."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return ", ".join(sorted(name for name in names if not name.isdigit()))
