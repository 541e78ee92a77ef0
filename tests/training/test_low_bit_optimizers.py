"""Optimizers with states of 8 bits: a step is AdamW's up to the rounding of its states, and a resumed one is exact."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from vrft.cli.named_configs import CONFIGS
from vrft.doctor.memory import optimizer_bytes

optim: Any = pytest.importorskip("bitsandbytes.optim")
SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
CLASSES = [
    yaml.safe_load(path.read_text())["model"]["init_args"]["optimizer"]["class_path"].rpartition(".")[2]
    for path in sorted((CONFIGS / "optimizer").glob("*.yaml"))
]


def gradients(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(64, 256, generator=generator)
    return [direction + torch.randn(64, 256, generator=generator) for _ in range(steps)]


def start() -> nn.Parameter:
    return nn.Parameter(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: Tensor) -> None:
    weight.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize("name", CLASSES)
def test_steps_are_those_of_adamw_within_rounding(name: str) -> None:
    """The first step has no rounded state; later ones differ by the rounding of moments to 8 bits, 1 % of an update."""
    weight, expected, first = start(), start(), start().detach()
    optimizer, reference = getattr(optim, name)([weight], **SETTINGS), torch.optim.AdamW([expected], **SETTINGS)
    for number, gradient in enumerate(gradients(3)):
        step(optimizer, weight, gradient)
        step(reference, expected, gradient)
        gap = (weight - expected).norm() / (expected - first).norm()
        assert gap < (0.01 if number else 1e-5)
    assert gap > 1e-5  # states are rounded


@pytest.mark.parametrize("name", CLASSES)
def test_a_restored_optimizer_continues_bit_for_bit(name: str) -> None:
    weight, restored = start(), start()
    optimizer, other = (getattr(optim, name)([w], **SETTINGS) for w in (weight, restored))
    *before, last = gradients(3)
    for gradient in before:
        step(optimizer, weight, gradient)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weight": weight.detach()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["optimizer"])
    restored.data.copy_(saved["weight"])
    step(optimizer, weight, last)
    step(other, restored, last)
    assert torch.equal(weight, restored)
    for mine, theirs in zip(optimizer.state[weight].values(), other.state[restored].values(), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


@pytest.mark.parametrize("name", CLASSES)
def test_the_doctor_counts_two_bytes_of_state_and_their_scales(name: str) -> None:
    module: Any = SimpleNamespace(optimizer_callable=lambda parameters: getattr(optim, name)(parameters, **SETTINGS))
    assert optimizer_bytes(module) == pytest.approx(2 + 2 * 4 / 256, abs=0.01)
