"""Tokens are drawn with their exact probabilities, in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.policy.test_logprobs import LargestMemory
from vrft.doctor.phases import LOGITS_COPIES, SORTED_COPIES
from vrft.policy.logprobs import token_distribution
from vrft.rollout import Sampling, SamplingKey
from vrft.rollout import sampling as module
from vrft.rollout.sampling import LARGEST_SUM, float32_pairs, float32_transform, inverse_transform, token_sampler

KEY = SamplingKey(7, 3)


def exact(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Return the tokens that sums in float64 give."""
    ends = log_p.exp().double().cumsum(-1)
    return torch.searchsorted(ends, (uniform * ends[:, -1])[:, None], right=True)[:, 0]


@pytest.mark.parametrize("size", [5, 600, pytest.param(3 * LARGEST_SUM + 1, marks=pytest.mark.slow)])
def test_draws_are_those_of_float64(size: int) -> None:
    log_p = (torch.randn(1, size, generator=torch.Generator().manual_seed(0)) * 4).log_softmax(-1).expand(2000, -1)
    uniform = KEY.uniform(1, 2000, 1)[:, 0]
    assert torch.equal(inverse_transform(log_p, float32_pairs(uniform)), exact(log_p, uniform))
    found = float32_transform(log_p, float32_pairs(uniform))
    assert (found == exact(log_p, uniform)).float().mean() > 0.999


@pytest.mark.parametrize("size", [12, LARGEST_SUM + 12])
def test_frequencies_are_the_probabilities(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "inverse_transform", float32_transform)
    logits = torch.full((size,), -40.0)
    places = torch.arange(12) * (size // 12)
    logits[places] = torch.arange(12.0).sin() * 2
    banned = places[:2]
    sample = token_sampler(Sampling(temperature=0.7), banned)
    n = 20_000 if size < LARGEST_SUM else 5_000
    tokens, log_probs, _ = sample(logits.repeat(n, 1), float32_pairs(KEY.uniform(1, n, 1)[:, 0]))
    p = token_distribution(logits, 0.7, banned).double().exp()
    counts = torch.bincount(tokens, minlength=size)
    assert counts[banned].sum() == 0
    likely = p * n > 2
    chi_square = ((counts - n * p)[likely] ** 2 / (n * p[likely])).sum()
    assert chi_square < 27.9  # 9 degrees of freedom: once in 1,000
    assert torch.allclose(log_probs.double().exp(), p[tokens], rtol=1e-5)


def test_drawing_on_a_gpu_takes_one_copy_of_the_log_probabilities() -> None:
    """The doctor counts it, with the head's output and the log-probabilities."""
    log_p = torch.randn(4, 20000).log_softmax(-1)
    with LargestMemory() as memory:
        float32_transform(log_p, torch.rand(4, 2))
    assert memory.largest < 1.1 * log_p.nbytes


TRUNCATED = [
    (Sampling(top_k=7), [TopKLogitsWarper(7)]),
    (Sampling(top_k=90_000), [TopKLogitsWarper(90_000)]),
    (Sampling(top_p=0.6), [TopPLogitsWarper(0.6)]),
    (Sampling(top_p=1e-6), [TopPLogitsWarper(1e-6)]),
    (Sampling(min_p=0.1), [MinPLogitsWarper(0.1)]),
    (Sampling(top_k=30, top_p=0.8, min_p=0.2), [TopKLogitsWarper(30), TopPLogitsWarper(0.8), MinPLogitsWarper(0.2)]),
]


@pytest.mark.parametrize(("sampling", "warpers"), TRUNCATED)
def test_tokens_are_ruled_out_as_by_transformers(sampling: Sampling, warpers: list[LogitsProcessor]) -> None:
    numbers = torch.Generator().manual_seed(0)
    logits = (torch.randn(64, 500, generator=numbers) * 3).bfloat16()  # with ties
    banned = logits.float().mean(0).topk(2).indices
    full = token_distribution(logits, sampling.temperature, banned)
    expected = LogitsProcessorList(warpers)(None, full).log_softmax(-1)  # type: ignore[arg-type]
    uniform = float32_pairs(KEY.uniform(64, 1, 1)[:, 0])
    tokens, log_probs, sampling_log_probs = token_sampler(sampling, banned)(logits, uniform)
    assert torch.equal(tokens, inverse_transform(expected, uniform))
    assert torch.equal(log_probs, full.gather(-1, tokens[:, None])[:, 0])
    torch.testing.assert_close(sampling_log_probs, expected.gather(-1, tokens[:, None])[:, 0], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("sampling", "copies"),
    [
        (Sampling(), LOGITS_COPIES),
        (Sampling(top_k=7, min_p=0.1), LOGITS_COPIES),
        (Sampling(top_k=7, top_p=0.9, min_p=0.1), SORTED_COPIES),
    ],
)
def test_copies_of_logits_in_a_step_are_those_that_the_doctor_counts(
    sampling: Sampling, copies: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "inverse_transform", float32_transform)
    logits, uniform = torch.randn(4, 20000, dtype=torch.bfloat16), torch.rand(4, 2)
    with LargestMemory() as memory:
        token_sampler(sampling, torch.tensor([1]))(logits, uniform)
    assert memory.largest == pytest.approx(copies * 4 * logits.numel(), rel=0.05)


def test_pairs_keep_48_bits() -> None:
    numbers = KEY.uniform(1, 1, 1000)[0] * torch.logspace(-9, 0, 1000, dtype=torch.float64)
    assert (float32_pairs(numbers).double().sum(-1) - numbers).abs().max() < 2.0**-48


@pytest.mark.parametrize("size", [40, LARGEST_SUM + 40])
def test_the_largest_number_draws_the_last_possible_token(size: int) -> None:
    banned = torch.arange(size - 20, size)
    log_p = token_distribution(torch.zeros(1, size), 1.0, banned)
    largest = float32_pairs(torch.tensor([1 - 2.0**-53], dtype=torch.float64))
    for transform in (inverse_transform, float32_transform):
        assert transform(log_p, largest).item() == size - 21
        assert transform(log_p, torch.zeros(1, 2)).item() == 0


def test_numbers_belong_to_their_row_on_any_rank() -> None:
    whole = KEY.uniform(4, 3, 5).view(4, 3, 5)
    for rank in range(2):
        assert torch.equal(replace(KEY, rank=rank, world_size=2).uniform(2, 3, 5).view(2, 3, 5), whole[rank::2])
    assert torch.equal(replace(KEY, first=1, first_generation=2).uniform(1, 1, 5)[0], whole[1, 2])
