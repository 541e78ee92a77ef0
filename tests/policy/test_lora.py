"""Adapters of each kind are peft's; sampler, trainer, reference and export agree on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.policy.test_policy import prompts, sampled
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.policy.export import export_policy
from vrft.policy.lora import add_adapters, has_adapter, peft_config
from vrft.policy.tiny import write_checkpoint
from vrft.rollout.vllm.weights import check_servable

KINDS = {
    "plain": LoRA(r=4),
    "rank-stabilised": LoRA(r=4, use_rslora=True),
    "rows have lengths": LoRA(r=4, use_dora=True),
    "whole modules": LoRA(r=4, modules_to_save=["visual.merger", "lm_head", "language_model.norm"]),
    "ranks by pattern": LoRA(r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 64}),
    "gaussian": LoRA(r=4, init_lora_weights="gaussian"),
    "orthogonal": LoRA(r=4, init_lora_weights="orthogonal"),
}
NAMES = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a checkpoint whose head has weights of its own, so that it may train."""
    folder = tmp_path_factory.mktemp("checkpoint") / "untied"
    write_checkpoint(folder, tied=False)
    return str(folder)


def loaded(lora: LoRA, seed: int | None = None, checkpoint: str = "tiny-detection", **settings: object) -> Policy:
    """Return a policy with fresh adapters, or with adapters as after training."""
    policy = Policy(checkpoint, lora=lora, dtype="float32", **settings)  # type: ignore[arg-type]
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
def test_fresh_adapters_change_nothing_and_trained_ones_sample_what_they_train(lora: LoRA, untied: str) -> None:
    policy = loaded(lora, checkpoint=untied)
    start = log_probs(policy, reference=True)
    torch.testing.assert_close(log_probs(policy), start, rtol=0, atol=5e-5)
    change(policy, seed=1)
    assert (log_probs(policy) - start).abs().max() > 1e-2
    assert torch.equal(log_probs(policy, reference=True), start)
    batch = policy.prepare(prompts(policy))
    rollout = sampled(policy, batch)
    values, _ = policy(batch.inputs, rollout.ids, rollout.mask, 0.8)
    assert (rollout.log_probs - values).abs().max() < 1e-4


def base_of(checkpoint: str) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)  # type: ignore[no-any-return]


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_fresh_and_trained_adapters_are_those_of_peft(lora: LoRA, untied: str, tmp_path: Path) -> None:
    """From the same random numbers, and with the same logits once they are trained, saved and merged."""
    torch.manual_seed(0)
    policy = loaded(lora, checkpoint=untied)
    base = base_of(untied)
    torch.manual_seed(0)
    expected = get_peft_model(base, peft_config(base, lora))  # type: ignore[arg-type]
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    theirs = {name: p for name, p in expected.named_parameters() if p.requires_grad}
    assert trained.keys() == theirs.keys()
    assert all(torch.allclose(value, theirs[name]) and value.dtype == torch.float32 for name, value in trained.items())

    change(policy, seed=1)
    export_policy(policy, tmp_path, policy.trained_weights(), 8, dtype=torch.float32)
    inputs = {name: value for name, value in prompts(policy).inputs[0].items() if name in NAMES}
    policy.eval()
    adapted = PeftModel.from_pretrained(base_of(untied), str(tmp_path / "adapter"))  # type: ignore[arg-type]
    with torch.no_grad():
        logits = policy.model(**inputs).logits
        for model in (adapted, base_of(str(tmp_path))):
            torch.testing.assert_close(model(**inputs).logits, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "quantize", "said"),
    [
        (["lm_head"], None, r"lm_head shares a weight with model\.language_model\.embed_tokens"),
        (["classifier"], None, r"the model has no 'classifier'; it has .*lm_head"),
        (["visual", "visual.merger"], None, r"visual\.merger lies in model\.visual"),
        (["layers.0.mlp.up_proj"], "nf4", r"layers\.0\.mlp\.up_proj is in four bits"),
    ],
)
def test_modules_that_can_not_train_as_a_whole_are_refused(names: list[str], quantize: str | None, said: str) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigurationError, match=rf"model\.policy\.lora\.modules_to_save: .*{said}"):
        loaded(LoRA(r=2, modules_to_save=names), quantize=quantize)


@pytest.fixture(scope="module")
def tied() -> PreTrainedModel:
    """A model whose head has the weight of its embeddings."""
    policy = Policy("tiny-detection")
    policy.load(keep_reference=False)
    return policy.base


SHARED = r"lm_head shares a weight with model\.language_model\.embed_tokens"
NOT_LINEAR = r"\) is not a linear layer"


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_proj", "lm_head"], SHARED),
        (r".*\.q_proj|lm_head", SHARED),
        (["embed_tokens"], rf"model\.language_model\.embed_tokens \(Embedding{NOT_LINEAR}"),
        (["q_proj", "input_layernorm"], rf"layers\.0\.input_layernorm \(.*Norm{NOT_LINEAR}"),
        (["proj"], rf"model\.visual\.patch_embed\.proj \(.*{NOT_LINEAR}"),  # a convolution
        (r".*\.mlp", NOT_LINEAR),
        (["q_proj", "k_porj"], r"the model has no 'k_porj'; it has .*k_proj"),
        (["proj_q", "_proj"], r"the model has no 'proj_q'"),
        ([], r"no layer matches"),
        ("q_proj", r"no layer matches; expected a list of names, or a regular expression for whole names"),
        ("(", r"'\(' is not a regular expression"),
    ],
)
def test_modules_that_can_not_have_adapters_are_refused(
    targets: str | list[str], said: str, tied: PreTrainedModel
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^model\.policy\.lora\.target_modules: .*{said}"):
        add_adapters(tied, LoRA(r=2, target_modules=targets))
    assert not any(has_adapter(module) for module in tied.modules())


def test_experts_that_peft_would_adapt_are_refused() -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("glm4v_moe", text_config=sizes, vision_config={"depth": 1, "out_hidden_size": 32})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(ConfigurationError, match=r"^model\.policy\.lora\.target_modules: peft would adapt experts"):
        add_adapters(model, LoRA())


def test_training_starts_from_an_adapter_which_is_the_reference(tmp_path: Path) -> None:
    first = loaded(LoRA(r=3, alpha=12, use_rslora=True, modules_to_save=["merger"]), seed=1)
    export_policy(first, tmp_path, first.trained_weights(), 8, adapter_alone=True)
    lora = LoRA(adapter=str(tmp_path))
    assert (lora.r, lora.alpha, lora.use_rslora, lora.modules_to_save) == (3, 12, True, ["merger"])
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
    "biases": (lambda folder: settings(folder, bias="all"), "trains biases"),
    "biases of adapters": (lambda folder: settings(folder, lora_bias=True), "has lora_bias"),
    "tied head": (lambda folder: settings(folder, target_modules=["lm_head"]), SHARED),
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


@pytest.mark.parametrize("field", ["use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"])
def test_a_server_that_would_load_other_adapters_is_refused(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.policy\.lora\.{field}: vLLM can't load such adapters"):
        check_servable(LoRA(**{field: True if field == "use_dora" else {"q_proj": 2}}))  # type: ignore[arg-type]
