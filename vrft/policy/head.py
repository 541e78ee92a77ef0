"""Compute logits with the head of a language model, and the scaling and capping that some families apply to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MULTIPLIED = {
    "cohere_compass": "logit_scale",
    "hyperclovax_vision_v2": "logits_scaling",
    "muse_glimmer": "output_multiplier",
    "muse_spark": "output_multiplier",
}
"""Fields of the text config by which model types multiply their logits. Other types ignore such fields."""

DIVIDED = {
    "granite4_vision": "logits_scaling",
    "granite_docling": "logits_scaling",
    "inkling_mm_model": "logits_mup_width_multiplier",
}
"""Fields of the text config by which model types divide their logits."""

CAPPED = ("gemma3n", "gemma4", "gemma4_unified", "mistral_large4", "muse_glimmer", "muse_spark")
"""Model types that cap their logits at `final_logit_softcapping` of the text config with a tanh."""


def logits_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden states, (…, H), to logits, (…, V), of a model's forward."""
    head = model.get_output_embeddings()
    kind, text = model.config.model_type, model.config.get_text_config()
    scale = getattr(text, MULTIPLIED[kind]) if kind in MULTIPLIED else None
    scale = 1 / getattr(text, DIVIDED[kind]) if kind in DIVIDED else scale
    cap = logit_cap(model.config)
    if scale is None and cap is None:
        return head

    def logits(hidden: Tensor) -> Tensor:
        values = head(hidden)
        values = values if scale is None else values * scale
        if cap is None:
            return values
        values = values / cap  # under a new name, the head's output would stay
        return values.tanh_() * cap

    return logits


def logit_cap(config: PreTrainedConfig) -> float | None:
    """Return the number that the logits of a model with this config stay below, or None if it does not cap them."""
    kind, text = config.model_type, config.get_text_config()
    cap: float | None = getattr(text, "final_logit_softcapping", None) if kind in CAPPED else None
    return cap
