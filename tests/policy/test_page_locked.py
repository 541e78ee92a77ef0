"""Page-locked memory, which torch allocates in powers of two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vrft.policy.page_locked import move_to_cpu, places

LAYERS = 28
HIDDEN, INNER, KEYS, VOCABULARY = 3584, 18944, 512, 152064  # of Qwen2.5-VL-7B
LAYER = [HIDDEN * INNER] * 3 + [HIDDEN * HIDDEN] * 2 + [HIDDEN * KEYS] * 2 + [HIDDEN] * 3 + [KEYS] * 2
MODEL = [VOCABULARY * HIDDEN, *LAYER * LAYERS, VOCABULARY * HIDDEN, HIDDEN]


@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize("weights", [MODEL, MODEL[1:60], [VOCABULARY * HIDDEN]], ids=["model", "layers", "one weight"])
def test_buffers_take_little_more_than_their_tensors(weights: list[int], item: int) -> None:
    sizes = [item * count for count in weights]
    buffers, found = places(sizes)
    rounded = sum(1 << (size - 1).bit_length() for size in sizes)
    assert sum(buffers) <= min(1.05 * sum(sizes), rounded) or len(sizes) == 1
    assert all(size.bit_count() == 1 for size in buffers)
    ends = dict.fromkeys(range(len(buffers)), 0)
    for i, place in found.items():
        assert place.start >= ends[place.buffer]
        ends[place.buffer] = place.start + sizes[i]
    assert all(end <= buffers[buffer] for buffer, end in ends.items())
    assert len(found) == len(sizes)


def test_tensors_keep_their_values_dtypes_and_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, locked = torch.empty, []

    def allocate(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        tensor = empty(*args, **options)
        locked.extend([tensor] * pin_memory)
        return tensor

    monkeypatch.setattr(torch, "empty", allocate)
    tensors = [torch.randn(5, 7), torch.randn(3, 4).T, torch.tensor(3.0), torch.zeros(0, 2), torch.arange(9)]
    tensors += [torch.randn(9).bfloat16(), torch.rand(300) > 0.5, torch.randn(2, 1).expand(2, 3)]
    before = [tensor.clone() for tensor in tensors]
    move_to_cpu(tensors, torch.device("cuda"))
    assert len(locked) < len(tensors)
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert places == {tensor.untyped_storage().data_ptr() for tensor in locked}
    for tensor, copied in zip(tensors, before, strict=True):
        assert tensor.dtype == copied.dtype
        assert tensor.stride() == copied.stride()
        assert torch.equal(tensor, copied)
