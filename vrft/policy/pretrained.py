"""Load the Hugging Face model of a checkpoint, and find its parameters and special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vrft.errors import ConfigurationError
from vrft.utils.hub import WITH_REPORT, bars_if_large, check_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRUST_REMOTE_CODE_HINT = (
    "if you have read it and trust it, say --model.policy.trust_remote_code=true on the command line"
)


def load_pretrained(checkpoint: str, dtype: torch.dtype, trust_remote_code: bool, **kwargs: Any) -> PreTrainedModel:
    """Load a checkpoint's model from safetensors.

    Args:
        checkpoint: a folder or a model on the Hugging Face Hub.
        dtype: dtype of the weights. Buffers stay as in a float32 model; bfloat16 would round Gemma's embedding scale.
        trust_remote_code: run Python code that comes with the checkpoint.
        kwargs: arguments for `from_pretrained`, e.g. `device_map="meta"` for a model without values.

    Raises:
        ConfigurationError: a weight is missing, unexpected or of another shape.
    """
    from transformers import AutoModelForImageTextToText

    with new_parameters_in(dtype), bars_if_large(checkpoint):
        model, info = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **WITH_REPORT,
            **kwargs,
        )
    check_loaded("model.policy.checkpoint", checkpoint, model, info)
    return model


@contextmanager
def new_parameters_in(dtype: torch.dtype) -> Iterator[None]:
    """Change the dtype of parameters on the meta device when modules register them.

    `from_pretrained` creates a model on the meta device, and reads each weight in the dtype of its parameter.
    """

    def convert(module: nn.Module, name: str, parameter: Tensor | None) -> Tensor | None:
        if parameter is None or not (parameter.is_meta and parameter.is_floating_point()) or parameter.dtype == dtype:
            return parameter
        return nn.Parameter(parameter.to(dtype), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(convert)  # type: ignore[arg-type]  # annotated wrongly
    try:
        yield
    finally:
        handle.remove()


STORED_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16"}
"""Names of dtypes in safetensors files."""


def exact_dtype(checkpoint: str, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype` if it represents all stored weights exactly, otherwise float32."""
    from safetensors import safe_open

    if dtype == torch.float32:
        return dtype
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt") as weights:
            names = weights.keys()
            stored = {weights.get_slice(name).get_dtype() for name in names}
            if any(name.startswith(("F", "BF")) and name != STORED_NAMES[dtype] for name in stored):
                return torch.float32
    return dtype


def weight_files(checkpoint: str) -> list[str]:
    """Return the safetensors files that transformers reads, downloaded if the checkpoint is on the Hub."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    find = partial(cached_file, checkpoint, _raise_exceptions_for_missing_entries=False)
    if (single := find(SAFE_WEIGHTS_NAME)) is not None:
        return [single]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    return [] if index is None else get_checkpoint_shard_files(checkpoint, index)[0]


def token_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that end a completion, and the ids that are banned from completions.

    Image tokens are banned because the model would expect an image for each, other special tokens because they belong
    to the chat format. Ids without an embedding, as added by Idefics3's processor, are ignored.

    Raises:
        ConfigurationError: no token ends a completion, or the model does not have it.
    """
    named = model.generation_config.eos_token_id
    stop = sorted({*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None})
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    banned = {*special, *tokenizer.all_special_ids, model.config.image_token_id}.difference(stop)
    known = model.get_output_embeddings().weight.shape[0]
    if not stop or stop[-1] >= known:
        raise ConfigurationError(
            f"model.policy.checkpoint: {model.name_or_path}: eos_token_id is {named} in generation_config.json and "
            f"{tokenizer.eos_token_id} in the tokenizer; expected at least one, and ids below {known}"
        )
    return stop, sorted(i for i in banned if i < known)


def vision_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of the vision tower and its projector, i.e. all but the language model's and its head's."""
    text = {*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()}
    return [parameter for parameter in model.parameters() if parameter not in text]


def language_model_layers(model: PreTrainedModel) -> str:
    """Return a regular expression that matches the names of the language model's linear layers."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    names = [name.split(".") for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    # a numeric name is an index in a list, so qualify it with the name of the list
    linear = {re.escape(".".join(name[-2:] if name[-1].isdigit() else name[-1:])) for name in names}
    return rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(linear))})"
