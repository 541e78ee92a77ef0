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

GPU_CHECK_EVERY = 8
"""Tokens between two looks at which rows have ended: each look waits for the GPU."""


class TransformersEngine(RolloutEngine):
    """Each prompt and its images are computed once, whatever G is; rows that have ended leave the batch."""

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
        draw = _draw(sampling, policy.banned_ids)
        with policy.decoding() as model:
            shape = (model, batch.inputs, num_generations, max_completion_length)
            cuda_graph = (
                device.type == "cuda" and not policy.gather_per_layer if self.cuda_graph is None else self.cuda_graph
            )
            decoder = GroupDecoder(*shape, cuda_graph) if policy.shares_prefixes else RepeatedDecoder(*shape)
            ids, log_probs, sampling_log_probs = _decode(
                decoder, policy, model.get_output_embeddings(), draw, uniform, num_generations, on_token
            )
        mask = (ids >= 0).long()  # (N, T)
        ids = ids.clamp(min=0)
        truncated = ~(torch.isin(ids, policy.stop_ids) & mask.bool()).any(1)  # (N,)
        return Rollout(ids, mask, log_probs, sampling_log_probs, truncated, policy.decode(ids, mask))


Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Logits (n, V), numbers in [0, 1) (n,) -> tokens and their log-probabilities before and after truncation, all (n,)."""


def _draw(sampling: Sampling, banned: Tensor) -> Draw:
    warpers = LogitsProcessorList()
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))

    def draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full = token_distribution(logits, sampling.temperature, banned)  # (n, V)
        truncated = warpers(None, full).log_softmax(-1) if warpers else full
        tokens = full.argmax(-1) if sampling.greedy else inverse_transform(truncated, uniform)
        chosen, drawn = (log_p.gather(-1, tokens[:, None])[:, 0] for log_p in (full, truncated))
        return tokens, chosen, drawn

    return draw


def inverse_transform(log_p: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulated probability exceeds the row's number: (n, V), (n,) -> (n,)."""
    cumulated = log_p.exp().cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulated, (uniform * cumulated[:, -1])[:, None], right=True)[:, 0]
    return tokens.clamp(max=log_p.shape[-1] - 1)


def _decode(
    decoder: Decoder,
    policy: Policy,
    head: Callable[[Tensor], Tensor],
    draw: Draw,
    uniform: Tensor,
    group: int,
    on_token: Callable[..., None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, T), -1 behind the end, and their log-probabilities before and after truncation (N, T).

    Rows are decoded as a grid of prompts and rows per prompt. Once ended rows would leave a quarter of it empty, the
    grid shrinks to the prompts that are still written for, and as many rows as the busiest of them needs. What
    is computed only because other ranks still need forwards is left out.
    """
    limit, device = uniform.shape[1], uniform.device
    rows = torch.arange(len(uniform), device=device).view(-1, group)  # which row each place of the grid is
    going = torch.ones_like(rows, dtype=torch.bool).flatten()
    ids = torch.full(uniform.shape, -1, device=device)
    log_probs, sampling_log_probs = (torch.zeros(uniform.shape, device=device) for _ in range(2))
    hidden = decoder.hidden
    check_every = GPU_CHECK_EVERY if device.type == "cuda" else 1
    for t in range(limit):
        indices = rows.flatten()
        tokens, *drawn = draw(head(hidden), uniform[indices, t])
        ids[indices, t] = torch.where(going, tokens, -1)
        for kept, values in zip((log_probs, sampling_log_probs), drawn, strict=True):
            kept[indices, t] = torch.where(going, values, 0.0)
        going = going & ~torch.isin(tokens, policy.stop_ids)
        on_token(t + 1)
        if t + 1 == limit:
            break
        if (t + 1) % check_every == 0:
            busy = going.view(rows.shape).sum(1)  # (prompts,)
            needed, prompts = int(busy.max()), int((busy > 0).sum())
            on_token(t + 1, f"{len(uniform) - int(busy.sum())} of {len(uniform)} rows done")
            if policy.all_ranks_done(needed == 0):
                break
            if 0 < needed * prompts <= 0.75 * rows.numel():
                order = going.view(rows.shape)[busy > 0].int().argsort(dim=1, descending=True, stable=True)[:, :needed]
                grid = (busy > 0).nonzero() * rows.shape[1] + order
                decoder.select_rows(grid)
                indices, going, tokens = indices[grid].flatten(), going[grid.flatten()], tokens[grid.flatten()]
                rows = indices.view(grid.shape)
        hidden = decoder.step(tokens)
    width = int((ids >= 0).sum(1).max())
    return ids[:, :width], log_probs[:, :width], sampling_log_probs[:, :width]
