"""Requirements that a model must meet, checked before its weights are read."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from vrft.errors import ConfigurationError
from vrft.policy.positions import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

REFUSED = {
    "diffusion_gemma": "it writes by diffusion, not one token after the other",
    "evolla": "it answers questions about proteins",
    "fuyu": "it has no vision tower: patches of the image enter the language model as they are",
    "granite4_vision": "it adds the features of an image inside its layers, not in place of image tokens",
    "granite_docling": "image features that are computed once give other log-probabilities than its own forward",
    "instructblipvideo": "it answers questions about videos",
    "mistral4": "it is a text-only model",
    "ovis2": "it adds features of its own around those of an image",
    "pi0": "it predicts the actions of a robot",
}
"""Types that vrft can't train for reasons not visible in their structure, found by `benchmarks/families.py`."""


def check_supported(checkpoint: str, trust_remote_code: bool) -> PreTrainedConfig:
    """Build a checkpoint's model without weights, check that vrft can train it, and return its config.

    Raises:
        ConfigurationError: vrft can't train the model, or a limit on positions in the config is wrong.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    if lacks := unsupported(config, trust_remote_code):
        raise ConfigurationError(
            f"model.policy.checkpoint: {checkpoint}: a {config.model_type} can't be trained: {lacks} (docs/families.md)"
        )
    max_positions(config)
    return config


def unsupported(config: PreTrainedConfig, trust_remote_code: bool = False) -> str | None:
    """Return why vrft can't train the model of a config, or None if it can."""
    from transformers import AutoModelForImageTextToText

    if config.model_type in REFUSED:
        return REFUSED[config.model_type]
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                config, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return "its attention is not computed by sdpa"
    return missing_part(model)


def missing_part(model: PreTrainedModel) -> str | None:
    """Return the required part that a model lacks, or None."""
    if getattr(model.config, "image_token_id", None) is None:
        return "its config names no image token"
    if not hasattr(model.base_model, "get_image_features"):
        return "its vision tower can't be run alone"
    if "mm_encoder_outputs" not in inspect.signature(model.base_model.forward).parameters:
        return "its language model takes no image features"
    if model.base_model is model or model.get_decoder() in (model, model.base_model):
        return "its language model is not a module of its own"
    if model.get_output_embeddings() is None:
        return "it has no head that predicts tokens"
    return None
