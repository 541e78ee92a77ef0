"""Decoding for P prompts with G rows each, one token at a time. Keys and values of each prompt are stored once.

Recurrent layers have a state per row, which is a copy of its prompt's at first.

A new token attends to its prompt, which its group shares, and to the tokens of its own row, as in Hydragen (arXiv
2402.05099). The scores of both are concatenated before the softmax; Hydragen merges two softmaxes instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from vrft.policy.packed_attention import PromptCache
from vrft.policy.prompts import TOKEN_KEYS, ImageFeatures, Prompt, encode_images, next_position, prompt_positions
from vrft.policy.recurrent import GrowingState, StatefulForward
from vrft.policy.shared_prefix import forward_with_layout, layer_types, prefill

MASKED = -1e30
"""Added to the attention scores of keys that a token must not attend to."""


class Decoder(Protocol):
    """Computes the hidden states of rows that grow by one token at a time."""

    hidden: Tensor
    """Hidden states that predict the first token of each row (N, H)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row (n,); return the hidden states that predict the next ones (n, H)."""

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows but these, given by their current indices (prompts, rows of each prompt)."""


class GroupCache:
    """Keys and values of P prompts and of the tokens in each of their G rows, and states of recurrent layers.

    Attributes:
        prompts: keys and values of each attention layer (P, heads, L, dim).
        rows: keys and values of each attention layer (P, heads, G, slots, dim).
        states: state of each recurrent layer (N, …).
        position: slot of the next token (1,).
    """

    def __init__(
        self, cache: PromptCache, group_size: int, slots: int, layer_types: Sequence[str], window: int | None
    ) -> None:
        """Allocate the rows.

        Args:
            cache: keys, values and states of the P prompts.
            group_size: rows per prompt, G.
            slots: largest number of tokens in a row.
            layer_types: type of each layer.
            window: size of the sliding window, if the model has one.
        """
        self.prompts = dict(cache.layers)
        self.rows = {
            layer: (
                k.new_zeros(*k.shape[:2], group_size, slots, k.shape[3]),
                v.new_zeros(*v.shape[:2], group_size, slots, v.shape[3]),
            )
            for layer, (k, v) in self.prompts.items()
        }
        counts = [group_size] * len(cache.lengths)
        self.states = {layer: GrowingState(*state.copies(counts)) for layer, state in cache.states.items()}
        self.layer_types, self.window, self.group_size = layer_types, window, group_size
        device = cache.index.device
        self.lengths = torch.tensor(cache.lengths, device=device)  # (P,)
        self.ragged = min(cache.lengths) < max(cache.lengths)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.used = 0
        self.slots = self.max_slots = slots
        self.length = cache.index.shape[1]  # L
        self.bias: dict[str, Tensor | None] = {}

    def set_visible(self, static_shapes: bool) -> None:
        """Let attention read the slots up to the next token's; with static shapes, all slots, with a mask."""
        self.slots = self.max_slots if static_shapes else self.used + 1
        self.bias = {kind: self._bias(kind, static_shapes) for kind in {self.layer_types[layer] for layer in self.rows}}

    def _bias(self, kind: str, static_shapes: bool) -> Tensor | None:
        """Return the mask that is added to scores, (P, 1, 1, L + slots); None if every key is visible."""
        sliding = kind == "sliding_attention"
        if not (sliding or self.ragged or static_shapes):
            return None
        device = self.lengths.device
        prompt = torch.arange(self.length, device=device).expand(len(self.lengths), -1)  # (P, L)
        own = self.lengths[:, None] + torch.arange(self.slots, device=device)  # (P, slots)
        now = self.lengths[:, None] + self.position  # (P, 1)
        visible = torch.cat([prompt < self.lengths[:, None], own <= now], 1)
        if sliding and self.window is not None:
            visible &= torch.cat([prompt, own], 1) > now - self.window
        return torch.zeros(visible.shape, device=device).masked_fill(~visible, MASKED)[:, None, None]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None = None, **_: Any
    ) -> Tensor:
        """Compute attention of one new token per row: (N, heads, 1, dim) -> (N, 1, heads, dim)."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        keys, values = self.prompts[layer]  # (P, kv, L, dim)
        own_keys, own_values = self.rows[layer]  # (P, kv, G, slots, dim)
        heads = keys.shape[1]
        own_keys.index_copy_(3, self.position, self._grid(key, heads).to(own_keys.dtype))
        own_values.index_copy_(3, self.position, self._grid(value, heads).to(own_values.dtype))
        own_keys, own_values = own_keys[..., : self.slots, :], own_values[..., : self.slots, :]
        q = self._grid(query, heads).to(keys.dtype)  # (P, kv, G, queries per kv, dim)
        group_size, length = self.group_size, self.length
        scores = torch.cat([q.flatten(2, 3) @ keys.mT, (q @ own_keys.mT).flatten(2, 3)], -1)  # (P, kv, G q, L + slots)
        scores = scores.float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        bias = self.bias[self.layer_types[layer]]
        weights = (scores if bias is None else scores + bias).softmax(-1).to(values.dtype)
        output = (weights[..., :length] @ values).unflatten(2, (group_size, -1))  # (P, kv, G, q, dim)
        output = output + weights[..., length:].unflatten(2, (group_size, -1)) @ own_values
        return output.transpose(1, 2).flatten(0, 1).flatten(1, 2)[:, None]

    def recur(self, module: nn.Module, forward: StatefulForward, hidden: Tensor) -> Tensor:
        """Compute a recurrent layer for one new token per row (N, 1, H)."""
        return forward(hidden, self.states[module.layer_idx], None)  # type: ignore[index]

    def _grid(self, x: Tensor, heads: int) -> Tensor:
        """Reshape (N, kv * q, 1, dim) -> (P, kv, G, q, dim)."""
        return x.view(len(self.lengths), self.group_size, heads, -1, x.shape[-1]).transpose(1, 2)

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows but these, given by their current indices (prompts, rows of each prompt)."""
        prompts = rows[:, 0] // self.group_size

        def select(x: Tensor) -> Tensor:
            return x.transpose(1, 2)[prompts[:, None], rows % self.group_size].transpose(1, 2).contiguous()

        self.lengths = self.lengths[prompts]
        self.prompts = {layer: (k[prompts], v[prompts]) for layer, (k, v) in self.prompts.items()}
        self.rows = {layer: (select(k), select(v)) for layer, (k, v) in self.rows.items()}
        for state in self.states.values():
            state.select_rows(rows.flatten())
        self.group_size = rows.shape[1]


class GroupDecoder:
    """A decoder that computes each prompt once and shares it between its rows."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], group_size: int, limit: int, cuda_graph: bool
    ) -> None:
        """Compute the prompts.

        Args:
            model: a model after `share_prefixes`.
            prompts: P prompts.
            group_size: rows per prompt, G.
            limit: largest number of tokens in a row.
            cuda_graph: keep the shapes of steps fixed and, on a GPU, run them as a CUDA graph.
        """
        hidden, cache = prefill(model, prompts)  # (P, H)
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        first = torch.cat([next_position(prompt_positions(model, prompt)) for prompt in prompts], -1)  # (…, P)
        self.model, self.cuda_graph = model, cuda_graph
        self.hidden = hidden.repeat_interleave(group_size, 0)
        self.first = first.repeat_interleave(group_size, -1)[..., None]  # (…, N, 1)
        self.cache = GroupCache(cache, group_size, limit, layer_types(model), window)
        self.graph_step: CUDAGraphStep | None = None

    def step(self, tokens: Tensor) -> Tensor:
        if self.cuda_graph and tokens.is_cuda:
            self.graph_step = self.graph_step or CUDAGraphStep(self._forward, tokens, self.cache.states.values())
            hidden = self.graph_step(tokens)
        else:
            hidden = self._forward(tokens)
        self.cache.position += 1
        self.cache.used += 1
        return hidden

    def _forward(self, tokens: Tensor) -> Tensor:
        self.cache.set_visible(static_shapes=self.cuda_graph)
        return forward_with_layout(self.model, tokens[:, None], self.first + self.cache.position, self.cache)[:, -1]

    def select_rows(self, rows: Tensor) -> None:
        self.graph_step = None  # a graph is bound to tensors of the old shapes
        self.cache.select_rows(rows)
        self.first = self.first[..., rows.flatten(), :]


class CUDAGraphStep:
    """A decoding step as a CUDA graph, which launches about a thousand small kernels at once.

    The step runs twice before it is captured. But for `states`, which are restored, it must be idempotent.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], tokens: Tensor, states: Iterable[GrowingState] = ()) -> None:
        self.tokens = tokens.clone()
        changed = [x for state in states for x in state.tensors()]
        before = [x.clone() for x in changed]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries select kernels and allocate on the first calls, which can't be captured
                step(self.tokens)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = step(self.tokens)
        for x, value in zip(changed, before, strict=True):
            x.copy_(value)

    def __call__(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.hidden


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
