"""Training on a GPU ends with the CPU's weights, up to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.standin.conftest import Run, assert_same

LORA = ("--model.policy.lora.r=4", "--model.optimizer.lr=0.004")
RFT = {
    "full": ("--model.policy.dtype=float32",),
    "two tokens": ("--model.policy.dtype=float32", "--model.max_completion_length=2"),
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
    rounding = 5e-3 if "bfloat16" in settings[0] else 2e-5
    assert_same(on("cpu", *settings), on("cuda", *settings), rounding)


@pytest.mark.parametrize("settings", [("--model.policy.dtype=float32",), ("--model.policy.dtype=bfloat16", *LORA)])
def test_supervised(settings: tuple[str, ...], on: Callable[..., Run]) -> None:
    rounding = 5e-3 if "bfloat16" in settings[0] else 2e-5
    assert_same(*(on(device, *settings, config="quickstart_sft") for device in ("cpu", "cuda")), rounding)
