"""Attention in rows that hold several prompts with their completions. Prompts may share a prefix.

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
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.utils.rnn import pad_sequence

from vrft.policy.attention_kernels import flash_computes
from vrft.policy.recurrent import LayerState, StatefulForward, StatefulRows, pad_with_tokens

CPU_VECTOR = 16
"""Attention is up to a fifth faster on a CPU if the number of keys is a multiple of this."""


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
        padded = [x.squeeze(0).transpose(0, 1)[self.index].transpose(1, 2).contiguous() for x in (key, value)]
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
            # Only padding attends to padding, so the copied tokens get no gradient from it.
            fold = pad_with_tokens(starts + torch.arange(self.n), padding).flatten()
            self.fold_index = fold.to(device, non_blocking=True)
            self.unfold_index = (~padding).flatten().nonzero()[:, 0].to(device, non_blocking=True)
        self.causal_masks: dict[tuple[int, int], Tensor] = {}

    def fold(self, x: Tensor) -> Tensor:
        """Turn rows into a batch, padded by copies of tokens: (1, heads, total, dim) -> (G, heads, n, dim)."""
        if self.fold_index is not None:
            x = x.index_select(2, self.fold_index)
        # Other than x[0], `squeeze` has a view as its backward.
        return x.squeeze(0).unflatten(1, (self.count, self.n)).transpose(0, 1)

    def unfold(self, x: Tensor) -> Tensor:
        """Undo `fold` for attention's output: (G, n, heads, dim) -> (1, total, heads, dim)."""
        x = x.flatten(0, 1)
        return (x if self.unfold_index is None else x.index_select(0, self.unfold_index))[None]

    def causal_mask(self, length: int, padding: int) -> Tensor:
        """Return the mask of attention to `length` common keys, own keys and padding, made once for all layers.

        Shape: (n, length + n + padding), boolean.
        """
        if (length, padding) not in self.causal_masks:
            ones = torch.ones(self.n, length + self.n + padding, dtype=torch.bool, device=self.device)
            self.causal_masks[length, padding] = ones.tril(length)
        return self.causal_masks[length, padding]


@dataclass(frozen=True)
class PackedGroup:
    """A prefix with the prompts that begin with it and their completions.

    They lie in a row as `[prefix | rests of the prompts | completions of prompt 1 | completions of prompt 2 | …]`.

    Attributes:
        prefix: tokens of the prefix.
        rests: those of each prompt after the prefix; they have no tokens if the prefix is a whole prompt.
        completions: those of each prompt, without their last token, which predicts nothing; None: only prompts.
        masks: for each prompt, the model's boolean masks for the sequence `[prompt | longest completion]` by layer
            type, each (1, 1, L + n, L + n); None if they are causal.
    """

    prefix: int
    rests: Completions
    completions: list[Completions | None]
    masks: list[dict[str, Tensor] | None]

    @property
    def sizes(self) -> list[int]:
        """Tokens of the prefix, of all rests and of each prompt's completions."""
        return [self.prefix, self.rests.total, *(found.total if found else 0 for found in self.completions)]

    @cached_property
    def rest_masks(self) -> dict[str, Tensor]:
        """Masks of the rests as a batch by layer type, (prompts, 1, n, prefix + n); empty if they are causal."""
        found: dict[str, list[Tensor]] = {}
        n = self.rests.n
        for length, masks in zip(self.rests.lengths, self.masks, strict=True):
            for kind, mask in (masks or {}).items():
                own = mask[0, :, self.prefix : self.prefix + length, : self.prefix + length]
                # Padding attends to the first token, since softmax needs one.
                padded = F.pad(own, (0, n - length, 0, n - length), value=False)
                padded[:, length:, 0] = True
                found.setdefault(kind, []).append(padded)
        return {kind: torch.stack(rows) for kind, rows in found.items()}

    def attend(self, kind: str, parts: Sequence[Sequence[Tensor]], ends: bool = False, **kwargs: Any) -> list[Tensor]:
        """Return the outputs of attention by part, each (1, tokens, heads, dim).

        Args:
            kind: type of the layer.
            parts: queries, keys and values, each by part.
            ends: compute only the last token of the prefix and return 0 for the tokens before it.
            kwargs: arguments of `attention`.
        """
        outputs = []
        (q, *_), (k, *_), (v, *_) = parts
        masks = self.masks[0]
        mask = None if masks is None else masks[kind][..., : self.prefix, : self.prefix]
        if ends and self.prefix > 1:
            q, mask = q[:, :, -1:], None if mask is None else mask[..., -1:, :]
            outputs.append(q.new_zeros(1, 1, 1, 1).expand(1, self.prefix - 1, q.shape[1], v.shape[3]))
        outputs.append(attention(q, k, v, mask, **kwargs))
        if self.rests.total:
            own = [part[1] for part in parts]
            outputs.append(self.attend_as_batch(self.rests, own, k, v, self.rest_masks.get(kind), **kwargs))
        rests = [part[1].split(self.rests.lengths, 2) for part in parts]
        for p, (completions, masks) in enumerate(zip(self.completions, self.masks, strict=True)):
            if completions is None or not completions.total:
                continue
            length = self.prefix + self.rests.lengths[p]
            whole_k, whole_v = k, v
            if self.rests.lengths[p]:
                whole_k, whole_v = torch.cat([k, rests[1][p]], 2), torch.cat([v, rests[2][p]], 2)
            mask = None if masks is None else masks[kind][..., length:, :]
            own = [part[2 + p] for part in parts]
            outputs.append(self.attend_as_batch(completions, own, whole_k, whole_v, mask, **kwargs))
        return outputs

    @staticmethod
    def attend_as_batch(
        rows: Completions, own: Sequence[Tensor], k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        """Let rows attend, as a batch, to what they have in common, keys and values, and to themselves."""
        q, own_k, own_v = (rows.fold(part) for part in own)  # (G, heads, n, dim)
        length, n = k.shape[2], own_k.shape[2]
        padding = -(length + n) % CPU_VECTOR if q.device.type == "cpu" else 0
        if padding:
            mask = rows.causal_mask(length, padding) if mask is None else F.pad(mask, (0, padding), value=False)
        k, v = (joined(x, own, padding) for x, own in ((k, own_k), (v, own_v)))
        return rows.unfold(attention(q, k, v, mask, **kwargs))


def joined(common: Tensor, own: Tensor, padding: int) -> Tensor:
    """Return common keys or values (1, heads, L, dim), own ones (G, heads, n, dim) and padding for each of G rows."""
    parts = [common.expand(len(own), -1, -1, -1), own]
    if padding:
        parts.append(own.new_zeros(1, 1, 1, 1).expand(*own.shape[:2], padding, own.shape[3]))
    return torch.cat(parts, 2)


@dataclass(frozen=True)
class PackedLayout:
    """Groups of prompts with their completions in one row.

    Attributes:
        groups: the groups in order.
        layer_types: type of each layer.
        device: device of the computation.
        cache: stores keys, values and states of the prompts, if given.
        kept: places of the tokens whose last hidden states are used; None: all.
    """

    groups: list[PackedGroup]
    layer_types: list[str]
    device: torch.device
    cache: PromptCache | None = None
    kept: Tensor | None = None

    @cached_property
    def stateful_rows(self) -> StatefulRows:
        """The rows as recurrent layers compute them."""
        trees = [
            (group.prefix, [*zip(group.rests.lengths, map(lengths_of, group.completions), strict=True)])
            for group in self.groups
        ]
        return StatefulRows(trees, self.device)

    def recur(self, module: nn.Module, forward: StatefulForward, hidden: Tensor) -> Tensor:
        """Compute a recurrent layer (1, tokens, H): each completion starts from the state after its prompt."""
        output, prompts = self.stateful_rows.forward(forward, hidden)
        if self.cache is not None:
            self.cache.states[module.layer_idx] = prompts  # type: ignore[index]
        return output

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        """Let each prefix attend to itself, and all that follows to what it follows and to itself."""
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast does not if the mask is a CausalBias
        if self.cache is not None:
            self.cache.store(module.layer_idx, key, value)  # type: ignore[arg-type]
        kind = self.layer_types[module.layer_idx]  # type: ignore[index]
        parts = [
            split_without_empty(x, [size for group in self.groups for size in group.sizes]) for x in (query, key, value)
        ]
        # A GPU would need more kernels to compute less.
        ends = self.kept is not None and query.device.type == "cpu" and module.layer_idx == len(self.layer_types) - 1
        outputs: list[Tensor] = []
        first = 0
        for group in self.groups:
            mine = slice(first, first + len(group.sizes))
            outputs += group.attend(kind, [part[mine] for part in parts], bool(ends), **kwargs)
            first = mine.stop
        return torch.cat(outputs, 1)


def split_without_empty(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Split (1, heads, tokens, dim) by tokens. The split has no empty parts, which its backward would fill."""
    parts = iter(x.split([size for size in sizes if size], 2))
    return [next(parts) if size else x[:, :, :0] for size in sizes]


def lengths_of(completions: Completions | None) -> Sequence[int]:
    """Return the numbers of tokens of completions; none if there are no completions."""
    return () if completions is None else completions.lengths


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, *, dropout: float = 0.0, scaling: float | None = None, **_: Any
) -> Tensor:
    """Compute attention: (G, heads, n, dim) -> (G, n, heads, dim). q may have more heads than k and v.

    Without a mask, attention is causal and the last query attends to the last key.
    """
    groups = q.shape[1] // k.shape[1]
    if mask is None and q.shape[2] > 1:  # a single query attends to all keys
        mask = causal_lower_right(q.shape[2], k.shape[2])
    if groups > 1 and q.is_cuda and (has_values(mask) or not flash_computes(q, k, v, dropout)):
        # The math kernel would keep all scores. For the memory-efficient kernel, each key head is a batch whose heads
        # are views of it.
        if has_values(mask) and mask.shape[0] > 1:
            mask = mask.repeat_interleave(k.shape[1], 0)
        queries = q.reshape(-1, groups, *q.shape[2:])  # (G * key heads, groups, n, dim)
        k, v = (x.flatten(0, 1)[:, None].expand(-1, groups, -1, -1) for x in (k, v))
        output = F.scaled_dot_product_attention(queries, k, v, mask, dropout, scale=scaling)
        return output.reshape(q.shape).transpose(1, 2)
    output = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling, enable_gqa=groups > 1)
    return output.transpose(1, 2)


def has_values(mask: Any) -> bool:
    """Return whether a mask is a tensor of values, and no description of a causal one."""
    return mask is not None and not isinstance(mask, CausalBias)
