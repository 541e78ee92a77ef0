"""Compute a prompt once for all of its G completions, with unmodified Hugging Face models.

All prompts and completions of a micro-batch form one row without padding,
`[prompt 1 | its completions | prompt 2 | its completions | …]`, so each image, prompt and real token is computed once.
Prompts with the same examples share these, too: `[examples | rests of the prompts | completions of prompt 1 | …]`.
Only attention, which needs to know what belongs together, is replaced. Recurrent layers, whose state would run from one
completion into the next, compute prompts and completions one after the other (`vrft.policy.recurrent`).

Sharing prefixes in training is not new. PrefixGrouper (arXiv 2506.05433) splits attention in the same way, with small
changes to the model's code. The asynchronous trainer of TRL 1.16 computes a batch of texts as a tree of prefixes, which
also shares what completions have in common; it takes no images and refuses models with recurrent layers. Here images
are part of the prompt, the model's code is unchanged, and its rotary positions with three axes, sliding windows,
bidirectional image blocks and recurrent states keep their meaning.

P prompts, G completions each, N = P * G, L prompt tokens, T completion tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_masks_for_generate, sdpa_mask

from vrft.policy.last_layer import LastLayer
from vrft.policy.packed_attention import Completions, PackedGroup, PackedLayout, PromptCache, lengths_of
from vrft.policy.prefixes import Prefix, shared_prefixes, shared_starts
from vrft.policy.prompts import (
    TOKEN_TYPE_KEYS,
    Prompt,
    encode_prompts,
    next_position,
    prompt_positions,
)
from vrft.policy.recurrent import RECURRENT_LAYER_TYPES, StateLayout, mixers, share_states

ATTENTION_NAME = "vrft_shared_prefix"
SHAREABLE_LAYER_TYPES = {"full_attention", "sliding_attention", "moe", "mlp"} | RECURRENT_LAYER_TYPES


class Layout(StateLayout, Protocol):
    """Tells which tokens of a forward belong together; passed to the model as `shared_prefix`."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        """Compute attention of one layer: (batch, heads, tokens, dim) -> (batch, tokens, heads, dim)."""


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention for transformers: plain sdpa unless the forward was given `shared_prefix`.

    The layout is an argument since activation checkpointing repeats the call in the backward pass, outside any context.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for name in ("softcap", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__}: attention with {name} can't share prompts")
    return shared_prefix.attend(module, query, key, value, **kwargs), None


AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def layer_types(model: PreTrainedModel) -> list[str]:
    """Return the type of each layer of the text model, e.g. full_attention."""
    config = model.config.get_text_config()
    if types := getattr(config, "layer_types", None):
        return types
    kind = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"  # Mistral
    return [kind] * config.num_hidden_layers


def share_prefixes(model: PreTrainedModel) -> bool:
    """Let the text model's attention and recurrent layers share prompts.

    Without a `shared_prefix` argument, attention is sdpa and recurrent layers are as before.

    Returns:
        False for a model with layers of other kinds, which is left unchanged.
    """
    kinds = layer_types(model)
    if not set(kinds) <= SHAREABLE_LAYER_TYPES:
        return False
    if not RECURRENT_LAYER_TYPES.isdisjoint(kinds):
        stateful = mixers(model.get_decoder().layers, kinds)
        if stateful is None:
            return False
        share_states(stateful)
    model.set_attn_implementation({"text_config": ATTENTION_NAME})
    return True


class PackedRow:
    """A row with groups of prompts and their completions, and where its tokens lie."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.tokens: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.groups: list[PackedGroup] = []
        self.images: list[Prompt] = []
        self.length = 0

    def append(self, tokens: Tensor, positions: Tensor) -> int:
        """Append tokens (n,) with their positions (…, n); return the place of the first."""
        start = self.length
        self.tokens.append(tokens)
        self.positions.append(positions)
        self.length += len(tokens)
        return start

    def append_prompts(self, prefix: Prefix) -> list[list[range]]:
        """Append a prefix and the rests of its prompts; return where each prompt's tokens are."""
        first, length = prefix.prompts[0], prefix.length
        start = self.append(first["input_ids"][0, :length], prompt_positions(self.model, first)[..., :length])
        shared = range(start, start + length)
        places = []
        for prompt in prefix.prompts:
            rest = prompt["input_ids"][0, length:]
            start = self.append(rest, prompt_positions(self.model, prompt)[..., length:])
            places.append([shared, range(start, start + len(rest))])
        self.images += prefix.images
        return places

    def forward(self, chosen: Sequence[int], cache: PromptCache | None = None) -> Tensor:
        """Return the hidden states of tokens (tokens, H).

        Args:
            chosen: their places, of which some may be the same.
            cache: receives keys, values and states of the prompts.
        """
        device, kinds = self.tokens[0].device, layer_types(self.model)
        images = encode_prompts(self.model, self.images)
        kept = sorted({*chosen})
        shortens = isinstance(self.model.get_decoder().layers[-1], LastLayer) and len(images.deepstack) < len(kinds)
        if shortens:
            places = {place: i for i, place in enumerate(kept)}
            chosen = [places[place] for place in chosen]
        on_device = [torch.tensor(x, dtype=torch.long).to(device, non_blocking=True) for x in (kept, chosen)]
        layout = PackedLayout(self.groups, kinds, device, cache, on_device[0] if shortens else None)
        tokens, positions = torch.cat(self.tokens)[None], torch.cat(self.positions, -1)
        hidden = forward_with_layout(self.model, tokens, positions, layout, mm_encoder_outputs=images.for_model())[0]
        return hidden[on_device[1]]


def group_hidden_states(
    model: PreTrainedModel, prompts: Sequence[Prompt], ids: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Return the hidden states that predict the completions' real tokens, row after row: (sum of lengths, H).

    Args:
        model: a Hugging Face model after `share_prefixes`.
        prompts: P prompts; consecutive ones with a `SharedStart` share it.
        ids: completions, right-padded (N, T); row p * G + g belongs to prompt p.
        lengths: number of real tokens of each row (N).
    """
    group_size = len(lengths) // len(prompts)
    inputs = [max(length - 1, 0) for length in lengths]  # the last token is predicted but predicts nothing
    predictors: list[int] = []
    row, n = PackedRow(model), 0
    for prefix in shared_starts(prompts):
        completions: list[Completions | None] = []
        for (shared, rest), prompt in zip(row.append_prompts(prefix), prefix.prompts, strict=True):
            end = (rest or shared)[-1]
            following = next_position(prompt_positions(model, prompt))[..., None]
            counts = inputs[n : n + group_size]
            completions.append(Completions(counts, ids.device))
            for count in counts:
                start = row.append(ids[n, :count], following + torch.arange(count, device=following.device))
                predictors += ([end] if lengths[n] else []) + [*range(start, start + count)]
                n += 1
        row.groups.append(packed_group(model, prefix, completions, ids.device))
    return row.forward(predictors)


def prefill(model: PreTrainedModel, prompts: Sequence[Prompt]) -> tuple[Tensor, PromptCache]:
    """Return the last hidden state of each prompt (P, H), and the keys and values of all its tokens.

    Consecutive prompts with the same shared start or images share their common prefix, as completions their prompt.
    """
    row = PackedRow(model)
    device = prompts[0]["input_ids"].device
    indices: list[Tensor] = []
    ends: list[int] = []
    for prefix in shared_prefixes(model, prompts):
        places = row.append_prompts(prefix)
        for parts in places:
            ends.append(next(part for part in reversed(parts) if part)[-1])
            index = torch.cat([torch.arange(part.start, part.stop) for part in parts])
            indices.append(index.to(device, non_blocking=True))
        row.groups.append(packed_group(model, prefix, [None] * len(places), device))
    cache = PromptCache(indices)
    return row.forward(ends, cache), cache


def packed_group(
    model: PreTrainedModel, prefix: Prefix, completions: list[Completions | None], device: torch.device
) -> PackedGroup:
    """Return how a prefix, the rests of its prompts and their completions attend to each other."""
    masks = [
        single_sequence_masks(model, prompt, max(lengths_of(found), default=0))
        for prompt, found in zip(prefix.prompts, completions, strict=True)
    ]
    if kinds := next((mask.keys() for mask in masks if mask is not None), None):
        # A prompt that is shorter than a sliding window has no masks; its rest is computed beside those that have.
        lengths = [
            prompt["input_ids"].shape[1] + max(lengths_of(found), default=0)
            for prompt, found in zip(prefix.prompts, completions, strict=True)
        ]
        masks = [
            dict.fromkeys(kinds, causal_mask(length, device)) if mask is None else mask
            for mask, length in zip(masks, lengths, strict=True)
        ]
    return PackedGroup(prefix.length, Completions(prefix.rests, device), completions, masks)


def forward_with_layout(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor, layout: Layout, **kwargs: Any
) -> Tensor:
    """Return hidden states of tokens that attend as `layout` says. A 4-D mask keeps the model from making its own."""
    return model.base_model(
        input_ids=tokens,
        position_ids=positions,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
        shared_prefix=layout,
        use_cache=False,
        **kwargs,
    ).last_hidden_state


def single_sequence_masks(model: PreTrainedModel, prompt: Prompt, n: int) -> dict[str, Tensor] | None:
    """Return the model's masks for `[prompt | n tokens]` by layer type, (1, 1, L + n, L + n); None if all causal."""
    device = prompt["input_ids"].device
    length = prompt["input_ids"].shape[1] + n
    build = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    embeds = torch.empty((1, length, 0), dtype=model.dtype, device=device)
    token_types = {key: F.pad(prompt[key], (0, n)) for key in TOKEN_TYPE_KEYS if key in prompt}
    # neither attention mask nor cache; transformers 5.24 renames the argument of the cache, so it is given by position
    masks = build(model.config, embeds, None, None, position_ids=None, **token_types)
    by_layer = masks if isinstance(masks, dict) else dict.fromkeys(layer_types(model), masks)
    if all(mask is None for mask in by_layer.values()):
        return None
    causal = causal_mask(length, device)
    return {kind: causal if mask is None else mask for kind, mask in by_layer.items()}


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Return the mask of tokens that attend to themselves and those before them, (1, 1, length, length)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
