"""Weights that are sharded over ranks (FSDP2), and how to gather them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
"""State dicts of trained parameters, unsharded and on the CPU under every strategy."""


def fsdp_modules(root: nn.Module) -> list[FSDPModule]:
    """Return the modules whose weights are sharded."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def make_root(module: nn.Module) -> None:
    """Make a sharded module the root of FSDP.

    FSDP takes the first module that runs a forward for the root, and gathers its weights. It has no public way to set
    the root without that.
    """
    cast(FSDPModule, module)._get_fsdp_state()._lazy_init()


def decoder_modules(models: Iterable[nn.Module]) -> set[object]:
    """Return the modules of the language models: each forward calls them once, vision blocks once per image."""
    return {module for model in models for module in cast("PreTrainedModel", model).get_decoder().modules()}


@contextmanager
def unshard(modules: Collection[FSDPModule], reshard_after_forward: Collection[object]) -> Iterator[None]:
    """Gather the weights of some modules; their forwards inside need no other rank.

    Args:
        modules: modules to gather; at the end they are resharded.
        reshard_after_forward: modules that reshard after each forward, outside this context.
    """
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module in reshard_after_forward, recurse=False)
            module.reshard()


def done_on_all_ranks(done: bool, device: torch.device) -> bool:
    """Return whether every rank is done. All ranks call this together."""
    waiting = torch.tensor(float(not done), device=device)
    dist.all_reduce(waiting)
    return not waiting


def full_state_dict(model: nn.Module, include_frozen: bool) -> dict[str, Tensor]:
    """Return unsharded copies of a model's weights on the CPU. All ranks that share them call this together."""
    options = replace(FULL_STATE, ignore_frozen_params=not include_frozen)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    if include_frozen:
        return weights
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    # the scales of a weight in four bits are neither parameters nor buffers
    return {name: value for name, value in weights.items() if name.rpartition(".weight.")[0] + ".weight" not in frozen}
