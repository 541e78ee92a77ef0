"""Fused adapters compute what peft computes, or aren't used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor

from tests.policy.test_lora import loaded, log_probs
from vrft.policy import LoRA
from vrft.policy.fused import own_forwards
from vrft.policy.fused_adapters import FusedAdapter, LowRankLinear, fuse_adapters


def adapted(lora: LoRA) -> list[Any]:
    return [module for module in loaded(lora, seed=1).modules() if isinstance(module, Linear)]


@pytest.mark.parametrize("autocasts", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_peft(bias: bool, autocasts: bool) -> None:
    layers = adapted(LoRA(r=4, alpha=12))
    layer = next(layer for layer in layers if (layer.base_layer.bias is not None) == bias)
    assert isinstance(layer, FusedAdapter)
    torch.manual_seed(0)
    x = torch.randn(2, 3, layer.in_features)
    results = []
    for kind in (type(layer), Linear):
        layer.__class__ = kind
        inputs = [x.clone().requires_grad_(), layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
            output = layer(inputs[0])
        results.append([output, *torch.autograd.grad(output.float().sin().sum(), inputs)])
    for mine, pefts in zip(*results, strict=True):
        assert mine.dtype == pefts.dtype
        assert (mine - pefts).norm() < (2e-2 if autocasts else 1e-5) * pefts.norm()


def test_adapters_that_are_disabled_or_of_another_formula_are_pefts() -> None:
    assert not any(isinstance(layer, FusedAdapter) for layer in adapted(LoRA(r=4, use_dora=True)))
    layer = adapted(LoRA(r=4))[0]
    x = torch.randn(2, layer.in_features)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_adapters_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *others, scale = backward(ctx, gradient)
        return 1.01 * x, *others, scale  # type: ignore[operator]

    backward = LowRankLinear.backward
    monkeypatch.setattr(LowRankLinear, "backward", staticmethod(wrong))
    assert not any(isinstance(layer, FusedAdapter) for layer in adapted(LoRA(r=4)))


def test_own_forwards_are_those_of_peft() -> None:
    policy = loaded(LoRA(r=4), seed=1)
    found = log_probs(policy)
    with own_forwards(policy.base):
        assert not any(isinstance(module, FusedAdapter) for module in policy.modules())
        torch.testing.assert_close(log_probs(policy), found, atol=1e-4, rtol=1e-4)


def test_a_model_without_such_layers_stays_as_it_is() -> None:
    model = torch.nn.Linear(2, 2)
    assert fuse_adapters(model) is model
    assert type(model) is torch.nn.Linear
