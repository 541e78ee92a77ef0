"""The weights that linear layers decode with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vrft.policy.products import replaced_forwards, stored_transposed


def test_weights_that_lie_transposed_have_the_same_values() -> None:
    weights = [torch.randn(rows, 33, generator=torch.Generator().manual_seed(rows)) for rows in (70, 1, 5)]
    found = stored_transposed(weights, torch.float32)
    assert torch.equal(found, torch.cat(weights))
    assert found.t().is_contiguous()
    assert torch.equal(stored_transposed(weights[:1], torch.bfloat16), weights[0].bfloat16())


def test_replaced_forwards_are_restored() -> None:
    plain, patched = nn.Identity(), nn.Identity()
    patched.forward = lambda x: x + 1  # type: ignore[method-assign]

    def fail() -> None:
        with replaced_forwards(dict.fromkeys((plain, patched), torch.neg)):
            assert plain(torch.ones(1)) == patched(torch.ones(1)) == -1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert plain(torch.ones(1)) == 1
    assert patched(torch.ones(1)) == 2
