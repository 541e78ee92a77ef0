"""The choice between CUDA's attention kernels."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from vrft.policy import Policy
from vrft.policy.attention_kernels import avoid_cudnn


@pytest.fixture
def _cudnn_allowed() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.usefixtures("_cudnn_allowed")
@pytest.mark.parametrize("gpu", [True, False])
def test_no_attention_goes_to_cudnn_once_a_policy_is_read(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    policy = Policy("tiny-digits")

    def read(_: bool) -> None:
        assert torch.backends.cuda.cudnn_sdp_enabled() is not gpu
        raise StopIteration

    policy.reader = SimpleNamespace(read=read)  # type: ignore[assignment]
    with pytest.raises(StopIteration):
        policy.read(keep_reference=False)
    avoid_cudnn()
    assert torch.backends.cuda.cudnn_sdp_enabled() is not gpu
