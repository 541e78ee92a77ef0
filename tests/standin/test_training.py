"""Training on a GPU ends with the CPU's weights, up to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.standin.conftest import Run, assert_same
from tests.standin.device import properties

LORA = ("--model.policy.lora.r=4", "--model.optimizer.lr=0.004")
RFT = {
    "full": ("--model.policy.dtype=float32",),
    "two tokens without a reference": (
        *("--model.policy.dtype=float32", "--model.max_completion_length=2"),
        "--model.beta=0",
    ),
    "everything": (
        *("--model.policy.dtype=float32", "--model.max_extra_rollouts=1", "--model.num_minibatches=2"),
        *("--model.num_iterations=2", "--model.sft_weight=0.3", "--trainer.max_steps=4", "--model.top_p=0.9"),
        *("--model.policy.offload_reference=true", "--model.policy.gradient_checkpointing=true"),
        "--model.max_tokens_per_micro_batch=120",
    ),
    # A seed for which rounding in bfloat16 changes no sampled token.
    "lora in bfloat16": (
        "--model.policy.dtype=bfloat16",
        *LORA,
        "--trainer.limit_val_batches=1",
        "--seed_everything=2",
    ),
}


@pytest.mark.parametrize("settings", RFT.values(), ids=RFT)
def test_reinforcement(settings: tuple[str, ...], on: Callable[..., Run]) -> None:
    # Adam divides small gradients by their size, so rounding moves single weights by a tenth of a step.
    rounding = 5e-3 if "bfloat16" in settings[0] else 5e-5
    assert_same(on("cpu", *settings), on("cuda", *settings), rounding)


def test_float16_on_a_gpu_without_bfloat16(on: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "major", 7)
    whole, half = (
        on("cuda", f"--model.policy.dtype={dtype}", config="quickstart_sft") for dtype in ("float32", "float16")
    )
    for mine, yours in zip(whole.metrics, half.metrics, strict=True):
        assert yours["train/loss"] == pytest.approx(mine["train/loss"], rel=0.03)
        assert yours["train/grad_norm"] == pytest.approx(mine["train/grad_norm"], rel=0.03)
        assert (yours["train/loss_scale"], yours["train/skipped_steps"]) == (2**16, 0)


@pytest.mark.parametrize("settings", [("--model.policy.dtype=float32",), ("--model.policy.dtype=bfloat16", *LORA)])
def test_supervised(settings: tuple[str, ...], on: Callable[..., Run]) -> None:
    rounding = 5e-3 if "bfloat16" in settings[0] else 2e-5
    assert_same(*(on(device, *settings, config="quickstart_sft") for device in ("cpu", "cuda")), rounding)
