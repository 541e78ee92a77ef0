"""Requirements that a model must meet, checked before its weights are read."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from vrft.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFUSED = {
    "ovis2": "it adds features of its own around those of an image",
    "granite_docling": "image features that are computed once give other log-probabilities than its own forward",
}
"""Types that have all parts and can't be trained all the same, as `benchmarks/families.py` found."""


def check_supported(checkpoint: str, trust_remote_code: bool) -> None:
    """Build a checkpoint's model without weights and check that vrft can train it.

    Raises:
        ConfigurationError: it can't; the message says what the model lacks.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    lacks: str | None = "it is an encoder-decoder"
    if not config.is_encoder_decoder:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                config, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
        lacks = unsupported(model)
    if lacks:
        raise ConfigurationError(
            f"model.policy.checkpoint: {checkpoint}: a {config.model_type} can't be trained: {lacks} (docs/families.md)"
        )


def unsupported(model: PreTrainedModel) -> str | None:
    """Return why vrft can't train a model, None if it can: each step needs what is checked here."""
    config = model.config
    if config.model_type in REFUSED:
        return REFUSED[config.model_type]
    if getattr(config, "image_token_id", None) is None:
        return "its config names no image token"
    if not hasattr(model.base_model, "get_image_features"):
        return "its vision tower can't be run alone"
    if "mm_encoder_outputs" not in inspect.signature(model.base_model.forward).parameters:
        return "its language model takes no image features"
    if model.get_output_embeddings() is None:
        return "it has no head that predicts tokens"
    if model.get_decoder() in (model, model.base_model):
        return "its language model is not a module of its own"
    return None
