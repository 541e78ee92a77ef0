"""What a GPU is waited for and how many kernels it gets, by part."""

from __future__ import annotations

import runpy

import pytest
import torch
from PIL import Image
from torch import nn

from tests.helpers import ROOT
from tests.standin.device import events, gpu, phase
from vrft.doctor.memory import model_shape, update_bytes
from vrft.policy import LoRA, Policy
from vrft.tasks import DetectionTask
from vrft.training.loss_inputs import LossInputs
from vrft.training.optimization import use_fused_kernels
from vrft.types import PromptBatch, Rollout, Sample

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


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a checkpoint whose activations are much larger than its constants."""
    folder = tmp_path_factory.mktemp("wide")
    build = runpy.run_path(str(ROOT / "benchmarks" / "build_checkpoint.py"))
    build["main"]([str(folder), "--preset", "tiny"])
    return str(folder)


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


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_doctors_estimate_of_an_update_is_near_the_peak(
    dtype: str, lora: LoRA | None, checkpointing: bool, wide_checkpoint: str
) -> None:
    policy = Policy(wide_checkpoint, lora, freeze_vision=True, dtype=dtype, gradient_checkpointing=checkpointing)  # type: ignore[arg-type]
    with torch.device("cuda"):
        policy.load(keep_reference=False)
    policy.train()
    sample = Sample(0, (Image.new("RGB", (112, 112)),), 0, "count", "")
    batch = policy.encoder(DetectionTask("Detect {query}"))([sample])
    prompt = {key: value.to("cuda") for key, value in batch.inputs[0].items()}
    prepared = policy.prepare(PromptBatch(batch.samples, batch.frames, [prompt]))
    ids = torch.full((8, 100), 100, device="cuda")
    before = gpu.memory()
    with phase("forward"):
        log_probs, _ = policy(prepared.inputs, ids, torch.ones_like(ids), 1.0)
    with phase("backward"):
        log_probs.sum().backward()
    gradients = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
    counts = gpu.counts()
    peak = max(counts["forward"]["peak"], counts["backward"]["peak"] - gradients) - before
    tokens = prompt["input_ids"].shape[1] + ids.numel()
    shape = model_shape(policy.base.config, policy.dtype)
    estimate = sum(update_bytes(shape, tokens, lora=lora is not None, checkpointing=checkpointing))
    assert 0.8 * peak < estimate < 1.3 * peak  # fused norms keep less than the estimate counts


def test_batches_are_copied_from_page_locked_memory() -> None:
    batch = torch.ones(8).pin_memory()
    with phase("copy"):
        batch.to("cuda", non_blocking=True)
    assert gpu.counts()["copy"]["syncs"] == 0
    assert not events["copy"]
