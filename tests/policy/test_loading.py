"""Weights are read in the dtype of the computation, and trained ones keep every stored digit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vrft.policy import LoRA, Policy
from vrft.policy.checkpoint import find_checkpoint
from vrft.policy.pretrained import exact_dtype, new_parameters_in


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[torch.dtype], Path]:
    """Return a function that writes a checkpoint with weights that bfloat16 would round, in a dtype."""

    def write(dtype: torch.dtype) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(find_checkpoint("tiny-detection"), folder)
        weights = load_file(folder / "model.safetensors")
        save_file({k: (w.float() / 3).to(dtype) for k, w in weights.items()}, folder / "model.safetensors")
        return folder

    return write


def loaded(folder: Path, lora: LoRA | None = None, **settings: object) -> Policy:
    torch.manual_seed(0)
    policy = Policy(str(folder), lora, **settings)  # type: ignore[arg-type]
    policy.load(keep_reference=True)
    return policy


def values(module: nn.Module, trained: bool) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad == trained}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_trained_weights_keep_the_stored_digits(checkpoint: Callable[[torch.dtype], Path], stored: torch.dtype) -> None:
    folder = checkpoint(stored)
    policy, exact = loaded(folder, freeze_vision=True), loaded(folder, freeze_vision=True, dtype="float32")
    torch.testing.assert_close(values(policy, trained=True), values(exact, trained=True), rtol=0, atol=0)
    frozen = {name: value.bfloat16() for name, value in values(exact.model, trained=False).items()}
    torch.testing.assert_close(values(policy.model, trained=False), frozen, rtol=0, atol=0)
    assert policy.reference is not None
    assert exact.reference is not None
    reference = {name: value.bfloat16() for name, value in values(exact.reference, trained=False).items()}
    torch.testing.assert_close(values(policy.reference, trained=False), reference, rtol=0, atol=0)


def test_adapters_are_not_rounded(checkpoint: Callable[[torch.dtype], Path]) -> None:
    folder = checkpoint(torch.bfloat16)
    policy, exact = loaded(folder, LoRA(r=2)), loaded(folder, LoRA(r=2), dtype="float32")
    torch.testing.assert_close(values(policy, trained=True), values(exact, trained=True), rtol=0, atol=0)
    assert {value.dtype for value in values(policy, trained=False).values()} == {torch.bfloat16}


def test_rotary_frequencies_of_the_reference_are_not_rounded(checkpoint: Callable[[torch.dtype], Path]) -> None:
    """At position 1,000, a frequency in bfloat16 is wrong by up to two radians."""
    policy = loaded(checkpoint(torch.bfloat16))
    assert policy.reference is not None
    own, reference = (dict(model.named_buffers()) for model in (policy.base, policy.reference))
    torch.testing.assert_close(reference, own, rtol=0, atol=0)
    assert any("inv_freq" in name for name in own)


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["full", "lora"])
def test_a_loaded_policy_does_not_change_with_its_file(
    checkpoint: Callable[[torch.dtype], Path], lora: LoRA | None
) -> None:
    folder = checkpoint(torch.bfloat16)
    policy = loaded(folder, lora)
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    file = folder / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(bytes(size))
    torch.testing.assert_close({name: p.detach() for name, p in policy.named_parameters()}, before, rtol=0, atol=0)


def test_the_stored_dtype_is_found_in_every_shard(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.bfloat16), "ids": torch.ones(2).long()}, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"metadata": {}, "weight_map": {"a": "a.safetensors"}}')
    assert exact_dtype(str(tmp_path), torch.bfloat16) == torch.bfloat16
    save_file({"b": torch.ones(2)}, tmp_path / "b.safetensors")
    index.write_text('{"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}')
    assert exact_dtype(str(tmp_path), torch.bfloat16) == torch.float32


def test_only_parameters_get_the_other_dtype() -> None:
    """Gemma's embedding scale is a buffer, and tied parameters stay one."""
    with new_parameters_in(torch.bfloat16), torch.device("meta"):
        first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        second.weight = first.weight
        first.register_buffer("scale", torch.ones(1))
    assert first.weight is second.weight
    assert (first.weight.dtype, first.scale.dtype) == (torch.bfloat16, torch.float32)
    assert nn.Linear(2, 2).weight.dtype == torch.float32
