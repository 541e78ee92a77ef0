"""Weights in four bits: the numbers are those of the dequantised weights, and no copy of the model is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.policy.test_policy import prompts, sampled
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy, export
from vrft.policy.decoding_weights import DecodingWeights
from vrft.policy.four_bits import four_bit_layers, is_in_four_bits, weight_of
from vrft.policy.lora import without_adapters
from vrft.policy.sharing_check import sharing_gap
from vrft.types import PromptBatch
from vrft.utils.processors import load_processor

pytest.importorskip("bitsandbytes")

NAMES = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")


def loaded(checkpoint: str = "tiny-detection", quantize: str | None = "nf4", **settings: object) -> Policy:
    torch.manual_seed(0)
    more = {"dtype": "float32", "lora": LoRA(r=4, alpha=8), "quantize": quantize} | settings
    policy = Policy(checkpoint, **more)  # type: ignore[arg-type]
    policy.load(keep_reference=True)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:  # fresh adapters change nothing
            parameter.data.normal_(0, 0.05, generator=generator)
    return policy


def dense_twin(policy: Policy, dtype: torch.dtype = torch.float32, **settings: object) -> Policy:
    """Return a policy without four bits, with the weights that `policy` computes with in `dtype`."""
    twin = loaded(quantize=None, **settings)
    for name, layer in policy.base.named_modules():
        if is_in_four_bits(layer):
            twin.base.get_submodule(name).weight.data.copy_(weight_of(layer).to(dtype))  # type: ignore[operator,union-attr]
    return twin


def write_four_bits(policy: Policy, folder: Path) -> None:
    with without_adapters(policy.base):
        policy.base.save_pretrained(folder)
    load_processor(policy.checkpoint).save_pretrained(folder)


def log_probs(policy: Policy, batch: PromptBatch, **options: bool) -> torch.Tensor:
    ids = torch.randint(10, 60, (3 * len(batch.inputs), 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return policy(policy.prepare(batch).inputs, ids, mask, 0.9, **options)[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_are_those_of_the_dequantised_weights(checkpointing: bool) -> None:
    policy = loaded(gradient_checkpointing=checkpointing)
    twin = dense_twin(policy, gradient_checkpointing=checkpointing)
    assert len(list(four_bit_layers(policy))) == 14  # 2 layers with 7 linear layers each
    assert not any(is_in_four_bits(layer) for layer in policy.base.base_model.visual.modules())
    results = []
    for model in (policy, twin):
        model.train()
        values = log_probs(model, prompts(model))
        values.square().sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((values.detach(), torch.cat(gradients)))
    (values, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    assert (gradients - expected_gradients).norm() < 1e-5 * expected_gradients.norm()
    assert (values - log_probs(loaded(quantize=None), prompts(policy))).abs().max() > 1e-2  # four bits are no rounding


def test_the_reference_has_four_bits_and_no_adapters() -> None:
    policy = loaded()
    with torch.no_grad():
        reference = log_probs(policy, prompts(policy), reference=True, entropy=False)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        torch.testing.assert_close(reference, log_probs(policy, prompts(policy)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sampler_has_the_trainers_distribution(dtype: str) -> None:
    policy = loaded(dtype=dtype)
    batch = policy.prepare(prompts(policy))
    rollout = sampled(policy, batch)
    values, _ = policy(batch.inputs, rollout.ids, rollout.mask, 0.8)
    gap = (rollout.log_probs - values).abs()[rollout.mask.bool()]
    assert gap.mean() < (1e-5 if dtype == "float32" else 2e-2)


def test_rounding_of_weights_in_four_bits_is_measured_and_leaves_them_as_they_are() -> None:
    policy = loaded(dtype="bfloat16")
    batch = prompts(policy)
    rollout = sampled(policy, policy.prepare(batch))
    gap, allowed = sharing_gap(policy, batch.inputs[0], rollout.ids[:2], rollout.mask[:2])
    assert gap < allowed
    assert 1e-3 < allowed < 0.1
    layers = [*four_bit_layers(policy)]
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    assert {layer.compute_dtype for layer in layers} == {policy.dtype}
    assert {weight_of(layer).dtype for layer in layers} == {policy.dtype}


def test_decoding_copies_no_layer_in_four_bits() -> None:
    policy = loaded(dtype="bfloat16")
    weights = DecodingWeights(policy.base, torch.float16, torch.device("cpu"))
    copied = {getattr(module, name) for module, name, _ in weights.copies}
    large = {layer.weight for layer in four_bit_layers(policy)}
    assert len(large) == 14
    assert not large & copied
    assert policy.base.model.visual.blocks[0].attn.qkv.weight in copied


def test_a_checkpoint_that_is_published_in_four_bits_loads_as_such(tmp_path: Path) -> None:
    policy = loaded()
    write_four_bits(policy, tmp_path)
    published = loaded(str(tmp_path), quantize=None)
    assert published.reader.in_four_bits
    torch.testing.assert_close(log_probs(published, prompts(policy)), log_probs(policy, prompts(policy)))
    with pytest.raises(ConfigurationError, match=r"is in four bits: weights in four bits can't be trained themselves"):
        Policy(str(tmp_path)).load(keep_reference=False)


def answers_of(folder: Path, policy: Policy) -> torch.Tensor:
    """Return the logits of a folder's model as transformers reads it, for the policy's first prompt."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    prompt = prompts(policy).inputs[0]
    with torch.no_grad():
        return model(**{name: value for name, value in prompt.items() if name in NAMES}).logits


@pytest.mark.parametrize("published", [False, True], ids=["quantised here", "published in four bits"])
def test_export_merges_adapters_into_the_original_weights_file_by_file(
    published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "FILE_BYTES", 200_000)
    policy = loaded()
    if published:
        write_four_bits(policy, tmp_path / "base")
        policy = loaded(str(tmp_path / "base"), quantize=None)
    export.export_policy(policy, tmp_path / "out", policy.trained_weights(), 8, dtype=torch.float32)
    assert len([*(tmp_path / "out").glob("model-*-of-*.safetensors")]) > 2
    dense = loaded(quantize=None)  # the original weights, with the same adapters
    if published:
        dense = dense_twin(policy, torch.bfloat16)  # in which they are dequantised
    with torch.no_grad():
        prompt = prompts(dense).inputs[0]
        expected = dense.model(**{name: value for name, value in prompt.items() if name in NAMES}).logits
    torch.testing.assert_close(answers_of(tmp_path / "out", dense), expected, rtol=0, atol=1e-4)
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_four_bits_need_adapters() -> None:
    with pytest.raises(
        ConfigurationError, match=r"model\.policy\.quantize: .*; train adapters with model\.policy\.lora"
    ):
        Policy("tiny-detection", quantize="nf4")


def test_adapters_in_float32_are_all_that_trains() -> None:
    trained = {name: p for name, p in loaded(dtype="bfloat16").named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert len(trained) == 28
    assert isinstance(next(iter(trained.values())), nn.Parameter)
