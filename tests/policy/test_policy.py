from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vrft.data.datasets.scenes import FreshScenes
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.policy.export import export_policy
from vrft.policy.logprobs import token_log_probs
from vrft.policy.pretrained import token_ids
from vrft.policy.processor import Encoder, micro_batches
from vrft.policy.prompts import next_position
from vrft.policy.sharing_check import sharing_gap
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.tasks import DetectionTask
from vrft.types import Frame, PromptBatch, Rollout, Sample

TASK = DetectionTask("Detect {query}")
NOISE = SamplingKey(3, 0)


def loaded(**settings: object) -> Policy:
    policy = Policy("tiny-detection", **({"dtype": "float32"} | settings))  # type: ignore[arg-type]
    policy.load(keep_reference=True)
    return policy


def prompts(policy: Policy, count: int = 3, ragged: bool = False) -> PromptBatch:
    scenes = FreshScenes(count, 0, seed=5)
    batch = policy.encoder(TASK)([scenes[i] for i in range(count)])
    if not ragged:
        return batch
    longer = policy.encoder(DetectionTask("Detect {query}" + " Detect" * 3))([scenes[count - 1]])
    return PromptBatch(batch.samples, batch.frames, batch.inputs[:-1] + longer.inputs)


def sampled(
    policy: Policy, batch: PromptBatch, group: int = 4, limit: int = 24, key: SamplingKey = NOISE, **sampling: float
) -> Rollout:
    return TransformersEngine().generate(
        policy,
        batch,
        group,
        max_completion_length=limit,
        sampling=Sampling(**{"temperature": 0.8} | sampling),  # type: ignore[arg-type]
        key=key,
        on_token=lambda *_: None,
    )


@pytest.mark.parametrize("ragged", [False, True], ids=["equal prompts", "ragged prompts"])
def test_sampled_log_probs_equal_the_trainers(ragged: bool) -> None:
    policy = loaded()
    batch = prompts(policy, ragged=ragged)
    rollout = sampled(policy, batch)
    log_probs, entropy = policy(batch.inputs, rollout.ids, rollout.mask, 0.8)
    assert (rollout.log_probs - log_probs).abs().max() < 1e-4
    assert (entropy >= 0).all()
    assert (entropy * (1 - rollout.mask) == 0).all()


def test_entropy_leaves_out_banned_tokens() -> None:
    policy = loaded()
    head, hidden = policy.base.get_output_embeddings(), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    ids, mask = torch.tensor([[7, 8, 9], [10, 11, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    banned = torch.tensor([1, 2])
    log_probs, entropy = token_log_probs(head, hidden, ids, [3, 2], temperature=0.7, banned=banned, chunk=2)
    p = head(hidden).div(0.7).index_fill(-1, banned, -torch.inf).softmax(-1)
    expected = torch.distributions.Categorical(p)
    torch.testing.assert_close(entropy[mask.bool()], expected.entropy(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_probs[mask.bool()], expected.log_prob(ids[mask.bool()]), rtol=1e-4, atol=1e-4)
    assert entropy[1, 2] == log_probs[1, 2] == 0


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ({"top_k": 3}, lambda p: p >= p.topk(3).values[-1]),
        ({"top_p": 0.6}, lambda p: p.sort(descending=True).values.cumsum(0).lt(0.6).sum() >= (p[:, None] < p).sum(1)),
        ({"min_p": 0.03}, lambda p: p >= 0.03 * p.max()),
    ],
    ids=["top-k", "top-p", "min-p"],
)
def test_truncated_sampling_keeps_both_log_probs(setting: dict[str, float], kept: Callable[[Tensor], Tensor]) -> None:
    policy = loaded()
    batch = prompts(policy, count=1)
    rollout = sampled(policy, batch, group=400, limit=1, temperature=2.0, **setting)
    with torch.no_grad():
        everything = torch.arange(policy.base.config.get_text_config().vocab_size)[:, None]
        full = policy(batch.inputs, everything, torch.ones_like(everything), 2.0)[0][:, 0]  # (V,)
    p = full.exp().nan_to_num()
    allowed = kept(p) & (p > 0)
    assert 1 < allowed.sum() < (p > 1e-6).sum()
    assert set(rollout.ids[:, 0].tolist()) <= set(allowed.nonzero()[:, 0].tolist())
    torch.testing.assert_close(rollout.log_probs[:, 0], full[rollout.ids[:, 0]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        rollout.sampling_log_probs[:, 0], rollout.log_probs[:, 0] - p[allowed].sum().log(), rtol=1e-4, atol=1e-4
    )


def test_rows_keep_their_noise_in_any_batch() -> None:
    policy = loaded()
    batch = prompts(policy, count=3)
    together = sampled(policy, batch)
    assert sampled(policy, batch.select([0])).texts == together.texts[:4]
    # prompt 0 of rank 2 has number 2 in the global batch, like the third prompt of a single rank
    assert sampled(policy, batch.select([2]), key=SamplingKey(3, 0, rank=2, world_size=3)).texts == together.texts[8:]
    assert sampled(policy, batch.select([2]), key=SamplingKey(3, 0, first=2)).texts == together.texts[8:]


def test_answers_that_end_at_once_have_no_tokens() -> None:
    policy = loaded()
    stop = policy.stop_ids[:1]
    nothing = torch.zeros(1, 1)
    rollout = Rollout(stop[None], torch.ones(1, 1).long(), nothing, nothing, torch.zeros(1).bool(), [""])
    assert policy.token_texts(rollout) == [()]


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


def test_trained_weights_are_float32_and_frozen_ones_are_not() -> None:
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


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(r=4)}], ids=["full", "lora"])
def test_decoding_converts_weights_and_biases_once(settings: dict[str, object]) -> None:
    policy = loaded(dtype="bfloat16", **settings)
    with policy.decoding() as decoding:
        linear = [layer for layer in decoding.model.modules() if isinstance(layer, torch.nn.Linear)]
        assert any(layer.bias is not None for layer in linear)
        assert {p.dtype for layer in linear for p in layer.parameters(recurse=False)} == {torch.bfloat16}


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(r=4)}], ids=["full", "lora"])
def test_an_interrupted_rollout_leaves_the_model_unchanged(settings: dict[str, object]) -> None:
    policy = loaded(dtype="bfloat16", **settings)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    with pytest.raises(KeyboardInterrupt), policy.decoding():
        raise KeyboardInterrupt
    after = dict(policy.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {parameter.dtype for parameter in after.values() if parameter.requires_grad} == {torch.float32}


def test_lora_trains_adapters_of_the_language_model_alone() -> None:
    policy = loaded(lora=LoRA(r=4))
    names = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
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
    export_policy(policy, tmp_path, policy.trained_weights(), 64)
    batch = prompts(policy)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        gap = again(**batch.inputs[0]).logits - policy.base(**batch.inputs[0]).logits
    assert gap.abs().max() < 1e-4
    assert again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.tokenizer.chat_template
    assert (tmp_path / "video_preprocessor_config.json").exists()
    assert (tmp_path / "adapter").exists() == bool(settings)


def test_micro_batches_hold_whole_groups_within_the_budget() -> None:
    rows = [5, 5, 5, 5, 12, 12, 5, 5, 5, 5]  # five prompts of 10 tokens with two completions each
    assert micro_batches([10] * 5, rows, range(5), max_tokens=45) == [
        ([0, 1], [0, 1, 2, 3]),
        ([2], [4, 5]),
        ([3, 4], [6, 7, 8, 9]),
    ]
    assert micro_batches([10] * 5, rows, [0, 3, 4], max_tokens=60) == [([0, 3, 4], [0, 1, 6, 7, 8, 9])]


def test_a_group_above_the_budget_is_split_between_its_rows() -> None:
    parts = micro_batches([10, 10], [5, 30, 5, 5, 5, 5, 99, 5], range(2), max_tokens=30)
    assert parts == [([0], [0]), ([0], [1]), ([0], [2, 3]), ([1], [4, 5]), ([1], [6]), ([1], [7])]


def test_micro_batches_are_those_of_the_definition() -> None:
    """Whole groups are packed in order while they fit; rows of a larger group while they fit beside their prompt."""
    random = np.random.default_rng(0)
    for _ in range(300):
        prompts, group, limit = random.integers(1, 5), random.integers(1, 5), int(random.integers(0, 60))
        lengths = random.integers(1, 20, prompts).tolist()
        rows = random.choice([0, 0, 1, 7, 15, 50], prompts * group).tolist()  # masked completions have length 0
        expected: list[tuple[list[int], list[int]]] = []
        whole = False  # the last micro-batch is of whole groups
        for p in range(prompts):
            mine = [*range(p * group, (p + 1) * group)]
            fits = lengths[p] + sum(rows[n] for n in mine) <= limit
            for n, part in enumerate([mine] if fits else [[n] for n in mine]):
                open_ = expected and (whole if fits else n > 0)
                last = [*expected[-1][0], p] if open_ and fits else [p]
                joined = [*expected[-1][1], *part] if open_ else part
                if open_ and sum(lengths[q] for q in last) + sum(rows[m] for m in joined) <= limit:
                    expected[-1] = last, joined
                else:
                    expected.append(([p], part))
            whole = fits
        assert micro_batches(lengths, rows, range(prompts), limit) == expected


def test_a_split_group_has_the_gradient_of_the_whole() -> None:
    policy = loaded()
    batch = prompts(policy, count=1)
    rollout = sampled(policy, batch)
    gradients = []
    for parts in ([[0, 1, 2, 3]], [[0], [1, 2, 3]]):
        policy.zero_grad()
        for rows in parts:
            policy(batch.inputs, rollout.ids[rows], rollout.mask[rows], 0.8)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in policy.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


@pytest.mark.parametrize("settings", [{"freeze_vision": True}, {"lora": LoRA(r=4)}, {}], ids=str)
def test_a_frozen_tower_sees_each_image_once(settings: dict[str, object]) -> None:
    policy = loaded(**settings)
    batch = prompts(policy)
    seen = 0

    def count(module: object, args: tuple[object, ...], kwargs: dict[str, Tensor]) -> None:
        nonlocal seen
        seen += len(kwargs["grid_thw"])

    for model in (policy.base, policy.reference):
        if model is not None:
            model.get_encoder(modality="image").register_forward_pre_hook(count, with_kwargs=True)
    prepared = policy.prepare(batch)
    rollout = sampled(policy, prepared)
    policy(prepared.inputs, rollout.ids, rollout.mask, 0.8)
    with torch.no_grad():
        policy(prepared.inputs, rollout.ids, rollout.mask, 0.8, reference=True)
    assert seen == (3 if settings else 9)


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    policy = loaded()
    sizes: list[int] = []
    head = policy.base.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: sizes.append(output.numel() // output.shape[-1]))
    hidden = torch.randn(50, 64)
    ids = torch.zeros(5, 10, dtype=torch.long) + 9
    token_log_probs(head, hidden, ids, [10] * 5, temperature=1.0, banned=policy.banned_ids, chunk=8)
    assert max(sizes) == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_of_prefix_sharing_accepts_only_rounding(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = loaded(dtype=dtype)
    before = [parameter.dtype for parameter in policy.parameters()]
    batch = prompts(policy, count=1)
    rollout = sampled(policy, batch, group=2)
    gap, allowed = sharing_gap(policy, batch.inputs[0], rollout.ids, rollout.mask)
    assert gap <= allowed < 0.2
    assert [parameter.dtype for parameter in policy.parameters()] == before
    monkeypatch.setattr("vrft.policy.shared_prefix.next_position", lambda x: next_position(x) + 3)
    gap, allowed = sharing_gap(policy, batch.inputs[0], rollout.ids, rollout.mask)
    assert gap > allowed


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(r=4)}], ids=str)
def test_bfloat16_rollouts_are_near_the_trainer(settings: dict[str, object]) -> None:
    policy = loaded(dtype="bfloat16", **settings)
    batch = prompts(policy)
    rollout = sampled(policy, batch)
    log_probs, _ = policy(batch.inputs, rollout.ids, rollout.mask, 0.8)
    gap = (log_probs - rollout.log_probs).abs()
    assert gap.sum() / rollout.mask.sum() < 0.05
    assert all(p.dtype == torch.float32 for p in policy.parameters() if p.requires_grad)


def test_an_offloaded_reference_is_not_part_of_the_module() -> None:
    policy = loaded(offload_reference=True)
    batch = prompts(policy)
    rollout = sampled(policy, batch)
    assert policy.reference is not None
    assert not any(name.startswith("reference") for name, _ in policy.named_parameters())
    with torch.no_grad(), policy.reference_on_device():
        same = policy(batch.inputs, rollout.ids, rollout.mask, 0.8, reference=True)[0]
        assert (same - policy(batch.inputs, rollout.ids, rollout.mask, 0.8)[0]).abs().max() < 1e-5


def test_special_tokens_that_the_model_does_not_know_are_not_banned() -> None:
    policy = loaded()
    before = policy.banned_ids.tolist()
    policy.tokenizer.add_special_tokens({"additional_special_tokens": [f"<added {i}>" for i in range(20)]})
    vocabulary = policy.base.get_output_embeddings().weight.shape[0]
    assert len(policy.tokenizer) > vocabulary
    _, banned = token_ids(policy.base, policy.tokenizer)
    assert max(banned) < vocabulary
    assert {*before} <= {*banned}


@pytest.mark.parametrize("size", [(8, 8), (56, 56), (640, 480), (123, 457), (3000, 20), (17, 3000)])
def test_pixel_coordinates_refer_to_the_image_as_the_processor_resizes_it(size: tuple[int, int]) -> None:
    policy = loaded(max_pixels=200_000)
    encoder = Encoder(policy.processor, TASK, "pixels")
    sample = Sample(0, (Image.new("RGB", size),), 0, "red", ())
    batch = encoder([sample])
    _, rows, columns = batch.inputs[0]["image_grid_thw"][0].tolist()
    assert batch.frames[0] == Frame(14 * columns, 14 * rows)


@pytest.mark.parametrize(
    ("settings", "frame"),
    [({}, Frame(1000, 1000)), ({"coordinates": "unit"}, Frame(1, 1, 3)), ({"coordinates": "pixels"}, Frame(56, 56))],
)
def test_coordinates_default_to_those_of_the_family(settings: dict[str, Any], frame: Frame) -> None:
    policy = loaded(**settings)
    assert policy.encoder(TASK).frame(FreshScenes(1, 0, 0)[0].image) == frame
    assert policy.family_coordinates == "thousandths"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-detektion", "did you mean 'tiny-detection'"),
        ("runs/no/such/folder", "no such folder"),
        (str(Path(__file__).parent), "it has no config.json"),
        ("someone/some-model", "offline mode"),
    ],
)
def test_a_name_without_a_checkpoint_is_refused_at_once(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint") as caught:
        Policy(name)
    assert said in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """A Hugging Face Hub that refuses every model."""

    def do_HEAD(self) -> None:
        code, reason = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("X-Error-Message", reason)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("name", "said"), [("a/gated-model", "gated repo"), ("a/no-model", "Repository Not Found")])
def test_an_error_of_the_hub_is_one_line(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{hub.server_port}"
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda name, file: f"{address}/{name}/resolve/main/{file}")
        with pytest.raises(ConfigurationError, match=said) as caught:
            Policy(name)
        hub.shutdown()
    assert "\n" not in str(caught.value)
