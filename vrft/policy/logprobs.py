"""Log-probabilities and entropy of completion tokens, a chunk at a time: logits of all tokens at once never exist."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1024
"""Tokens whose logits exist at once: 0.6 GB in float32 for a vocabulary of 152k."""


NEVER = -1e30
"""Logit of a banned id. Its probability is 0 and p log p stays a number, which it would not with -inf."""


def token_distribution(logits: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Log-probabilities (…, V) that sampler and trainer share: logits over temperature, banned ids removed."""
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    bias = logits.new_zeros(logits.shape[-1]).index_fill_(0, banned, NEVER)  # (V,)
    return (logits + bias).log_softmax(-1)


def token_log_probs(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float,
    banned: Tensor,
    entropy: bool = True,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Log p(ids | hidden) and entropy in nats, both (N, T) and 0 where mask is 0; the entropy carries no gradient.

    Args:
        head: maps hidden states (…, H) to logits (…, V).
        hidden: states that predict the real tokens of `ids`, row after row (M, H).
        ids: (N, T).
        mask: 1 at real tokens (N, T), M of them.
        temperature: of the sampling distribution.
        banned: ids that can't be sampled (B,).
        entropy: compute it; else it is 0.
        chunk: tokens whose logits exist at once; those of several chunks are computed again in the backward pass.
    """

    def score(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        log_p = token_distribution(head(h), temperature, banned)  # (chunk, V)
        chosen = log_p.gather(-1, y[:, None])[:, 0]  # (chunk,)
        if not entropy:
            return chosen, torch.zeros_like(chosen)
        with torch.no_grad():
            return chosen, -log_p.exp().mul_(log_p).sum(-1)

    keep = mask.bool()
    chunks = list(zip(hidden.split(chunk), ids[keep].split(chunk), strict=True))  # one empty chunk if there is no token
    parts = [score(*chunks[0])] if len(chunks) == 1 else [checkpoint(score, *c, use_reentrant=False) for c in chunks]
    log_probs, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    empty = log_probs.new_zeros(ids.shape)
    return empty.masked_scatter(keep, log_probs), empty.masked_scatter(keep, entropies)
