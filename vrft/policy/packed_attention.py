"""Layers of rows that hold several prompts, each followed by its completions or by the rests of longer prompts.

P prompts, G completions each, L prompt tokens, n completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence

from vrft.policy.recurrent import LayerState, StatefulForward, StatefulRows


class PromptCache:
    """Keys and values of P prompts from a packed forward: per layer (P, heads, L, dim).

    Padding holds arbitrary finite values; attention must mask it.

    Attributes:
        layers: keys and values of each attention layer.
        states: state of each recurrent layer.
    """

    def __init__(self, indices: list[Tensor]) -> None:
        """`indices`: positions of each prompt's tokens in the packed row, P times (L,)."""
        self.lengths = [len(index) for index in indices]
        self.index = pad_sequence(indices, batch_first=True)  # (P, L)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: dict[int, LayerState] = {}

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep a layer's key and value of the packed row, both (1, heads, tokens, dim)."""
        padded = [x[0].transpose(0, 1)[self.index].transpose(1, 2).contiguous() for x in (key, value)]
        self.layers[layer] = padded[0], padded[1]


class Completions:
    """The completions of a prompt, which lie one after the other in a row and attend as a batch.

    Attributes:
        lengths: number of tokens of each completion (G).
        total: number of their tokens in the row.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """`lengths`: number of tokens of each completion (G). The indices are built once for all layers."""
        self.lengths, self.device = lengths, device
        self.total, self.count, self.n = sum(lengths), len(lengths), max(lengths)
        self.fold_index = self.unfold_index = None
        if min(lengths) < self.n:
            starts = torch.tensor([0, *lengths]).cumsum(0)[:-1, None]  # (G, 1)
            padding = torch.arange(self.n) >= torch.tensor(lengths)[:, None]  # (G, n)
            # Only padding attends to padding, so the copied token gets no gradient from it.
            fold = (starts + torch.arange(self.n)).masked_fill(padding, 0).flatten()
            self.fold_index = fold.to(device, non_blocking=True)
            self.unfold_index = (~padding).flatten().nonzero()[:, 0].to(device, non_blocking=True)

    def fold(self, x: Tensor) -> Tensor:
        """Turn rows into a batch, padded by copies of the first token: (1, heads, total, dim) -> (G, heads, n, dim)."""
        if self.fold_index is not None:
            x = x.index_select(2, self.fold_index)
        return x[0].unflatten(1, (self.count, self.n)).transpose(0, 1)

    def unfold(self, x: Tensor) -> Tensor:
        """Undo `fold` for attention's output: (G, n, heads, dim) -> (1, total, heads, dim)."""
        x = x.flatten(0, 1)
        return (x if self.unfold_index is None else x.index_select(0, self.unfold_index))[None]


@dataclass(frozen=True)
class PackedLayout:
    """P prompts with their completions in one row.

    Attributes:
        prompts: length L of each prompt.
        completions: those of each prompt, without their last token, which predicts nothing.
        masks: for each prompt, the model's masks for the sequence `[prompt | longest completion]` by layer type, each
            (1, 1, L + n, L + n); None if they are causal.
        layer_types: type of each layer.
        cache: stores keys, values and states, if given.
    """

    prompts: list[int]
    completions: list[Completions]
    masks: list[dict[str, Tensor] | None]
    layer_types: list[str]
    cache: PromptCache | None = None

    @cached_property
    def stateful_rows(self) -> StatefulRows:
        """The rows as recurrent layers compute them."""
        lengths = [completions.lengths for completions in self.completions]
        return StatefulRows(self.prompts, lengths, self.completions[0].device, keep_states=self.cache is not None)

    def recur(self, module: nn.Module, forward: StatefulForward, hidden: Tensor) -> Tensor:
        """Compute a recurrent layer (1, tokens, H): each completion starts from the state after its prompt."""
        output, states = self.stateful_rows.forward(forward, hidden)
        if self.cache is not None:
            self.cache.states[module.layer_idx] = self.stateful_rows.last_states(states)  # type: ignore[index]
        return output

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        """Let each prompt attend to itself, and its completions, as a batch, to the prompt and to themselves."""
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast does not if the mask is a CausalBias
        if self.cache is not None:
            self.cache.store(module.layer_idx, key, value)  # type: ignore[arg-type]
        kind = self.layer_types[module.layer_idx]  # type: ignore[index]
        totals = [completions.total for completions in self.completions]
        sizes = [size for pair in zip(self.prompts, totals, strict=True) for size in pair]
        parts = [x.split(sizes, 2) for x in (query, key, value)]
        outputs = []
        for p, (length, completions, masks) in enumerate(zip(self.prompts, self.completions, self.masks, strict=True)):
            mask = None if masks is None else masks[kind]
            q, k, v = (part[2 * p] for part in parts)  # (1, heads, L, dim)
            outputs.append(attention(q, k, v, None if mask is None else mask[..., :length, :length], **kwargs))
            if not completions.total:
                continue
            q, own_k, own_v = (completions.fold(part[2 * p + 1]) for part in parts)  # (G, heads, n, dim)
            k, v = (torch.cat([x.expand(len(q), -1, -1, -1), own], 2) for x, own in ((k, own_k), (v, own_v)))
            output = attention(q, k, v, None if mask is None else mask[..., length:, :], **kwargs)
            outputs.append(completions.unfold(output))
        return torch.cat(outputs, 1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, *, dropout: float = 0.0, scaling: float | None = None, **_: Any
) -> Tensor:
    """Compute attention: (G, heads, n, dim) -> (G, n, heads, dim). q may have more heads than k and v.

    Without a mask, attention is causal and the last query attends to the last key.
    """
    grouped = q.shape[1] > k.shape[1]
    if grouped and q.is_cuda and (mask is not None or q.dtype == torch.float32):
        # Only CUDA's flash kernel takes fewer key heads, without a mask and in half precision. With repeated keys the
        # memory-efficient kernel runs; the math kernel would keep all scores.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        grouped = False
    if mask is None and q.shape[2] > 1:  # a single query attends to all keys
        mask = causal_lower_right(q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling, enable_gqa=grouped).transpose(1, 2)
