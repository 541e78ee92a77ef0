"""Rollouts with the policy's own weights, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from vrft.policy import Policy
from vrft.policy.decoding_model import DecodingModel
from vrft.policy.head import logits_of
from vrft.policy.page_locked import page_locked
from vrft.rollout.base import RolloutEngine, Sampling, SamplingKey
from vrft.rollout.decoding import Decoder, GroupDecoder, Prefilled, RepeatedDecoder
from vrft.rollout.graphs import Shape, graph_steps
from vrft.rollout.grid import DecodingGrid
from vrft.rollout.group_cache import GroupCache
from vrft.rollout.sampling import TokenSampler, float32_pairs, token_sampler
from vrft.types import PromptBatch, Rollout

SHRINK_SHARE, GPU_SHRINK_SHARE = 0.75, 0.5
"""Rows that have ended leave the batch once at most this part is left: on a GPU a step takes as long for half of the
rows."""

TOKENS_BETWEEN_GPU_CHECKS = 8
"""Interval between checks of which rows have ended: on a GPU each check waits for all earlier kernels."""


class TransformersEngine(RolloutEngine):
    """Samples with the policy itself. Each prompt and its images are computed once; rows that end leave the batch."""

    def __init__(self) -> None:
        self.cuda_graph: bool | None = None
        """Keep shapes and addresses of decoding steps fixed, for CUDA graphs; default: on a GPU. Never under FSDP."""

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
        numbers = key.uniform(len(batch.samples), num_generations, max_completion_length)
        uniform = page_locked(float32_pairs(numbers), policy.device).to(policy.device, non_blocking=True)  # (N, T, 2)
        record = self.cuda_graph
        if record is None:
            record = policy.device.type == "cuda"
        # FSDP lets streams of its own wait in each forward, which a recording does not allow.
        record = record and policy.shares_prefixes and not policy.is_sharded
        sample_tokens = token_sampler(sampling, policy.banned_ids)
        with policy.decoding(keep=record) as decoding:
            steps: Steps
            if record and decoding.forward.check.recordable:
                prefilled = Prefilled.of(decoding.model, batch.inputs)
                shape = Shape(len(batch.samples), num_generations, max_completion_length, sampling)
                steps = graph_steps(decoding, prefilled, uniform, policy.stop_ids, shape, sample_tokens)
                decode(steps, max_completion_length, policy.all_ranks_done, on_token)
            else:
                decoding.recorded.clear()  # keys and values of a rollout whose steps could not be recorded
                grid = DecodingGrid(uniform, num_generations, policy.stop_ids)
                with policy.without_autograd():
                    decoder = eager_decoder(policy, decoding, batch, num_generations, max_completion_length)
                    steps = EagerSteps(decoding, decoder, grid, sample_tokens)
                    decode(steps, max_completion_length, policy.all_ranks_done, on_token)
            ids, mask, log_probs, sampling_log_probs = steps.grid.completions()
        truncated = ~(torch.isin(ids, policy.stop_ids) & mask.bool()).any(1)  # (N,)
        return Rollout(ids, mask, log_probs, sampling_log_probs, truncated, policy.decode(ids, mask))


def eager_decoder(policy: Policy, decoding: DecodingModel, batch: PromptBatch, group_size: int, limit: int) -> Decoder:
    """Return a decoder of rows of at most `limit` tokens whose steps are not recorded."""
    if not policy.shares_prefixes:
        return RepeatedDecoder(decoding.model, batch.inputs, group_size, limit)
    prefilled = Prefilled.of(decoding.model, batch.inputs)
    cache = GroupCache(prefilled.cache, decoding.model, group_size, limit)
    return GroupDecoder(decoding.forward, prefilled, cache, group_size)


class Steps(Protocol):
    """Decodes the rows of a grid."""

    @property
    def grid(self) -> DecodingGrid:
        """The rows that are decoded."""

    def first(self) -> None:
        """Sample the first token of each row."""

    def next(self) -> None:
        """Sample the next token of each row."""

    def shrink(self, num_active: list[int]) -> None:
        """Remove rows that have ended, if enough have; `num_active` of each prompt have not."""


class EagerSteps:
    """Steps that are not recorded."""

    def __init__(
        self, decoding: DecodingModel, decoder: Decoder, grid: DecodingGrid, sample_tokens: TokenSampler
    ) -> None:
        self.decoder, self.grid, self.sample_tokens = decoder, grid, sample_tokens
        self.head = logits_of(decoding.model)
        self.shrink_share = GPU_SHRINK_SHARE if grid.rows.is_cuda else SHRINK_SHARE

    def first(self) -> None:
        self.grid.append(self.head(self.decoder.hidden), self.sample_tokens)

    def next(self) -> None:
        self.grid.append(self.head(self.decoder.step(self.grid.tokens)), self.sample_tokens)

    def shrink(self, num_active: list[int]) -> None:
        """Remove prompts without active rows; keep as many rows of the others as the one with the most needs."""
        group_size, prompts = max(num_active), [p for p, count in enumerate(num_active) if count]
        if 0 < group_size * len(prompts) <= self.shrink_share * self.grid.rows.numel():
            cells = self.grid.active_first(prompts, group_size)
            self.grid = self.grid.select(cells)
            self.decoder.select_rows(cells)


def decode(steps: Steps, limit: int, all_ranks_done: Callable[[bool], bool], on_token: Callable[..., None]) -> None:
    """Sample tokens until all rows have ended or are full.

    Args:
        steps: samples tokens.
        limit: largest number of tokens in a row.
        all_ranks_done: returns whether decoding may end, given whether it may end on this rank.
        on_token: reports progress, as in `RolloutEngine.generate`.
    """
    num_rows = steps.grid.rows.numel()
    check_every = TOKENS_BETWEEN_GPU_CHECKS if steps.grid.rows.is_cuda else 1
    steps.first()
    on_token(1)
    for t in range(1, limit):
        if t % check_every == 0:
            num_active = steps.grid.num_active()  # of each prompt
            remaining = sum(num_active)
            on_token(t, f"{num_rows - remaining} of {num_rows} rows done")
            if all_ranks_done(remaining == 0):
                break
            steps.shrink(num_active)
        steps.next()
        on_token(t + 1)
