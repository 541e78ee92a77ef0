"""Prompts as a model reads them: text, images and positions, each prompt by itself, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompt = dict[str, Any]
"""A processor's output for one prompt (batch of one), after `prepare` with `position_ids` and maybe `features`."""

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
PER_TOKEN = ("input_ids", "attention_mask", *TOKEN_TYPES)
"""Keys of a processor's output that have one entry per token; the others describe images."""

PREPARED = ("position_ids", "features")


Features = Tensor | Sequence[Tensor]
"""Of several images: one tensor or one each, as the model's own tower returns them and its forward expects them."""


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower and its projector make of the images of some prompts, in the order of their tokens.

    Attributes:
        pooled: what takes the place of image tokens.
        deepstack: what is added behind each of the first layers (Qwen3-VL); else empty.
    """

    pooled: Features
    deepstack: list[Features]

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """The features of several prompts in a row."""
        pooled = _join([part.pooled for part in parts])
        return cls(pooled, [_join(layer) for layer in zip(*(part.deepstack for part in parts), strict=True)])

    def for_model(self) -> dict[str, Any]:
        """The `mm_encoder_outputs` argument of a forward, which takes the place of pixels (transformers 5.18)."""
        return {"image": SimpleNamespace(pooler_output=self.pooled, deepstack_features=self.deepstack)}


def _join(parts: Sequence[Features]) -> Features:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [image for part in parts for image in part]


def encode_images(model: PreTrainedModel, prompt: Prompt) -> ImageFeatures:
    """Run the images of one prompt through the vision tower, unless `prepare` has done so."""
    if "features" in prompt:
        return prompt["features"]
    images = {key: value for key, value in prompt.items() if key not in (*PER_TOKEN, *PREPARED)}
    output = model.base_model.get_image_features(**images, return_dict=True)
    return ImageFeatures(output.pooler_output, [*(output.get("deepstack_features") or ())])


def same_images(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts show the same images, pixel for pixel; or, after `prepare`, the same features of them."""
    if "features" in one:
        return one["features"] is other.get("features")
    keys = [key for key in one if key not in (*PER_TOKEN, *PREPARED)]
    return "features" not in other and all(torch.equal(one[key], other[key]) for key in keys)


@torch.no_grad()
def prepare(model: PreTrainedModel, prompts: Sequence[Prompt], frozen_vision: bool) -> list[Prompt]:
    """Add rotary positions for all later passes, and if the tower doesn't train, features in place of pixels.

    Prompts about the same images, one after the other, get the same features.
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
    """Rotary positions (1, L), or (3, 1, L) where a model's positions have three axes (M-RoPE)."""
    if "position_ids" in prompt:
        return prompt["position_ids"]
    get_rope_index = getattr(model.base_model, "get_rope_index", None)
    if get_rope_index is None:
        return torch.arange(prompt["input_ids"].shape[1], device=prompt["input_ids"].device)[None]
    return get_rope_index(**prompt)[0]


def next_position(positions: Tensor) -> Tensor:
    """The first completion token's position, (1,) or (3, 1): behind the largest of a prompt's, on all axes alike."""
    last = positions.amax(-1)
    return (last.amax(0, keepdim=True).expand_as(last) if last.ndim == 2 else last) + 1
