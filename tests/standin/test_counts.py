"""What a GPU is waited for and how many kernels it gets, by part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.standin.conftest import Run
from tests.standin.device import events, gpu, phase
from vrft.policy import Policy
from vrft.training.loss_inputs import LossInputs
from vrft.training.optimization import use_fused_kernels
from vrft.types import Answer, PromptBatch, Rollout, ScoredRollout

ROWS, LENGTH = 24, 8


@pytest.fixture(autouse=True)
def _counted() -> None:
    gpu.reset()
    events.clear()


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = Policy("tiny-detection", dtype="float32")
    with torch.device("cuda"):
        policy.load(keep_reference=False)
    return policy


def rollout(policy: Policy) -> Rollout:
    ids = torch.full((ROWS, LENGTH), 100, device="cuda")
    zeros = torch.zeros(ROWS, LENGTH, device="cuda")
    return Rollout(ids, torch.ones_like(ids), zeros, zeros, ids[:, 0] > 0, [""] * ROWS)


def test_texts_of_all_rows_are_read_at_once(policy: Policy) -> None:
    done = rollout(policy)
    with phase("texts"):
        assert len(policy.decode(done.ids, done.mask)) == ROWS
        assert len(policy.token_texts(done)) == ROWS
    assert gpu.counts()["texts"]["syncs"] < 10


def test_rows_of_the_loss_are_selected_without_waiting() -> None:
    shape = torch.ones(ROWS, LENGTH, device="cuda")
    inputs = LossInputs(shape.long(), shape.long(), shape, shape, shape[:, 0], shape[:, 0], shape)
    with phase("select"):
        inputs.select([3, 1, 2])
    assert gpu.counts()["select"]["syncs"] == 1  # the longest row


def test_prompts_of_a_rollout_are_selected_without_waiting(policy: Policy) -> None:
    done, reward = rollout(policy), torch.arange(float(ROWS), device="cuda")
    answers = [Answer(str(row), "", None, well_formed=False) for row in range(ROWS)]
    batch = PromptBatch([None] * 6, [None] * 6, [{}] * 6)  # type: ignore[list-item]
    scored = ScoredRollout(batch, done, answers, {"reward": reward}, reward.view(6, -1))
    with phase("select"):
        kept = [scored.select([4, 1]), scored.keep([[3, 0]] * 6)]
    assert gpu.counts()["select"]["syncs"] == len(kept)  # the longest row of each
    assert kept[0].rewards["reward"].tolist() == [16, 17, 18, 19, 4, 5, 6, 7]
    assert kept[1].reward[2].tolist() == [11, 8]


def test_adam_needs_no_temporary_memory() -> None:
    weights = [nn.Parameter(torch.ones(100, 100, device="cuda")) for _ in range(10)]
    size = sum(weight.nbytes for weight in weights)
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    use_fused_kernels(optimizer)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    before = gpu.memory()
    with phase("optimizer"):
        optimizer.step()
    assert gpu.counts()["optimizer"]["peak"] < before + 0.1 * size


def test_batches_are_copied_from_page_locked_memory_with_positions_of_the_cpu(on: Callable[..., Run]) -> None:
    on("cuda", "--trainer.max_steps=1", "--trainer.limit_val_batches=1")
    waits = [(kind, where) for counted in events.values() for kind, _, where in counted if kind in ("sync", "pageable")]
    assert len(waits) > 10
    loading = ("data/", "policy/prompts.py")  # the copies of a batch; positions, and comparisons of images
    assert [wait for wait in waits if any(part in wait[1] for part in loading)] == []
