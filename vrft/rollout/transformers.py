"""Rollouts with the policy's own weights, in this process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from vrft.policy import Policy
from vrft.policy.logprobs import token_distribution
from vrft.policy.shared_prefix import PER_TOKEN, positions
from vrft.rollout.base import Noise, RolloutEngine
from vrft.types import PromptBatch, Rollout


class TransformersEngine(RolloutEngine):
    """Each prompt and its images are computed once, whatever G is; rows that have ended leave the batch."""

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        batch: PromptBatch,
        num_generations: int,
        *,
        max_completion_length: int,
        temperature: float,
        noise: Noise | None,
        on_token: Callable[[int], None],
    ) -> Rollout:
        training = policy.training
        policy.eval()  # activation checkpointing would drop the cache, dropout would change the distribution
        uniform = None if noise is None else noise.uniform(len(batch.samples), num_generations, max_completion_length)
        with policy.autocast():
            ids, log_probs = _decode(
                policy, batch.inputs, num_generations, max_completion_length, temperature, uniform, on_token
            )
        policy.train(training)
        mask = (ids >= 0).long()  # (N, T)
        ids = ids.clamp(min=0)
        truncated = ~(torch.isin(ids, policy.stop_ids) & mask.bool()).any(1)  # (N,)
        return Rollout(ids, mask, log_probs, truncated, policy.decode(ids, mask))


def _decode(
    policy: Policy,
    inputs: dict[str, Tensor],
    group: int,
    limit: int,
    temperature: float,
    uniform: Tensor | None,
    on_token: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Token ids (N, T), -1 behind the end, and their log-probabilities (N, T)."""
    model, head = policy.base.base_model, policy.base.get_output_embeddings()
    prompts, length = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    before, after = positions(policy.base, inputs, limit)
    cache = DynamicCache(config=policy.base.config)
    images = {key: value for key, value in inputs.items() if key not in PER_TOKEN}
    per_token = {key: inputs[key] for key in PER_TOKEN if key in inputs}
    hidden = model(**per_token, **images, position_ids=before, past_key_values=cache, use_cache=True).last_hidden_state[
        :, -1
    ]

    rows = torch.arange(prompts, device=device).repeat_interleave(group)  # (N,)
    cache.reorder_cache(rows)
    hidden, after = hidden[rows], after[..., rows, :]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, limit), value=1)[rows]  # (N, L + limit)
    active = torch.arange(len(rows), device=device)  # rows that have not ended
    ids = torch.full((len(rows), limit), -1, device=device)
    log_probs = torch.zeros((len(rows), limit), device=device)
    for t in range(limit):
        log_p = token_distribution(head(hidden), temperature, policy.banned_ids)  # (active, V)
        token = log_p.argmax(-1) if uniform is None else _sample(log_p, uniform[active.cpu(), t].to(device))
        ids[active, t] = token
        log_probs[active, t] = log_p.gather(-1, token[:, None])[:, 0]
        on_token(t + 1)
        going = ~torch.isin(token, policy.stop_ids)
        if t + 1 == limit or not going.any():
            return ids[:, : t + 1], log_probs[:, : t + 1]
        if not going.all():
            kept = going.nonzero()[:, 0]
            cache.reorder_cache(kept)
            active, token, mask, after = active[kept], token[kept], mask[kept], after[..., kept, :]
        hidden = model(
            input_ids=token[:, None],
            attention_mask=mask[:, : length + t + 1],
            position_ids=after[..., t : t + 1],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    raise AssertionError("max_completion_length is at least 1")


def _sample(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Inverse transform: the first token whose cumulated probability exceeds the row's number. (N, V), (N,) -> (N,)."""
    cumulated = log_p.double().exp().cumsum(-1)
    token = (cumulated <= uniform[:, None] * cumulated[:, -1:]).sum(-1)
    return token.clamp(max=log_p.shape[-1] - 1)
