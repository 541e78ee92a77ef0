"""Log-probabilities and entropy of completion tokens, chunk by chunk: logits of all tokens never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

TOKENS_PER_CHUNK = 1024
"""Tokens whose logits exist at once: 0.6 GB in float32 for a vocabulary of 152k."""

BANNED_LOGIT = -1e30
"""Makes a probability of 0 for which p log p is 0; with -inf it would be NaN."""


def token_distribution(logits: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Return log-probabilities (…, V) that the sampler draws from. May overwrite `logits`; see `allowed_logits`."""
    return allowed_logits(logits, temperature, banned).log_softmax(-1)


def allowed_logits(logits: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Return logits over temperature in float32 (…, V), those of banned ids so low that their probability is 0.

    May overwrite `logits` that need no gradient. For the gradient of others, the head or a hook may need them, and
    PyTorch does not notice that they were overwritten if the backward pass computes them again.
    """
    allowed = logits.to(torch.float32, copy=logits.requires_grad)
    if temperature != 1:
        allowed = allowed.div_(temperature)
    with torch.no_grad():  # the gradient of a banned logit is 0 as it is
        return allowed.index_fill_(-1, banned, BANNED_LOGIT)


class ChosenLogProbs(torch.autograd.Function):
    """Log-probabilities of chosen ids y and entropies H by one exponential per logit z. Overwrites the logits.

    With p = softmax(z), log p = z - max z + log max p. The gradients are d(log p_y)/dz_j = 1[j = y] - p_j and
    dH/dz_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, ids: Tensor, entropy: bool, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        p = z.softmax(-1)  # (n, V)
        largest, log_largest = z.amax(-1), p.amax(-1).log()  # (n,)
        # In this order, the error doesn't grow with the size of the logits.
        chosen = z.gather(-1, ids[:, None])[:, 0] - largest + log_largest
        entropies = torch.zeros_like(chosen)
        if entropy:
            entropies -= z.sub_(largest[:, None]).mul_(p).sum(-1) + log_largest
        ctx.save_for_backward(p, ids, entropies)
        ctx.entropy_gradient = entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return chosen, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_chosen: Tensor, of_entropy: Tensor) -> tuple[Tensor, None, None, None]:
        p, ids, entropies = ctx.saved_tensors
        if ctx.entropy_gradient:
            log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log_()  # p log p is 0 where p is 0
            factors = log_p.add_(entropies[:, None]).mul_(-of_entropy[:, None]).sub_(of_chosen[:, None])
            gradient = factors.mul_(p)
        else:
            gradient = p * -of_chosen[:, None]
        return gradient.scatter_add_(-1, ids[:, None], of_chosen[:, None]), None, None, None


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
        entropy_gradient: let the entropy carry a gradient, too.
        chunk: tokens whose logits exist at once. With several chunks the backward pass computes logits again.
    """

    def score(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = allowed_logits(head(h), temperature, banned)  # (chunk, V); the head's output isn't kept
        scores = ChosenLogProbs.apply(logits, y, entropy, entropy and entropy_gradient)
        return cast(tuple[Tensor, Tensor], scores)

    # Indices made on the CPU, since a GPU would be waited for until it has counted a mask's ones.
    real = torch.tensor([row * ids.shape[1] + t for row, length in enumerate(lengths) for t in range(length)])
    real = real.long().to(ids.device, non_blocking=True)  # (M,)
    tokens = ids.flatten()[real]
    chunks = list(zip(hidden.split(chunk), tokens.split(chunk), strict=True))  # one empty chunk if there is no token
    parts = [score(*chunks[0])] if len(chunks) == 1 else [checkpoint(score, *c, use_reentrant=False) for c in chunks]
    log_probs, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    empty = log_probs.new_zeros(ids.numel())
    return empty.index_copy(0, real, log_probs).view(ids.shape), empty.index_copy(0, real, entropies).view(ids.shape)
