"""Keys, values and states of groups of rows that share a prompt, and attention to them.

A new token attends to its prompt, which its group shares, and to the tokens of its own row, as in Hydragen (arXiv
2402.05099). The scores of both are concatenated before the softmax; Hydragen merges two softmaxes instead.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vrft.policy.decoding_layers import TokenLayout
from vrft.policy.packed_attention import PromptCache
from vrft.policy.page_locked import page_locked
from vrft.policy.recurrent import GrowingState, StatefulForward
from vrft.policy.shared_prefix import layer_types

MASKED = -1e30
"""Added to the attention scores of keys that a token must not attend to."""


class GroupCache(TokenLayout):
    """Keys and values of P prompts and of the tokens in each of their G rows, and states of recurrent layers.

    Attributes:
        prompts: keys and values of each attention layer, both (P, heads, L, dim).
        rows: keys and values of each attention layer (2, P, heads, G, slots, dim).
        states: state of each recurrent layer (N, …).
        lengths: length of each prompt (P,).
        position: slot of the next token (1,).
    """

    def __init__(
        self, cache: PromptCache, model: PreTrainedModel, group_size: int, max_slots: int, longest: int | None = None
    ) -> None:
        """Take the prompts and make room for rows.

        Args:
            cache: keys, values and states of the P prompts.
            model: the model.
            group_size: rows per prompt, G.
            max_slots: largest number of tokens in a row.
            longest: keep all shapes as they are, with room for so many tokens of a prompt; `load` fills it.
        """
        self.group_size, self.max_slots, self.static = group_size, max_slots, longest is not None
        self.length = longest or cache.index.shape[1]  # L
        self.prompts = dict(cache.layers)
        if self.static:
            self.prompts = {
                layer: (
                    k.new_zeros(*k.shape[:2], self.length, k.shape[3]),
                    v.new_zeros(*v.shape[:2], self.length, v.shape[3]),
                )
                for layer, (k, v) in self.prompts.items()
            }
        self.rows = {
            layer: k.new_zeros(2, *k.shape[:2], group_size, max_slots, k.shape[3])
            for layer, (k, _) in self.prompts.items()
        }
        counts = [group_size] * len(cache.lengths)
        self.states = {layer: GrowingState(*state.copies(counts)) for layer, state in cache.states.items()}
        self.layer_types = layer_types(model)
        self.window = getattr(model.config.get_text_config(), "sliding_window", None)
        device = cache.index.device
        self.lengths = torch.tensor(cache.lengths, device=device)  # (P,)
        self.ragged = min(cache.lengths) < max(cache.lengths)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.used, self.slots = 0, max_slots
        self.bias: dict[str, Tensor | None] = {}

    def load(self, cache: PromptCache) -> None:
        """Take other prompts into the same memory, and start new rows."""
        for layer, pair in self.prompts.items():
            for mine, theirs in zip(pair, cache.layers[layer], strict=True):
                mine[:, :, : theirs.shape[2]] = theirs
        counts = [self.group_size] * len(cache.lengths)
        for layer, state in self.states.items():
            state.become(GrowingState(*cache.states[layer].copies(counts)))
        lengths = page_locked(torch.tensor(cache.lengths), self.lengths.device)
        self.lengths.copy_(lengths, non_blocking=True)
        self.position.zero_()

    def smaller(self, group_size: int) -> GroupCache:
        """Return a cache for fewer rows of the same prompts, in the same memory."""
        other = copy.copy(self)
        other.group_size = group_size
        other.rows = {}
        for layer, rows in self.rows.items():
            shape = (*rows.shape[:3], group_size, *rows.shape[4:])
            other.rows[layer] = rows.flatten()[: math.prod(shape)].view(shape)
        cells = slice(group_size * len(self.lengths))
        other.states = {layer: state.selected(cells) for layer, state in self.states.items()}
        return other

    def become(self, rows: Mapping[int, Tensor], states: Mapping[int, GrowingState]) -> None:
        """Take keys, values and states of as many rows, in each layer."""
        for layer, mine in self.rows.items():
            mine.copy_(rows[layer])
        for layer, state in self.states.items():
            state.become(states[layer])

    def changing(self) -> list[Tensor]:
        """Return the tensors that a token changes other than by filling its slot."""
        return [self.position, *(x for state in self.states.values() for x in state.tensors())]

    def set_visible(self) -> None:
        """Let attention read the slots up to the next token's; with static shapes, all slots, with a mask."""
        self.slots = self.max_slots if self.static else self.used + 1
        self.bias = {kind: self._bias(kind) for kind in {self.layer_types[layer] for layer in self.rows}}

    def _bias(self, kind: str) -> Tensor | None:
        """Return the mask that is added to scores, (P, 1, 1, L + slots) in float32; None if every key is visible."""
        sliding = kind == "sliding_attention"
        if not (sliding or self.ragged or self.static):
            return None
        device = self.lengths.device
        prompt = torch.arange(self.length, device=device).expand(len(self.lengths), -1)  # (P, L)
        own = self.lengths[:, None] + torch.arange(self.slots, device=device)  # (P, slots)
        now = self.lengths[:, None] + self.position  # (P, 1)
        visible = torch.cat([prompt < self.lengths[:, None], own <= now], 1)
        if sliding and self.window is not None:
            visible &= torch.cat([prompt, own], 1) > now - self.window
        zeros = torch.zeros(visible.shape, device=device, dtype=torch.float32)
        return zeros.masked_fill(~visible, MASKED)[:, None, None]

    def attend_token(self, layer: int, query: Tensor, key_value: Tensor, scaling: float) -> Tensor:
        """Compute attention of one new token per row: (N, heads, dim), (N, 2, kv, dim) -> (N, heads * dim)."""
        keys, values = self.prompts[layer]  # (P, kv, L, dim)
        rows = self.rows[layer]  # (2, P, kv, G, slots, dim)
        _, prompts, heads, group_size, _, dim = rows.shape
        new = key_value.view(prompts, group_size, 2, heads, dim).permute(2, 0, 3, 1, 4)  # (2, P, kv, G, dim)
        if self.static:
            rows.index_copy_(4, self.position, new[..., None, :].to(rows.dtype))
        else:
            rows.select(4, self.used).copy_(new)
        own_keys, own_values = rows[..., : self.slots, :].flatten(1, 3)  # (P kv G, slots, dim)
        q = query.view(prompts, group_size, heads, -1, dim).transpose(1, 2).to(keys.dtype)  # (P, kv, G, q, dim)
        q = q.reshape(prompts * heads, -1, dim)  # (P kv, G q, dim)
        own_shape = (prompts * heads * group_size, -1, dim)
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)  # (P kv, L, dim)
        weights = self._scores(layer, q, keys, q.view(own_shape), own_keys, scaling).softmax(-1).to(values.dtype)
        length = keys.shape[1]
        output = torch.bmm(weights[..., :length], values).view(own_shape)
        own_weights = weights.view(*output.shape[:2], -1)[..., length:]
        output = output.baddbmm_(own_weights, own_values)  # (P kv G, q, dim)
        return output.view(prompts, heads, group_size, -1, dim).transpose(1, 2).reshape(query.shape[0], -1)

    def _scores(self, layer: int, q: Tensor, keys: Tensor, own_q: Tensor, own_keys: Tensor, scaling: float) -> Tensor:
        """Return the scores of all keys (P kv, G q, L + slots) in float32.

        Biases of keys make scores of hundreds, in which 16 bits would round away differences of about 1.
        """
        bias = self.bias[self.layer_types[layer]]
        if q.is_cuda:
            scores = q.new_empty(*q.shape[:2], keys.shape[1] + own_keys.shape[1], dtype=torch.float32)
            if bias is not None:
                bias = bias.expand(-1, len(q) // len(bias), q.shape[1], -1)  # (P, kv, G q, L + slots)
                scores.view(bias.shape).copy_(bias)
            own = scores.view(*own_q.shape[:2], -1)[..., keys.shape[1] :]
            for part, x, y in ((scores[..., : keys.shape[1]], q, keys), (own, own_q, own_keys)):
                torch.baddbmm(part, x, y.mT, torch.float32, beta=int(bias is not None), alpha=scaling, out=part)
            return scores
        q, keys, own_keys = (x.float() for x in (q, keys, own_keys))  # a CPU's products have the dtype of their factors
        q = q * scaling
        with torch.autocast("cpu", enabled=False):
            own = torch.bmm(q.view(own_q.shape), own_keys.mT).view(*q.shape[:2], -1)
            # A CPU would multiply into a part of a tensor one matrix at a time.
            scores = torch.cat([torch.bmm(q, keys.mT), own], -1)
        return scores if bias is None else scores.unflatten(0, (len(bias), -1)).add_(bias).flatten(0, 1)

    def recur(self, module: nn.Module, forward: StatefulForward, hidden: Tensor) -> Tensor:
        """Compute a recurrent layer for one new token per row (N, 1, H)."""
        return forward(hidden, self.states[module.layer_idx], None)  # type: ignore[index]

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows but these, given by their current indices (prompts, rows of each prompt)."""
        prompts = rows[:, 0] // self.group_size
        self.rows, self.states = self.selected(rows)
        self.lengths = self.lengths[prompts]
        self.prompts = {layer: (k[prompts], v[prompts]) for layer, (k, v) in self.prompts.items()}
        self.group_size = rows.shape[1]

    def selected(self, rows: Tensor) -> tuple[dict[int, Tensor], dict[int, GrowingState]]:
        """Return copies of keys and values of these rows, and their states, in each layer."""
        prompts = (rows[:, 0] // self.group_size)[:, None]
        own = rows % self.group_size
        keys_values = {
            layer: x.transpose(2, 3)[:, prompts, own].transpose(2, 3).contiguous() for layer, x in self.rows.items()
        }
        return keys_values, {layer: state.selected(rows.flatten()) for layer, state in self.states.items()}
