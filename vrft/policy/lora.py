"""Low-rank adapters (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vrft.policy.pretrained import language_model_layers
from vrft.policy.weights import replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the language model (arXiv 2106.09685).

    Attributes:
        r: rank.
        alpha: scale; the adapter's output is multiplied by alpha / r.
        target_modules: names of the linear layers that get an adapter; "all-linear" includes the vision tower's.
            Default: all linear layers of the language model.
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | list[str] | None = None


def add_adapters(model: PreTrainedModel, lora: LoRA) -> nn.Module:
    """Wrap a model with fresh adapters, which leave its output unchanged until they are trained."""
    from peft import LoraConfig, get_peft_model

    # No dropout: all completions of a group share the forward of their prompt, and so one dropout mask.
    targets = lora.target_modules or language_model_layers(model)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0)
    # peft rounds fresh adapters to the dtype of their layer. These stand-ins for weights take no memory.
    # Those of layers in four bits are float32 already.
    weights = (p for p in model.parameters() if p.is_floating_point())
    float32 = {p: torch.zeros((), device=p.device).expand(p.shape) for p in weights}
    with replaced(float32):
        return get_peft_model(model, config)


@contextmanager
def without_adapters(model: PreTrainedModel, which: Callable[[nn.Module], bool] = lambda layer: True) -> Iterator[None]:
    """Replace each layer that has adapters by its base layer.

    Adapters that are only disabled still cost each layer as much as a small matrix product.

    Args:
        model: the model.
        which: tells by its base layer whether a layer is replaced; default: all are.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, LoraLayer) and which(layer.get_base_layer())
    ]
    for parent, name, layer in adapted:
        setattr(parent, name, layer.get_base_layer())
    try:  # restore the adapters even after an interrupt: the run may still save a checkpoint
        yield
    finally:
        for parent, name, layer in adapted:
            setattr(parent, name, layer)
