"""The objective against numpy, exact sums and a plain loop over tokens."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vrft.training.grpo import (
    KLEstimator,
    LossType,
    PolicyLoss,
    ScaleRewards,
    completion_kl,
    decoupled_advantages,
    group_advantages,
    kl_to_reference,
    masked_mean,
    overlong_penalty,
    policy_loss,
    tied_rewards,
    token_weights,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def ragged_mask(lengths: list[int]) -> Tensor:
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


def test_advantages_equal_those_of_numpy() -> None:
    rewards = torch.rand(5, 8, dtype=torch.float64, generator=generator())
    r = rewards.numpy()
    centred = r - r.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards), centred / (r.std(1, ddof=1, keepdims=True) + 1e-4))
    np.testing.assert_allclose(group_advantages(rewards, "none"), centred)
    np.testing.assert_allclose(group_advantages(rewards, "batch"), centred / (r.std(ddof=1) + 1e-4))


def test_leave_one_out_compares_with_the_others_alone() -> None:
    rewards = torch.rand(3, 4, dtype=torch.float64, generator=generator())
    expected = [[row[i] - (row.sum() - row[i]) / 3 for i in range(4)] for row in rewards.numpy()]
    np.testing.assert_allclose(group_advantages(rewards, "none", leave_one_out=True), expected)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.3, 1.7])
def test_equal_rewards_have_no_advantage(reward: float, scale_rewards: ScaleRewards) -> None:
    for group in range(2, 17):
        assert not group_advantages(torch.full((3, group), reward), scale_rewards).any()


def test_groups_are_independent() -> None:
    rewards = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
    assert group_advantages(rewards, "none").tolist() == [[-0.5, 0.5], [0, 0]]


def test_the_baseline_of_the_batch_is_the_mean_of_all_rewards() -> None:
    rewards = torch.rand(3, 4, dtype=torch.float64, generator=generator())
    r = rewards.numpy()
    batch = group_advantages(rewards, "batch", baseline="batch")
    np.testing.assert_allclose(batch, (r - r.mean()) / (r.std(ddof=1) + 1e-4))
    np.testing.assert_allclose(group_advantages(rewards, "none", baseline="batch"), r - r.mean())
    tied = torch.tensor([[0.3, 0.3], [0.7, 0.7]])
    assert group_advantages(tied, "batch", baseline="batch")[:, 0].tolist() == pytest.approx(
        [-0.8656, 0.8656], rel=1e-3
    )
    assert not group_advantages(torch.full((3, 5), 0.3), "batch", baseline="batch").any()


def naive_decoupled(rewards: list[list[list[float]]], weights: list[float]) -> list[list[float]]:
    """Normalise each reward within its group, add, and divide by the spread of the sums; rewards[p][g][k]."""
    sums = [[0.0 for _ in group] for group in rewards]
    for p, group in enumerate(rewards):
        for k, weight in enumerate(weights):
            known = [row[k] for row in group if not math.isnan(row[k])]
            if len(known) < 2 or min(known) == max(known):
                continue
            mean = sum(known) / len(known)
            std = math.sqrt(sum((x - mean) ** 2 for x in known) / (len(known) - 1))
            for g, row in enumerate(group):
                if not math.isnan(row[k]):
                    sums[p][g] += weight * (row[k] - mean) / (std + 1e-4)
    flat = [x for row in sums for x in row]
    mean = sum(flat) / len(flat)
    assert abs(mean) < 1e-12  # why the mean need not be subtracted
    spread = math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1))
    return [[x / (spread + 1e-4) for x in row] for row in sums]


def test_decoupled_advantages_equal_those_of_a_plain_loop() -> None:
    rewards = torch.rand(4, 5, 3, dtype=torch.float64, generator=generator())
    rewards[1, :, 0] = 0.3  # tied
    rewards[2, 1:4, 1] = math.nan  # does not apply to three of five
    rewards[3, :, 1] = math.nan  # applies to none
    rewards[3, 1:, 2] = math.nan  # applies to one
    weights = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)
    found = decoupled_advantages(rewards, weights)
    np.testing.assert_allclose(found, naive_decoupled(rewards.tolist(), weights.tolist()), rtol=1e-9, atol=1e-12)
    assert tied_rewards(rewards).tolist() == [[False] * 3, [True, False, False], [False] * 3, [False, True, True]]


def test_a_small_reward_counts_as_much_as_a_large_one_if_decoupled() -> None:
    rewards = torch.tensor([[[0.0, 100.0], [0.1, 0.0], [0.0, 100.0], [0.1, 0.0]]])
    assert not tied_rewards(rewards).any()
    small_wins = decoupled_advantages(rewards, torch.tensor([2.0, 1.0]))
    assert (small_wins > 0).tolist() == [[False, True, False, True]]
    assert (group_advantages(rewards.sum(-1)) > 0).tolist() == [[True, False, True, False]]


def test_equal_rewards_have_no_advantage_if_decoupled() -> None:
    for group in range(2, 17):
        assert not decoupled_advantages(torch.full((3, group, 2), 0.3), torch.ones(2)).any()


def test_a_reward_that_is_not_finite_makes_decoupled_advantages_nan() -> None:
    rewards = torch.rand(2, 3, 2)
    rewards[0, 1, 0] = math.inf
    assert decoupled_advantages(rewards, torch.ones(2)).isnan().all()  # every rank skips the step


def test_the_kl_of_completions_adds_up_their_tokens() -> None:
    log_probs, reference = normal(3, 4), normal(3, 4, seed=1)
    found = completion_kl(log_probs, reference, ragged_mask([4, 2, 0]))
    expected = [sum(float(log_probs[i, t] - reference[i, t]) for t in range(n)) for i, n in enumerate([4, 2, 0])]
    assert found.tolist() == pytest.approx(expected)


def test_kl_estimate_is_never_negative_and_0_at_the_reference() -> None:
    log_probs = -torch.rand(1000, generator=generator())
    near = log_probs + 1e-3 * torch.randn(1000, generator=generator(1))
    far = log_probs + 3 * torch.randn(1000, generator=generator(2))
    assert kl_to_reference(log_probs, log_probs).eq(0).all()
    assert kl_to_reference(log_probs, far).gt(0).all()
    assert kl_to_reference(log_probs, near).ge(0).all()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimates_have_the_exact_kl_as_their_expectation(estimator: KLEstimator) -> None:
    log_pi, log_reference = normal(10, 7).log_softmax(-1), normal(10, 7, seed=1).log_softmax(-1)
    expectation = (log_pi.exp() * kl_to_reference(log_pi, log_reference, estimator)).sum(-1)
    torch.testing.assert_close(expectation, (log_pi.exp() * (log_pi - log_reference)).sum(-1))


def test_k2_has_the_gradient_of_the_exact_kl() -> None:
    logits = normal(7).requires_grad_()
    log_reference = normal(7, seed=1).log_softmax(-1)
    log_pi = logits.log_softmax(-1)
    exact = torch.autograd.grad((log_pi.exp() * (log_pi - log_reference)).sum(), logits, retain_graph=True)[0]
    sampled = (log_pi.detach().exp() * kl_to_reference(log_pi, log_reference, "k2")).sum()
    torch.testing.assert_close(torch.autograd.grad(sampled, logits)[0], exact)


def test_overlong_penalty_falls_from_0_to_minus_1_over_the_buffer() -> None:
    lengths = torch.tensor([1, 80, 81, 90, 99, 100])
    assert overlong_penalty(lengths, max_completion_length=100, buffer=20).tolist() == pytest.approx(
        [0, 0, -0.05, -0.5, -0.95, -1]
    )


LENGTHS = [6, 1, 0, 4, 5, 6]
LIMIT = 8


def loss_of(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, **settings: Any) -> PolicyLoss:
    weights = token_weights(mask.sum(1), settings.get("loss_type", "grpo"), LIMIT)
    return policy_loss(log_probs, old, advantages, mask, weights.to(log_probs.dtype), **settings)


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    lengths = [4, 1, 3]
    advantages = torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64)
    log_probs = normal(3, 4).requires_grad_()
    mask = ragged_mask(lengths)
    result = loss_of(log_probs, log_probs.detach(), advantages, mask)
    result.loss.backward()
    torch.testing.assert_close(result.loss.item(), -advantages.mean().item(), rtol=1e-6, atol=1e-6)
    expected = -advantages[:, None] * mask / torch.tensor(lengths)[:, None] / 3
    torch.testing.assert_close(log_probs.grad, expected, rtol=1e-6, atol=1e-6)
    assert not result.clipped.any()


def naive_kl(estimator: str, log_p: float, reference: float) -> tuple[float, float]:
    """Return the estimate and its derivative with respect to log_p."""
    d = reference - log_p
    return {"k1": (-d, 1.0), "k2": (d * d / 2, -d), "k3": (math.exp(d) - d - 1, 1 - math.exp(d))}[estimator]


def naive_surrogate(ratio: float, a: float, low: float, high: float) -> tuple[float, float, bool]:
    """Return the value, its derivative with respect to the log-ratio, and whether clipping is active."""
    bounded = min(ratio, 1 + high) if a > 0 else max(ratio, 1 - low)
    clipped = a != 0 and bounded != ratio
    return -bounded * a, 0.0 if clipped else -ratio * a, clipped


def naive_gate(ratio: float, tau: float) -> tuple[float, float]:
    """Return sapo's gate and its derivative with respect to the log-ratio."""
    sigmoid = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return 4 / tau * sigmoid, 4 * sigmoid * (1 - sigmoid) * ratio


def naive_row(
    kind: str, log_p: list[float], old: list[float], a: float, low: float, high: float | None
) -> tuple[list[float], list[float], list[bool]]:
    """Return each token's value, the derivative of their sum with respect to each log_p, and whether it is clipped."""
    n = len(log_p)
    if kind == "sapo":
        gates = [naive_gate(math.exp(x - y), 1.0 if a > 0 else 1.05) for x, y in zip(log_p, old, strict=True)]
        return [-value * a for value, _ in gates], [-slope * a for _, slope in gates], [False] * n
    if kind == "cispo":
        ratios = [math.exp(x - y) for x, y in zip(log_p, old, strict=True)]
        capped = [min(ratio, high or 5.0) for ratio in ratios]
        values = [-c * a * x for c, x in zip(capped, log_p, strict=True)]
        return values, [-c * a for c in capped], [r > (high or 5.0) and a > 0 for r in ratios]
    if kind == "gspo":
        ratio = math.exp(sum(x - y for x, y in zip(log_p, old, strict=True)) / max(n, 1))
        value, slope, clipped = naive_surrogate(ratio, a, low, high or low)
        return [value] * n, [slope] * n, [clipped] * n  # each token moves the ratio by 1/n and has its value
    tokens = [naive_surrogate(math.exp(x - y), a, low, high or low) for x, y in zip(log_p, old, strict=True)]
    return [t[0] for t in tokens], [t[1] for t in tokens], [t[2] for t in tokens]


def naive_weight(kind: str, length: int) -> float:
    tokens = sum(LENGTHS)
    each = 1 / (len(LENGTHS) * length)
    return {"grpo": each, "gspo": each, "sapo": each, "dr_grpo": 1 / (len(LENGTHS) * LIMIT)}.get(kind, 1 / tokens)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize(("beta", "high"), [(0.0, None), (0.04, None), (0.5, 0.4)])
@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"])
def test_policy_loss_equals_that_of_a_plain_loop(
    kind: LossType, beta: float, high: float | None, estimator: KLEstimator
) -> None:
    mask = ragged_mask(LENGTHS)
    old, reference = normal(6, 6) - 2, normal(6, 6, seed=1) - 2
    log_probs = (old + 0.7 * normal(6, 6, seed=2)).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 3.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    if kind == "cispo" and high is not None:
        high = 1.5
    settings = {"loss_type": kind, "epsilon": 0.1, "epsilon_high": high, "kl_estimator": estimator}
    result = loss_of(log_probs, old, advantages, mask, reference=reference, beta=beta, **settings)
    result.loss.backward()

    loss, any_clipped = 0.0, False
    gradient, kl, clipped = torch.zeros_like(old), torch.zeros_like(advantages), torch.zeros_like(advantages)
    for i, length in enumerate(LENGTHS):
        if not length:
            continue
        row, old_row = log_probs[i, :length].tolist(), old[i, :length].tolist()
        values, slopes, over = naive_row(kind, row, old_row, advantages[i].item(), 0.1, high)
        for t in range(length):
            token_kl, kl_slope = naive_kl(estimator, row[t], reference[i, t].item())
            loss += naive_weight(kind, length) * (values[t] + beta * token_kl)
            gradient[i, t] = naive_weight(kind, length) * (slopes[t] + beta * kl_slope)
            kl[i] += token_kl / length
            clipped[i] += over[t] / length
            any_clipped |= over[t]
    assert any_clipped or kind == "sapo" or (kind == "cispo" and high is None)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(result.loss.item(), loss, **close)
    torch.testing.assert_close(log_probs.grad, gradient, **close)
    torch.testing.assert_close(result.kl, kl, **close)
    torch.testing.assert_close(result.clipped.double(), clipped, **close)


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_delta_bounds_the_ratio_of_negative_advantages(kind: LossType) -> None:
    mask, old, advantages = ragged_mask(LENGTHS), normal(6, 6), torch.tensor([1.0, -1.0, 3.0, -2.0, 0.5, -1.0]).double()
    log_probs = (old + 0.9 * normal(6, 6, seed=2)).requires_grad_()
    result = loss_of(log_probs, old, advantages, mask, loss_type=kind, delta=1.5)
    result.loss.backward()
    loss, gradient, clipped, bounded = 0.0, torch.zeros_like(old), torch.zeros_like(advantages), 0
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            ratio, a = math.exp(log_probs[i, t].item() - old[i, t].item()), advantages[i].item()
            value, slope, over = naive_surrogate(ratio, a, 0.2, 0.2)
            if a < 0 and ratio > 1.5:
                value, slope, over, bounded = -1.5 * a, 0.0, True, bounded + 1
            loss += naive_weight(kind, length) * value
            gradient[i, t] = naive_weight(kind, length) * slope
            clipped[i] += over / length
    assert bounded
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(result.loss.item(), loss, **close)
    torch.testing.assert_close(log_probs.grad, gradient, **close)
    torch.testing.assert_close(result.clipped.double(), clipped, **close)


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"])
def test_micro_batches_add_up_to_the_minibatch(kind: LossType) -> None:
    mask, old, advantages = ragged_mask(LENGTHS), normal(6, 6), normal(6, seed=3)
    log_probs = old + 0.3 * normal(6, 6, seed=2)
    weights = token_weights(mask.sum(1), kind, LIMIT).double()
    whole = policy_loss(log_probs, old, advantages, mask, weights, loss_type=kind).loss
    parts = [
        policy_loss(log_probs[r], old[r], advantages[r], mask[r], weights[r], loss_type=kind).loss
        for r in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(whole, sum(parts))


def test_dapo_counts_the_tokens_of_all_ranks() -> None:
    lengths = torch.tensor([3, 5])
    assert token_weights(lengths, "dapo", LIMIT, num_tokens=torch.tensor(16.0)).tolist() == [1 / 16] * 2
    assert token_weights(lengths, "bnpo", LIMIT, num_tokens=torch.tensor(16.0)).tolist() == [1 / 8] * 2


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"])
def test_a_batch_of_empty_rows_gives_no_nan(kind: LossType) -> None:
    log_probs, mask = normal(2, 3).requires_grad_(), torch.zeros(2, 3, dtype=torch.long)
    result = loss_of(log_probs, log_probs.detach(), torch.ones(2), mask, loss_type=kind, reference=normal(2, 3))
    result.loss.backward()
    assert result.loss == 0
    assert log_probs.grad is not None
    assert not log_probs.grad.any()


def test_padding_changes_nothing() -> None:
    mask = ragged_mask([2, 3])
    log_probs, old, reference = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    ones = torch.ones(2, dtype=torch.float64)
    results = [
        loss_of(log_probs + offset * (1 - mask), old, ones, mask, reference=reference, beta=0.1) for offset in (0, 7)
    ]
    for padded, plain in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain)


def test_without_beta_the_reference_is_only_measured() -> None:
    log_probs, advantages, mask = normal(2, 3), torch.tensor([1.0, -1.0]).double(), torch.ones(2, 3)
    measured = loss_of(log_probs, log_probs, advantages, mask, reference=normal(2, 3, seed=1))
    assert measured.loss == loss_of(log_probs, log_probs, advantages, mask).loss
    assert measured.kl.gt(0).all()


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    assert masked_mean(values, ragged_mask([2, 1, 0, 3])[:3]).tolist() == [1.5, 4, 0]
