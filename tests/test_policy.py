from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vrft.data.scenes import FreshScenes
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.policy.processor import Encoder, micro_batches, select_prompts
from vrft.policy.shared_prefix import group_hidden_states, positions
from vrft.rollout import Noise, TransformersEngine
from vrft.tasks import DetectionTask
from vrft.types import Frame, PromptBatch, Rollout

TASK = DetectionTask("Detect {query}")


def loaded(**settings: object) -> Policy:
    policy = Policy("tiny-detection", **({"dtype": "float32"} | settings))  # type: ignore[arg-type]
    policy.load(keep_reference=True)
    return policy


def prompts(policy: Policy, count: int = 3, ragged: bool = False) -> PromptBatch:
    scenes = FreshScenes(count, 0, seed=5)
    task = DetectionTask("Detect {query}" + " Detect" * 3) if ragged else TASK
    batch = policy.encoder(TASK)([scenes[i] for i in range(count)])
    if not ragged:
        return batch
    longer = policy.encoder(task)([scenes[count - 1]])
    extra = longer.inputs["input_ids"].shape[1] - batch.inputs["input_ids"].shape[1]
    inputs = dict(batch.inputs)
    for key, fill in (("input_ids", policy.tokenizer.pad_token_id), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        padded = torch.nn.functional.pad(inputs[key], (extra, 0), value=fill)
        inputs[key] = torch.cat([padded[:-1], longer.inputs[key]])
    return PromptBatch(batch.samples, batch.frames, inputs)


def sampled(policy: Policy, batch: PromptBatch, group: int = 4, limit: int = 24) -> Rollout:
    return TransformersEngine().generate(
        policy, batch, group, max_completion_length=limit, temperature=0.8, noise=Noise(3, 0), on_token=lambda _: None
    )


def naive_log_probs(policy: Policy, batch: PromptBatch, rollout: Rollout, temperature: float) -> Tensor:
    """Every row alone through Hugging Face's own forward: prompt and image again for each completion."""
    model = policy.base
    group = len(rollout.ids) // len(batch.samples)
    rows = []
    for n, (ids, mask) in enumerate(zip(rollout.ids, rollout.mask, strict=True)):
        inputs = select_prompts(batch.inputs, slice(n // group, n // group + 1))
        real = inputs["attention_mask"][0].bool()
        completion = ids[mask.bool()]
        row = {
            "input_ids": torch.cat([inputs["input_ids"][0][real], completion])[None],
            "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"][0][real], torch.zeros_like(completion)])[None],
            "pixel_values": inputs["pixel_values"],
            "image_grid_thw": inputs["image_grid_thw"],
        }
        logits = model(**row, use_cache=False).logits[0, -len(completion) - 1 : -1] / temperature
        logits = logits.index_fill(-1, policy.banned_ids, -torch.inf)
        log_p = logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(log_p, (0, len(ids) - len(completion))))
    return torch.stack(rows)


def sharpen(policy: Policy) -> None:
    """Make matrices large, so that a wrong mask or position shows."""
    with torch.no_grad():
        for name, parameter in policy.base.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(1.5)


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(r=4)}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["equal prompts", "left-padded prompts"])
def test_shared_prefix_equals_naive_forward(settings: dict[str, object], ragged: bool) -> None:
    policy = loaded(**settings)
    sharpen(policy)
    if policy.lora is not None:
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, 0, 0.1, generator=torch.Generator().manual_seed(0))
    batch = prompts(policy, ragged=ragged)
    rollout = sampled(policy, batch)
    weights = torch.rand(rollout.ids.shape, generator=torch.Generator().manual_seed(1)) * rollout.mask
    policy.train()
    gradients = []
    values = []
    for log_probs in (
        policy(batch.inputs, rollout.ids, rollout.mask, 0.8)[0],
        naive_log_probs(policy, batch, rollout, 0.8),
    ):
        policy.zero_grad()
        (log_probs * weights).sum().backward()
        values.append(log_probs.detach())
        gradients.append(torch.cat([p.grad.flatten().clone() for p in policy.parameters() if p.grad is not None]))
    assert (values[0] - values[1]).abs().max() < 1e-5 * max(1.0, float(values[1].abs().max()))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


@pytest.mark.parametrize("wrong", ["positions run on", "completions see each other"])
def test_a_wrong_forward_would_be_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = loaded()
    batch = prompts(policy)
    rollout = sampled(policy, batch)
    expected = naive_log_probs(policy, batch, rollout, 0.8).detach()
    if wrong == "positions run on":

        def shifted(*args: object) -> tuple[Tensor, Tensor]:
            before, after = positions(*args)  # type: ignore[arg-type]
            return before, after + 1

        monkeypatch.setattr("vrft.policy.shared_prefix.positions", shifted)
        hidden = group_hidden_states(policy.base, batch.inputs, rollout.ids, 4)
    else:
        every = {**batch.inputs}
        monkeypatch.setattr(
            "vrft.policy.shared_prefix.causal_lower_right",
            lambda n, m: torch.ones(n, m, dtype=torch.bool),  # future tokens are visible
        )
        hidden = group_hidden_states(policy.base, every, rollout.ids, 4)
    logits = policy.base.get_output_embeddings()(hidden) / 0.8
    log_p = logits.index_fill(-1, policy.banned_ids, -torch.inf).log_softmax(-1)
    got = log_p.gather(-1, rollout.ids[..., None])[..., 0] * rollout.mask
    assert (got - expected).abs().max() > 1e-3


def test_sampled_log_probs_are_the_trainers() -> None:
    policy = loaded()
    batch = prompts(policy, ragged=True)
    rollout = sampled(policy, batch)
    log_probs, entropy = policy(batch.inputs, rollout.ids, rollout.mask, 0.8)
    assert (rollout.log_probs - log_probs).abs().max() < 1e-4
    assert (entropy >= 0).all()
    assert (entropy * (1 - rollout.mask) == 0).all()


def test_greedy_rollout_equals_generate() -> None:
    policy = loaded()
    batch = prompts(policy, count=4, ragged=True)
    rollout = TransformersEngine().generate(
        policy, batch, 1, max_completion_length=40, temperature=1.0, noise=None, on_token=lambda _: None
    )
    policy.eval()
    expected = policy.base.generate(
        **batch.inputs, max_new_tokens=40, do_sample=False, suppress_tokens=policy.banned_ids.tolist()
    )[:, batch.inputs["input_ids"].shape[1] :]
    for ids, mask, row in zip(rollout.ids, rollout.mask, expected, strict=True):
        assert ids[mask.bool()].tolist() == row[: int(mask.sum())].tolist()


def test_rows_keep_their_noise_in_any_batch() -> None:
    policy = loaded()
    batch = prompts(policy, count=3)
    together = sampled(policy, batch)
    first = PromptBatch(batch.samples[:1], batch.frames[:1], select_prompts(batch.inputs, slice(0, 1)))
    assert sampled(policy, first).texts == together.texts[:4]
    last = PromptBatch(batch.samples[2:], batch.frames[2:], select_prompts(batch.inputs, slice(2, 3)))
    alone = TransformersEngine().generate(
        policy,
        last,
        4,
        max_completion_length=24,
        temperature=0.8,
        noise=Noise(3, 0, rank=2, world_size=3),  # prompt 0 of rank 2 is number 2 of the global batch
        on_token=lambda _: None,
    )
    assert alone.texts == together.texts[8:]


def test_sampling_follows_the_distribution() -> None:
    policy = loaded()
    batch = prompts(policy, count=1)
    rollout = sampled(policy, batch, group=2000, limit=1)
    values, counts = rollout.ids[:, 0].unique(return_counts=True)
    expected = torch.stack([rollout.log_probs[rollout.ids[:, 0] == value][0, 0].exp() for value in values])
    assert ((counts / 2000 - expected).abs() < 4 * (expected * (1 - expected) / 2000).sqrt() + 1e-3).all()


def test_banned_tokens_are_never_sampled() -> None:
    policy = loaded()
    with torch.no_grad():
        policy.base.get_input_embeddings().weight[policy.banned_ids] *= 100.0
    rollout = sampled(policy, prompts(policy))
    assert not torch.isin(rollout.ids[rollout.mask.bool()], policy.banned_ids).any()


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(r=4)}], ids=str)
def test_reference_is_the_model_at_the_start(settings: dict[str, object]) -> None:
    policy = loaded(**settings)
    batch = prompts(policy)
    rollout = sampled(policy, batch)
    call = (batch.inputs, rollout.ids, rollout.mask, 0.8)
    before = policy(*call)[0].detach()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        assert (policy(*call)[0] - before).abs().max() > 1e-2
        assert (policy(*call, reference=True)[0] - before).abs().max() < 1e-5


def test_what_trains_is_float32_and_what_is_frozen_is_not() -> None:
    policy = loaded(dtype="bfloat16", freeze_vision=True)
    for name, parameter in policy.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        assert parameter.requires_grad != ("visual" in name), name
    batch = prompts(policy)
    rollout = sampled(policy, batch)
    log_probs, _ = policy(batch.inputs, rollout.ids, rollout.mask, 0.8)
    log_probs.sum().backward()
    assert log_probs.dtype == torch.float32
    assert log_probs.isfinite().all()


def test_lora_trains_adapters_of_the_language_model_alone() -> None:
    names = loaded(lora=LoRA(r=4)).trainable_names()
    assert names
    assert all("lora_" in name and "visual" not in name for name in names)


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(r=4)}], ids=str)
def test_export_is_an_ordinary_checkpoint(settings: dict[str, object], tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    policy = loaded(**settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    policy.export(tmp_path)
    batch = prompts(policy)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        gap = again(**batch.inputs).logits - policy.base(**batch.inputs).logits
    assert gap.abs().max() < 0.2  # the file is bfloat16, as the checkpoint was
    assert again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.tokenizer.chat_template
    assert (tmp_path / "video_preprocessor_config.json").exists()
    assert (tmp_path / "adapter").exists() == bool(settings)


def test_micro_batches_hold_whole_groups_within_the_budget() -> None:
    inputs = {"input_ids": torch.zeros(5, 10)}
    mask = torch.zeros(10, 30)  # five prompts with two completions each
    for row, length in enumerate([5, 5, 5, 5, 30, 30, 5, 5, 5, 5]):
        mask[row, :length] = 1
    chunks = list(micro_batches(inputs, mask, max_tokens=45))
    assert [(c.start, c.stop) for c in chunks] == [(0, 2), (2, 3), (3, 5)]  # the third group, of 70 tokens, goes alone


def test_select_prompts_takes_each_prompts_own_patches() -> None:
    inputs = {
        "input_ids": torch.arange(3)[:, None],
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 4, 2], [1, 2, 2]]),
        "pixel_values": torch.arange(16)[:, None],
    }
    middle = select_prompts(inputs, slice(1, 2))
    assert middle["pixel_values"][:, 0].tolist() == list(range(4, 12))
    assert select_prompts(inputs, slice(0, 3))["pixel_values"].shape[0] == 16


def test_absolute_coordinates_are_those_of_the_resized_image() -> None:
    policy = loaded()
    encoder = Encoder(policy.processor, TASK, "absolute")
    assert encoder.frame(FreshScenes(1, 0, 0)[0].image) == Frame(56, 56)
    assert policy.encoder(TASK).frame(FreshScenes(1, 0, 0)[0].image) == Frame(1000, 1000)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-detektion", "did you mean 'tiny-detection'"),
        ("runs/no/such/folder", "no such folder"),
        (str(Path(__file__).parent), "it has no config.json"),
        ("someone/some-model", "offline mode"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_at_once(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint") as caught:
        Policy(name)
    assert said in str(caught.value)
