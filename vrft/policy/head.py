"""The head of a language model, with the scaling and capping of its logits that some families apply after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLIED = {
    "cohere_compass": "logit_scale",
    "hyperclovax_vision_v2": "logits_scaling",
    "muse_glimmer": "output_multiplier",
    "muse_spark": "output_multiplier",
}
"""Fields of the text config by which types multiply their logits; the other types ignore such a field."""

DIVIDED = {
    "granite4_vision": "logits_scaling",
    "granite_docling": "logits_scaling",
    "inkling_mm_model": "logits_mup_width_multiplier",
}
"""Fields of the text config by which types divide their logits."""

CAPPED = ("gemma3n", "gemma4", "gemma4_unified", "mistral_large4", "muse_glimmer", "muse_spark")
"""Types that limit their logits to `final_logit_softcapping` of the text config, by a tanh."""


def logits_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden states (…, H) to logits (…, V) that a model's own forward applies."""
    head = model.get_output_embeddings()
    kind, text = model.config.model_type, model.config.get_text_config()
    scale = getattr(text, MULTIPLIED[kind]) if kind in MULTIPLIED else None
    scale = 1 / getattr(text, DIVIDED[kind]) if kind in DIVIDED else scale
    cap = getattr(text, "final_logit_softcapping", None) if kind in CAPPED else None
    if scale is None and cap is None:
        return head

    def logits(hidden: Tensor) -> Tensor:
        values = head(hidden)
        values = values if scale is None else values * scale
        return values if cap is None else torch.tanh(values / cap) * cap

    return logits
