"""The CPU memory of an offloaded reference in the doctor's estimate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vrft.doctor.memory import page_locked_bytes

WEIGHTS = nn.Linear(1024, 512, bias=False)  # 2 MiB


@pytest.mark.parametrize(
    ("settings", "follows", "kept"),
    [
        ({"offload_reference": False, "reference": WEIGHTS}, False, 0),
        ({"reference": WEIGHTS}, False, 1),
        ({"reference": None, "start": {torch.ones(1): WEIGHTS.weight}}, False, 1),
        ({"reference": None, "model": nn.Sequential(WEIGHTS)}, True, 1),
        ({"reference": None}, False, 0),
    ],
    ids=["on the GPU", "a copy", "adapters at the start", "an average", "without adapters"],
)
def test_an_offloaded_reference_takes_its_own_size(settings: dict[str, Any], follows: bool, kept: int) -> None:
    policy = SimpleNamespace(**({"offload_reference": True, "start": {}} | settings))
    module: Any = SimpleNamespace(policy=policy, reference_follows=follows)
    assert page_locked_bytes(module) == kept * 2**21
