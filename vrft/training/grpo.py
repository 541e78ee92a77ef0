"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300) and objectives derived from it.

Pure functions on tensors. P prompts, G generations each, N = P * G rows, T completion tokens.

Visual-RFT's released code makes one update per rollout, so its importance ratio is 1 and it needs no clipping. The
clipped objective below has the same gradient in that case, and is also correct for several updates per rollout.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"]
ScaleRewards = Literal["group", "batch", "none"]
Baseline = Literal["group", "batch"]
KLEstimator = Literal["k1", "k2", "k3"]


def group_advantages(
    rewards: Tensor,
    scale_rewards: ScaleRewards = "group",
    leave_one_out: bool = False,
    baseline: Baseline = "group",
) -> Tensor:
    """Return A = (r - mean(r)) / (std(r) + 1e-4) over the generations of each prompt (DeepSeekMath, section 4.1.2).

    Args:
        rewards: rewards, (P, G), of all ranks if `scale_rewards` or `baseline` is "batch".
        scale_rewards: divide by the group's unbiased standard deviation, by that of all rewards (arXiv 2508.08221,
            section 4), or not at all (Dr. GRPO, arXiv 2503.20783).
        leave_one_out: subtract the mean of the other generations, A = r - (sum(r) - r) / (G - 1) (RLOO, arXiv
            2402.14740). RLOO uses no scaling.
        baseline: subtract the mean of the group or the mean of all rewards, A = (r - mean(all)) / std(all)
            (REINFORCE++, arXiv 2501.03262, with `scale_rewards` "batch").

    Returns:
        Advantages, (P, G); 0 if all rewards that the baseline averages are equal.
    """
    tied = zero_variance_groups(rewards)[:, None]  # (P, 1)
    mean = rewards.mean(1, keepdim=True)
    if baseline == "batch":
        tied, mean = (rewards == rewards[0, 0]).all(), rewards.mean()
    # the rounded mean of equal rewards may differ from them, which would give all of them the same nonzero advantage
    centred = (rewards - mean).masked_fill(tied, 0.0)  # (P, G)
    if leave_one_out:
        group = rewards.shape[1]
        centred = centred * (group / (group - 1))
    if scale_rewards == "none":
        return centred
    std = rewards.std(1, keepdim=True) if scale_rewards == "group" else rewards.std()
    return centred / (std + 1e-4)  # (P, G)


def decoupled_advantages(rewards: Tensor, weights: Tensor) -> Tensor:
    """Normalise each reward within its group, then sum (GDPO, arXiv 2601.05242).

        S = sum over rewards k of w_k (r_k - mean(r_k)) / (std(r_k) + 1e-4)
        A = S / (std of S over all completions + 1e-4)

    Only the weights decide how much a reward counts, not its spread. The paper also subtracts the mean of S over all
    completions, which is 0.

    Args:
        rewards: rewards of all ranks, (P, G, K); NaN where a reward does not apply, which mean and std ignore and the
            sum counts as 0.
        weights: weights of the rewards, (K,).

    Returns:
        Advantages, (P, G).
    """
    applies = ~rewards.isnan()
    count = applies.sum(1, keepdim=True)  # (P, 1, K)
    mean = rewards.nansum(1, keepdim=True) / count.clamp(min=1)
    ignored = ~applies | tied_rewards(rewards)[:, None]
    centred = (rewards - mean).masked_fill(ignored, 0.0)  # (P, G, K)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    total = (centred / (std + 1e-4)) @ weights  # (P, G)
    return total / (total.std() + 1e-4)


def tied_rewards(rewards: Tensor) -> Tensor:
    """Return which rewards are equal for all completions of a group to which they apply, (P, G, K) -> (P, K) bool."""
    missing = rewards.isnan()
    lowest = rewards.masked_fill(missing, torch.inf).amin(1)
    return lowest >= rewards.masked_fill(missing, -torch.inf).amax(1)


def zero_variance_groups(rewards: Tensor) -> Tensor:
    """Return which groups of rewards have zero variance, (P, G) -> (P,) bool. Their advantages are 0."""
    return (rewards == rewards[:, :1]).all(1)


def replace_zero_variance(zero_variance: Tensor, count: int) -> list[int]:
    """Return the indices of `count` prompts to train on (dynamic sampling, DAPO, arXiv 2503.14476, section 3.2).

    Take the first `count` prompts, and replace those with zero variance by later ones without, as far as available.

    Args:
        zero_variance: whether each of at least `count` groups has zero variance, bool.
        count: number of prompts in a training step.
    """
    flat = zero_variance.tolist()
    spare = [p for p in range(count, len(flat)) if not flat[p]]
    return [spare.pop(0) if flat[p] and spare else p for p in range(count)]


def overlong_penalty(lengths: Tensor, max_completion_length: int, buffer: int) -> Tensor:
    """Return the penalty to add to the rewards of long completions (DAPO, arXiv 2503.14476, eq. 13).

        0 up to M - B tokens,    (M - B - length) / B above, i.e. -1 at the limit M

    Args:
        lengths: number of tokens of each completion, (N,).
        max_completion_length: M.
        buffer: B, the number of tokens before the limit at which the penalty begins.

    Returns:
        Penalties, (N,).
    """
    return ((max_completion_length - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def kl_to_reference(log_probs: Tensor, reference: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Estimate KL(pi, ref) per token from tokens sampled by pi, (N, T) (Schulman 2020, "Approximating KL Divergence").

        k1 = -d,    k2 = d^2 / 2,    k3 = exp(d) - d - 1,    d = log ref - log pi

    k3 is never negative and is used by DeepSeekMath (eq. 4). k1 is unbiased, but its gradient as a loss is 0 in
    expectation; the gradient of k2 is an unbiased estimate of the gradient of the KL (arXiv 2510.01555).
    """
    d = reference - log_probs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    return d.expm1() - d  # exp(d) - 1 in float32 would make small values negative


def completion_kl(log_probs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Estimate the KL divergence of whole completions by the sum over tokens of log pi - log ref, (N,).

    This is k1, an unbiased estimate. To subtract beta * KL from rewards (arXiv 2203.02155, eq. 2), only the value
    matters, not the gradient.

    Args:
        log_probs: log pi of the sampled tokens, under the weights at the start of the step, (N, T).
        reference: log-probabilities of the same tokens under the reference policy, (N, T).
        mask: 1 at real tokens, (N, T).
    """
    return ((log_probs - reference) * mask).sum(1)


def token_weights(
    lengths: Tensor, loss_type: LossType, max_completion_length: int, num_tokens: Tensor | None = None
) -> Tensor:
    """Return the weight of each row's tokens, (N,), for the loss = sum over rows of weight * (sum over tokens).

        grpo, gspo, sapo   1 / (N * length)   mean over sequences (DeepSeekMath, eq. 3; GSPO, arXiv 2507.18071, eq. 5)
        bnpo               1 / tokens         mean over the tokens of this rank
        dapo, cispo        1 / tokens         mean over the tokens of all ranks (DAPO, eq. 8; arXiv 2506.13585, eq. 4)
        dr_grpo            1 / (N * M)        a constant, independent of length (Dr. GRPO, arXiv 2503.20783)

    Args:
        lengths: number of real tokens of each row of the minibatch, (N,); 0 for a row that is left out.
        loss_type: one of the above.
        max_completion_length: M.
        num_tokens: for dapo and cispo, mean number of tokens per rank over all ranks, (); default: this rank's number.
    """
    if loss_type in ("grpo", "gspo", "sapo"):
        return 1 / (len(lengths) * lengths.clamp(min=1))
    if loss_type == "dr_grpo":
        return torch.full_like(lengths, 1 / (len(lengths) * max_completion_length), dtype=torch.float32)
    total = lengths.sum() if loss_type == "bnpo" or num_tokens is None else num_tokens
    return (1 / total.clamp(min=1)).expand(len(lengths))


class PolicyLoss(NamedTuple):
    """The loss, summed over rows, and statistics per row."""

    loss: Tensor  # ()
    kl: Tensor  # (N,), mean over the row's tokens
    clipped: Tensor  # (N,), share of the row's tokens whose gradient is zeroed by clipping, or capped (cispo)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    loss_type: LossType = "grpo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    temperatures: tuple[float, float] = (1.0, 1.05),
    reference: Tensor | None = None,
    beta: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    correction: Tensor | None = None,
    chosen: Tensor | None = None,
    entropy: Tensor | None = None,
    entropy_weight: float | Tensor = 0.0,
) -> PolicyLoss:
    """Return the sum over rows and tokens of weight * correction * (surrogate + beta * KL - entropy_weight * H).

    The surrogate, with rho = pi / pi_old:

        grpo, bnpo, dr_grpo, dapo    -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A)    DeepSeekMath, eq. 3
        gspo     the same with exp(mean over tokens of log rho) in place of rho                 2507.18071, eq. 5-7
        cispo    -stop_gradient(min(rho, epsilon_high)) A log pi                                2506.13585, eq. 4-5
        sapo     -4 / tau sigmoid(tau (rho - 1)) A                                              2511.20347

    Args:
        log_probs: log pi of the sampled tokens, (N, T), with gradient.
        old_log_probs: log pi_old of the sampled tokens, under the weights at the start of the step, (N, T).
        advantages: advantage of each row, (N,).
        mask: 1 at real tokens, 0 at padding, (N, T).
        weights: weight of each row's tokens, from `token_weights`, (N,).
        loss_type: one of the above.
        epsilon: lower clip range, and the upper one if `epsilon_high` is None. GSPO's paper uses 3e-4 and 4e-4.
        epsilon_high: upper clip range ("clip higher", 0.28 in DAPO); for cispo the largest ratio itself, default 5
            (ScaleRL, arXiv 2510.13786).
        delta: largest ratio of tokens with A < 0, which clipping leaves unbounded, for the losses that clip rho:
            min(rho, delta) in place of rho ("two-sided clipping", INTELLECT-2, arXiv 2505.07291).
        temperatures: tau of sapo for A > 0 and for A <= 0.
        reference: log-probabilities under the reference policy, (N, T); required if beta > 0.
        beta: weight of the KL term.
        kl_estimator: see `kl_to_reference`.
        correction: importance weights if another engine sampled, from `importance_weights`, (N, T); default: 1.
        chosen: tokens with a surrogate, e.g. from `top_entropy_tokens`, (N, T) bool; default: all. `weights` still
            divide by the number of all tokens.
        entropy: H of each token's distribution, (N, T), with gradient; default: no bonus.
        entropy_weight: weight of the entropy bonus.
    """
    a = advantages[:, None]  # (N, 1)
    log_ratio = log_probs - old_log_probs  # (N, T)
    if loss_type == "cispo":
        per_token, clipped = capped_surrogate(log_ratio, log_probs, a, 5.0 if epsilon_high is None else epsilon_high)
    elif loss_type == "sapo":
        per_token, clipped = soft_surrogate(log_ratio, a, temperatures)
    else:
        if loss_type == "gspo":
            log_ratio = masked_mean(log_ratio, mask)[:, None].expand_as(log_ratio)
        lower, upper = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
        per_token, clipped = clipped_surrogate(log_ratio, a, lower, upper, delta)
    if chosen is not None:
        per_token, clipped = per_token * chosen, clipped & chosen
    kl = torch.zeros_like(per_token)
    if reference is not None:
        kl = kl_to_reference(log_probs, reference, kl_estimator)  # (N, T)
        per_token = per_token + beta * kl
    if entropy is not None:
        per_token = per_token - entropy_weight * entropy
    if correction is not None:
        per_token = per_token * correction
    with torch.no_grad():
        row_kl, row_clipped = masked_mean(kl, mask), masked_mean(clipped.float(), mask)
    return PolicyLoss((per_token * mask).sum(1) @ weights, row_kl, row_clipped)


def clipped_surrogate(
    log_ratio: Tensor, a: Tensor, lower: float, upper: float, delta: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return -min(min(rho, delta) A, clip(rho, lower, upper) A), and which tokens have no gradient, both (N, T)."""
    ratio = log_ratio.exp()
    clipped = ((ratio < lower) & (a < 0)) | ((ratio > upper) & (a > 0))
    bounded = ratio
    if delta is not None:
        clipped = clipped | ((ratio > delta) & (a < 0))
        bounded = ratio.clamp(max=delta)
    return -torch.minimum(bounded * a, ratio.clamp(lower, upper) * a), clipped


def capped_surrogate(log_ratio: Tensor, log_probs: Tensor, a: Tensor, highest: float) -> tuple[Tensor, Tensor]:
    """Return -stop_gradient(min(rho, highest)) A log pi, and which tokens' ratios are capped, both (N, T)."""
    ratio = log_ratio.detach().exp()
    return -ratio.clamp(max=highest) * a * log_probs, (ratio > highest) & (a > 0)


def soft_surrogate(log_ratio: Tensor, a: Tensor, temperatures: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return -4 / tau sigmoid(tau (rho - 1)) A, and False because no token is clipped, both (N, T).

    The gradient equals that of -rho A at rho = 1, and decreases smoothly on both sides.
    """
    positive, other = (log_ratio.new_tensor(temperature) for temperature in temperatures)
    tau = torch.where(a > 0, positive, other)  # (N, 1)
    gate = 4 / tau * torch.sigmoid(tau * (log_ratio.exp() - 1))
    return -gate * a, torch.zeros_like(gate, dtype=torch.bool)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens of each row where mask is 1, (N, T) -> (N,); 0 for a row without tokens."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
