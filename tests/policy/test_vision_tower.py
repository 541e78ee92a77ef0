"""Attention within the segments of a row of patches, and a tower's arguments from the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import families
from tests.helpers.gpu import OnGPU
from tests.policy.test_families import Prompts, load
from vrft.policy.prompts import encode_images, encode_prompts
from vrft.policy.vision_tower import INDEXED_ON_CPU, is_segmented, own_attention, segment_attention, tower_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return families.written_once(tmp_path_factory)


@pytest.mark.parametrize("lengths", [[4, 4, 4], [5], [4, 2, 4, 2, 6, 1]], ids=str)
def test_patches_attend_to_their_segment_alone(lengths: list[int]) -> None:
    qkv = [torch.randn(1, 2, sum(lengths), 8, requires_grad=True) for _ in range(3)]
    boundaries = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    parts = zip(*(x.split(lengths, 2) for x in qkv), strict=True)
    expected = torch.cat([F.scaled_dot_product_attention(*part, scale=0.3) for part in parts], 2).transpose(1, 2)
    found, _ = segment_attention(nn.Module(), *qkv, None, cu_seq_lens_q=boundaries, scaling=0.3)
    torch.testing.assert_close(found, expected)
    weights = torch.arange(found.numel()).cos().view(found.shape)
    gradients = [torch.autograd.grad((x * weights).sum(), qkv) for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_patches_attend_on_a_gpu_without_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 computes in float16 and has no flash kernel."""
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", lambda _: False)
    qkv = [torch.randn(1, 2, 6, 8, dtype=torch.float16) for _ in range(3)]
    boundaries = torch.tensor([0, 4, 6])
    expected, _ = segment_attention(nn.Module(), *qkv, None, cu_seq_lens_q=boundaries)
    found, _ = segment_attention(nn.Module(), *(x.as_subclass(OnGPU) for x in qkv), None, cu_seq_lens_q=boundaries)
    assert torch.equal(found.as_subclass(Tensor), expected)


@pytest.mark.parametrize("family", [family for family in families.FAMILIES if family in INDEXED_ON_CPU])
def test_a_tower_packs_images_of_several_prompts(family: str, checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint(family))
    prompts = Prompts(policy).batch.inputs
    assert any(map(is_segmented, tower_of(policy.base).modules()))
    found = encode_prompts(policy.base, prompts)
    with own_attention(policy.base):
        expected = [policy.base.base_model.get_image_features(**images(prompt)) for prompt in prompts]
    torch.testing.assert_close(torch.cat([*found.pooled]), torch.cat([x for y in expected for x in y.pooler_output]))
    torch.testing.assert_close(torch.cat([*encode_images(policy.base, prompts[0]).pooled]), found_of(found.pooled, 1))


def images(prompt: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: prompt[key] for key in ("pixel_values", "image_grid_thw")}


def found_of(pooled: object, count: int) -> Tensor:
    return torch.cat([*pooled][:count])  # type: ignore[misc]
