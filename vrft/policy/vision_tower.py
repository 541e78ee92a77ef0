"""Speed up vision towers that pack images of several sizes: one attention call per layer, and indices from the CPU.

Towers like Qwen-VL's split a row of patches into segments, each an image or a window, and compute attention for one
segment after the other. In transformers, an attention implementation whose name contains "flash" receives the whole row
and the boundaries of the segments instead.

S segments, L patches.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from vrft.policy.attention_kernels import flash_computes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "vrft_flash_segments"
INDEXED_ON_CPU = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Types whose towers use the grid of patches only to compute indices."""


class Segments:
    """Segments of a row of patches, which attend to themselves."""

    def __init__(self, boundaries: Tensor) -> None:
        """Set the boundaries: the first patch of each segment, then the number of patches, (S + 1,)."""
        self.boundaries = boundaries
        self.lengths: list[int] = boundaries.diff().tolist()
        self.on_device: Tensor | None = None
        self.indices: tuple[Tensor, Tensor] | None = None

    def boundaries_on(self, device: torch.device) -> Tensor:
        """Return the boundaries on a device, (S + 1,)."""
        if self.on_device is None:
            self.on_device = self.boundaries.to(device, torch.int32, non_blocking=True)
        return self.on_device

    def by_length(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the patches sorted by the lengths of their segments, and the inverse permutation, both (L,)."""
        if self.indices is None:
            lengths = torch.tensor(self.lengths)
            order = lengths.repeat_interleave(lengths).argsort(stable=True)
            self.indices = order.to(device, non_blocking=True), order.argsort().to(device, non_blocking=True)
        return self.indices

    def counts(self) -> list[tuple[int, int]]:
        """Return (length, number of segments of this length), shortest first."""
        return [(length, self.lengths.count(length)) for length in sorted({*self.lengths})]


SEGMENTS: Any = WeakTensorKeyDictionary()
"""Segments by boundaries, a tensor that all layers of a forward share."""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention within segments for transformers, (1, heads, L, dim) -> (1, L, heads, dim)."""
    segments = SEGMENTS.get(cu_seq_lens_q)
    if segments is None:
        segments = SEGMENTS[cu_seq_lens_q] = Segments(cu_seq_lens_q)
    query, key = query.to(value.dtype), key.to(value.dtype)
    qkv = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]  # (L, heads, dim)
    # with boundaries, the flash kernel supports neither dropout nor dimensions that need padding
    if not dropout and value.shape[-1] % 8 == 0 and flash_computes(query, key, value):
        boundaries, longest = segments.boundaries_on(query.device), max(segments.lengths)
        q, k, v = qkv
        output: Any = varlen_attn(q, k, v, boundaries, boundaries, longest, longest, scale=scaling)
        return output[None], None
    return batched_attention(qkv, segments, dropout, scaling)[None], None


def batched_attention(qkv: Sequence[Tensor], segments: Segments, dropout: float, scaling: float | None) -> Tensor:
    """Compute attention with one batch per length of segments. Queries, keys and values are (L, heads, dim)."""
    counts = segments.counts()
    if len(counts) == 1:
        return attention_of_equals(qkv, *counts[0], dropout, scaling)
    order, place = segments.by_length(qkv[0].device)
    sizes = [length * count for length, count in counts]
    parts = zip(*(x.index_select(0, order).split(sizes) for x in qkv), strict=True)
    outputs = [attention_of_equals(part, *count, dropout, scaling) for part, count in zip(parts, counts, strict=True)]
    return torch.cat(outputs).index_select(0, place)


def attention_of_equals(
    qkv: Sequence[Tensor], length: int, count: int, dropout: float, scaling: float | None
) -> Tensor:
    """Compute attention of `count` segments of `length` patches each, (count * length, heads, dim)."""
    q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)  # (S, heads, length, dim)
    output = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).flatten(0, 1)


AttentionInterface.register(ATTENTION_NAME, segment_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def is_segmented(module: nn.Module) -> bool:
    """Return whether a module computes attention within segments, and passes the whole row to flash attention."""
    forward = inspect.unwrap(type(module).forward)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return "is_flash_attention_requested" in names and "cu_seqlens" in inspect.signature(forward).parameters


def tower_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the vision tower."""
    return model.get_encoder(modality="image")


def pack_segments(model: PreTrainedModel, implementation: str = ATTENTION_NAME) -> None:
    """Make the vision tower compute the attention of each layer in one call, if it has segments."""
    tower = tower_of(model)
    if any(map(is_segmented, tower.modules())):
        names = [name for name in model.config.sub_configs if getattr(model.config, name) is tower.config]
        model.set_attn_implementation(dict.fromkeys(names, implementation))


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make the vision tower compute attention as in transformers in the context."""
    before = tower_of(model).config._attn_implementation
    pack_segments(model, "sdpa")
    try:
        yield
    finally:
        pack_segments(model, before)


def tower_arguments(model: PreTrainedModel, images: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of `get_image_features` with indices computed on the CPU, which avoids waiting for a GPU."""
    grid = images.get("image_grid_thw")
    if grid is None or model.config.model_type not in INDEXED_ON_CPU:
        return images
    grid, device, tower = grid.cpu(), images["pixel_values"].device, tower_of(model)
    names = inspect.unwrap(type(tower).forward).__code__.co_names
    with torch.device("cpu"):
        made = {"position_ids": get_vision_position_ids(grid, tower.spatial_merge_size)}
        if "get_vision_window_index" in names:
            sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
            made["window_index"], windows = get_vision_window_index(grid, *sizes)
            images = images | {"image_cu_window_seqlens": windows}
        if "get_vision_interpolation_indices_and_weights" in names:
            made["interp_indices"], made["interp_weights"] = get_vision_interpolation_indices_and_weights(
                grid,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=tower.spatial_merge_size,
            )
    moved = {f"image_{name}": value.to(device, non_blocking=True) for name, value in made.items()}
    return images | moved | {"image_grid_thw": grid}
