"""The Hugging Face model of a checkpoint, its parameters and its special tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vrft.utils.hub import WITH_REPORT, check_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRUST_REMOTE_CODE_HINT = (
    "if you have read it and trust it, say --model.policy.trust_remote_code=true on the command line"
)


def load_pretrained(checkpoint: str, dtype: torch.dtype, trust_remote_code: bool, **kwargs: Any) -> PreTrainedModel:
    """Load a checkpoint's model from safetensors; kwargs go to `from_pretrained`.

    Raises:
        ConfigurationError: a weight is missing, unexpected or of another shape.
    """
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        checkpoint,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        **WITH_REPORT,
        **kwargs,
    )
    check_loaded("model.policy.checkpoint", checkpoint, model, info)
    return model


def token_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that end a completion, and the ids that are banned from completions.

    Image tokens are banned since the model would expect an image for each of them, other special tokens since they
    belong to the chat format.
    """
    stop = model.generation_config.eos_token_id
    stop = sorted({*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id})
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return stop, sorted({*special, *tokenizer.all_special_ids, model.config.image_token_id}.difference(stop))


def vision_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of the vision tower and its projector: all but the language model's and its head's."""
    text = {*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()}
    return [parameter for parameter in model.parameters() if parameter not in text]


def language_model_layers(model: PreTrainedModel) -> str:
    """Return a regular expression that matches the names of the language model's linear layers."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    linear = {name.rsplit(".")[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    return rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(linear))})"
