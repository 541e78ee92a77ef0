"""Each supported architecture, with its real class and processor, against its own forward without shared prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import families
from vrft.policy import LoRA, Policy, packed_attention, recurrent, shared_prefix
from vrft.policy.casts import Cast
from vrft.policy.fused import own_forwards
from vrft.policy.prompts import next_position
from vrft.policy.recurrent import LayerState
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.types import Frame, PromptBatch, Sample

pytestmark = pytest.mark.slow(seconds=0.2)

GROUP, TEMPERATURE = 3, 0.8
NOISE = SamplingKey(3, 0)
LENGTHS = [5, 1, 7, 2, 6, 6, 7, 3, 4]  # tokens of three completions for each of three prompts
QUESTIONS = ("find the red box", "is a blue dog left of the box ?", "why")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return families.written_once(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded(checkpoint: Callable[[str], str]) -> Callable[..., Policy]:
    """Return a function that returns a family's policy, which it loads on the first call with its settings.

    Tests leave its weights as they are.
    """
    return cache(lambda family, **settings: load(checkpoint(family), **settings))


def load(folder: str, **settings: Any) -> Policy:
    torch.manual_seed(0)
    policy = Policy(folder, **{"dtype": "float32"} | settings)
    policy.load(keep_reference=False)
    if policy.lora is not None:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, 0, 0.05, generator=generator)
    return policy


class Prompts:
    """Three prompts of different lengths, one with two images: separately, and as a left-padded batch."""

    def __init__(self, policy: Policy, questions: Sequence[str] = QUESTIONS, which: Sequence[int] = (0, 1, 2)) -> None:
        random = np.random.default_rng(0)
        sizes = [[(60, 40)], [(40, 60), (30, 30)], [(90, 50)]]
        pictures = [
            [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in some] for some in sizes
        ]
        self.images = [pictures[i] for i in which]
        chats = [
            [{"role": "user", "content": [*({"type": "image"} for _ in some), {"type": "text", "text": question}]}]
            for some, question in zip(self.images, questions, strict=True)
        ]
        processor = policy.processor
        self.texts = [processor.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
        single = [
            dict(processor(text=[text], images=[some], return_tensors="pt"))
            for text, some in zip(self.texts, self.images, strict=True)
        ]
        samples = [Sample(i, (some[0],), i, "", "") for i, some in enumerate(self.images)]
        self.batch = PromptBatch(samples, [Frame(1000, 1000)] * len(single), single)
        self.processor = processor

    def padded(self, repeat: int = 1) -> dict[str, Tensor]:
        texts, images = ([x for x in column for _ in range(repeat)] for column in (self.texts, self.images))
        return dict(self.processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"))


def completions(policy: Policy) -> tuple[Tensor, Tensor]:
    allowed = [i for i in range(families.TEXT["vocab_size"]) if i not in policy.banned_ids.tolist()]
    ids = torch.tensor(np.random.default_rng(1).choice(allowed, (len(LENGTHS), max(LENGTHS))))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, mask


def naive_log_probs(policy: Policy, prompts: Prompts, ids: Tensor, mask: Tensor) -> Tensor:
    """Return log-probabilities from a left-padded batch that repeats prompt and images for each completion."""
    inputs = prompts.padded(GROUP)
    tails = {"input_ids": ids, "attention_mask": mask}
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in inputs:
            inputs[key] = torch.cat([inputs[key], tails.get(key, torch.zeros_like(ids))], 1)
    logits = policy.base(**inputs, use_cache=False).logits[:, -ids.shape[1] - 1 : -1] / TEMPERATURE
    logits = logits.index_fill(-1, policy.banned_ids, -torch.inf)
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] * mask


class Values(NamedTuple):
    """Log-probabilities (N, T) and the gradient of each parameter that trains."""

    log_probs: Tensor
    gradients: dict[str, Tensor]


def values_of(policy: Policy, naive: bool, backward: bool = True) -> Values:
    """Compute log-probabilities and gradients; `naive`: by the model's own forward of repeated prompts."""
    prompts = Prompts(policy)
    ids, mask = completions(policy)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2))
    policy.train()
    policy.zero_grad()
    with own_forwards(policy.base) if naive else nullcontext(), torch.set_grad_enabled(backward):
        if naive:
            log_probs = naive_log_probs(policy, prompts, ids, mask)
        else:
            log_probs, _ = policy(policy.prepare(prompts.batch).inputs, ids, mask, TEMPERATURE)
        if backward:
            (log_probs * weights).sum().backward()
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}
    return Values(log_probs.detach(), gradients if backward else {})


def check_exactness(policy: Policy, expected: Values | None = None) -> None:
    """Compare with the model's own forward, or with what it gave for a policy with the same weights that all train."""
    found = values_of(policy, naive=False)
    expected = expected or values_of(policy, naive=True)
    assert (found.log_probs - expected.log_probs).abs().max() < 1e-5
    gradients = [
        torch.cat([values.gradients[name].flatten() for name in found.gradients]) for values in (found, expected)
    ]
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()
    assert gradients[1].norm() > 1.0


def differs(policy: Policy) -> bool:
    """Return whether log-probabilities differ from the model's own."""
    found, expected = (values_of(policy, naive, backward=False).log_probs for naive in (False, True))
    return bool((found - expected).abs().max() > 1e-5)


@pytest.fixture(scope="module")
def own_values(loaded: Callable[..., Policy]) -> Callable[[str], Values]:
    """Return a function that returns a family's own log-probabilities and gradients of all its parameters."""
    return cache(lambda family: values_of(loaded(family), naive=True))


SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "checkpointed": {"gradient_checkpointing": True},
    "frozen tower": {"freeze_vision": True},
    "lora": {"lora": LoRA(r=4)},
    "lora everywhere, checkpointed": {
        "lora": LoRA(r=4, target_modules="all-linear"),
        "gradient_checkpointing": True,
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_forward_and_gradient_equal_the_naive_ones(
    family: str,
    settings: dict[str, Any],
    loaded: Callable[..., Policy],
    own_values: Callable[[str], Values],
) -> None:
    policy = loaded(family, **settings)
    assert policy.shares_prefixes
    check_exactness(policy, None if policy.lora else own_values(family))


@pytest.mark.parametrize("settings", [{}, SETTINGS["lora"]], ids=["full", "lora"])
def test_layers_without_keys_of_their_own_share_prompts(
    settings: dict[str, Any], loaded: Callable[..., Policy]
) -> None:
    """The last layers of Gemma 3n reuse keys and values of earlier ones; linear layers also lie in lists."""
    policy = loaded("llava_onevision+gemma3n_text", **settings)
    assert policy.shares_prefixes
    check_exactness(policy)
    check_greedy(policy, record=False)


@pytest.mark.parametrize(
    ("family", "settings"), [*zip(families.MIXTURES, ({}, SETTINGS["lora everywhere, checkpointed"]), strict=True)]
)
def test_mixtures_of_experts_share_prompts(
    family: str, settings: dict[str, Any], checkpoint: Callable[[str], str]
) -> None:
    policy = load(checkpoint(family), **settings)
    assert policy.shares_prefixes
    check_exactness(policy)
    check_greedy(policy, record=True)


def test_decoding_converts_the_weights_of_experts_once(
    checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(checkpoint("qwen3_5_moe"), dtype="bfloat16")
    batch = policy.prepare(Prompts(policy).batch)
    monkeypatch.setattr(Cast, "forward", None)  # converts them for a forward of the trainer
    generate(policy, batch, 2, Sampling(greedy=True))


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("wrong", ["mask", "position"])
def test_a_wrong_mask_or_position_changes_the_result(
    family: str, wrong: str, loaded: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded(family)
    if wrong == "position":
        monkeypatch.setattr(shared_prefix, "next_position", lambda x: next_position(x) + 1)
    elif family == "gemma3":  # has sliding windows and image blocks
        monkeypatch.setattr(shared_prefix, "single_sequence_masks", lambda *_: None)
    else:
        future = lambda n, m: torch.ones(n, m, dtype=torch.bool)  # noqa: E731
        monkeypatch.setattr(packed_attention, "causal_lower_right", future)
    assert differs(policy)


@pytest.mark.parametrize("lost", ["convolution", "recurrent", "padding"])
@pytest.mark.parametrize("family", families.RECURRENT)
def test_a_lost_state_changes_the_result(
    family: str, lost: str, loaded: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded(family)
    copies, rows = LayerState.copies, recurrent.PaddedRows
    if lost == "padding":
        on_the_right = lambda given, n, device, left=False: rows(given, n, device)  # noqa: E731
        monkeypatch.setattr(recurrent, "PaddedRows", on_the_right)
    elif lost == "convolution":
        without = lambda state, counts: (torch.zeros_like(copies(state, counts)[0]), copies(state, counts)[1])  # noqa: E731
        monkeypatch.setattr(LayerState, "copies", without)
    elif family == "llava_onevision+lfm2":
        pytest.skip("a short convolution has no other state")
    else:
        monkeypatch.setattr(LayerState, "copies", lambda state, counts: (copies(state, counts)[0], None))
    assert differs(policy)


def generate(
    policy: Policy,
    batch: PromptBatch,
    group: int,
    sampling: Sampling,
    limit: int = 12,
    record: bool = False,
    key: SamplingKey = NOISE,
) -> Any:
    engine = TransformersEngine()
    engine.cuda_graph = record
    return engine.generate(
        policy,
        batch,
        group,
        max_completion_length=limit,
        sampling=sampling,
        key=key,
        on_token=lambda *_: None,
    )


@pytest.mark.parametrize("record", [False, True], ids=["growing", "fixed shapes"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_rollout_equals_that_of_generate(family: str, record: bool, loaded: Callable[..., Policy]) -> None:
    check_greedy(loaded(family), record)


def check_greedy(policy: Policy, record: bool) -> None:
    prompts = Prompts(policy)
    policy.eval()
    inputs = prompts.padded()
    expected = policy.base.generate(
        **inputs, max_new_tokens=24, do_sample=False, suppress_tokens=policy.banned_ids.tolist()
    )[:, inputs["input_ids"].shape[1] :]
    rollout = generate(policy, policy.prepare(prompts.batch), 2, Sampling(greedy=True), 24, record)
    for n, (ids, mask) in enumerate(zip(rollout.ids, rollout.mask, strict=True)):
        length = int(mask.sum())
        assert ids[:length].tolist() == expected[n // 2][:length].tolist()
        assert length == 24 or ids[length - 1] in policy.stop_ids


@pytest.mark.parametrize("settings", [{}, {"freeze_vision": True}], ids=["", "frozen tower"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_prompts_about_the_same_images_share_their_common_prefix(
    family: str, settings: dict[str, Any], loaded: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded(family, **settings)
    questions = ["is a red dog here ?", "is a blue dog left of the box ?", "is a", "why", "why", "is a red dog here ?"]
    batch = Prompts(policy, questions, [1, 1, 1, 0, 0, 2]).batch
    encoded = []
    encode = shared_prefix.encode_prompts
    monkeypatch.setattr(shared_prefix, "encode_prompts", lambda model, p: encoded.extend(p) or encode(model, p))
    together = generate(policy, policy.prepare(batch), 2, Sampling(temperature=2.0))
    assert len(encoded) == 3
    for p in range(len(questions)):
        engine_noise = SamplingKey(3, 0, first=p)
        alone = generate(policy, policy.prepare(batch.select([p])), 2, Sampling(temperature=2.0), key=engine_noise)
        length = alone.ids.shape[1]
        assert torch.equal(together.mask[2 * p : 2 * p + 2, :length], alone.mask)
        assert torch.equal(together.ids[2 * p : 2 * p + 2, :length] * alone.mask, alone.ids * alone.mask)
        assert (together.log_probs[2 * p : 2 * p + 2, :length] - alone.log_probs).abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{}, SETTINGS["lora everywhere, checkpointed"]], ids=["full", "lora"])
@pytest.mark.parametrize("record", [False, True], ids=["growing", "fixed shapes"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_sampled_log_probs_equal_the_trainers(
    family: str, record: bool, settings: dict[str, Any], loaded: Callable[..., Policy]
) -> None:
    policy = loaded(family, **settings)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    policy.train()
    batch = policy.prepare(Prompts(policy).batch)
    rollout = generate(policy, batch, 4, Sampling(temperature=2.0), 24, record)
    assert policy.training
    assert all(torch.equal(before[name], parameter) for name, parameter in policy.named_parameters())
    assert rollout.truncated.any()
    assert not rollout.truncated.all()  # some rows ended early and were removed
    with torch.no_grad():
        log_probs, _ = policy(batch.inputs, rollout.ids, rollout.mask, 2.0)
    assert (rollout.log_probs - log_probs).abs().max() < 1e-4
    assert torch.equal(rollout.log_probs, rollout.sampling_log_probs)
    assert not torch.isin(rollout.ids[rollout.mask.bool()], policy.banned_ids).any()


@pytest.mark.parametrize("family", ["qwen3_5", "qwen2_5_vl"])  # with recurrent layers, and with fused ones
def test_repeated_prompts_give_the_same_result(family: str, checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint(family))
    batch = policy.prepare(Prompts(policy).batch)
    shared = generate(policy, batch, 2, Sampling(temperature=2.0))
    policy.shares_prefixes = False  # as the check at the first step does, and models with other layers
    check_exactness(policy)
    repeated = generate(policy, batch, 2, Sampling(temperature=2.0))
    assert torch.equal(repeated.ids, shared.ids)
    assert (repeated.log_probs - shared.log_probs).abs().max() < 1e-5
    with torch.no_grad():
        log_probs, _ = policy(batch.inputs, repeated.ids, repeated.mask, 2.0)
    assert (repeated.log_probs - log_probs).abs().max() < 1e-5
