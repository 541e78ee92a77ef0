"""Attention of packed rows as a GPU and a CPU compute it: code that branches on the device takes its branch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias

from tests.helpers.gpu import OnGPU
from vrft.policy import shared_prefix
from vrft.policy.packed_attention import Completions, PackedGroup, PackedLayout, attention
from vrft.policy.prefixes import Prefix

PROMPT, GROUP, HEADS, KEY_HEADS, WIDTH = 6, 3, 4, 2, 8


@pytest.fixture(autouse=True)
def kernels_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal masks as CUDA's kernels make them: from the shapes of queries and keys, not from the bias's own."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float = 0.0, **options: Any) -> Tensor:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, **options)

    monkeypatch.setattr(CausalBias, "_dispatch", attention)


def naive(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return attention of one sequence, a head at a time: (heads, n, dim) -> (n, heads, dim)."""
    groups = len(query) // len(key)
    rows = []
    for head in range(len(query)):
        scores = query[head] @ key[head // groups].T * WIDTH**-0.5
        rows.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value[head // groups])
    return torch.stack(rows, 1)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "bidirectional prompt"])
@pytest.mark.parametrize("key_heads", [HEADS, KEY_HEADS])
@pytest.mark.parametrize("n", [1, 2, 3])  # transformers' attention packs heads where there is one query
@pytest.mark.parametrize("prompt", [PROMPT, 1])
@pytest.mark.parametrize("device", [OnGPU, Tensor], ids=["gpu", "cpu"])
def test_attention_and_its_gradient_equal_those_of_each_sequence(
    device: type[Tensor], prompt: int, n: int, key_heads: int, masked: bool
) -> None:
    torch.manual_seed(0)
    heads = (HEADS, key_heads, key_heads)
    tensors = [torch.randn(1, count, prompt + GROUP * n, WIDTH, requires_grad=True) for count in heads]
    mask = torch.ones(prompt + n, prompt + n, dtype=torch.bool).tril()
    if masked:
        mask[:prompt, :prompt] = True
    completions = Completions([n] * GROUP, torch.device("cpu"))
    masks = {"full_attention": mask[None, None]} if masked else None
    group = PackedGroup(prompt, Completions([0], torch.device("cpu")), [completions], [masks])
    layout = PackedLayout([group], ["full_attention"], torch.device("cpu"))
    module: Any = SimpleNamespace(layer_idx=0, num_key_value_groups=HEADS // key_heads, is_causal=True)
    weight = torch.randn(1, prompt + GROUP * n, HEADS, WIDTH)

    output = layout.attend(module, *(x.as_subclass(device) for x in tensors), dropout=0.0, scaling=None)
    gradients = torch.autograd.grad((output.as_subclass(Tensor) * weight).sum(), tensors)

    expected = []
    for g in range(GROUP):
        own = [*range(prompt), *range(prompt + g * n, prompt + (g + 1) * n)]
        sequence = naive(*(x[0][:, own] for x in tensors), mask)
        expected += [sequence[prompt:]] if g else [sequence]
    naive_output = torch.cat(expected)[None]
    naive_gradients = torch.autograd.grad((naive_output * weight).sum(), tensors)
    torch.testing.assert_close(output.as_subclass(Tensor), naive_output)
    for gradient, naive_gradient in zip(gradients, naive_gradients, strict=True):
        torch.testing.assert_close(gradient, naive_gradient)


@pytest.mark.parametrize("masks", [0, 1, GROUP], ids=["causal", "one mask", "a mask for each row"])
def test_keys_and_values_are_kept_once_per_key_head(masks: int) -> None:
    length, n = PROMPT + 2, 2
    torch.manual_seed(0)
    shapes = ((HEADS, n), (KEY_HEADS, length), (KEY_HEADS, length))
    q, k, v = (torch.randn(GROUP, *shape, WIDTH, requires_grad=True) for shape in shapes)
    mask = torch.rand(masks, 1, n, length) > 0.4 if masks else None
    if mask is not None:
        mask[..., 0] = True
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[2:] == (length, WIDTH):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = attention(*(x.as_subclass(OnGPU) for x in (q, k, v)), mask)
    assert sorted(kept.values()) == [k.nbytes, v.nbytes]
    on_cpu = attention(q, k, v, mask)
    torch.testing.assert_close(output.as_subclass(Tensor), on_cpu)
    weight = torch.randn_like(on_cpu)
    found = torch.autograd.grad((output.as_subclass(Tensor) * weight).sum(), (q, k, v))
    for gradient, expected in zip(found, torch.autograd.grad((on_cpu * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "no flash"])
@pytest.mark.parametrize("n", [2, PROMPT])
def test_only_the_flash_kernel_gets_fewer_key_heads(n: int, flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flash kernel does not compute every call in half precision: not on a T4, not heads of 512 dimensions."""
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", lambda _: flash)
    heads: list[tuple[int, int]] = []

    def kernel(q: Tensor, k: Tensor, *others: Any, **options: Any) -> Tensor:
        heads.append((q.shape[1], k.shape[1]))
        return dispatch(q, k, *others, **options)

    dispatch = CausalBias._dispatch
    monkeypatch.setattr(CausalBias, "_dispatch", kernel)
    shapes = ((HEADS, n), (KEY_HEADS, PROMPT), (KEY_HEADS, PROMPT))
    q, k, v = (torch.randn(1, *shape, WIDTH, dtype=torch.float16) for shape in shapes)
    output = attention(*(x.as_subclass(OnGPU) for x in (q, k, v)), None)
    assert heads == [(HEADS, KEY_HEADS) if flash else (HEADS // KEY_HEADS,) * 2]
    mask = torch.ones(n, PROMPT, dtype=torch.bool).tril(PROMPT - n)
    expected = naive(q[0].float(), k[0].float(), v[0].float(), mask)[None]
    torch.testing.assert_close(output.as_subclass(Tensor).float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["softcap", "position_bias"])
def test_attention_with_what_a_packed_row_ignores_is_refused(name: str) -> None:
    layout: Any = SimpleNamespace(attend=lambda *_, **__: torch.zeros(1))
    call = (torch.nn.Identity(), *[torch.zeros(1)] * 4)
    with pytest.raises(ValueError, match=f"{name} can't share prompts"):
        shared_prefix.shared_prefix_attention(*call, shared_prefix=layout, **{name: 30.0})


def test_prompts_without_masks_attend_beside_those_that_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is shorter than a sliding window has no mask."""
    cpu = torch.device("cpu")
    prompts = [{"input_ids": torch.zeros(1, 4 + rest, dtype=torch.long)} for rest in (7, 3)]
    prefix = Prefix(4, prompts, [])
    completions: list[Completions | None] = [Completions([1, 1], cpu), Completions([6, 2], cpu)]
    parts = [[torch.randn(1, HEADS, n, WIDTH) for n in (4, 10, 2, 8)] for _ in range(3)]

    def attended(masked: list[bool]) -> list[Tensor]:
        rows = iter(masked)
        mask = {"full_attention": shared_prefix.causal_mask(13, cpu)}
        monkeypatch.setattr(shared_prefix, "single_sequence_masks", lambda *_: mask if next(rows) else None)
        group = shared_prefix.packed_group(SimpleNamespace(), prefix, completions, cpu)  # type: ignore[arg-type]
        return group.attend("full_attention", parts, dropout=0.0, scaling=None)

    torch.testing.assert_close(attended([False, True]), attended([False, False]))


@pytest.mark.parametrize("rest", [0, 2])
def test_the_last_layer_computes_only_the_last_token_of_a_prefix(rest: int) -> None:
    """Tokens before it predict nothing, and no later layer reads them."""
    cpu = torch.device("cpu")
    group = PackedGroup(4, Completions([rest], cpu), [Completions([3, 2], cpu)], [None])
    tensors = [torch.randn(1, heads, 9 + rest, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]

    def attended(layer: int) -> Tensor:
        layout = PackedLayout([group], ["full_attention"] * 2, cpu, kept=torch.tensor([3]))
        module: Any = SimpleNamespace(layer_idx=layer)
        return layout.attend(module, *tensors, dropout=0.0, scaling=None)

    expected, found = attended(0), attended(1)
    assert not found[:, :3].any()
    torch.testing.assert_close(found[:, 3:], expected[:, 3:])
