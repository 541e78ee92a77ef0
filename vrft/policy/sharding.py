"""Gather weights that are sharded over ranks (FSDP2)."""

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
"""Options for state dicts of trained parameters, unsharded and on the CPU under every strategy."""


def fsdp_modules(root: nn.Module) -> list[FSDPModule]:
    """Return the modules whose weights are sharded."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def make_root(module: nn.Module) -> None:
    """Make a sharded module the root of FSDP.

    FSDP takes the first module that runs a forward for the root, and gathers its weights. There is no public way to set
    the root without a forward.
    """
    cast(FSDPModule, module)._get_fsdp_state()._lazy_init()


def decoder_modules(models: Iterable[nn.Module]) -> set[object]:
    """Return the modules of the language models, which a forward calls once, unlike vision blocks."""
    return {module for model in models for module in cast("PreTrainedModel", model).get_decoder().modules()}


@contextmanager
def unshard(modules: Collection[FSDPModule], reshard_after_forward: Collection[object]) -> Iterator[None]:
    """Gather the weights of modules, so that their forwards in the context need no communication.

    Args:
        modules: modules to gather. They are resharded at the end.
        reshard_after_forward: those of the modules that reshard after each forward outside this context.
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
    """Return whether all ranks are done. All ranks call this together."""
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
    # drop the scales of weights in four bits, which are neither parameters nor buffers
    return {name: value for name, value in weights.items() if name.rpartition(".weight.")[0] + ".weight" not in frozen}
