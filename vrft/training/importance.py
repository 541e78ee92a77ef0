"""Correct for a sampler whose probabilities differ from the trainer's, and measure the mismatch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

ImportanceSampling = Literal["truncate", "mask", "sequence_truncate", "sequence_mask", "none"]


def importance_weights(log_ratio: Tensor, mode: ImportanceSampling, cap: float, mask: Tensor | None = None) -> Tensor:
    """Return the importance weights, (N, T), that correct for another sampler, with w = pi_old / pi_sampler.

        truncate            min(w, cap): low variance, some bias (Ionides 2008, "Truncated Importance Sampling")
        mask                w if 1 / cap <= w <= cap, else 0: drops tokens on which the two disagree too much
        sequence_truncate   truncate, with the product of w over the row's tokens as the weight of each of them
        sequence_mask       mask, with the same product: drops completions on which the two disagree too much
        none                1

    pi_sampler, from which the tokens were drawn, has the same weights with other kernels, or the weights of an earlier
    step. pi_old is the trainer's policy at the start of the step, so that clipping measures the change within the step.

    The w of a token corrects the probability of this token only, as if the preceding tokens came from pi_old. The
    product is the ratio of whole completions, so that an untruncated correction is unbiased, but its variance grows
    with the length.

    Args:
        log_ratio: log pi_old - log pi_sampler of the sampled tokens, (N, T).
        mode: one of the above.
        cap: maximum weight, at least 1.
        mask: 1 at the tokens in the product, (N, T); default: all.
    """
    if mode == "none":
        return torch.ones_like(log_ratio)
    if mode in ("sequence_truncate", "sequence_mask"):
        tokens = log_ratio if mask is None else log_ratio.masked_fill(mask == 0, 0.0)
        log_ratio = tokens.sum(1, keepdim=True).expand_as(log_ratio)
    w = log_ratio.exp()
    if mode in ("truncate", "sequence_truncate"):
        return w.clamp(max=cap)
    return torch.where((w >= 1 / cap) & (w <= cap), w, 0.0)  # inf * 0 would be NaN


class Mismatch(NamedTuple):
    """Statistics, over tokens, of the mismatch between the sampler's and the trainer's log-probabilities; all ()."""

    gap: Tensor  # mean |log-ratio|
    gap_max: Tensor
    ratio_p01: Tensor  # quantiles of the importance ratio
    ratio_p50: Tensor
    ratio_p99: Tensor
    beyond: Tensor  # share of ratios outside of 1 / cap to cap


def mismatch(log_ratio: Tensor, cap: float) -> Mismatch:
    """Summarise log pi_old - log pi_sampler of tokens, 1-D. Ignore non-finite values; gap 0 if no value is finite."""
    log_ratio = log_ratio[log_ratio.isfinite()]
    if not len(log_ratio):
        log_ratio = log_ratio.new_zeros(1)
    gap, ratio = log_ratio.abs(), log_ratio.exp()
    low, middle, high = ratio.quantile(ratio.new_tensor([0.01, 0.5, 0.99]))
    beyond = ((ratio > cap) | (ratio < 1 / cap)).float()
    return Mismatch(gap.mean(), gap.max(), low, middle, high, beyond.mean())
