"""Weights in bfloat16 train with an optimizer that rounds stochastically, and with no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from tests.helpers import CSV_ONLY, UNJUDGED, Command
from tests.training.test_skipped_steps import SMALL
from vrft.__main__ import main
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.training.stochastic_rounding import check_rounding, rounds_stochastically
from vrft.training.strategies import FSDP2Strategy

BFLOAT16 = ("--model.policy.dtype=bfloat16", "--model.policy.trained_dtype=bfloat16")
OWN = f"--model.optimizer.class_path={__name__}.StochasticSGD"


class StochasticSGD(torch.optim.SGD):
    """Gradient descent that rounds to bfloat16 up or down by chance, so that weights are right on average."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr=lr)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                exact = (weight.float() - group["lr"] * weight.grad.float()).view(torch.int32)
                noise = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32).to(exact.device)
                weight.copy_(((exact + noise) & -65536).view(torch.float32))


def test_optimizers_that_round_stochastically_are_told_from_others() -> None:
    assert rounds_stochastically(StochasticSGD)
    assert not rounds_stochastically(torch.optim.AdamW)
    assert not rounds_stochastically(torch.optim.SGD)


@pytest.mark.parametrize("settings", [{"lora": LoRA(r=2), "dtype": "bfloat16"}, {"dtype": "float32"}])
def test_weights_of_another_dtype_beside_those_in_bfloat16_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.policy\.trained_dtype: bfloat16 is for training all weights"):
        Policy("tiny-detection", trained_dtype="bfloat16", **settings)


def test_a_run_that_would_lose_updates_is_refused(quick_fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick_fit(*BFLOAT16, CSV_ONLY)) == 2
    said = "bfloat16 loses small updates unless the optimizer rounds stochastically"
    assert f"vrft: model.policy.trained_dtype: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("strategy", "follows", "said"),
    [
        (DDPStrategy(), False, "with DDPStrategy, whose ranks"),
        (FSDP2Strategy(), False, "with FSDP2Strategy, whose ranks"),
        (SingleDeviceStrategy(torch.device("cpu")), True, r"with model\.reference_decay"),
    ],
)
def test_replicas_and_averages_that_would_round_otherwise_are_refused(
    strategy: Strategy, follows: bool, said: str
) -> None:
    policy = Policy("tiny-detection", trained_dtype="bfloat16")
    trainer: Any = SimpleNamespace(world_size=1, strategy=strategy)
    with pytest.raises(ConfigurationError, match=rf"model\.policy\.trained_dtype: expected float32 {said}"):
        check_rounding(policy, trainer, StochasticSGD, follows)


def test_a_run_in_bfloat16_resumes_bit_for_bit(quick_fit: Command, tmp_path: Path) -> None:
    """Updates of about 1e-5 are far below half a unit in the last place of most weights."""
    words = (*BFLOAT16, OWN, "--model.optimizer.lr=0.001", "--trainer.limit_val_batches=0", CSV_ONLY, *SMALL, UNJUDGED)
    kept = ("--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1")
    first = f"--ckpt_path={tmp_path}/whole/checkpoints/step=1.ckpt"
    for name, more in (("whole", kept), ("parts", (first,))):
        assert main(quick_fit(*words, f"--run_dir={tmp_path / name}", *more)) == 0
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    policy = Policy("tiny-detection", dtype="bfloat16")
    policy.load(keep_reference=False)
    begun = {f"policy.model.{name}": value for name, value in policy.model.state_dict().items()}
    trained = {name: value for name, value in whole.items() if name in begun}
    assert trained
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, parts[name]) for name, value in trained.items())
    changed = [float((value != begun[name].to(torch.bfloat16)).float().mean()) for name, value in trained.items()]
    assert 0 < sum(changed) / len(changed) < 0.9
