"""Products with packed weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vrft.policy.products import ROWS, PackedProduct, can_pack, replaced_forwards

CPU = torch.device("cpu")
packs = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="oneDNN packs weights on x86 alone")


@packs
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (ROWS + 7,)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_packed_weights_give_the_same_products(shape: tuple[int, ...], biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(70, 33, generator=generator), torch.randn(70, generator=generator)
    x = torch.randn(*shape, 33, generator=generator)
    found = PackedProduct(weight, bias if biased else None)(x)
    expected = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_only_float32_on_a_cpu_is_packed() -> None:
    assert not can_pack(CPU, torch.bfloat16)
    assert not can_pack(torch.device("cuda"), torch.float32)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not can_pack(CPU, torch.float32)


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
