"""Log-probabilities and entropy of completion tokens, chunk by chunk: logits of all tokens never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TOKENS_PER_CHUNK = 1024
"""Tokens whose logits exist at once: 0.6 GB in float32 for a vocabulary of 152k."""

BANNED_LOGIT = -1e30
"""Makes a probability of 0 for which p log p is 0; with -inf it would be NaN."""


def token_distribution(logits: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Return log-probabilities (…, V) for sampler and trainer alike: logits over temperature, banned ids removed."""
    logits = scaled_logits(logits, temperature)
    bias = logits.new_zeros(logits.shape[-1]).index_fill_(0, banned, BANNED_LOGIT)  # (V,)
    return (logits + bias).log_softmax(-1)


def scaled_logits(logits: Tensor, temperature: float) -> Tensor:
    """Return logits over temperature in float32."""
    return logits.float() if temperature == 1 else logits.float() / temperature


class ChosenLogProbs(torch.autograd.Function):
    """Log-probabilities of chosen ids y, and entropies without gradient, by one exponential per logit z.

    With p = softmax(z), log p = z - max z + log max p, and the gradient is dz_j = (1[j = y] - p_j) dy.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, banned: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        log_p = logits.index_fill(-1, banned, BANNED_LOGIT)  # (n, V); a copy, changed in place from here on
        p = log_p.softmax(-1)
        log_p.sub_(log_p.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log())
        chosen = log_p.gather(-1, ids[:, None])[:, 0]  # (n,)
        entropies = log_p.mul_(p).sum(-1).neg_() if entropy else torch.zeros_like(chosen)
        ctx.save_for_backward(p, ids)
        ctx.mark_non_differentiable(entropies)
        return chosen, entropies

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        p, ids = ctx.saved_tensors
        return (p * -gradient[:, None]).scatter_add_(-1, ids[:, None], gradient[:, None]), None, None, None


def token_log_probs(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    ids: Tensor,
    lengths: Sequence[int],
    *,
    temperature: float,
    banned: Tensor,
    entropy: bool = True,
    entropy_gradient: bool = False,
    chunk: int = TOKENS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Return log p(ids | hidden) and entropy in nats, both (N, T), 0 after a row's length.

    Args:
        head: maps hidden states (…, H) to logits (…, V).
        hidden: states that predict the M real tokens of `ids`, row after row (M, H).
        ids: completions (N, T).
        lengths: number of real tokens of each row (N), M in all.
        temperature: temperature of the sampling distribution.
        banned: ids that can't be sampled (B,).
        entropy: compute the entropy; otherwise it is 0.
        entropy_gradient: let the entropy carry a gradient, too; a chunk then takes more memory.
        chunk: tokens whose logits exist at once. With several chunks the backward pass computes logits again.
    """

    def score(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(h)  # (chunk, V)
        if entropy and entropy_gradient:
            log_p = token_distribution(logits, temperature, banned)
            return log_p.gather(-1, y[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
        scaled = scaled_logits(logits, temperature)
        return cast(tuple[Tensor, Tensor], ChosenLogProbs.apply(scaled, y, banned, entropy))

    # Indices made on the CPU, since a GPU would be waited for until it has counted a mask's ones.
    real = torch.tensor([row * ids.shape[1] + t for row, length in enumerate(lengths) for t in range(length)])
    real = real.long().to(ids.device, non_blocking=True)  # (M,)
    tokens = ids.flatten()[real]
    chunks = list(zip(hidden.split(chunk), tokens.split(chunk), strict=True))  # one empty chunk if there is no token
    parts = [score(*chunks[0])] if len(chunks) == 1 else [checkpoint(score, *c, use_reentrant=False) for c in chunks]
    log_probs, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    empty = log_probs.new_zeros(ids.numel())
    return empty.index_copy(0, real, log_probs).view(ids.shape), empty.index_copy(0, real, entropies).view(ids.shape)
