"""The entropy bonus, its adaptive weight and the tokens with the most entropy, against plain loops."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from tests.helpers import CSV_ONLY, Command
from vrft.__main__ import main
from vrft.policy.logprobs import token_log_probs
from vrft.training.entropy import adapted_weight, top_entropy_tokens
from vrft.training.grpo import policy_loss

MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [2, 100])
def test_the_entropy_and_its_gradient_are_those_of_a_plain_loop(chunk: int) -> None:
    hidden = normal(5, 6).float().requires_grad_()
    ids, lengths, banned = torch.tensor([[0, 1, 2], [3, 4, 0], [0, 0, 0]]), [3, 2, 0], torch.tensor([5])
    settings = {"temperature": 0.7, "banned": banned, "chunk": chunk}
    log_probs, entropy = token_log_probs(torch.clone, hidden, ids, lengths, entropy_gradient=True, **settings)  # type: ignore[arg-type]
    plain = token_log_probs(torch.clone, hidden, ids, lengths, **settings)  # type: ignore[arg-type]
    assert not plain[1].requires_grad
    torch.testing.assert_close(log_probs, plain[0])
    torch.testing.assert_close(entropy, plain[1])
    (gradient,) = torch.autograd.grad(entropy.sum(), hidden)
    for h, found in zip(hidden.detach(), gradient, strict=True):
        p = [math.exp(float(x) / 0.7) for x in h[:5]]  # without the banned id
        p = [x / sum(p) for x in p]
        value = -sum(x * math.log(x) for x in p)
        assert any(math.isclose(value, float(x), rel_tol=1e-4) for x in entropy[MASK.bool()])
        expected = [-x * (math.log(x) + value) / 0.7 for x in p] + [0.0]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_bonus_and_chosen_tokens_enter_the_loss_as_in_a_plain_loop() -> None:
    old, reference, advantages = normal(3, 3), normal(3, 3, seed=1), torch.tensor([1.0, -1.0, 2.0]).double()
    log_probs, entropy = (
        (old + 0.5 * normal(3, 3, seed=2)).requires_grad_(),
        normal(3, 3, seed=3).exp().requires_grad_(),
    )
    weights = torch.tensor([0.2, 0.3, 0.5]).double()
    chosen = torch.tensor([[True, False, True], [False, True, True], [True, True, True]])
    result = policy_loss(
        log_probs,
        old,
        advantages,
        MASK,
        weights,
        reference=reference,
        beta=0.1,
        chosen=chosen,
        entropy=entropy,
        entropy_weight=torch.tensor(0.3),
    )
    result.loss.backward()
    loss = 0.0
    for i in range(3):
        for t in range(int(MASK[i].sum())):
            ratio, a = math.exp(log_probs[i, t].item() - old[i, t].item()), advantages[i].item()
            surrogate = -min(ratio * a, min(max(ratio, 0.8), 1.2) * a) if chosen[i, t] else 0.0
            d = reference[i, t].item() - log_probs[i, t].item()
            loss += weights[i].item() * (surrogate + 0.1 * (math.exp(d) - d - 1) - 0.3 * entropy[i, t].item())
    assert result.loss.item() == pytest.approx(loss)
    torch.testing.assert_close(entropy.grad, -0.3 * weights[:, None] * MASK, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.7, 1.0])
def test_top_tokens_are_those_of_a_sorted_list_over_all_ranks(share: float) -> None:
    ranks = normal(2, 3, 3).abs()
    ranks[1, 0, 0] = ranks[0, 0, 0]  # a tie between ranks
    everyone = torch.where(MASK.bool(), ranks, torch.nan)
    known = sorted((x for x in everyone.flatten().tolist() if not math.isnan(x)), reverse=True)
    threshold = known[max(1, math.ceil(round(share * len(known), 6))) - 1]
    for entropy in ranks:
        found = top_entropy_tokens(entropy, MASK, everyone.flatten(), share)
        expected = [
            [bool(m) and x >= threshold for x, m in zip(*row, strict=True)] for row in zip(entropy, MASK, strict=True)
        ]
        assert found.tolist() == expected


def test_without_tokens_no_token_is_chosen() -> None:
    assert not top_entropy_tokens(torch.rand(2, 3), torch.zeros(2, 3), torch.full((6,), math.nan), 0.2).any()


def test_the_weight_follows_the_entropy_and_stays_at_least_0() -> None:
    weight, naive = torch.tensor(0.0), 0.0
    for entropy in (0.1, 0.1, 0.5, 0.3, math.nan, 0.9, 0.9, 0.1):
        weight = adapted_weight(weight, torch.tensor(entropy), 0.3, 0.01)
        naive = max(0.0, naive + 0.01 * (entropy == 0.1) - 0.01 * (entropy > 0.4))
        assert float(weight) == pytest.approx(naive)


def test_a_resumed_run_continues_with_the_adapted_weight(quick_fit: Command, tmp_path: Path) -> None:
    """Train with all settings of entropy at once. The target is out of reach, so the weight rises in each step."""
    settings = ["loss_type=sapo", "beta=0", "num_iterations=2", "num_minibatches=2", "num_generations=4"]
    settings += ["top_entropy_quantile=0.2", "entropy_target=100", "entropy_weight=0.01", "entropy_step=0.5"]
    settings += ["mask_truncated_completions=true", "max_tokens_per_micro_batch=100"]
    fit = quick_fit(CSV_ONLY, "--data.batch_size=4", *(f"--model.{setting}" for setting in settings))
    fit.append("--trainer.limit_val_batches=0")
    assert main([*fit, "--trainer.max_steps=4"]) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert float(last["state_dict"]["entropy_weight"]) == pytest.approx(0.51)
    assert main([*fit, "--trainer.max_steps=8", "--ckpt_path=last"]) == 0
    weights = []
    for log in sorted((tmp_path / "run" / "logs").glob("*/metrics.csv")):
        with log.open() as file:
            weights += [
                float(row["train/entropy_weight"]) for row in csv.DictReader(file) if row["train/entropy_weight"]
            ]
    assert [*dict.fromkeys(weights)] == pytest.approx([0.01, 0.51])  # the last row of a run is written twice
