"""Rollouts, log-probabilities and gradients of a policy on a GPU are the CPU's, up to rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import families
from tests.policy.test_families import LENGTHS, Prompts, completions
from tests.standin.device import events, gpu, phase, properties
from vrft.policy import LoRA, Policy
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.types import PromptBatch, Rollout

DEVICES = ("cpu", "cuda")
SHARED = {"qwen2_5_vl": {}, "gemma3": {}}  # grouped queries; sliding windows and bidirectional images
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "bfloat16": {"dtype": "bfloat16"},
    "checkpointed, offloaded reference": {"gradient_checkpointing": True, "offload_reference": True},
    "bfloat16, offloaded reference": {"dtype": "bfloat16", "offload_reference": True},
    "frozen tower": {"freeze_vision": True},
    "lora": {"lora": LoRA(r=4)},
    "bfloat16, lora everywhere": {"dtype": "bfloat16", "lora": LoRA(r=4, target_modules="all-linear")},
}
SAMPLING = {
    "greedy": Sampling(greedy=True),
    "warm": Sampling(temperature=2.0),
    "top-p": Sampling(temperature=2.0, top_p=0.7),
    "top-k": Sampling(temperature=2.0, top_k=9),
    "min-p": Sampling(temperature=2.0, min_p=0.2),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return families.written_once(tmp_path_factory)


@pytest.fixture(autouse=True)
def _enough_memory() -> Iterator[None]:
    yield
    gpu.limit(2**62)


def load(folder: str | Path, device: str, **settings: Any) -> Policy:
    """Load a policy as Lightning does, with the device as torch's default."""
    policy = Policy(str(folder), **{"dtype": "float32"} | settings)
    torch.manual_seed(0)
    with torch.device(device):
        policy.load(keep_reference=policy.lora is None)
    policy.to(device)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


def moved(policy: Policy, batch: PromptBatch) -> PromptBatch:
    inputs = [{key: value.to(policy.device) for key, value in prompt.items()} for prompt in batch.inputs]
    return policy.prepare(PromptBatch(batch.samples, batch.frames, inputs))


def generate(policy: Policy, batch: PromptBatch, sampling: Sampling, limit: int = 20) -> Rollout:
    settings: dict[str, Any] = {"max_completion_length": limit, "sampling": sampling, "key": SamplingKey(3, 0)}
    return TransformersEngine().generate(policy, batch, 4, on_token=lambda *_: None, **settings)


def trained(policy: Policy, batch: PromptBatch, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Return log-probabilities, those of the reference, and the gradient of each parameter after a loss of both."""
    policy.train()
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)).to(policy.device)
    ids, mask = ids.to(policy.device), mask.to(policy.device)
    with torch.no_grad(), policy.reference_on_device():
        reference, _ = policy(batch.inputs, ids, mask, 0.8, reference=True)
    log_probs, _ = policy(batch.inputs, ids, mask, 0.8)
    (log_probs * weights).sum().backward()
    gradients = [p.grad for p in policy.parameters() if p.requires_grad and p.grad is not None]
    return [x.detach().cpu() for x in (log_probs, reference, *gradients)]


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= tolerance * expected.norm() + 1e-7


def check(folder: str, lengths: list[int] | None = None, which: Sequence[int] = (0, 1, 2), **settings: Any) -> None:
    """Compare log-probabilities and gradients of ragged completions of three prompts about images `which`."""
    results = []
    for device in DEVICES:
        policy = load(folder, device, **settings)
        ids, mask = completions(policy) if device == "cpu" else (ids.cpu(), mask.cpu())  # noqa: F821
        if lengths is not None:
            mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
        results.append(trained(policy, moved(policy, Prompts(policy, which=which).batch), ids, mask))
    tolerance = 7e-2 if settings.get("dtype") == "bfloat16" else 2e-5
    for found, expected in zip(*results[::-1], strict=True):
        assert_close(found, expected, tolerance)


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.MIXTURES])
def test_gradients_of_each_family(family: str, checkpoint: Callable[[str], str]) -> None:
    check(checkpoint(family))


@pytest.mark.parametrize("settings", [*SETTINGS.values()][1:], ids=[*SETTINGS][1:])
def test_gradients_with_each_setting(settings: dict[str, Any], checkpoint: Callable[[str], str]) -> None:
    check(checkpoint("qwen2_5_vl"), **settings)


@pytest.mark.parametrize("longest", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_short_completions(longest: int, dtype: str, checkpoint: Callable[[str], str]) -> None:
    check(checkpoint("qwen2_5_vl"), [min(length, longest) for length in LENGTHS], dtype=dtype)


@pytest.mark.parametrize(("generation", "dtype"), [(9, "float32"), (9, "bfloat16"), (8, "bfloat16"), (7, "float16")])
def test_no_attention_keeps_the_scores_of_all_tokens_or_needs_a_plan_of_cudnn(
    generation: int, dtype: str, checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "major", generation)
    policy = load(checkpoint("qwen2_5_vl"), "cuda", dtype=dtype)
    events.clear()
    trained(policy, moved(policy, Prompts(policy).batch), *completions(policy))
    kernels = {name for counted in events.values() for kind, name, _ in counted if kind == "sdpa"}
    assert kernels
    assert kernels <= {"flash", "efficient"}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_gradients_of_prompts_about_the_same_images(family: str, checkpoint: Callable[[str], str]) -> None:
    check(checkpoint(family), which=(1, 1, 2))
    check(checkpoint(family), which=(1, 1, 2), freeze_vision=True)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_rollouts_of_each_family(family: str, checkpoint: Callable[[str], str]) -> None:
    rollouts = []
    for device in DEVICES:
        policy = load(checkpoint(family), device)
        rollouts.append(generate(policy, moved(policy, Prompts(policy).batch), Sampling(temperature=2.0)))
    assert_same_rollouts(*rollouts)


def test_rollouts_with_frequencies_of_the_longest_position(tmp_path: Path) -> None:
    families.write(tmp_path, "internvl")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rollouts = []
    for device in DEVICES:
        policy = load(tmp_path, device)
        rollouts.append(generate(policy, moved(policy, Prompts(policy).batch), Sampling(temperature=2.0)))
    assert_same_rollouts(*rollouts)


@pytest.mark.parametrize(("family", "lora"), [*zip(families.MIXTURES, (LoRA(r=4), None), strict=True)])
def test_experts_in_bfloat16_are_recorded_and_trained_without_waiting(
    family: str, lora: LoRA | None, checkpoint: Callable[[str], str]
) -> None:
    events.clear()
    gpu.reset()
    policy = load(checkpoint(family), "cuda", dtype="bfloat16", lora=lora)
    batch = moved(policy, Prompts(policy).batch)
    rollout = generate(policy, batch, Sampling(temperature=2.0))
    assert any(count["replays"] for count in gpu.counts().values())
    found = trained(policy, batch, rollout.ids, rollout.mask)
    assert not waits_for_experts()
    on_cpu = load(checkpoint(family), "cpu", dtype="bfloat16", lora=lora)
    expected = trained(on_cpu, moved(on_cpu, Prompts(on_cpu).batch), rollout.ids.cpu(), rollout.mask.cpu())
    for mine, cpus in ((found[0], expected[0]), (found[1], expected[1]), map(joined, (found[2:], expected[2:]))):
        assert_close(mine, cpus, 5e-2)
    with torch.no_grad():
        log_probs, _ = on_cpu(moved(on_cpu, Prompts(on_cpu).batch).inputs, rollout.ids.cpu(), rollout.mask.cpu(), 2.0)
    assert_close(rollout.log_probs.cpu(), log_probs, 5e-2)


@pytest.mark.parametrize("family", families.MIXTURES)
def test_rollouts_of_experts_that_are_counted_on_the_cpu(family: str, checkpoint: Callable[[str], str]) -> None:
    on_cpu, on_gpu = (load(checkpoint(family), device) for device in DEVICES)
    expected = generate(on_cpu, moved(on_cpu, Prompts(on_cpu).batch), Sampling(temperature=2.0))
    with pytest.warns(UserWarning, match="decoding is slower: its steps can't be recorded .*when stream is capturing"):
        found = generate(on_gpu, moved(on_gpu, Prompts(on_gpu).batch), Sampling(temperature=2.0))
    assert_same_rollouts(expected, found)


def joined(tensors: list[Tensor]) -> Tensor:
    """Return all elements of tensors: rounding may be large in the smallest gradients."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def waits_for_experts() -> bool:
    """Return whether the CPU has waited for the GPU to multiply experts in a forward."""
    return any("/moe.py" in place for counted in events.values() for kind, _, place in counted if kind == "sync")


@pytest.mark.parametrize(("generation", "waits"), [(8, True), (10, False)])
def test_only_some_generations_multiply_experts_without_waiting(
    generation: int, waits: bool, checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "major", generation)
    policy = load(checkpoint("qwen3_vl_moe"), "cuda", dtype="bfloat16")
    events.clear()
    trained(policy, moved(policy, Prompts(policy).batch), *completions(policy))
    assert waits_for_experts() == waits


def assert_same_rollouts(expected: Rollout, found: Rollout, tolerance: float = 1e-4) -> None:
    assert found.ids.is_cuda
    assert found.texts == expected.texts
    assert torch.equal(found.ids.cpu(), expected.ids)
    for name in ("log_probs", "sampling_log_probs"):
        assert (getattr(found, name).cpu() - getattr(expected, name)).abs().max() < tolerance


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
def test_rollouts_with_each_sampling(sampling: Sampling, checkpoint: Callable[[str], str]) -> None:
    rollouts = []
    for device in DEVICES:
        policy = load(checkpoint("qwen2_5_vl"), device, lora=LoRA(r=4))
        batch = Prompts(policy, ["is a red dog here ?", "why", "is a red box", "no"], [1, 1, 0, 2]).batch
        rollouts.append(generate(policy, moved(policy, batch), sampling))
    assert_same_rollouts(*rollouts)


def test_a_reference_in_the_policys_dtype_is_not_trained_with_it(checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint("qwen2_5_vl"), "cuda")
    assert policy.reference is not None
    pairs = [*zip(policy.model.parameters(), policy.reference.parameters(), strict=True)]
    assert all(one.data_ptr() != other.data_ptr() for one, other in pairs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_offloaded_reference_is_on_the_gpu_during_its_pass_alone(
    dtype: str, checkpoint: Callable[[str], str]
) -> None:
    policy = load(checkpoint("qwen2_5_vl"), "cuda", dtype=dtype, offload_reference=True)
    assert policy.reference is not None
    weights = [*policy.reference.parameters()]
    before = gpu.memory()
    assert all(weight.is_cpu and weight.is_pinned() for weight in weights)
    with phase("moving"), policy.reference_on_device():
        assert all(weight.is_cuda for weight in weights)
    assert all(weight.is_cpu and weight.is_pinned() for weight in weights)
    assert gpu.memory() == before
    assert not events["moving"]  # no synchronisation, no copy from pageable memory
