"""Attention of new tokens to a prompt and to their own row."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.large_keys import attention_gap


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str
)
def test_scores_of_large_keys_are_not_rounded(dtype: torch.dtype, rounding: float, autocast: bool) -> None:
    with torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
        assert attention_gap(dtype) < rounding
