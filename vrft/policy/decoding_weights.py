"""The weights that a model decodes with: adapters merged, in the dtype of the computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vrft.policy.four_bits import is_in_four_bits
from vrft.policy.lora import merged_weight, without_adapters
from vrft.policy.weights import replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def decoding_weights(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Merge adapters and convert the weights and biases of linear layers, in copies.

    Merging into the weights themselves would change them: subtracting the adapters again rounds. Weights in four bits
    stay as they are, with adapters beside them: a merged copy would need the memory that four bits save.

    Args:
        model: the model, with unsharded weights.
        dtype: dtype of the computation.
        device: device of the computation.
    """
    weights = merged_weights(model, dtype, device)
    with without_adapters(model, lambda layer: not is_in_four_bits(layer)), replaced(weights):
        yield


@torch.no_grad()
def merged_weights(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> dict[Tensor, Tensor]:
    """Return the copies to decode with, by the weight that each of them replaces."""
    from peft.tuners.lora import LoraLayer

    modules = list(model.modules())
    on_cpu = device.type == "cpu"
    weights: dict[Tensor, Tensor] = {}
    for module in modules:
        if is_in_four_bits(module) or (isinstance(module, LoraLayer) and is_in_four_bits(module.get_base_layer())):
            continue
        if isinstance(module, LoraLayer):
            weights[module.get_base_layer().weight] = merged_weight(module).to(dtype)
        elif isinstance(module, nn.Linear) and (on_cpu or module.weight.dtype != dtype):
            weights.setdefault(module.weight, module.weight.to(dtype))
            if module.bias is not None and module.bias.dtype != dtype:  # autocast would convert it for every token
                weights[module.bias] = module.bias.to(dtype)
    if on_cpu:  # a CPU multiplies few rows faster by weights in column-major order
        weights = {weight: value.t().contiguous().t() if value.ndim > 1 else value for weight, value in weights.items()}
    return weights
