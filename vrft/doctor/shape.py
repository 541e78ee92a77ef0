"""Read the sizes of a model that determine its memory from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vrft.policy.head import logit_cap

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOAT32_BYTES = 4


class TowerShape(NamedTuple):
    """The sizes of a vision tower; 0 if its config uses unknown names."""

    blocks: int = 0
    hidden: int = 0
    intermediate: int = 0
    is_gated: bool = False  # gated MLP of three layers, with RMSNorm instead of LayerNorm
    patches: float = 0  # per image token
    pixels: int = 0  # numbers per patch


class ModelShape(NamedTuple):
    """The sizes of a model."""

    layers: int
    hidden: int
    intermediate: int
    queries: int  # elements of queries per token and layer
    keys: int  # elements of keys, and of values, per token and layer
    heads: int
    attention_layers: int
    states: int  # bytes of recurrent states per row, in all layers
    vocabulary: int
    caps_logits: bool  # with a tanh, whose output is kept for the backward
    repeats_keys: bool  # keys are repeated per query head, since masks rule out the kernel for grouped queries
    bytes: int  # per element of the compute dtype
    tower: TowerShape

    @property
    def key_values(self) -> int:
        """Elements of keys and values per token, in all layers."""
        return 2 * self.keys * self.attention_layers


def model_shape(config: PreTrainedConfig, dtype: torch.dtype) -> ModelShape:
    """Read the sizes from the config of a model that computes in `dtype`."""
    text = config.get_text_config().to_dict()
    heads, layers = text["num_attention_heads"], text["num_hidden_layers"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    kinds = text.get("layer_types") or ()
    recurrent = sum(kind == "linear_attention" for kind in kinds)
    state = text.get("linear_num_value_heads", 0) * text.get("linear_key_head_dim", 0) * FLOAT32_BYTES
    experts = text.get("num_experts_per_tok") or 0
    return ModelShape(
        layers=layers,
        hidden=text["hidden_size"],
        intermediate=max(text.get("intermediate_size") or 0, experts * (text.get("moe_intermediate_size") or 0)),
        queries=head * heads,
        keys=head * (text.get("num_key_value_heads") or heads),
        heads=heads,
        attention_layers=layers - recurrent,
        states=recurrent * state * text.get("linear_value_head_dim", 0),
        vocabulary=text["vocab_size"],
        caps_logits=logit_cap(config) is not None,
        repeats_keys=dtype == torch.float32 or "sliding_attention" in kinds,
        bytes=dtype.itemsize,
        tower=tower_shape(config),
    )


def first(values: dict[str, Any], *names: str) -> Any:
    """Return the first entry that exists under one of several names, or 0 if there is none."""
    return next((values[name] for name in names if values.get(name)), 0)


def tower_shape(config: PreTrainedConfig) -> TowerShape:
    """Read the sizes of the vision tower."""
    whole = config.to_dict()
    vision: dict[str, Any] = whole.get("vision_config") or {}
    hidden = first(vision, "embed_dim", "hidden_size")
    blocks, patch = first(vision, "depth", "num_hidden_layers"), first(vision, "patch_size")
    if not (hidden and blocks and patch):
        return TowerShape()
    side = patch[0] if isinstance(patch, (list, tuple)) else patch
    return TowerShape(
        blocks=blocks,
        hidden=hidden,
        intermediate=first(vision, "intermediate_size") or hidden * int(first(vision, "mlp_ratio") or 4),
        is_gated=vision.get("hidden_act") == "silu",
        patches=patches_of_a_token(whole, side),
        pixels=3 * side**2 * (first(vision, "temporal_patch_size") or 1),
    )


def patches_of_a_token(config: dict[str, Any], side: int) -> float:
    """Return how many patches of side `side` become one image token; 4 if the config does not state it."""
    vision = config["vision_config"]
    if merged := first(vision, "spatial_merge_size"):
        return float(merged**2)
    size, tokens = first(vision, "image_size"), first(config, "mm_tokens_per_image")
    if tokens and isinstance(size, int):
        return float((size // side) ** 2 / tokens)
    return float(first(config, "scale_factor") ** 2 or (first(config, "downsample_ratio") or 0.5) ** -2)


def image_tokens(config: PreTrainedConfig, pixels: int) -> int | None:
    """Return the number of tokens of an image with `pixels` pixels, or None if the config does not determine it."""
    vision: dict[str, Any] = config.to_dict().get("vision_config") or {}
    patch, merged = vision.get("patch_size"), vision.get("spatial_merge_size")
    if not isinstance(patch, int) or not isinstance(merged, int):
        return None
    return round(pixels / (patch * merged) ** 2)
