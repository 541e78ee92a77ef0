"""Store the tokens of a rollout while its rows grow, and which rows have ended."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from vrft.rollout.sampling import TokenSampler


class DecodingGrid:
    """The N rows of a rollout, and the grid of rows, (prompts, rows per prompt), that are decoded in each step.

    The grid contains rows that have ended until they are removed. All tensors are updated in place, as CUDA graphs
    require.

    Attributes:
        rows: the row in each cell of the grid, (prompts, rows per prompt).
        tokens: the last token of each cell, (cells,).
        active: whether the row in each cell has not ended, (cells,).
    """

    def __init__(self, uniform: Tensor, group_size: int, stop_ids: Tensor) -> None:
        """Start with all rows.

        Args:
            uniform: a random number in [0, 1) for each token, as a pair of float32 numbers, (N, T, 2).
            group_size: rows per prompt, G.
            stop_ids: ids of tokens that end a row.
        """
        self.stop_ids, (num_rows, self.limit, _) = stop_ids, uniform.shape
        self.uniform = uniform.flatten(0, 1).clone()  # (N T, 2)
        device = uniform.device
        self.rows = torch.arange(num_rows, device=device).view(-1, group_size)
        self.index = self.rows.flatten() * self.limit  # index of the next token of each cell
        self.tokens = torch.zeros_like(self.index)
        self.active = torch.ones_like(self.index, dtype=torch.bool)
        self.ids = torch.full((num_rows * self.limit,), -1, device=device)  # arbitrary after the stop token
        self.log_probs, self.sampling_log_probs = (torch.zeros(num_rows * self.limit, device=device) for _ in range(2))
        self.truncated = False

    def restart(self, uniform: Tensor) -> None:
        """Start over with the same number and length of rows. `uniform`: see the constructor."""
        self.uniform.copy_(uniform.flatten(0, 1))
        torch.mul(self.rows.flatten(), self.limit, out=self.index)
        self.active.fill_(True)
        self.ids.fill_(-1)

    def append(self, logits: Tensor, sample_tokens: TokenSampler) -> None:
        """Sample the next token of each cell from logits, (cells, V)."""
        tokens, log_probs, sampling_log_probs = sample_tokens(logits, self.uniform.index_select(0, self.index))
        self.ids.index_copy_(0, self.index, tokens)
        self.log_probs.index_copy_(0, self.index, log_probs)
        self.truncated = sampling_log_probs is not log_probs
        if self.truncated:
            self.sampling_log_probs.index_copy_(0, self.index, sampling_log_probs)
        self.active.logical_and_((tokens[:, None] != self.stop_ids).all(-1))
        self.tokens.copy_(tokens)
        self.index += 1

    def num_active(self) -> list[int]:
        """Return the number of rows of each prompt that have not ended."""
        counts: list[int] = self.active.view(self.rows.shape).sum(1).tolist()
        return counts

    def active_first(self, prompts: list[int], group_size: int) -> Tensor:
        """Return cells of some prompts, at most `group_size` of each, active ones first, (prompts, rows per prompt)."""
        chosen = torch.tensor(prompts, device=self.rows.device)
        active = self.active.view(self.rows.shape)[chosen].int()
        order = active.argsort(dim=1, descending=True, stable=True)[:, :group_size]
        return chosen[:, None] * self.rows.shape[1] + order

    def select(self, cells: Tensor) -> DecodingGrid:
        """Return a grid of only these cells, (prompts, rows per prompt), which writes its tokens to the same memory."""
        other = copy.copy(self)
        other.rows = self.rows.flatten()[cells]
        other.index, other.tokens, other.active = (x[cells.flatten()] for x in (self.index, self.tokens, self.active))
        return other

    def become(self, other: DecodingGrid) -> None:
        """Copy the cells of a grid of the same size into this one."""
        for name in ("rows", "index", "tokens", "active"):
            getattr(self, name).copy_(getattr(other, name))

    def completions(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ids, mask and log-probabilities before and after truncation, all (N, T) for the longest row's T."""
        ids = self.ids.view(-1, self.limit)
        stops = torch.isin(ids, self.stop_ids)
        mask = (ids >= 0) & (stops.cumsum(1) == stops)  # no stop token before
        width = int(mask.sum(1).max())
        mask = mask[:, :width]
        sampling = self.sampling_log_probs if self.truncated else self.log_probs
        log_probs, sampling = (x.view(-1, self.limit)[:, :width].where(mask, 0.0) for x in (self.log_probs, sampling))
        return ids[:, :width].where(mask, 0), mask.long(), log_probs, sampling
