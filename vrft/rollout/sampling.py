"""Sample tokens from logits, with random numbers that are made beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vrft.policy.logprobs import token_distribution
from vrft.rollout.base import Sampling

TokenSampler = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Maps logits (n, V) and numbers in [0, 1) as pairs (n, 2) to tokens and their log-probabilities before and after
truncation."""

FRACTION_BITS = 24

LARGEST_SUM = 4096
"""Number of tokens up to which probabilities are summed one after the other."""

IMPOSSIBLE = -100.0
"""Log-probability whose exponential is 0 in float32, or nearly."""


def float32_pairs(uniform: Tensor) -> Tensor:
    """Split numbers in [0, 1) of float64 into pairs of float32: (…) -> (…, 2).

    The first is the number's 24 highest bits, the second the rest: 24 bits alone would never reach a token that is
    rarer than one in 16 million, and a GPU of Apple has no float64.
    """
    scale = 2.0**FRACTION_BITS
    uniform = uniform.clamp(max=1 - 4 / scale)  # times a sum, it must stay below the sum after rounding
    high = (uniform * scale).floor() / scale
    return torch.stack([high, uniform - high], -1).float()


def token_sampler(sampling: Sampling, banned: Tensor) -> TokenSampler:
    """Return a function that samples tokens as `sampling` says, and none of the banned ids."""

    def sample_tokens(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_p = token_distribution(logits, sampling.temperature, banned)  # (n, V)
        truncate(log_p, sampling)
        tokens = log_p.argmax(-1) if sampling.greedy else inverse_transform(log_p, uniform)
        log_probs = log_p.gather(-1, tokens[:, None])[:, 0]
        if not sampling.truncated:
            return tokens, log_probs, log_probs
        return tokens, log_probs, log_p.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]

    return sample_tokens


def truncate(log_p: Tensor, sampling: Sampling) -> None:
    """Replace log-probabilities (n, V) by -inf where top-k, top-p or min-p rules a token out.

    The rest is not normalised again: drawing does not need it, and a copy here would be one more in a decoding step.
    """
    if sampling.top_k > 0:
        smallest = log_p.topk(min(sampling.top_k, log_p.shape[-1])).values[:, -1:]
        log_p.masked_fill_(log_p < smallest, -torch.inf)
    if sampling.top_p < 1:
        log_p.masked_fill_(outside_top_p(log_p, sampling.top_p), -torch.inf)
    if sampling.min_p > 0:
        log_p.masked_fill_(log_p < log_p.amax(-1, keepdim=True) + math.log(sampling.min_p), -torch.inf)


def outside_top_p(log_p: Tensor, top_p: float) -> Tensor:
    """Return which tokens are not among the most probable ones up to the share `top_p` of the sum: (n, V) -> (n, V)."""
    ends, order = log_p.sort(-1)
    ends.exp_().cumsum_(-1)
    outside = ends <= (1 - top_p) * ends[:, -1:]
    outside[:, -1] = False
    del ends  # its memory is free for the result
    return outside.scatter(-1, order, outside)


def inverse_transform(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Return the first token whose cumulative probability exceeds the row's number: (n, V), (n, 2) -> (n,)."""
    if not log_p.is_cpu:
        return float32_transform(log_p, uniform)
    ends = log_p.exp().cumsum(-1, dtype=torch.float64)
    return first_above(ends, uniform.double().sum(-1, keepdim=True) * ends[:, -1:])[:, 0]


def float32_transform(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Return what `inverse_transform` does, without float64, which is slow or missing on GPUs.

    Sums of a large vocabulary have two levels, so that their error hardly grows with V: the probability of a block of
    about sqrt(V) tokens is off by at most 1e-7. Tokens rarer than that may be drawn in place of their neighbours.
    """
    size = log_p.shape[-1]
    high, low = uniform[:, :1], uniform[:, 1:]
    if size <= LARGEST_SUM:
        ends = log_p.exp().cumsum(-1)
        tokens = first_above(ends, torch.addcmul(high * ends[:, -1:], low, ends[:, -1:]))
    else:
        block = int(size**0.5) + 1
        p = F.pad(log_p, (0, -size % block), value=-torch.inf).exp_()  # a padded copy of p would be one more
        p = p.unflatten(-1, (-1, block))  # (n, blocks, tokens of a block)
        sums = p.sum(-1)
        ends = sums.cumsum(-1)
        target = high * ends[:, -1:]
        chosen = first_above(ends, target)  # (n, 1)
        rest = torch.addcmul(target - (ends - sums).gather(1, chosen), low, ends[:, -1:])
        ends = p.gather(1, chosen[..., None].expand(-1, -1, block))[:, 0].cumsum(-1)
        tokens = torch.add(first_above(ends, rest), chosen, alpha=block).clamp_(max=size - 1)
    # Sums in another order need not grow everywhere, and could end at a token that is banned.
    possible = log_p.gather(1, tokens) > IMPOSSIBLE
    return torch.where(possible, tokens, log_p.argmax(-1, keepdim=True))[:, 0]


def first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Return the first index at which cumulative sums exceed the target, at most the last one (n, 1)."""
    return torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[-1] - 1)
