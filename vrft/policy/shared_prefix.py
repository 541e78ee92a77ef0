"""Compute a prompt once for all of its G completions, with unmodified Hugging Face models.

All prompts and completions of a micro-batch form one row without padding,
`[prompt 1 | its completions | prompt 2 | its completions | …]`, so each image, prompt and real token is computed once.
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

from vrft.policy.packed_attention import Completions, PackedLayout, PromptCache
from vrft.policy.prompts import (
    TOKEN_KEYS,
    TOKEN_TYPE_KEYS,
    Prompt,
    encode_prompts,
    next_position,
    prompt_positions,
    same_images,
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


def group_hidden_states(
    model: PreTrainedModel, prompts: Sequence[Prompt], ids: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Return the hidden states that predict the completions' real tokens, row after row: (sum of lengths, H).

    Args:
        model: a Hugging Face model after `share_prefixes`.
        prompts: P prompts.
        ids: completions, right-padded (N, T); row p * G + g belongs to prompt p.
        lengths: number of real tokens of each row (N).
    """
    group_size = len(lengths) // len(prompts)
    inputs = [max(length - 1, 0) for length in lengths]  # the last token is predicted but predicts nothing
    completions = [inputs[start : start + group_size] for start in range(0, len(inputs), group_size)]
    positions, tokens, predictors = [], [], []
    row = 0
    start = 0
    for prompt, counts in zip(prompts, completions, strict=True):
        own = prompt_positions(model, prompt)
        positions.append(own)
        tokens.append(prompt["input_ids"][0])
        start += own.shape[-1]
        end = start - 1
        for count in counts:
            positions.append(next_position(own)[..., None] + torch.arange(count, device=own.device))
            tokens.append(ids[row, :count])
            predictors += ([end] if lengths[row] else []) + [*range(start, start + count)]
            start += count
            row += 1
    masks = [
        single_sequence_masks(model, prompt, max(counts)) for prompt, counts in zip(prompts, completions, strict=True)
    ]
    lengths_of_prompts = [prompt["input_ids"].shape[1] for prompt in prompts]
    folded = [Completions(counts, ids.device) for counts in completions]
    layout = PackedLayout(lengths_of_prompts, folded, masks, layer_types(model))
    hidden = packed_forward(model, prompts, torch.cat(tokens)[None], torch.cat(positions, -1), layout)
    return hidden[0][torch.tensor(predictors).to(hidden.device, non_blocking=True)]


def prefill(model: PreTrainedModel, prompts: Sequence[Prompt]) -> tuple[Tensor, PromptCache]:
    """Return the last hidden state of each prompt (P, H), and the keys and values of all its tokens.

    Consecutive prompts with the same images share their common prefix, as completions share their prompt.
    """
    prefix_groups = shared_prefixes(model, prompts)
    tokens, positions, indices = [], [], []
    start = 0
    for prefix, members in prefix_groups:
        shared = torch.arange(start, start + prefix["input_ids"].shape[1])
        tokens.append(prefix["input_ids"])
        positions.append(prefix["position_ids"])
        start += len(shared)
        for prompt in members:
            tokens.append(prompt["input_ids"][:, len(shared) :])
            positions.append(prompt_positions(model, prompt)[..., len(shared) :])
            own = torch.arange(start, start + tokens[-1].shape[1])
            indices.append(torch.cat([shared, own]).to(tokens[-1].device, non_blocking=True))
            start += len(own)
    prefixes = [prefix for prefix, _ in prefix_groups]
    lengths = [prefix["input_ids"].shape[1] for prefix in prefixes]
    suffixes = [
        [prompt["input_ids"].shape[1] - length for prompt in members]
        for length, (_, members) in zip(lengths, prefix_groups, strict=True)
    ]
    masks = [single_sequence_masks(model, *pair) for pair in zip(prefixes, map(max, suffixes), strict=True)]
    cache = PromptCache(indices)
    rests = [Completions(counts, cache.index.device) for counts in suffixes]
    layout = PackedLayout(lengths, rests, masks, layer_types(model), cache)
    hidden = packed_forward(model, prefixes, torch.cat(tokens, 1), torch.cat(positions, -1), layout)
    return hidden[0][torch.stack([index[-1] for index in indices])], cache


def shared_prefixes(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[tuple[Prompt, list[Prompt]]]:
    """Group consecutive prompts with the same images; return each group's common prefix and its members, in order.

    The prefix contains all image tokens and leaves each member at least one token. A single prompt is its own prefix.
    """
    runs: list[list[Prompt]] = []
    for prompt in prompts:
        if runs and same_images(runs[-1][0], prompt):
            runs[-1].append(prompt)
        else:
            runs.append([prompt])
    prefix_groups = []
    for run in runs:
        length = run[0]["input_ids"].shape[1] if len(run) == 1 else common_length([p["input_ids"][0] for p in run])
        rests = [prompt["input_ids"][:, length:] for prompt in run] if len(run) > 1 else []
        if any((rest == model.config.image_token_id).any() for rest in rests):
            prefix_groups += [(prefix_of(model, prompt, prompt["input_ids"].shape[1]), [prompt]) for prompt in run]
        else:
            prefix_groups.append((prefix_of(model, run[0], length), run))
    return prefix_groups


def common_length(rows: Sequence[Tensor]) -> int:
    """Return how many tokens all rows begin with, at most one less than the shortest has."""
    shortest = min(map(len, rows)) - 1
    same = (torch.stack([row[:shortest] for row in rows]) == rows[0][:shortest]).all(0)  # (shortest,)
    return int(same.long().cumprod(0).sum())


def prefix_of(model: PreTrainedModel, prompt: Prompt, length: int) -> Prompt:
    """Return the first `length` tokens of a prompt as a prompt of its own, with all images."""
    cut = {key: value[:, :length] if key in TOKEN_KEYS else value for key, value in prompt.items()}
    return cut | {"position_ids": prompt_positions(model, prompt)[..., :length]}


def packed_forward(
    model: PreTrainedModel, prompts: Sequence[Prompt], tokens: Tensor, positions: Tensor, layout: PackedLayout
) -> Tensor:
    """Return the hidden states (1, tokens, H) of a row that contains the images of `prompts`, in order."""
    images = encode_prompts(model, prompts)
    return forward_with_layout(model, tokens, positions, layout, mm_encoder_outputs=images.for_model())


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
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    return {kind: causal if mask is None else mask for kind, mask in by_layer.items()}
