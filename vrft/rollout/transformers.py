"""Rollouts with the policy's own weights, in this process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vrft.policy import Policy
from vrft.policy.logprobs import token_distribution
from vrft.rollout.base import RolloutEngine, Sampling, SamplingKey
from vrft.rollout.decoding import Decoder, GroupDecoder, RepeatedDecoder
from vrft.types import PromptBatch, Rollout

SHRINK_SHARE, GPU_SHRINK_SHARE = 0.75, 0.5
"""Rows that have ended leave the batch once at most this part is left: on a GPU each change records a new graph, and a
step takes as long for half of the rows."""

TOKENS_BETWEEN_GPU_CHECKS = 8
"""Interval between checks of which rows have ended: on a GPU each check waits for all earlier kernels."""


class TransformersEngine(RolloutEngine):
    """Samples with the policy itself. Each prompt and its images are computed once; rows that end leave the batch."""

    def __init__(self) -> None:
        self.cuda_graph: bool | None = None
        """Keep the shapes of decoding steps fixed, for CUDA graphs; default: on a GPU."""

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        batch: PromptBatch,
        num_generations: int,
        *,
        max_completion_length: int,
        sampling: Sampling,
        key: SamplingKey,
        on_token: Callable[..., None],
    ) -> Rollout:
        device = policy.banned_ids.device
        uniform = key.uniform(len(batch.samples), num_generations, max_completion_length).to(device)  # (N, T)
        cuda_graph = self.cuda_graph
        if cuda_graph is None:
            cuda_graph = device.type == "cuda" and not policy.gather_per_layer
        with policy.decoding() as model:
            shape = (model, batch.inputs, num_generations, max_completion_length)
            decoder = GroupDecoder(*shape, cuda_graph) if policy.shares_prefixes else RepeatedDecoder(*shape)
            grid = DecodingGrid(uniform, num_generations, policy.stop_ids)
            sample_tokens = token_sampler(sampling, policy.banned_ids)
            decode(decoder, model.get_output_embeddings(), sample_tokens, grid, policy.all_ranks_done, on_token)
        ids, log_probs, sampling_log_probs = grid.completions()
        mask = (ids >= 0).long()  # (N, T)
        ids = ids.clamp(min=0)
        truncated = ~(torch.isin(ids, policy.stop_ids) & mask.bool()).any(1)  # (N,)
        return Rollout(ids, mask, log_probs, sampling_log_probs, truncated, policy.decode(ids, mask))


TokenSampler = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Maps logits (n, V) and numbers in [0, 1) (n,) to tokens and their log-probabilities before and after truncation."""


def token_sampler(sampling: Sampling, banned: Tensor) -> TokenSampler:
    """Return a function that samples tokens as `sampling` says, and none of the banned ids."""
    warpers = LogitsProcessorList()
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))

    def sample_tokens(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full = token_distribution(logits, sampling.temperature, banned)  # (n, V)
        truncated = warpers(None, full).log_softmax(-1) if warpers else full
        tokens = full.argmax(-1) if sampling.greedy else inverse_transform(truncated, uniform)
        log_probs, sampling_log_probs = (log_p.gather(-1, tokens[:, None])[:, 0] for log_p in (full, truncated))
        return tokens, log_probs, sampling_log_probs

    return sample_tokens


def inverse_transform(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Return the first token whose cumulative probability exceeds the row's number: (n, V), (n,) -> (n,)."""
    cumulative = log_p.exp().cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return tokens.clamp(max=log_p.shape[-1] - 1)


class DecodingGrid:
    """The N rows of a rollout, and the grid (prompts, rows per prompt) of rows that are decoded at each step.

    The grid also holds rows that have ended, until `shrink` removes them.

    Attributes:
        rows: the row in each cell of the grid (prompts, rows per prompt).
        active: whether the row in each cell has not ended (cells,).
    """

    def __init__(self, uniform: Tensor, group_size: int, stop_ids: Tensor) -> None:
        """Start with all rows.

        Args:
            uniform: a number in [0, 1) for each token (N, T).
            group_size: rows per prompt, G.
            stop_ids: tokens that end a row.
        """
        self.uniform, self.stop_ids = uniform, stop_ids
        self.rows = torch.arange(len(uniform), device=uniform.device).view(-1, group_size)
        self.active = torch.ones_like(self.rows, dtype=torch.bool).flatten()
        self.ids = torch.full(uniform.shape, -1, device=uniform.device)  # (N, T), -1 after the end token
        self.log_probs, self.sampling_log_probs = (torch.zeros(uniform.shape, device=uniform.device) for _ in range(2))

    def append(self, t: int, logits: Tensor, sample_tokens: TokenSampler) -> Tensor:
        """Sample token t of each cell from logits (cells, V), and store it where the row is active; return all."""
        rows = self.rows.flatten()
        tokens, log_probs, sampling_log_probs = sample_tokens(logits, self.uniform[rows, t])
        self.ids[rows, t] = torch.where(self.active, tokens, -1)
        self.log_probs[rows, t] = torch.where(self.active, log_probs, 0.0)
        self.sampling_log_probs[rows, t] = torch.where(self.active, sampling_log_probs, 0.0)
        self.active = self.active & ~torch.isin(tokens, self.stop_ids)
        return tokens

    def shrink(self, num_active: Tensor, largest_share: float) -> Tensor | None:
        """Remove rows that have ended, if this leaves at most `largest_share` of the grid.

        Prompts without active rows are removed. The others keep as many rows as the prompt with the most active rows
        needs, since the grid is rectangular.

        Args:
            num_active: number of active rows of each prompt (prompts,).
            largest_share: largest part of the grid that may be left.

        Returns:
            Indices of the kept cells (prompts, rows per prompt), or None if nothing is removed.
        """
        group_size, prompts = int(num_active.max()), int((num_active > 0).sum())
        if not 0 < group_size * prompts <= largest_share * self.rows.numel():
            return None
        active = self.active.view(self.rows.shape)[num_active > 0].int()
        order = active.argsort(dim=1, descending=True, stable=True)[:, :group_size]
        kept = (num_active > 0).nonzero() * self.rows.shape[1] + order
        self.rows, self.active = self.rows.flatten()[kept], self.active[kept.flatten()]
        return kept

    def completions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids and log-probabilities before and after truncation, all (N, length of the longest row)."""
        width = int((self.ids >= 0).sum(1).max())
        return self.ids[:, :width], self.log_probs[:, :width], self.sampling_log_probs[:, :width]


def decode(
    decoder: Decoder,
    head: Callable[[Tensor], Tensor],
    sample_tokens: TokenSampler,
    grid: DecodingGrid,
    all_ranks_done: Callable[[bool], bool],
    on_token: Callable[..., None],
) -> None:
    """Sample tokens until all rows have ended or are full.

    Args:
        decoder: computes hidden states.
        head: maps them to logits.
        sample_tokens: samples from logits.
        grid: stores the tokens.
        all_ranks_done: returns whether decoding may end, given whether it may end on this rank.
        on_token: reports progress, as in `RolloutEngine.generate`.
    """
    num_rows, limit = grid.uniform.shape
    on_gpu = grid.uniform.is_cuda
    check_every = TOKENS_BETWEEN_GPU_CHECKS if on_gpu else 1
    largest_share = GPU_SHRINK_SHARE if on_gpu else SHRINK_SHARE
    hidden = decoder.hidden
    for t in range(limit):
        tokens = grid.append(t, head(hidden), sample_tokens)
        on_token(t + 1)
        if t + 1 == limit:
            break
        if (t + 1) % check_every == 0:
            num_active = grid.active.view(grid.rows.shape).sum(1)  # (prompts,)
            remaining = int(num_active.sum())
            on_token(t + 1, f"{num_rows - remaining} of {num_rows} rows done")
            if all_ranks_done(remaining == 0):
                break
            kept = grid.shrink(num_active, largest_share)
            if kept is not None:
                decoder.select_rows(kept)
                tokens = tokens[kept.flatten()]
        hidden = decoder.step(tokens)
