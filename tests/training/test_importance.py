"""Importance weights of samples from another engine."""

from __future__ import annotations

import math

import pytest
import torch

from vrft.training.grpo import policy_loss
from vrft.training.importance import ImportanceSampling, importance_weights, mismatch


def test_importance_weights_by_hand() -> None:
    ratios = torch.tensor([[0.25, 0.5, 1.0, 2.0, 4.0]])
    weigh = lambda mode: importance_weights(ratios.log(), mode, 2.0)  # noqa: E731
    torch.testing.assert_close(weigh("truncate"), torch.tensor([[0.25, 0.5, 1.0, 2.0, 2.0]]))
    torch.testing.assert_close(weigh("mask"), torch.tensor([[0.0, 0.5, 1.0, 2.0, 0.0]]))
    assert weigh("none").tolist() == [[1.0] * 5]
    for mode, largest in (("truncate", 2.0), ("mask", 0.0)):
        assert importance_weights(torch.tensor([[100.0, -200.0]]), mode, 2.0).tolist() == [[largest, 0.0]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sequence_truncate", [2.0, 0.5, 2.0, 1.0]),
        ("sequence_mask", [0.0, 0.5, 2.0, 1.0]),
    ],
)
def test_sequence_weights_are_products_over_the_tokens(mode: ImportanceSampling, expected: list[float]) -> None:
    ratios = torch.tensor([[2.0, 2.0, 1.0], [2.0, 0.25, math.nan], [2.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])  # the last row is left out of the loss
    found = importance_weights(ratios.log(), mode, 2.0, mask)
    for row, kept, weights, value in zip(ratios.tolist(), mask.tolist(), found.tolist(), expected, strict=True):
        product = math.prod(ratio for ratio, counts in zip(row, kept, strict=True) if counts)
        naive = min(product, 2.0) if mode == "sequence_truncate" else product * (0.5 <= product <= 2.0)
        assert weights == pytest.approx([naive] * 3)
        assert naive == pytest.approx(value)


def test_corrected_gradient_equals_that_of_the_trainers_own_samples() -> None:
    """Check E_q[p / q * A * grad log p] = E_p[A * grad log p] by a sum over the whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits, sampler = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    q, reward = sampler.softmax(0), torch.randn(6, generator=generator, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    log_p = leaf.log_softmax(0)
    loss = policy_loss(
        log_p[:, None],
        log_p.detach()[:, None],
        reward,
        torch.ones(6, 1),
        q,  # weights each token by the sampler's probability
        correction=importance_weights((log_p.detach() - q.log())[:, None], "truncate", math.inf),
    ).loss
    loss.backward()
    own = logits.clone().requires_grad_()
    (own.softmax(0) @ -reward).backward()
    torch.testing.assert_close(leaf.grad, own.grad)


def test_mismatch_by_hand() -> None:
    found = mismatch(torch.tensor([0.0, 0.5, -1.5, math.nan]), cap=2.0)
    assert found.gap == pytest.approx(2 / 3)
    assert found.gap_max == 1.5
    assert found.ratio_p50 == 1.0
    assert found.beyond == pytest.approx(1 / 3)  # exp(-1.5) is below 1 / 2
    assert mismatch(torch.tensor([]), cap=2.0).gap == 0
