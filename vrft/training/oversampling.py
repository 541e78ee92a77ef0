"""Oversampling: select the completions of a prompt to train on."""

from __future__ import annotations

import torch
from torch import Tensor


def most_telling(rewards: Tensor, count: int) -> Tensor:
    """Return the `count` completions of each group whose rewards vary most (PODS, arXiv 2504.13818).

    Those are the k lowest and the count - k highest rewards, for the k whose variance is largest; equal ones are chosen
    in the order of sampling.

    Advantages are then computed among the chosen ones. This changes what they estimate: with all S completions, the
    baseline is an unbiased estimate of the expected reward (but for the completion itself), and a gradient step raises
    the expected reward. Among the chosen ones, the baseline lies between both extremes and each extreme has about the
    same number of completions, so that what is rare counts as much as what is common: one success in 16 samples has the
    advantage of one in 8 of a group of 8 chosen ones. The sign of an advantage is right relative to the chosen
    baseline, its expectation is not the policy gradient's. Completions of middling rewards are not trained on.

    Args:
        rewards: rewards (P, S); a group with NaN keeps it, so that the step is skipped as without oversampling.
        count: G, at most S.

    Returns:
        Positions within each group in ascending order (P, G), on the CPU.
    """
    rewards, samples = rewards.cpu(), rewards.shape[1]  # few numbers, in float64, which not every device has
    order = rewards.nan_to_num(torch.inf).argsort(stable=True, dim=1)  # (P, S), ascending
    best: list[Tensor] = []
    for values, positions in zip(rewards.double(), order, strict=True):
        candidates = [torch.cat([positions[:k], positions[samples - count + k :]]) for k in range(count + 1)]
        spread = torch.stack([values[some].var(correction=0) for some in candidates])
        # Variances of the same values in another order differ by rounding; the first of the largest is taken.
        k = int((spread >= spread.max() - 1e-12).nonzero()[0]) if spread.isfinite().all() else 0
        best.append(candidates[k].sort().values)
    return torch.stack(best)
