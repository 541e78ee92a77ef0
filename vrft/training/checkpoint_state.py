"""Store optimizer states in checkpoints by parameter name, so that they can be loaded on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from vrft.errors import ConfigurationError
from vrft.training.gpu_room import state_tensors


def trainable_names(module: nn.Module) -> set[str]:
    """Return the names of the trainable parameters."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def name_optimizer_states(module: nn.Module, optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Replace parameter indices in optimizer states by names, in place."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    for optimizer, state in zip(optimizers, states, strict=True):
        trained = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        rename_optimizer_state(state, dict(enumerate(trained)))


def number_optimizer_states(module: nn.Module, states: Sequence[dict[str, Any]]) -> None:
    """Replace parameter names in optimizer states by torch's parameter indices, in place."""
    order = {name: i for i, (name, _) in enumerate(module.named_parameters())}
    for state in states:
        names = [name for group in state["param_groups"] for name in sorted(group["params"], key=order.__getitem__)]
        rename_optimizer_state(state, {name: i for i, name in enumerate(names)})
        for group in state["param_groups"]:
            group["params"].sort()


def rename_optimizer_state(state: dict[str, Any], names: Mapping[Any, Any]) -> None:
    """Rename the parameters in an optimizer's state, in place. Parameters without a new name keep their names."""
    if state:
        state["state"] = {names.get(key, key): value for key, value in state["state"].items()}
        state["param_groups"] = [
            {**group, "params": [names.get(key, key) for key in group["params"]]} for group in state["param_groups"]
        ]


def check_state_names(found: set[str], expected: set[str]) -> None:
    """Raise ConfigurationError unless a checkpoint has exactly the expected weights."""
    if odd := sorted(expected ^ found):
        where = "lacks" if odd[0] in expected else "has"
        raise ConfigurationError(
            f"ckpt_path: made with other model settings: it {where} {odd[0]!r}, and {len(odd) - 1} more"
        )


def set_learning_rate(group: dict[str, Any], rate: Any) -> None:
    """Set the learning rate of a parameter group. If it is a tensor, as in torchao, fill the tensor in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def own_states(optimizer: Optimizer) -> None:
    """Copy the states in CPU memory, for which torch would keep the checkpoint's memory-mapped tensors.

    The run would otherwise keep the file open, and would crash if the file were overwritten in place.
    """
    for tensor in state_tensors(optimizer):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def use_configured_settings(
    optimizer: Optimizer, schedulers: Sequence[LRSchedulerConfig], make_scheduler: LRSchedulerCallable | None
) -> None:
    """Give a resumed run the optimizer settings and the schedule of its current config.

    Lightning restores those of the checkpoint, so an extended run would resume at the end of its old schedule.
    """
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
        rate = group["lr"]
        group.update(optimizer.defaults, lr=rate)
        set_learning_rate(group, optimizer.defaults["lr"])
    if optimizer.defaults.get("fused"):  # without fused kernels, Adam keeps its step counts on the CPU
        for parameter, state in optimizer.state.items():
            state["step"] = state["step"].to(parameter.device)
    for config in schedulers:
        assert make_scheduler is not None
        steps = config.scheduler.last_epoch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler")  # wrong after a resume
            config.scheduler = make_scheduler(optimizer)
            for _ in range(steps):
                config.scheduler.step()
