"""Encode a prompt before weights are read, to report a processor that does not fit its model early and in one line."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vrft.errors import ConfigurationError
from vrft.policy.chat_template import QUESTION
from vrft.policy.image_size import is_a
from vrft.policy.plain_text import PlainText
from vrft.policy.prompts import Prompt
from vrft.utils.hub import loading

SIZE = (96, 64)
"""Width and height of the image."""

PATCH_PROCESSORS = ("Qwen2VLImageProcessor", "Glm4vImageProcessor", "Glm46VImageProcessor")
PATCH_FIELDS = {"patch_size": "patch_size", "merge_size": "spatial_merge_size"}
"""Fields by which image processors cut patches, with their names in the config of a vision tower."""


def check_trial_prompt(processor: Any, config: Any, checkpoint: str, trusts_code: bool = False) -> None:
    """Encode a question about a small image, and check that the model accepts the prompt.

    Args:
        processor: the checkpoint's processor.
        config: the model's config.
        checkpoint: the checkpoint, for messages.
        trusts_code: whether the checkpoint's own code may run; its errors then keep their tracebacks.

    Raises:
        ConfigurationError: the processor can't encode the question, or its output does not fit the model.
    """
    where = f"model.policy.checkpoint: {checkpoint}"
    if problem := patch_problem(processor.image_processor, config):
        raise ConfigurationError(f"{where}: preprocessor_config.json has {problem}")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    image = Image.linear_gradient("L").convert("RGB").resize(SIZE)
    what = "encode an image and a question with its processor"
    with loading("model.policy.checkpoint", checkpoint, trusts_code=trusts_code, what=what):
        prompt = PlainText(processor).prompt([{"role": "user", "content": content}], [image])
    if problem := prompt_problem(prompt, config):
        raise ConfigurationError(f"{where}: {problem}")


def patch_problem(image_processor: Any, config: Any) -> str | None:
    """Return the field of an image processor that contradicts the model's config, or None."""
    if not is_a(image_processor, PATCH_PROCESSORS):
        return None
    vision = config.vision_config.to_dict()
    for own, theirs in PATCH_FIELDS.items():
        value = getattr(image_processor, own)
        if vision.get(theirs, value) != value:
            return f"{own}={value}, but vision_config in config.json has {theirs}={vision[theirs]}"
    return None


def prompt_problem(prompt: Prompt, config: Any) -> str | None:
    """Return why a model can't process an encoded prompt about one image, or None."""
    image = config.image_token_id
    if not (prompt["input_ids"] == image).any():
        return (
            f"its prompts have no image token, which has id {image} in config.json; expected tokenizer and config.json "
            "of one model"
        )
    floats = (value for value in prompt.values() if isinstance(value, Tensor) and value.is_floating_point())
    if not all(torch.isfinite(value).all() for value in floats):
        return "preprocessor_config.json makes pixels that are not finite"
    return None
