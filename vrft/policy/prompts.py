"""Images, features and positions of encoded prompts, each a batch of one without padding."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vrft.types import SharedStart

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompt = dict[str, Any]
"""A processor's output for one prompt.

`compared_prompts` adds `position_ids` and `images`, an object that prompts with the same images share.
`prepare_prompts` adds `features` if the vision tower is frozen. `start` is a `SharedStart`: the prompt includes its
tokens, but not its images.
"""

TOKEN_TYPE_KEYS = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
TOKEN_KEYS = ("input_ids", "attention_mask", *TOKEN_TYPE_KEYS)
"""Keys of a processor's output with one entry per token. The other keys describe images."""

PACKED_KEYS = {"pixel_values", "image_grid_thw"}
"""Keys of images whose patches are packed into one row, whatever the images' sizes."""

PREPARED_KEYS = ("position_ids", "features", "images", "start")

Features = Tensor | Sequence[Tensor]
"""Features of several images as returned by the vision tower: one tensor, or one per image."""


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the vision tower and its projector for the images of some prompts, in the order of their tokens.

    Attributes:
        pooled: embeddings of the image tokens.
        deepstack: features to add after each of the first layers (Qwen3-VL); empty for other models.
    """

    pooled: Features
    deepstack: list[Features]

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Concatenate the features of several prompts."""
        pooled = _join([part.pooled for part in parts])
        return cls(pooled, [_join(layer) for layer in zip(*(part.deepstack for part in parts), strict=True)])

    def for_model(self) -> dict[str, Any]:
        """Return the `mm_encoder_outputs` argument of a forward, which replaces the pixels."""
        return {"image": SimpleNamespace(pooler_output=self.pooled, deepstack_features=self.deepstack)}


def _join(parts: Sequence[Features]) -> Features:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [image for part in parts for image in part]


def encode_images(model: PreTrainedModel, prompt: Prompt) -> ImageFeatures:
    """Return the features of all images of a prompt, including those of its shared start."""
    return encode_prompts(model, image_parts(prompt))


def image_parts(prompt: Prompt) -> list[Prompt]:
    """Return the entries for the images of a prompt's shared start, if it has one, and for the other images."""
    own = {key: value for key, value in prompt.items() if key != "start"}
    return [prompt["start"].images, own] if "start" in prompt else [own]


def all_images(prompt: Prompt, endings: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the entries, for all images of a prompt, whose keys have one of the endings, with one row per image."""
    parts = [{key: part[key] for key in part if key.endswith(endings)} for part in image_parts(prompt)]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def own_features(model: PreTrainedModel, prompt: Prompt) -> ImageFeatures:
    """Return the features of a prompt's images, except those of its shared start, computing them if necessary."""
    return prompt["features"] if "features" in prompt else image_features(model, image_entries(prompt))


def encode_prompts(model: PreTrainedModel, prompts: Sequence[Prompt]) -> ImageFeatures:
    """Return the features of several prompts' images, except those of shared starts.

    A tower that packs images of any size is called once for all prompts.
    """
    entries = [image_entries(prompt) for prompt in prompts]
    packed = all("features" not in p and e.keys() == PACKED_KEYS for p, e in zip(prompts, entries, strict=True))
    if not packed or len(prompts) == 1:  # joining would copy the images
        return ImageFeatures.join([own_features(model, prompt) for prompt in prompts])
    return image_features(model, {key: torch.cat([entry[key] for entry in entries]) for key in PACKED_KEYS})


def image_entries(prompt: Prompt) -> dict[str, Tensor]:
    """Return the entries of a processor's output that describe images."""
    return {key: value for key, value in prompt.items() if key not in (*TOKEN_KEYS, *PREPARED_KEYS)}


def image_features(model: PreTrainedModel, images: dict[str, Tensor]) -> ImageFeatures:
    """Run the vision tower."""
    from vrft.policy.vision_tower import tower_arguments

    output = model.base_model.get_image_features(**tower_arguments(model, images), return_dict=True)
    return ImageFeatures(output.pooler_output, [*(output.get("deepstack_features") or ())])


def lengths_after_start(prompts: Sequence[Prompt], max_tokens: int) -> tuple[list[int], int]:
    """Return the number of tokens of each prompt and the maximum for a forward, both without a common shared start."""
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    starts = {id(prompt.get("start")) for prompt in prompts}
    if len(starts) > 1 or "start" not in prompts[0]:
        return lengths, max_tokens
    shared = prompts[0]["start"].length
    return [length - shared for length in lengths], max(max_tokens - shared, 0)


def same_images(one: Prompt, other: Prompt) -> bool:
    """Return whether two prompts have equal images. Prompts from `compared_prompts` are compared by identity."""
    if one.get("start") is not other.get("start"):
        return False
    if "images" in one and "images" in other:
        return one["images"] is other["images"]
    if "features" in one:
        return one["features"] is other.get("features")
    images = image_entries(one)
    return "features" not in other and all(torch.equal(image, other[key]) for key, image in images.items())


@torch.no_grad()
def compared_prompts(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Add rotary positions, and an object that consecutive prompts with the same images share."""
    compared: list[Prompt] = []
    for i, prompt in enumerate(prompts):
        again = i > 0 and same_images(prompts[i - 1], prompt)
        images = compared[-1]["images"] if again else object()
        positions = prompt_positions(model, prompt)
        if prompt["input_ids"].is_pinned():
            positions = positions.pin_memory()
        compared.append(prompt | {"position_ids": positions, "images": images})
    return compared


@torch.no_grad()
def prepare_prompts(model: PreTrainedModel, prompts: Sequence[Prompt], frozen_vision: bool) -> list[Prompt]:
    """Add rotary positions and, if the vision tower is frozen, replace pixels by features.

    Consecutive prompts with the same images share one features object.
    """
    prepared = [prompt | {"position_ids": prompt_positions(model, prompt)} for prompt in prompts]
    if not frozen_vision:
        return prepared
    starts = {
        start: SharedStart(start.length, with_features(start.images, own_features(model, start.images)))
        for start in dict.fromkeys(prompt["start"] for prompt in prompts if "start" in prompt)
    }
    features: list[ImageFeatures] = []
    for i, prompt in enumerate(prepared):
        again = i > 0 and same_images(prepared[i - 1], prompt)
        features.append(features[-1] if again else own_features(model, prompt))
    found = [with_features(*pair) for pair in zip(prepared, features, strict=True)]
    return [prompt | {"start": starts[prompt["start"]]} if "start" in prompt else prompt for prompt in found]


def with_features(prompt: Prompt, features: ImageFeatures) -> Prompt:
    """Replace the pixels of a prompt by the features of its images."""
    return {key: value for key, value in prompt.items() if key != "pixel_values"} | {"features": features}


def prompt_positions(model: PreTrainedModel, prompt: Prompt) -> Tensor:
    """Return rotary positions, (1, L), or (3, 1, L) for models with three position axes (M-RoPE)."""
    if "position_ids" in prompt:
        return prompt["position_ids"]
    get_rope_index = getattr(model.base_model, "get_rope_index", None)
    if get_rope_index is None:
        return torch.arange(prompt["input_ids"].shape[1], device=prompt["input_ids"].device)[None]
    taken = inspect.signature(get_rope_index).parameters  # Qwen-Omni's takes no pixels
    given = {key: value for key, value in prompt.items() if key in taken}
    grids = all_images(prompt, tuple(key for key in given if key not in TOKEN_KEYS)) if "start" in prompt else {}
    return get_rope_index(**given | grids)[0]


def next_position(positions: Tensor) -> Tensor:
    """Return the position of the first completion token, (1,) or (3, 1): the prompt's maximum plus 1 on all axes."""
    last = positions.amax(-1)
    return (last.amax(0, keepdim=True).expand_as(last) if last.ndim == 2 else last) + 1
