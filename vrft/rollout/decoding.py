"""Decoding for P prompts with G rows each, one token at a time. Keys and values of each prompt are stored once.

Recurrent layers have a state per row, which is a copy of its prompt's at first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from vrft.policy.decoding_model import TokenForward
from vrft.policy.packed_attention import PromptCache
from vrft.policy.prompts import TOKEN_KEYS, ImageFeatures, Prompt, encode_images, next_position, prompt_positions
from vrft.policy.shared_prefix import prefill
from vrft.rollout.group_cache import GroupCache


class Decoder(Protocol):
    """Computes the hidden states of rows that grow by one token at a time."""

    hidden: Tensor
    """Hidden states that predict the first token of each row (N, H)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row (n,); return the hidden states that predict the next ones (n, H)."""

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows but these, given by their current indices (prompts, rows of each prompt)."""


class Prefilled(NamedTuple):
    """P prompts whose keys and values are known."""

    hidden: Tensor  # states that predict the first token (P, H)
    cache: PromptCache
    first: Tensor  # position of the first token (…, P)

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: Sequence[Prompt]) -> Prefilled:
        """Compute prompts with a model after `share_prefixes`."""
        hidden, cache = prefill(model, prompts)
        return cls(hidden, cache, torch.cat([next_position(prompt_positions(model, p)) for p in prompts], -1))


class GroupDecoder:
    """A decoder that computes each prompt once and shares it between its rows."""

    def __init__(self, forward: TokenForward, prefilled: Prefilled, cache: GroupCache, group_size: int) -> None:
        """Start rows.

        Args:
            forward: runs forwards of one token per row, of a model after `share_prefixes`.
            prefilled: P prompts.
            cache: their keys and values.
            group_size: rows per prompt, G.
        """
        self.forward, self.cache = forward, cache
        self.hidden = prefilled.hidden.repeat_interleave(group_size, 0)
        self.first = prefilled.first.repeat_interleave(group_size, -1)[..., None]  # (…, N, 1)

    def step(self, tokens: Tensor) -> Tensor:
        cache = self.cache
        cache.set_visible()
        hidden = self.forward(tokens, self.first + cache.position, cache)
        cache.position += 1
        cache.used += 1
        return hidden

    def select_rows(self, rows: Tensor) -> None:
        self.cache.select_rows(rows)
        self.first = self.first[..., rows.flatten(), :]

    def smaller(self, group_size: int) -> GroupDecoder:
        """Return a decoder for fewer rows of the same prompts, whose keys and values lie in the same memory."""
        other = copy.copy(self)
        other.cache = self.cache.smaller(group_size)
        other.first = self.first[..., : group_size * len(self.cache.lengths), :].clone()
        return other


class RepeatedDecoder:
    """A decoder for models that can't share prompts: computes each prompt once, and repeats it in the model's cache."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], group_size: int, limit: int) -> None:
        """Compute the prompts, left-padded; arguments as in `GroupDecoder`."""
        lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
        inputs = {
            key: pad_sequence([prompt[key][0] for prompt in prompts], batch_first=True, padding_side="left")
            for key in TOKEN_KEYS
            if key in prompts[0]
        }
        positions = [prompt_positions(model, prompt) for prompt in prompts]
        first = torch.cat([next_position(p) for p in positions], -1)  # (…, P)
        padded = [F.pad(p, (max(lengths) - p.shape[-1], 0)) for p in positions]
        features = ImageFeatures.join([encode_images(model, prompt) for prompt in prompts])
        self.model, self.limit, self.used = model, limit, 0
        self.cache = DynamicCache(config=model.config)
        hidden = model.base_model(
            **inputs,
            position_ids=torch.cat(padded, -2),
            mm_encoder_outputs=features.for_model(),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]  # (P, H)
        rows = torch.arange(len(prompts), device=hidden.device).repeat_interleave(group_size)
        self.cache.reorder_cache(rows)
        self.hidden = hidden[rows]
        self.first = first[..., rows, None]  # (…, N, 1)
        self.mask = F.pad(inputs["attention_mask"], (0, limit), value=1)[rows]  # (N, L + limit)

    def step(self, tokens: Tensor) -> Tensor:
        self.used += 1
        return self.model.base_model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[:, : self.mask.shape[1] - self.limit + self.used],
            position_ids=self.first + self.used - 1,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def select_rows(self, rows: Tensor) -> None:
        rows = rows.flatten()
        self.cache.reorder_cache(rows)
        self.first, self.mask = self.first[..., rows, :], self.mask[rows]
