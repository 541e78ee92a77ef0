"""The objective against numpy, exact sums and a plain loop over tokens."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vrft.grpo import group_advantages, kl_to_reference, masked_mean, policy_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def ragged_mask(lengths: list[int]) -> Tensor:
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


def test_advantages_are_those_of_numpy() -> None:
    rewards = torch.rand(5, 8, dtype=torch.float64, generator=generator())
    r = rewards.numpy()
    centred = r - r.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards), centred / (r.std(1, ddof=1, keepdims=True) + 1e-4))
    np.testing.assert_allclose(group_advantages(rewards, scale_rewards=False), centred)


@pytest.mark.parametrize("scale_rewards", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.3, 1.7])
def test_equal_rewards_have_no_advantage(reward: float, scale_rewards: bool) -> None:
    for group in range(2, 17):
        assert not group_advantages(torch.full((3, group), reward), scale_rewards).any()


def test_groups_do_not_see_each_other() -> None:
    rewards = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
    assert group_advantages(rewards, scale_rewards=False).tolist() == [[-0.5, 0.5], [0, 0]]


def test_kl_estimate_is_never_negative_and_0_at_the_reference() -> None:
    log_probs = -torch.rand(1000, generator=generator())
    near = log_probs + 1e-3 * torch.randn(1000, generator=generator(1))
    far = log_probs + 3 * torch.randn(1000, generator=generator(2))
    assert kl_to_reference(log_probs, log_probs).eq(0).all()
    assert kl_to_reference(log_probs, far).gt(0).all()
    assert kl_to_reference(log_probs, near).ge(0).all()


def test_kl_estimate_has_the_exact_kl_as_its_expectation() -> None:
    log_pi, log_reference = normal(10, 7).log_softmax(-1), normal(10, 7, seed=1).log_softmax(-1)
    expectation = (log_pi.exp() * kl_to_reference(log_pi, log_reference)).sum(-1)
    exact = (log_pi.exp() * (log_pi - log_reference)).sum(-1)
    torch.testing.assert_close(expectation, exact)


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    lengths = [4, 1, 3]
    advantages = torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64)
    log_probs = normal(3, 4).requires_grad_()
    mask = ragged_mask(lengths)
    result = policy_loss(log_probs, log_probs.detach(), advantages, mask)
    result.loss.backward()
    torch.testing.assert_close(result.loss.item(), -advantages.sum().item())
    torch.testing.assert_close(log_probs.grad, -advantages[:, None] * mask / torch.tensor(lengths)[:, None])
    assert not result.clipped.any()


def naive_token(log_p: float, old: float, a: float, reference: float, beta: float, low: float, high: float) -> tuple:
    """Loss of one token, its derivative, its KL and whether clipping is active."""
    ratio, gap = math.exp(log_p - old), reference - log_p
    kl = math.exp(gap) - gap - 1
    bounded = min(ratio, 1 + high) if a > 0 else max(ratio, 1 - low)
    clipped = a != 0 and bounded != ratio
    slope = 0.0 if clipped else ratio * a
    return -bounded * a + beta * kl, -slope + beta * (1 - math.exp(gap)), kl, clipped


@pytest.mark.parametrize(("beta", "high"), [(0.0, None), (0.04, None), (0.5, 0.4)])
def test_policy_loss_is_that_of_a_plain_loop(beta: float, high: float | None) -> None:
    lengths = [6, 1, 0, 4, 5, 6]
    mask = ragged_mask(lengths)
    old, reference = normal(6, 6) - 2, normal(6, 6, seed=1) - 2
    log_probs = (old + 0.5 * normal(6, 6, seed=2)).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 3.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    result = policy_loss(
        log_probs, old, advantages, mask, reference=reference, beta=beta, epsilon=0.2, epsilon_high=high
    )
    result.loss.backward()

    loss, sides = 0.0, set()
    gradient, kl, clipped = torch.zeros_like(old), torch.zeros_like(advantages), torch.zeros_like(advantages)
    for i, length in enumerate(lengths):
        a = advantages[i].item()
        for t in range(length):
            values = (log_probs[i, t].item(), old[i, t].item(), a, reference[i, t].item(), beta, 0.2, high or 0.2)
            token, slope, token_kl, token_clipped = naive_token(*values)
            loss += token / length
            gradient[i, t] = slope / length
            kl[i] += token_kl / length
            clipped[i] += token_clipped / length
            sides |= {a > 0} if token_clipped else set()
    assert sides == {True, False}
    torch.testing.assert_close(result.loss.item(), loss)
    torch.testing.assert_close(log_probs.grad, gradient)
    torch.testing.assert_close(result.kl, kl)
    torch.testing.assert_close(result.clipped.double(), clipped, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lengths", [[3, 0], [0, 0, 3]])
def test_an_empty_row_contributes_nothing(lengths: list[int]) -> None:
    mask, rows = ragged_mask(lengths), len(lengths)
    log_probs = normal(rows, 3).requires_grad_()
    others = normal(rows, 3, seed=1), torch.ones(rows, dtype=torch.float64)
    result = policy_loss(log_probs, *others, mask, reference=others[0], beta=0.1)
    result.loss.backward()
    full = [i for i, length in enumerate(lengths) if length]
    alone = policy_loss(
        log_probs[full], others[0][full], others[1][full], mask[full], reference=others[0][full], beta=0.1
    )
    torch.testing.assert_close(result.loss, alone.loss)
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()
    assert not log_probs.grad[mask.sum(1) == 0].any()


def test_padding_changes_nothing() -> None:
    mask = ragged_mask([2, 3])
    log_probs, old, reference = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    results = [
        policy_loss(log_probs + offset * (1 - mask), old, torch.ones(2), mask, reference=reference, beta=0.1)
        for offset in (0, 7)
    ]
    for padded, plain in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain)


def test_without_beta_the_reference_is_only_measured() -> None:
    log_probs, advantages, mask = normal(2, 3), torch.tensor([1.0, -1.0]), torch.ones(2, 3)
    measured = policy_loss(log_probs, log_probs, advantages, mask, reference=normal(2, 3, seed=1))
    assert measured.loss == policy_loss(log_probs, log_probs, advantages, mask).loss
    assert measured.kl.gt(0).all()


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    assert masked_mean(values, ragged_mask([2, 1, 0, 3])[:3]).tolist() == [1.5, 4, 0]
