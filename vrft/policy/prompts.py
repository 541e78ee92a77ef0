"""Encoded prompts, each a batch of one without padding: their images, features and positions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompt = dict[str, Any]
"""A processor's output for one prompt. `prepare_prompts` adds `position_ids` and, for a frozen tower, `features`."""

TOKEN_TYPE_KEYS = ("token_type_ids", "mm_token_type_ids")
TOKEN_KEYS = ("input_ids", "attention_mask", *TOKEN_TYPE_KEYS)
"""Keys of a processor's output that have one entry per token; the others describe images."""

PREPARED_KEYS = ("position_ids", "features")

Features = Tensor | Sequence[Tensor]
"""Features of several images: one tensor, or one for each image, as the model's vision tower returns them."""


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the vision tower and its projector for the images of some prompts, in the order of their tokens.

    Attributes:
        pooled: embeddings that replace those of image tokens.
        deepstack: features that are added after each of the first layers (Qwen3-VL); otherwise empty.
    """

    pooled: Features
    deepstack: list[Features]

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Concatenate the features of several prompts."""
        pooled = _join([part.pooled for part in parts])
        return cls(pooled, [_join(layer) for layer in zip(*(part.deepstack for part in parts), strict=True)])

    def for_model(self) -> dict[str, Any]:
        """Return the `mm_encoder_outputs` argument of a forward, which replaces pixels (transformers 5.18)."""
        return {"image": SimpleNamespace(pooler_output=self.pooled, deepstack_features=self.deepstack)}


def _join(parts: Sequence[Features]) -> Features:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [image for part in parts for image in part]


def encode_images(model: PreTrainedModel, prompt: Prompt) -> ImageFeatures:
    """Return the features of a prompt's images; run the vision tower unless `prepare_prompts` has done so."""
    if "features" in prompt:
        return prompt["features"]
    images = {key: value for key, value in prompt.items() if key not in (*TOKEN_KEYS, *PREPARED_KEYS)}
    output = model.base_model.get_image_features(**images, return_dict=True)
    return ImageFeatures(output.pooler_output, [*(output.get("deepstack_features") or ())])


def same_images(one: Prompt, other: Prompt) -> bool:
    """Return whether two prompts have equal pixels or, after `prepare_prompts`, the same features object."""
    if "features" in one:
        return one["features"] is other.get("features")
    keys = [key for key in one if key not in (*TOKEN_KEYS, *PREPARED_KEYS)]
    return "features" not in other and all(torch.equal(one[key], other[key]) for key in keys)


@torch.no_grad()
def prepare_prompts(model: PreTrainedModel, prompts: Sequence[Prompt], frozen_vision: bool) -> list[Prompt]:
    """Add rotary positions and, if the vision tower is frozen, replace pixels by features.

    Consecutive prompts with the same images share one features object.
    """
    prepared = [prompt | {"position_ids": prompt_positions(model, prompt)} for prompt in prompts]
    if not frozen_vision:
        return prepared
    features: list[ImageFeatures] = []
    for i, prompt in enumerate(prepared):
        again = i > 0 and same_images(prepared[i - 1], prompt)
        features.append(features[-1] if again else encode_images(model, prompt))
    return [
        {key: value for key, value in prompt.items() if key != "pixel_values"} | {"features": found}
        for prompt, found in zip(prepared, features, strict=True)
    ]


def prompt_positions(model: PreTrainedModel, prompt: Prompt) -> Tensor:
    """Return rotary positions (1, L), or (3, 1, L) for models with three position axes (M-RoPE)."""
    if "position_ids" in prompt:
        return prompt["position_ids"]
    get_rope_index = getattr(model.base_model, "get_rope_index", None)
    if get_rope_index is None:
        return torch.arange(prompt["input_ids"].shape[1], device=prompt["input_ids"].device)[None]
    taken = inspect.signature(get_rope_index).parameters  # Qwen-Omni's takes no pixels
    return get_rope_index(**{key: value for key, value in prompt.items() if key in taken})[0]


def next_position(positions: Tensor) -> Tensor:
    """Return the first completion token's position, (1,) or (3, 1): one above the prompt's largest, on all axes."""
    last = positions.amax(-1)
    return (last.amax(0, keepdim=True).expand_as(last) if last.ndim == 2 else last) + 1
