"""Quantise linear layers of the language model to four bits (QLoRA, arXiv 2305.14314) with bitsandbytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vrft.errors import ConfigurationError

FIELD = "model.policy.quantize"


def published_in_four_bits(checkpoint: str) -> bool:
    """Return whether the weights in a checkpoint are quantised to four bits by bitsandbytes."""
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(checkpoint)
    return is_bitsandbytes(config.get("quantization_config"))


def is_bitsandbytes(settings: object) -> bool:
    """Return whether the `quantization_config` of a config.json specifies bitsandbytes with four bits."""
    return (
        isinstance(settings, dict)
        and settings.get("quant_method") == "bitsandbytes"
        and bool(settings.get("load_in_4bit"))
    )


def check_four_bits(has_adapters: bool, what: str) -> None:
    """Check that a model with weights in four bits can be trained.

    Args:
        has_adapters: whether adapters are trained.
        what: the setting or checkpoint that requires four bits, for the message.

    Raises:
        ConfigurationError: there are no adapters, or bitsandbytes is not installed.
    """
    if not has_adapters:
        raise ConfigurationError(
            f"{what}: weights in four bits can't be trained themselves; train adapters with model.policy.lora.r=16"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(f"{what}: needs bitsandbytes: pip install 'bitsandbytes>=0.50,<0.51'")


def nf4_settings(checkpoint: str, dtype: torch.dtype, trust_remote_code: bool) -> dict[str, Any]:
    """Return arguments of `from_pretrained` that quantise the language model's linear layers when reading them.

    Weights are converted to 4-bit NormalFloat in blocks of 64, with scales quantised to 8 bits in blocks of 256: 0.52
    bytes per weight. The vision tower, the projector and the head keep the compute dtype.

    Args:
        checkpoint: a folder or a model on the Hugging Face Hub.
        dtype: compute dtype.
        trust_remote_code: run Python code that comes with the checkpoint.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    inside = {*model.get_decoder().modules()}
    outside = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m not in inside]
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=outside,
    )
    return {"quantization_config": settings}


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Make layers in four bits compute in a dtype, and copy their scales, which may be memory-mapped."""
    for layer in four_bit_layers(model):
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
        layer.support_avx512bf16_for_cpu = False  # else sampler and trainer would use different kernels
        state = layer.weight.quant_state
        state.dtype = dtype
        state.absmax = state.absmax.clone()


@contextmanager
def four_bits_computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Make layers in four bits compute in another dtype in the context."""
    layers = [*four_bit_layers(model)]
    before = [(layer.compute_dtype, layer.weight.quant_state.dtype) for layer in layers]
    for layer in layers:
        layer.compute_dtype = layer.weight.quant_state.dtype = dtype
    try:
        yield
    finally:
        for layer, (computed, stored) in zip(layers, before, strict=True):
            layer.compute_dtype, layer.weight.quant_state.dtype = computed, stored


def four_bit_layers(model: nn.Module) -> Iterator[Any]:
    """Yield the linear layers in four bits."""
    return (module for module in model.modules() if is_in_four_bits(module))


def is_in_four_bits(module: nn.Module) -> bool:
    """Return whether a module is a linear layer in four bits. Trained layers always have a floating-point weight."""
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight of a linear layer, (out, in), dequantised if it is in four bits."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not is_in_four_bits(layer):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[attr-defined]
    return whole
