"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300) as Visual-RFT (arXiv 2503.01785) uses it.

Pure functions on tensors. P prompts, G generations each, N = P * G rows, T completion tokens.

The released Visual-RFT code makes one update per rollout, so its importance ratio is 1 and it has no clipping. The
clipped objective below has the same gradient there, and stays right when a rollout feeds several updates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, scale_rewards: bool = True) -> Tensor:
    """A = (r - mean(r)) / (std(r) + 1e-4) over the generations of each prompt (DeepSeekMath, section 4.1.2).

    Args:
        rewards: (P, G).
        scale_rewards: divide by the group's unbiased standard deviation; False is Dr. GRPO (arXiv 2503.20783).

    Returns:
        Advantages (P, G). A group whose rewards are all equal has advantages 0.
    """
    centred = rewards - rewards.mean(1, keepdim=True)  # (P, G)
    centred = centred.masked_fill(tied_groups(rewards)[:, None], 0.0)  # a rounded mean would leave a common push
    if not scale_rewards:
        return centred
    return centred / (rewards.std(1, keepdim=True) + 1e-4)  # (P, G)


def tied_groups(rewards: Tensor) -> Tensor:
    """Groups whose rewards (P, G) are all equal: they teach nothing. (P,) bool."""
    return (rewards == rewards[:, :1]).all(1)


def kl_to_reference(log_probs: Tensor, reference: Tensor) -> Tensor:
    """k3 = exp(ref - pi) - (ref - pi) - 1 per token (N, T), never negative (Schulman 2020, DeepSeekMath eq. 4)."""
    gap = reference - log_probs
    return gap.expm1() - gap  # expm1: exp(gap) - 1 in float32 would turn small values negative


class PolicyLoss(NamedTuple):
    """The loss (a sum over rows, to be divided by the rows of the batch) and what it is made of, one value per row."""

    loss: Tensor  # ()
    kl: Tensor  # (N,) mean over the row's tokens
    clipped: Tensor  # (N,) share of the row's tokens where clipping took the gradient away


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference: Tensor | None = None,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
) -> PolicyLoss:
    """Clipped surrogate minus beta * KL, averaged over each row's tokens, summed over rows (DeepSeekMath, eq. 3).

        -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) + beta * k3,    rho = pi / pi_old

    Args:
        log_probs: log pi of the sampled tokens (N, T), with gradient.
        old_log_probs: the same under the weights that sampled (N, T).
        advantages: (N,).
        mask: 1 at real tokens (N, T). A row without any contributes 0.
        reference: log-probabilities under the reference policy (N, T); needed if beta > 0.
        beta: weight of the KL term.
        epsilon: lower clip range, and the upper one if `epsilon_high` is None.
        epsilon_high: upper clip range ("clip higher", DAPO, arXiv 2503.14476).
    """
    upper = 1 + (epsilon if epsilon_high is None else epsilon_high)
    ratio = (log_probs - old_log_probs).exp()  # (N, T)
    a = advantages[:, None]  # (N, 1)
    per_token = -torch.minimum(ratio * a, ratio.clamp(1 - epsilon, upper) * a)  # (N, T)
    kl = torch.zeros_like(per_token)
    if reference is not None:
        kl = kl_to_reference(log_probs, reference)  # (N, T)
        per_token = per_token + beta * kl
    clipped = ((ratio < 1 - epsilon) & (a < 0)) | ((ratio > upper) & (a > 0))  # (N, T)
    with torch.no_grad():
        row_kl, row_clipped = masked_mean(kl, mask), masked_mean(clipped.float(), mask)
    return PolicyLoss(masked_mean(per_token, mask).sum(), row_kl, row_clipped)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each row where mask is 1: (N, T) -> (N,); 0 for a row without tokens."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
