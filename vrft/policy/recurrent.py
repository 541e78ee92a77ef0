"""Compute recurrent layers for packed rows of several prompts, each followed by its completions.

Gated delta nets, short convolutions and Mamba-2 read earlier tokens from a state: the last inputs of a convolution and,
in all but short convolutions, a matrix per head. The state after a prompt is computed once. Each completion starts from
a copy, and the gradients of the copies add up.

The layers' own code runs once for all prompts and once for all completions. Transformers' layers read their state from
a cache and write it back; `LayerState` is such a cache that keeps gradients.

P prompts, G completions each, n tokens, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RECURRENT_LAYER_TYPES = {"linear_attention", "conv"}
CACHE_NAMES = {"cache", "cache_params", "past_key_values"}
"""Names of a layer's cache argument in different versions of transformers."""

MIN_COMPLETION = 2
"""Minimum number of tokens of a completion with gradients, because kernels for a single token have no backward."""


class LayerState:
    """The state of a layer for n rows, with the methods of a transformers cache that recurrent layers call.

    Attributes:
        conv: last inputs of the convolution, (n, channels, kernel size); None before the first token.
        recurrent: recurrent state, (n, …); None before the first token and in short convolutions.
    """

    def __init__(self, conv: Tensor | None = None, recurrent: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Set the state. `mask` is False at left padding before the first tokens, (n, tokens)."""
        self.conv, self.recurrent, self.mask = conv, recurrent, mask

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.conv

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.recurrent

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, *, conv_kernel_size: int
    ) -> Tensor:
        """Append inputs of the convolution, (n, channels, tokens), and return the kept inputs followed by them."""
        if self.mask is not None:
            conv_states = conv_states * self.mask[:, None]
        if self.conv is not None:
            conv_states = torch.cat([self.conv, conv_states], -1)
        self.conv = F.pad(conv_states, (max(conv_kernel_size - conv_states.shape[-1], 0), 0))[..., -conv_kernel_size:]
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        """Replace the recurrent state, (n, …), and return it."""
        self.recurrent = recurrent_states
        return recurrent_states

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return True, so that layers avoid kernels that change the convolution's state in place."""
        return True

    def copies(self, counts: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """Return `counts[i]` copies of row i of both tensors, (sum(counts), …)."""

        def repeat(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            rows = zip(x.split(1), counts, strict=True)
            return torch.cat([row.expand(count, *row.shape[1:]) for row, count in rows if count])

        return repeat(self.conv), repeat(self.recurrent)


class GrowingState(LayerState):
    """A state of rows that grow by one token at a time. It is changed in place, as CUDA graphs require."""

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        assert self.recurrent is not None
        return self.recurrent.copy_(recurrent_states)

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def tensors(self) -> list[Tensor]:
        """Return the tensors that a token changes."""
        return [x for x in (self.conv, self.recurrent) if x is not None]

    def selected(self, rows: Tensor | slice) -> GrowingState:
        """Return the state of some rows. For a slice, it shares memory with this state."""
        return GrowingState(*(None if x is None else x[rows] for x in (self.conv, self.recurrent)))

    def become(self, other: GrowingState) -> None:
        """Copy the state of an equal number of other rows into this one."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)


StatefulForward = Callable[[Tensor, LayerState, Tensor | None], Tensor]
"""A layer's forward, given hidden states, (n, tokens, H), the initial state, and the mask of left padding."""


class StateLayout(Protocol):
    """Defines which tokens of a forward follow which. Passed to the model as `shared_prefix`."""

    def recur(self, module: nn.Module, forward: StatefulForward, hidden: Tensor) -> Tensor:
        """Compute a layer, hidden states (n, tokens, H) -> (n, tokens, H)."""


def mixers(layers: Sequence[nn.Module], layer_types: Sequence[str]) -> list[nn.Module] | None:
    """Return the module with the state of each recurrent layer, or None if it can't be identified in a layer."""
    found = []
    for layer, kind in zip(layers, layer_types, strict=False):
        if kind not in RECURRENT_LAYER_TYPES:
            continue
        candidates = [child for child in layer.children() if takes_cache(child)]
        if len(candidates) != 1:
            return None
        found += candidates
    return found


def takes_cache(module: nn.Module) -> bool:
    """Return whether a module's arguments are hidden states, a cache and a mask of padding, in this order."""
    first, cache, mask, *_ = [*inspect.signature(module.forward).parameters, "", "", ""]
    return first == "hidden_states" and cache in CACHE_NAMES and mask == "attention_mask"


def share_states(modules: Sequence[nn.Module]) -> None:
    """Make modules compute packed rows of several completions. Without `shared_prefix`, their forward is unchanged."""
    for module in modules:
        module.forward = MethodType(shared_prefix_forward, module)


def shared_prefix_forward(
    module: nn.Module, hidden_states: Tensor, *args: Any, shared_prefix: StateLayout | None = None, **kwargs: Any
) -> Tensor:
    """Compute a layer for transformers, (n, tokens, H) -> (n, tokens, H).

    The layer's own forward is called once, unless the model was called with `shared_prefix`.
    """
    forward = MethodType(type(module).forward, module)
    if shared_prefix is None:
        return forward(hidden_states, *args, **kwargs)
    return shared_prefix.recur(module, forward, hidden_states)


class Row(NamedTuple):
    """A part of a packed row: the index of the part that it follows, its first token's index and its length."""

    parent: int
    start: int
    length: int


def pad_with_tokens(index: Tensor, padding: Tensor) -> Tensor:
    """Return `index` with indices of all real tokens in turn where `padding` is True.

    The backward of `index_select` adds gradients by index. If all padding had the same index, a GPU would add the
    gradients sequentially.
    """
    tokens = index[~padding]
    return index.masked_scatter(padding, tokens[torch.arange(padding.numel() - len(tokens)) % len(tokens)])


class PaddedRows:
    """Prefixes, rests or completions of a packed row as a batch.

    Attributes:
        tokens: indices of the tokens in the packed row, and in the flattened batch.
        mask: False at padding, (rows, n); None if there is no padding.
    """

    def __init__(self, rows: Sequence[Row], n: int, device: torch.device, left: bool = False) -> None:
        """Set the indices of rows that are padded to n tokens, on the left or on the right."""
        start, length = (torch.tensor([getattr(row, name) for row in rows])[:, None] for name in ("start", "length"))
        offset = torch.arange(n) - (n - length if left else 0)  # (rows, n)
        real = (offset >= 0) & (offset < length)
        index = pad_with_tokens(start + offset, ~real)
        self.shape, self.tokens = real.shape, (index[real], real.flatten().nonzero()[:, 0])
        self.index = index.flatten().to(device, non_blocking=True)
        self.mask = None if bool(real.all()) else real.to(device, non_blocking=True)

    def pad(self, x: Tensor) -> Tensor:
        """Return the batch, (tokens, H) -> (rows, n, H). Padding repeats tokens."""
        return x.index_select(0, self.index).view(*self.shape, -1)


Tree = tuple[int, Sequence[tuple[int, Sequence[int]]]]
"""Numbers of tokens of a prefix, of the rest of each prompt that begins with it, and of each prompt's completions."""


class StatefulRows:
    """Computes layers with a state for a packed row, in the order prefixes, rests of prompts, completions.

    Prefixes are padded on the left, where the mask keeps the state at zero. Rests are batched by length, without
    padding, because their last states are needed. Completions are padded on the right, because nothing follows them.
    """

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        """Build the indices, once for all layers. `trees` are the groups of the packed row."""
        prefixes, rests, completions = place(trees)
        batches: dict[int, list[int]] = {}
        for i, row in enumerate(rests):
            if row.length:
                batches.setdefault(row.length, []).append(i)
        self.prefixes = PaddedRows(prefixes, max(row.length for row in prefixes), device, left=True)
        self.rests: list[tuple[list[int], PaddedRows]] = []
        last = [row.parent for row in rests]  # a prompt without a rest has the state of its prefix
        num_states = len(prefixes)
        for length, members in batches.items():
            own = [rests[i] for i in members]
            self.rests.append((counts_of(own, len(prefixes)), PaddedRows(own, length, device)))
            for i in members:
                last[i] = num_states
                num_states += 1
        self.last = torch.tensor(last).to(device, non_blocking=True) if last != [*range(len(prefixes))] else None
        following = [row for row in completions if row.length]
        self.completions = None
        if following:
            n = max(MIN_COMPLETION, *(row.length for row in following))
            self.completions = counts_of(following, len(rests)), PaddedRows(following, n, device)
        self.order = self._order(sum(row.length for row in (*prefixes, *rests, *completions))).to(device)

    def _order(self, total: int) -> Tensor:
        """Return the index in the concatenated, flattened batches of each of the packed row's tokens."""
        order, base = torch.empty(total, dtype=torch.long), 0
        last = [] if self.completions is None else [self.completions]
        for padded in (self.prefixes, *(padded for _, padded in (*self.rests, *last))):
            tokens, places = padded.tokens
            order[tokens] = base + places
            base += len(padded.index)
        return order

    def forward(self, layer: StatefulForward, hidden: Tensor) -> tuple[Tensor, LayerState]:
        """Compute a layer for the packed row, (1, tokens, H).

        Returns:
            The layer's output, (1, tokens, H), and the states after the prompts.
        """
        first = LayerState(mask=self.prefixes.mask)
        outputs, states = [layer(self.prefixes.pad(hidden[0]), first, self.prefixes.mask)], [first]
        for counts, rows in self.rests:
            states.append(LayerState(*first.copies(counts)))
            outputs.append(layer(rows.pad(hidden[0]), states[-1], None))
        prompts = self.prompt_states(states)
        if self.completions is not None:
            counts, rows = self.completions
            outputs.append(layer(rows.pad(hidden[0]), LayerState(*prompts.copies(counts)), None))
        return torch.cat([x.flatten(0, 1) for x in outputs]).index_select(0, self.order)[None], prompts

    def prompt_states(self, states: Sequence[LayerState]) -> LayerState:
        """Select the states after the prompts from the states after the prefixes and after each batch of rests."""

        def join(parts: Sequence[Tensor | None]) -> Tensor | None:
            tensors = [part for part in parts if part is not None]
            if not tensors or self.last is None:
                return tensors[0] if tensors else None
            return torch.cat(tensors).index_select(0, self.last)

        return LayerState(join([state.conv for state in states]), join([state.recurrent for state in states]))


def counts_of(rows: Sequence[Row], parents: int) -> list[int]:
    """Return how many rows follow each parent."""
    return [sum(row.parent == parent for row in rows) for parent in range(parents)]


def place(trees: Sequence[Tree]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the prefixes, rests and completions of a packed row, see `PackedGroup`."""
    prefixes: list[Row] = []
    rests: list[Row] = []
    completions: list[Row] = []
    start = 0

    def append(rows: list[Row], parent: int, length: int) -> None:
        nonlocal start
        rows.append(Row(parent, start, length))
        start += length

    for g, (length, members) in enumerate(trees):
        append(prefixes, g, length)
        first = len(rests)
        for rest, _ in members:
            append(rests, g, rest)
        for m, (_, counts) in enumerate(members):
            for count in counts:
                append(completions, first + m, count)
    return prefixes, rests, completions
