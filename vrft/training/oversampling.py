"""Oversampling: select which completions of a prompt to train on."""

from __future__ import annotations

import torch
from torch import Tensor


def max_variance_subset(rewards: Tensor, count: int) -> Tensor:
    """Return the `count` completions of each group whose rewards vary most (PODS, arXiv 2504.13818).

    These are the k lowest and the count - k highest rewards, for the k that maximises their variance. Ties are resolved
    by the order of sampling.

    Advantages are computed among the chosen completions only, so their expectation is not the policy gradient. With all
    S completions, the baseline estimates the expected reward (apart from the contribution of the completion itself),
    and a gradient step raises the expected reward. Among the chosen ones, both extremes have similar numbers of
    completions, so that rare outcomes count as much as common ones: one success in 16 samples, 8 of them chosen, has
    the advantage of one success in a group of 8. Completions with intermediate rewards are not trained on.

    Args:
        rewards: rewards, (P, S). A NaN is always chosen, so that the step is skipped as without oversampling.
        count: G, at most S.

    Returns:
        Indices within each group in ascending order, (P, G), on the CPU.
    """
    rewards, samples = rewards.cpu(), rewards.shape[1]  # few numbers, and not every device supports float64
    order = rewards.nan_to_num(torch.inf).argsort(stable=True, dim=1)  # (P, S), ascending
    best: list[Tensor] = []
    for values, positions in zip(rewards.double(), order, strict=True):
        candidates = [torch.cat([positions[:k], positions[samples - count + k :]]) for k in range(count + 1)]
        spread = torch.stack([values[some].var(correction=0) for some in candidates])
        # variances of equal values in another order differ by rounding, so take the first within a tolerance
        k = int((spread >= spread.max() - 1e-12).nonzero()[0]) if spread.isfinite().all() else 0
        best.append(candidates[k].sort().values)
    return torch.stack(best)
