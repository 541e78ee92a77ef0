"""One prompt, G completions, one forward, on unmodified Hugging Face models.

All prompts and completions of a micro-batch stand in one row without padding,
`[prompt 1 | its completions | prompt 2 | its completions | …]`, so that each image, prompt and real token is computed
once; they are kept apart in attention alone. Prefix sharing is known from PrefixGrouper (arXiv 2506.05433); this one is
for images: rotary positions with three axes, sliding windows and bidirectional image blocks are the model's own.

P prompts, G completions each, N = P * G, L prompt tokens, T completion tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_masks_for_generate, sdpa_mask

from vrft.policy.prompts import (
    PER_TOKEN,
    TOKEN_TYPES,
    ImageFeatures,
    Prompt,
    encode_images,
    next_position,
    prompt_positions,
    same_images,
)

ATTENTION = "vrft_shared_prefix"
SHAREABLE = {"full_attention", "sliding_attention"}


class AttentionLayout(Protocol):
    """How the tokens of a forward belong together; the `shared_prefix` argument of a model's forward."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        """Attention of one layer: (batch, heads, tokens, dim) -> (batch, tokens, heads, dim)."""


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: AttentionLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """A transformers attention function: plain sdpa unless the forward was given `shared_prefix`.

    An argument, not a context: activation checkpointing calls it again in the backward pass, outside of any context.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return shared_prefix.attend(module, query, key, value, **kwargs), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def layer_types(model: PreTrainedModel) -> list[str]:
    """What each layer of the text model is, e.g. full_attention."""
    config = model.config.get_text_config()
    return getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers


def share_prefixes(model: PreTrainedModel) -> bool:
    """Switch the text model's attention; without a `shared_prefix` argument it goes on as sdpa.

    Returns:
        False, and nothing is changed, where layers are recurrent: one row can't hold several completions then.
    """
    if not set(layer_types(model)) <= SHAREABLE:
        return False
    model.set_attn_implementation({"text_config": ATTENTION})
    return True


class PromptCache:
    """Keys and values of P prompts, from a packed forward: per layer (P, heads, L, dim).

    Behind a prompt's end stands anything finite, out of sight.
    """

    def __init__(self, indices: list[Tensor]) -> None:
        """`indices`: of each prompt's tokens in the packed row, P times (L,)."""
        self.lengths = [len(where) for where in indices]
        self.index = pad_sequence(indices, batch_first=True)  # (P, L)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Key and value of the packed row, both (1, heads, tokens, dim)."""
        padded = [x[0].transpose(0, 1)[self.index].transpose(1, 2).contiguous() for x in (key, value)]
        self.layers[layer] = padded[0], padded[1]


@dataclass(frozen=True)
class PackedLayout:
    """P prompts with their completions in one row.

    Attributes:
        prompts: L of each prompt.
        completions: for each prompt the tokens of its completions, but for the last, which predicts nothing.
        masks: for each prompt the model's masks of one sequence `[prompt | longest completion]` by layer type, each
            (1, 1, L + n, L + n); None if plainly causal.
        layer_types: of each layer.
        cache: keeps keys and values.
    """

    prompts: list[int]
    completions: list[list[int]]
    masks: list[dict[str, Tensor] | None]
    layer_types: list[str]
    cache: PromptCache | None = None

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        """Each prompt attends to itself; each of its completions, folded into the batch, to the prompt and itself."""
        query, key = query.to(value.dtype), key.to(value.dtype)  # as autocast does, but not before a causal bias
        if self.cache is not None:
            self.cache.store(module.layer_idx, key, value)  # type: ignore[arg-type]
        kind = self.layer_types[module.layer_idx]  # type: ignore[index]
        sizes = [size for pair in zip(self.prompts, map(sum, self.completions), strict=True) for size in pair]
        parts = [x.split(sizes, 2) for x in (query, key, value)]
        outputs = []
        for p, masks in enumerate(self.masks):
            mask = None if masks is None else masks[kind]
            length, lengths = self.prompts[p], self.completions[p]
            prompt, completions = ([part[2 * p + i] for part in parts] for i in (0, 1))
            prompt_mask = None if mask is None else mask[..., :length, :length]
            outputs.append(sdpa_attention_forward(module, *prompt, prompt_mask, **kwargs)[0])
            if not any(lengths):
                continue
            q, k, v = (_fold(x, lengths) for x in completions)  # (G, heads, n, dim)
            k, v = (torch.cat([x.expand(len(q), -1, -1, -1), y], 2) for x, y in zip(prompt[1:], (k, v), strict=True))
            bias: Any = causal_lower_right(q.shape[2], k.shape[2]) if mask is None else mask[..., length:, :]
            outputs.append(_unfold(_attention(module, q, k, v, bias, **kwargs), lengths))
        return torch.cat(outputs, 1)


def _attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, bias: Any, *, dropout: float, scaling: float | None, **_: Any
) -> Tensor:
    """Attention under a bias (G, heads, n, dim) -> (G, n, heads, dim); q may have more heads than k and v."""
    if q.device.type == "cpu":  # whose kernel needs no copy of the keys for each head that reads them
        output = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2)
    return sdpa_attention_forward(module, q, k, v, bias, dropout=dropout, scaling=scaling)[0]


def _fold(x: Tensor, lengths: list[int]) -> Tensor:
    """(1, heads, sum of lengths, dim) -> (G, heads, n, dim), padded by whatever comes first."""
    n = max(lengths)
    if min(lengths) < n:
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1, None]  # (G, 1)
        behind = torch.arange(n) >= torch.tensor(lengths)[:, None]  # (G, n)
        # Padding is seen by padding alone, so its gradient is 0 wherever it is copied from.
        index = (starts + torch.arange(n)).masked_fill(behind, 0).flatten()
        x = x.index_select(2, index.to(x.device, non_blocking=True))
    return x[0].unflatten(1, (len(lengths), n)).transpose(0, 1)


def _unfold(x: Tensor, lengths: list[int]) -> Tensor:
    """(G, n, heads, dim) -> (1, sum of lengths, heads, dim)."""
    n = x.shape[1]
    if min(lengths) < n:
        index = torch.cat([g * n + torch.arange(length) for g, length in enumerate(lengths)])
        return x.flatten(0, 1).index_select(0, index.to(x.device, non_blocking=True))[None]
    return x.flatten(0, 1)[None]


def group_hidden_states(
    model: PreTrainedModel, prompts: Sequence[Prompt], ids: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Hidden states that predict the completions' real tokens, row after row: (sum of lengths, H).

    Args:
        model: a Hugging Face model after `share_prefixes`.
        prompts: P of them.
        ids: completions, right-padded (N, T); row p * G + g belongs to prompt p.
        lengths: real tokens of each row, N of them.
    """
    group = len(lengths) // len(prompts)
    inputs = [max(length - 1, 0) for length in lengths]  # the last token is predicted but predicts nothing
    completions = [inputs[start : start + group] for start in range(0, len(inputs), group)]
    positions, tokens, predictors = [], [], []
    row = 0
    start = 0
    for prompt, counts in zip(prompts, completions, strict=True):
        before = prompt_positions(model, prompt)
        positions.append(before)
        tokens.append(prompt["input_ids"][0])
        start += before.shape[-1]
        end = start - 1
        for count in counts:
            positions.append(next_position(before)[..., None] + torch.arange(count, device=before.device))
            tokens.append(ids[row, :count])
            predictors += ([end] if lengths[row] else []) + [*range(start, start + count)]
            start += count
            row += 1
    masks = [
        single_sequence_masks(model, prompt, max(counts)) for prompt, counts in zip(prompts, completions, strict=True)
    ]
    groups = PackedLayout([p["input_ids"].shape[1] for p in prompts], completions, masks, layer_types(model))
    hidden = packed_forward(model, prompts, torch.cat(tokens)[None], torch.cat(positions, -1), groups)
    return hidden[0][torch.tensor(predictors).to(hidden.device, non_blocking=True)]


def prefill(model: PreTrainedModel, prompts: Sequence[Prompt]) -> tuple[Tensor, PromptCache]:
    """The last hidden state of each prompt (P, H), and the keys and values of all its tokens.

    Prompts about the same images, one after the other, share what they begin with, as completions share their prompt.
    """
    prefix_groups = shared_prefixes(model, prompts)
    tokens, positions, indices = [], [], []
    start = 0
    for beginning, members in prefix_groups:
        shared = torch.arange(start, start + beginning["input_ids"].shape[1])
        tokens.append(beginning["input_ids"])
        positions.append(beginning["position_ids"])
        start += len(shared)
        for prompt in members:
            tokens.append(prompt["input_ids"][:, len(shared) :])
            positions.append(prompt_positions(model, prompt)[..., len(shared) :])
            own = torch.arange(start, start + tokens[-1].shape[1])
            indices.append(torch.cat([shared, own]).to(tokens[-1].device))
            start += len(own)
    lengths = [beginning["input_ids"].shape[1] for beginning, _ in prefix_groups]
    rests = [
        [prompt["input_ids"].shape[1] - length for prompt in members]
        for length, (_, members) in zip(lengths, prefix_groups, strict=True)
    ]
    beginnings = [beginning for beginning, _ in prefix_groups]
    masks = [single_sequence_masks(model, *pair) for pair in zip(beginnings, map(max, rests), strict=True)]
    cache = PromptCache(indices)
    groups = PackedLayout(lengths, rests, masks, layer_types(model), cache)
    hidden = packed_forward(model, beginnings, torch.cat(tokens, 1), torch.cat(positions, -1), groups)
    return hidden[0][torch.stack([where[-1] for where in indices])], cache


def shared_prefixes(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[tuple[Prompt, list[Prompt]]]:
    """Prompts in order, those about the same images together, with what all of them begin with: images and all.

    Each has a token of its own; a prompt that stands alone is its own beginning.
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
        if any((prompt["input_ids"][:, length:] == model.config.image_token_id).any() for prompt in run):
            prefix_groups += [(prefix_of(model, prompt, prompt["input_ids"].shape[1]), [prompt]) for prompt in run]
        else:
            prefix_groups.append((prefix_of(model, run[0], length), run))
    return prefix_groups


def common_length(rows: Sequence[Tensor]) -> int:
    """How many tokens rows of several lengths have in common before the last of the shortest."""
    shortest = min(map(len, rows)) - 1
    same = (torch.stack([row[:shortest] for row in rows]) == rows[0][:shortest]).all(0)  # (shortest,)
    return int(same.long().cumprod(0).sum())


def prefix_of(model: PreTrainedModel, prompt: Prompt, length: int) -> Prompt:
    """The first tokens of a prompt as a prompt, with all its images."""
    cut = {key: value[:, :length] if key in PER_TOKEN else value for key, value in prompt.items()}
    return cut | {"position_ids": prompt_positions(model, prompt)[..., :length]}


def packed_forward(
    model: PreTrainedModel, prompts: Sequence[Prompt], tokens: Tensor, positions: Tensor, groups: PackedLayout
) -> Tensor:
    """Hidden states (1, tokens, H) of a row whose images are those of `prompts`, in order."""
    images = ImageFeatures.join([encode_images(model, prompt) for prompt in prompts])
    return group_forward(model, tokens, positions, groups, mm_encoder_outputs=images.for_model())


def group_forward(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor, groups: AttentionLayout, **kwargs: Any
) -> Tensor:
    """Hidden states of tokens that attend as `groups` says; the model is kept from making masks of its own."""
    return model.base_model(
        input_ids=tokens,
        position_ids=positions,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
        shared_prefix=groups,
        use_cache=False,
        **kwargs,
    ).last_hidden_state


def single_sequence_masks(model: PreTrainedModel, prompt: Prompt, n: int) -> dict[str, Tensor] | None:
    """The model's own masks of `[prompt | n tokens]` by layer type, (1, 1, L + n, L + n); None if plainly causal."""
    device = prompt["input_ids"].device
    length = prompt["input_ids"].shape[1] + n
    build = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    masks = build(
        config=model.config,
        inputs_embeds=torch.empty((1, length, 0), dtype=model.dtype, device=device),
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
        **{key: F.pad(prompt[key], (0, n)) for key in TOKEN_TYPES if key in prompt},
    )
    by_layer = masks if isinstance(masks, dict) else {"full_attention": masks}
    if all(mask is None for mask in by_layer.values()):
        return None
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    return {kind: causal if mask is None else mask for kind, mask in by_layer.items()}
