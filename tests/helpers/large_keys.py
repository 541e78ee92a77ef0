"""Attention of new tokens to keys with large biases, as those of Qwen2.5."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from vrft.policy.packed_attention import PromptCache
from vrft.rollout.group_cache import GroupCache

LENGTHS, GROUP, HEADS, DIM = (20, 13), 3, 4, 16
"""Tokens of each prompt, rows per prompt, heads of queries and their size; there are half as many heads of keys."""


def attention_gap(dtype: torch.dtype, device: str = "cpu", room: int | None = None) -> float:
    """Return the relative difference between attention as rollouts compute it and that of the same values in float64.

    Args:
        dtype: dtype of queries, keys and values.
        device: where attention is computed.
        room: keep all shapes as they are, with room for so many tokens of a prompt.
    """
    generator = torch.Generator().manual_seed(0)
    rows, kv = GROUP * len(LENGTHS), HEADS // 2
    bias = 100 * torch.randn(kv, 1, DIM, generator=generator)

    def random(*shape: int, mean: Any = 0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) + mean).to(dtype)

    keys, values = random(len(LENGTHS), kv, max(LENGTHS), DIM, mean=bias), random(len(LENGTHS), kv, max(LENGTHS), DIM)
    query, key, value = random(rows, HEADS, DIM), random(rows, kv, 1, DIM, mean=bias)[:, :, 0], random(rows, kv, DIM)
    cache = PromptCache([torch.arange(length, device=device) for length in LENGTHS])
    cache.layers[0] = keys.to(device), values.to(device)
    text = SimpleNamespace(layer_types=["full_attention"])
    model: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    group = GroupCache(cache, model, GROUP, 4, room)
    if room is not None:
        group.load(cache)
    group.set_visible()
    found = group.attend_token(0, query.to(device), torch.stack([key, value], 1).to(device), DIM**-0.5).cpu()
    expected = []
    for row in range(rows):
        prompt = row // GROUP
        k, v = (
            torch.cat([shared[prompt, :, : LENGTHS[prompt]], own[row, :, None]], 1).double()
            for shared, own in ((keys, key), (values, value))
        )
        expected.append(F.scaled_dot_product_attention(query[row, :, None].double(), k, v, enable_gqa=True).flatten())
    difference = found.double() - torch.stack(expected)
    return float(difference.norm() / torch.stack(expected).norm())
