"""Fused layers compute what their own classes compute; layers with other formulas keep theirs."""

from __future__ import annotations

import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.glm4v import modeling_glm4v
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.policy.test_families import Prompts, load
from vrft.policy.fused import fuse_layers, fused_attention, own_forwards, rotate, side_by_side
from vrft.policy.fused_norms import FusedLayer
from vrft.policy.last_layer import LastLayer
from vrft.policy.sharding import fsdp_modules
from vrft.policy.sharing_check import unfuse
from vrft.policy.vision_tower import tower_of

NORMS = (modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm, modeling_gemma3.Gemma3RMSNorm)


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output of a module, and the gradients of its input and weights after a loss."""
    x = x.clone().requires_grad_()
    output = module(x)
    weights = torch.arange(output.numel()).cos().view(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("shape", [(3, 5, 16), (16,), (0, 16)])
@pytest.mark.parametrize("kind", NORMS)
def test_fused_norms_equal_their_own(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    own = kind(16)
    nn.init.normal_(own.weight)
    fused = copy.deepcopy(own)
    fuse_layers(fused)
    assert isinstance(fused, FusedLayer)
    assert isinstance(fused, kind)
    x = torch.randn(shape)
    for found, expected in zip(gradients(fused, x), gradients(own, x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_fused_norm_computes_in_autocasts_dtype() -> None:
    norm = modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm(16)
    fuse_layers(norm)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 16)).dtype == torch.bfloat16


class LeftOut(nn.Module):
    """A normalization that leaves out the mean of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(16)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


@pytest.mark.parametrize("own", [LeftOut(), modeling_qwen3_5.Qwen3_5RMSNormGated(16), nn.LayerNorm(16)])
def test_other_normalizations_keep_their_forward(own: nn.Module) -> None:
    kind = type(own)
    fuse_layers(own)
    assert type(own) is kind


@pytest.mark.parametrize("width", [8, 4], ids=["whole heads", "half of each head"])
@pytest.mark.parametrize("heads", [2, 4])
def test_rotations_equal_transformers(heads: int, width: int) -> None:
    q, k = torch.randn(2, 4, 5, 8, requires_grad=True), torch.randn(2, heads, 5, 8, requires_grad=True)
    cos, sin = torch.randn(2, 2, 5, width)
    results = []
    for rotation in (rotate, (modeling_qwen2_5_vl if width == 8 else modeling_qwen3_5).apply_rotary_pos_emb):
        rotated = rotation(q, k, cos, sin)
        weighted = sum((x * torch.arange(x.numel()).cos().view(x.shape)).sum() for x in rotated)
        results.append([*rotated, *torch.autograd.grad(weighted, [q, k])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_queries_and_keys_of_one_projection_are_not_copied() -> None:
    q, k, v = torch.randn(5, 3, 4, 8).unbind(1)  # (L, heads, D) each
    assert torch.equal(side_by_side(q, k, 1), torch.cat([q, k], 1))
    assert side_by_side(q, k, 1).data_ptr() == q.data_ptr()
    for others in ((k, q), (q, v), (q, k.clone())):
        assert torch.equal(side_by_side(*others, 1), torch.cat(others, 1))


def test_attention_with_another_rotation_keeps_its_forward() -> None:
    assert fused_attention(modeling_glm4v.Glm4vTextAttention) is None  # rotates neighbours instead of halves
    assert fused_attention(modeling_glm4v.Glm4vVisionAttention) is not None


def test_own_forwards_are_those_of_transformers() -> None:
    policy = load("tiny-detection")
    fused = [module for module in policy.modules() if isinstance(module, FusedLayer)]
    assert fused
    with own_forwards(policy.base):
        assert not any(isinstance(module, FusedLayer) for module in policy.modules())
    assert fused == [module for module in policy.modules() if isinstance(module, FusedLayer)]


def test_layers_that_are_fused_no_more_are_those_of_transformers() -> None:
    policy = load("tiny-detection")
    unfuse(policy)
    assert not any(isinstance(module, FusedLayer) for module in policy.modules())
    assert tower_of(policy.base).config._attn_implementation == "sdpa"


def test_a_fused_model_gives_its_own_logits() -> None:
    policy = load("tiny-detection")
    inputs = Prompts(policy).batch.inputs[0]
    with torch.no_grad():
        found = policy.base(**inputs).logits
        with own_forwards(policy.base):
            expected = policy.base(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def sharded_layers() -> list[int]:
    """Return how many layers are sharded: before, inside and after own forwards, and after layers are unfused."""
    # After a fork, torch makes its thread pool again, which fails if the threads that read weights do so at once.
    torch.set_num_threads(torch.get_num_threads())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    policy = load("tiny-detection")
    layers = policy.base.get_decoder().layers
    assert isinstance(layers[-1], LastLayer)
    for module in (*layers, policy):
        fully_shard(module, mesh=mesh)
    counts = [len(fsdp_modules(policy))]
    with own_forwards(policy.base):
        assert not isinstance(layers[-1], FusedLayer)
        counts.append(len(fsdp_modules(policy)))
    counts.append(len(fsdp_modules(policy)))
    unfuse(policy)
    assert not isinstance(layers[-1], FusedLayer)
    with policy.unsharded():
        policy.base.get_decoder()(inputs_embeds=torch.zeros(1, 2, policy.base.get_input_embeddings().weight.shape[1]))
    return [*counts, len(fsdp_modules(policy))]


def test_layers_stay_sharded_with_their_own_forwards() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        counts = pool.submit(sharded_layers).result()
    assert counts[0] > 1
    assert len({*counts}) == 1
