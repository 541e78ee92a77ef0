"""The number of positions that a model supports, within which its rotary frequencies are fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vrft.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LONGEST, LONGROPE = "max_position_embeddings", "original_max_position_embeddings"
"""Fields of the text config, and of the parameters of longrope, that limit positions."""


def max_positions(config: PreTrainedConfig) -> int:
    """Return the largest number of tokens, prompt and completion together, that a model supports.

    The rope type longrope has other frequencies for all tokens of a forward as soon as one position reaches
    `original_max_position_embeddings`. Keys that a sampler has cached would keep the former ones, and prompts in the
    same forward would influence each other, so this is a limit too. The rope type dynamic changes its frequencies only
    beyond `max_position_embeddings`.

    Raises:
        ConfigurationError: a limit in the config is not a positive whole number.
    """
    text = config.get_text_config()
    limits = {LONGEST: getattr(text, LONGEST, None)}
    parameters = getattr(text, "rope_parameters", None)
    if isinstance(parameters, Mapping):
        for name, entry in {"": parameters, **parameters}.items():  # one dict, or one for each type of layer
            if isinstance(entry, Mapping) and entry.get("rope_type", entry.get("type")) == "longrope":
                limits[".".join(filter(None, ("rope_parameters", str(name), LONGROPE)))] = entry.get(LONGROPE)
    return min(positive(config, name, value) for name, value in limits.items())


def positive(config: PreTrainedConfig, name: str, value: Any) -> int:
    """Return a field's value. Raise ConfigurationError if it is not a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1:
        raise ConfigurationError(
            f"model.policy.checkpoint: {config.name_or_path}: {name} of the language model is {value!r}; expected a "
            "positive whole number"
        )
    return int(value)


def fix_frequencies(model: PreTrainedModel) -> None:
    """Let rotary embeddings of the type dynamic use their frequencies without a comparison of positions.

    Up to `max_positions`, they are constant. transformers compares them with the largest position in every forward,
    for which a GPU waits, and which can't be recorded as a CUDA graph.
    """
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        if isinstance(types, dict):  # one for each type of layer
            module.rope_type = {layer: _fixed(rope_type) for layer, rope_type in types.items()}
        elif isinstance(types, str):
            module.rope_type = _fixed(types)


def _fixed(rope_type: str) -> str:
    return "default" if rope_type == "dynamic" else rope_type
