"""Attention of new tokens on a GPU keeps scores in float32."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.large_keys import attention_gap


@pytest.mark.parametrize("room", [None, 32], ids=["growing", "room"])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str
)
def test_scores_of_large_keys_are_not_rounded(dtype: torch.dtype, rounding: float, room: int | None) -> None:
    with torch.no_grad():
        assert attention_gap(dtype, "cuda", room) < rounding
