"""Layers that convert their weights at once compute what autocast computes, to the last digit."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from vrft.policy.casts import Cast, CastingLayer, cast_by_layer, without_casts
from vrft.policy.fused import fuse_layers


class Layer(GradientCheckpointingLayer):
    """A norm, two linear layers and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Qwen2_5_VLRMSNorm(16)
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(self.norm(x)).relu())


class Unrounded(Layer):
    """A layer that computes a product without autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.outer(self.inner(x.float()))


def result(layer: nn.Module, x: Tensor, checkpointed: bool = False) -> list[Any]:
    """Return the output under autocast, and the gradients of the input and of all weights."""
    x = x.clone().requires_grad_()
    call = partial(checkpoint, layer, use_reentrant=False) if checkpointed else layer
    with torch.autocast("cpu", torch.bfloat16):
        output = call(x)
    return [output, *torch.autograd.grad(output.float().sin().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_autocast(
    dtype: torch.dtype, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = Layer()
    nn.init.normal_(layer.norm.weight)
    fuse_layers(layer)
    assert isinstance(layer, CastingLayer)
    x = torch.randn(2, 3, 16).to(dtype)
    with without_casts(layer):
        expected = result(layer, x, checkpointed)
    cast: list[int] = []
    forward = Cast.forward
    monkeypatch.setattr(Cast, "forward", lambda ctx, *tensors: cast.append(len(tensors)) or forward(ctx, *tensors))
    found = result(layer, x, checkpointed)
    assert cast[0] == 1 + 3 + (dtype == torch.bfloat16)  # the dtype and the weights; norms in their input's dtype
    for mine, autocasts in zip(found, expected, strict=True):
        assert torch.equal(mine, autocasts)
        assert mine.dtype == autocasts.dtype
    assert not vars(layer.inner).keys() & {"weight", "bias"}


class Mixture(GradientCheckpointingLayer):
    """A layer of experts, each token in two of them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"num_experts": 4, "num_experts_per_tok": 2, "hidden_size": 16, "moe_intermediate_size": 8}
        config = Qwen3VLMoeTextConfig(**sizes)
        config._experts_implementation = "grouped_mm"
        self.experts = Qwen3VLMoeTextExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.arange(len(x))[:, None].add(torch.arange(2)) % 4
        output: Tensor = self.experts(x, chosen, torch.full(chosen.shape, 0.5, dtype=x.dtype))
        return output


def test_experts_compute_in_autocasts_dtype() -> None:
    torch.manual_seed(0)
    layer = Mixture()
    for weight in layer.parameters():
        nn.init.normal_(weight, 0, 0.3)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    cast_by_layer(layer)
    x = torch.randn(5, 16).bfloat16()
    for mine, expected in zip(result(layer, x), result(half, x), strict=True):
        assert torch.equal(mine.to(expected.dtype), expected)
    assert all(weight.grad is None and weight.dtype == torch.float32 for weight in layer.parameters())


def test_weights_that_have_the_dtype_are_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer().to(torch.bfloat16)
    cast_by_layer(layer)
    monkeypatch.setattr(Cast, "forward", None)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(3, 16, dtype=torch.bfloat16))


def test_an_unused_weight_has_no_gradient() -> None:
    layer = copy.deepcopy(Layer())
    layer.add_module("unused", nn.Linear(4, 4))
    cast_by_layer(layer)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(3, 16)).float().sum().backward()
    assert layer.get_submodule("unused").weight.grad is None
    assert layer.inner.weight.grad is not None


def test_a_layer_that_leaves_autocast_keeps_its_weights() -> None:
    layer = Unrounded()
    cast_by_layer(layer)
    assert type(layer) is Unrounded
