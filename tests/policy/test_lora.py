"""Adapters of each kind: fresh ones change nothing; sampler, trainer, reference and export agree on trained ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.policy.test_policy import prompts, sampled
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.policy.export import export_policy
from vrft.rollout.vllm.weights import check_servable

KINDS = {
    "plain": LoRA(r=4),
    "rank-stabilised": LoRA(r=4, use_rslora=True),
    "rows have lengths": LoRA(r=4, use_dora=True),
    "ranks by pattern": LoRA(r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 64}),
    "gaussian": LoRA(r=4, init_lora_weights="gaussian"),
    "orthogonal": LoRA(r=4, init_lora_weights="orthogonal"),
}
NAMES = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")


def loaded(lora: LoRA, seed: int | None = None, **settings: object) -> Policy:
    """Return a policy with fresh adapters, or with adapters as after training."""
    policy = Policy("tiny-detection", lora=lora, dtype="float32", **settings)  # type: ignore[arg-type]
    policy.load(keep_reference=True)
    if seed is not None:
        change(policy, seed)
    return policy


def change(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += torch.empty_like(parameter).normal_(0, 0.05, generator=generator)


def log_probs(policy: Policy, *, reference: bool = False) -> torch.Tensor:
    batch = policy.prepare(prompts(policy))
    ids = torch.randint(10, 60, (3 * len(batch.inputs), 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return policy(batch.inputs, ids, torch.ones_like(ids), 0.9, reference=reference, entropy=False)[0]


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_fresh_adapters_change_nothing_and_trained_ones_sample_what_they_train(lora: LoRA) -> None:
    policy = loaded(lora)
    torch.testing.assert_close(log_probs(policy), log_probs(policy, reference=True), rtol=0, atol=5e-5)
    change(policy, seed=1)
    assert (log_probs(policy) - log_probs(policy, reference=True)).abs().max() > 1e-2
    batch = policy.prepare(prompts(policy))
    rollout = sampled(policy, batch)
    values, _ = policy(batch.inputs, rollout.ids, rollout.mask, 0.8)
    assert (rollout.log_probs - values).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["rank-stabilised", "rows have lengths", "ranks by pattern"])
def test_the_exported_model_computes_what_the_policy_computes(kind: str, tmp_path: Path) -> None:
    policy = loaded(KINDS[kind], seed=1)
    export_policy(policy, tmp_path / "out", policy.trained_weights(), 8, dtype=torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    inputs = {name: value for name, value in prompts(policy).inputs[0].items() if name in NAMES}
    policy.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, policy.model(**inputs).logits, rtol=0, atol=1e-4)


def test_training_starts_from_an_adapter_which_is_the_reference(tmp_path: Path) -> None:
    first = loaded(LoRA(r=3, alpha=12, use_rslora=True), seed=1)
    export_policy(first, tmp_path, first.trained_weights(), 8, adapter_alone=True)
    lora = LoRA(adapter=str(tmp_path))
    assert (lora.r, lora.alpha, lora.use_rslora) == (3, 12, True)
    policy = loaded(lora)
    start = log_probs(first)
    torch.testing.assert_close(log_probs(policy), start, rtol=0, atol=1e-5)
    change(policy, seed=2)
    assert (log_probs(policy) - start).abs().max() > 1e-2
    torch.testing.assert_close(log_probs(policy, reference=True), start, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = loaded(LoRA(r=2))
    folder = tmp_path_factory.mktemp("adapter")
    export_policy(policy, folder, policy.trained_weights(), 8, adapter_alone=True)
    return folder


def settings(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CASES = {
    "no folder": (shutil.rmtree, "has no adapter_config.json"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "broken": (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not valid JSON"),
    "another kind": (lambda folder: settings(folder, peft_type="IA3"), "is not a LoRA adapter"),
    "whole modules": (lambda folder: settings(folder, modules_to_save=["lm_head"]), "trains whole modules or biases"),
    "biases": (lambda folder: settings(folder, bias="all"), "trains whole modules or biases"),
    "another rank": (lambda folder: settings(folder, r=5), "is an adapter of another model"),
}


@pytest.mark.parametrize(("edit", "said"), CASES.values(), ids=CASES)
def test_an_adapter_that_does_not_fit_is_refused(adapter: Path, tmp_path: Path, edit, said: str) -> None:  # type: ignore[no-untyped-def]
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    edit(folder)
    with pytest.raises(ConfigurationError, match=rf"model\.policy\.lora\.adapter: .*{said}"):
        loaded(LoRA(adapter=str(folder)))


def test_a_missing_weight_of_an_adapter_is_named(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    weights = load_file(folder / "adapter_model.safetensors")
    gone = sorted(weights)[3]
    save_file({name: value for name, value in weights.items() if name != gone}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigurationError, match=gone):
        loaded(LoRA(adapter=str(folder)))


def test_an_adapter_has_its_own_settings(adapter: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has its own r; leave out model\.policy\.lora\.r"):
        LoRA(r=8, adapter=str(adapter))


@pytest.mark.parametrize("field", ["use_dora", "rank_pattern", "alpha_pattern"])
def test_a_server_that_would_load_other_adapters_is_refused(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.policy\.lora\.{field}: vLLM can't load such adapters"):
        check_servable(LoRA(**{field: True if field == "use_dora" else {"q_proj": 2}}))  # type: ignore[arg-type]
