"""Prompts with examples: computed once for all prompts that begin with them, and equal to the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import families
from vrft.errors import ConfigurationError
from vrft.policy import Policy, shared_prefix
from vrft.policy.fused import own_forwards
from vrft.policy.plain_text import plain_text, processed, whole_chat
from vrft.policy.processor import Encoder
from vrft.policy.prompts import encode_images
from vrft.policy.repeated import naive_logits
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.tasks import ClassificationTask
from vrft.types import Sample, SharedStart

pytestmark = pytest.mark.slow(seconds=0.3)

LENGTHS = [7, 3, 1, 5, 2, 6]  # tokens of two completions for each of three prompts
QUESTIONS = ("is a blue dog here ?", "why", "is a blue dog left of the box ?")


Loaded = tuple[Policy, Encoder]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return families.written_once(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded(checkpoint: Callable[[str], str]) -> Callable[..., Loaded]:
    """Return a function that returns a family's policy and encoder, loaded on the first call with its settings.

    Tests leave the weights and the template as they are.
    """
    return cache(lambda family, **settings: load(checkpoint(family), **settings))


def load(folder: str, **settings: Any) -> Loaded:
    """Load a policy whose template ends an answer with a special token, as published ones do."""
    torch.manual_seed(0)
    policy = Policy(folder, dtype="float32", **settings)
    policy.load(keep_reference=False)
    template = policy.processor.chat_template
    end = "{% endfor %}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    policy.processor.chat_template = template.replace("{% endfor %}{% endfor %}", end)
    assert policy.processor.chat_template != template
    return policy, policy.encoder(ClassificationTask("{query}", system="answer ."))


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


EXAMPLES = tuple(Sample(-1, (picture(30 + 30 * i, 40, i),), i, "which colour ?", "red") for i in range(2))
SAMPLES = [
    Sample(i, tuple(picture(40 + 10 * i, 40, 10 + i + n) for n in range(1 + i % 2)), i, query, "red", examples=EXAMPLES)
    for i, query in enumerate(QUESTIONS)
]


def completions(policy: Policy) -> tuple[Tensor, Tensor]:
    allowed = [i for i in range(families.TEXT["vocab_size"]) if i not in policy.banned_ids.tolist()]
    ids = torch.tensor(np.random.default_rng(1).choice(allowed, (len(LENGTHS), max(LENGTHS))))
    return ids, (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def whole_prompts(encoder: Encoder, samples: list[Sample]) -> list[dict[str, Any]]:
    """Return the prompts as the processor makes them at once."""
    plain, found = plain_text(encoder.processor), []
    for sample in samples:
        images = [image for shown in (*sample.examples, sample) for image in shown.images]
        found.append(plain.encode(plain.render(encoder.chat(sample, encoder.frame(sample.image))), images))
    return found


def naive_log_probs(policy: Policy, prompts: list[dict[str, Any]], ids: Tensor, mask: Tensor) -> Tensor:
    rows = []
    with own_forwards(policy.base):
        for n, (row, length) in enumerate(zip(ids, mask.sum(1).tolist(), strict=True)):
            logits = naive_logits(policy.base, prompts[n // 2], row[:length])
            log_p = logits.index_fill(-1, policy.banned_ids, -torch.inf).log_softmax(-1)
            found = log_p.gather(-1, row[:length, None])[:, 0]
            rows.append(torch.nn.functional.pad(found, (0, len(row) - length)))
    return torch.stack(rows)


def gradients(policy: Policy, log_probs: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each parameter for weights that are the same in every test."""
    weights = torch.rand(log_probs.shape, generator=torch.Generator().manual_seed(2))
    policy.zero_grad()
    (log_probs * weights).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def own_values(loaded: Callable[..., Loaded]) -> Callable[[str], tuple[Tensor, dict[str, Tensor]]]:
    """Return a function that returns a family's own log-probabilities and gradients for whole prompts."""

    @cache
    def values(family: str) -> tuple[Tensor, dict[str, Tensor]]:
        policy, encoder = loaded(family)
        log_probs = naive_log_probs(policy, whole_prompts(encoder, SAMPLES), *completions(policy))
        return log_probs.detach(), gradients(policy, log_probs)

    return values


@pytest.mark.parametrize("settings", [{}, {"freeze_vision": True}], ids=["full", "frozen tower"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_forward_and_gradient_equal_the_naive_ones(
    family: str,
    settings: dict[str, Any],
    loaded: Callable[..., Loaded],
    own_values: Callable[[str], tuple[Tensor, dict[str, Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, encoder = loaded(family, **settings)
    ids, mask = completions(policy)
    batch = encoder(SAMPLES)
    assert len({id(prompt.get("start")) for prompt in batch.inputs}) == 1
    assert "start" in batch.inputs[0]
    encoded: list[dict[str, Any]] = []
    encode = shared_prefix.encode_prompts
    monkeypatch.setattr(shared_prefix, "encode_prompts", lambda model, p: encoded.extend(p) or encode(model, p))
    log_probs, _ = policy(policy.prepare(batch).inputs, ids, mask, 1.0)
    assert len(encoded) == 4  # the examples, which all prompts share, and the images of each question
    found = gradients(policy, log_probs)
    expected, own = own_values(family)
    assert (log_probs - expected).abs().max() < 1e-5
    pairs = [(found[name].flatten(), own[name].flatten()) for name in found]
    naive = torch.cat([theirs for _, theirs in pairs])
    assert (torch.cat([ours for ours, _ in pairs]) - naive).norm() < 1e-5 * naive.norm()
    assert len(found) == len(own) or settings
    with torch.no_grad():  # as the check of the first training step
        in_parts = naive_log_probs(policy, batch.inputs, ids, mask)
    assert (log_probs - in_parts).abs().max() < 1e-5


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_rollout_equals_that_of_generate(family: str, loaded: Callable[..., Loaded]) -> None:
    policy, encoder = loaded(family)
    policy.eval()
    rollout = TransformersEngine().generate(
        policy,
        policy.prepare(encoder(SAMPLES)),
        2,
        max_completion_length=12,
        sampling=Sampling(greedy=True),
        key=SamplingKey(3, 0),
        on_token=lambda *_: None,
    )
    for p, prompt in enumerate(whole_prompts(encoder, SAMPLES)):
        with own_forwards(policy.base):
            expected = policy.base.generate(
                **prompt, max_new_tokens=12, do_sample=False, suppress_tokens=policy.banned_ids.tolist()
            )[0, prompt["input_ids"].shape[1] :]
        for n in (2 * p, 2 * p + 1):
            length = int(rollout.mask[n].sum())
            assert rollout.ids[n, :length].tolist() == expected[:length].tolist()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5", "llava_onevision"])
def test_swapped_images_change_the_result(family: str, loaded: Callable[..., Loaded]) -> None:
    policy, encoder = loaded(family)
    ids, mask = completions(policy)
    swapped = tuple(
        replace(example, images=other.images) for example, other in zip(EXAMPLES, reversed(EXAMPLES), strict=True)
    )
    several = replace(SAMPLES[1], images=SAMPLES[1].images[::-1])
    changed = {
        "an example's": [replace(sample, examples=swapped) for sample in SAMPLES],
        "a question's": [SAMPLES[0], several, SAMPLES[2]],
    }
    with torch.no_grad():
        right = policy(policy.prepare(encoder(SAMPLES)).inputs, ids, mask, 1.0)[0]
        for samples in changed.values():
            wrong = policy(policy.prepare(encoder(samples)).inputs, ids, mask, 1.0)[0]
            assert (right - wrong).abs().max() > 1e-3


def test_a_template_that_removes_reasoning_keeps_that_of_examples(checkpoint: Callable[[str], str]) -> None:
    """As those of Qwen3.5 and other reasoning models."""
    _, encoder = load(checkpoint("qwen3_5"))
    without = "(part.text.split('</think>') | last)"
    template = encoder.processor.chat_template.replace("part.text if", f"{without} if")
    assert template != encoder.processor.chat_template
    encoder.processor.chat_template = template
    text, _ = whole_chat(encoder.processor, encoder.chat(SAMPLES[0], encoder.frame(SAMPLES[0].image)))
    answer = "<think>This is red</think><answer>red</answer>"
    assert text.count(answer) == 2
    spoken = "{% for m in messages if m.role != 'assistant' %}"
    encoder.processor.chat_template = template.replace("{% for m in messages %}", spoken)
    with pytest.raises(ConfigurationError, match="leaves out or repeats answers of earlier turns"):
        whole_chat(encoder.processor, encoder.chat(SAMPLES[0], encoder.frame(SAMPLES[0].image)))


@pytest.mark.parametrize("shown", [1, 2])
def test_a_single_image_among_examples_is_no_single_image(shown: int, loaded: Callable[..., Loaded]) -> None:
    """LLaVA-OneVision's processor and model cut only an image that is alone into tiles."""
    policy, encoder = loaded("llava_onevision")
    samples = [replace(SAMPLES[i], examples=EXAMPLES[:shown]) for i in (1, 0)]  # two images, then one
    prompts = encoder(samples).inputs
    assert prompts[0]["start"] is prompts[1]["start"]
    for prompt, whole in zip(prompts, whole_prompts(encoder, samples), strict=True):
        assert torch.equal(prompt["input_ids"], whole["input_ids"])
        with torch.no_grad():
            pooled = [encode_images(policy.base, given).pooled for given in (prompt, whole)]
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*pooled, strict=True))


def test_what_prompts_share_is_moved_once(loaded: Callable[..., Loaded]) -> None:
    _, encoder = loaded("qwen2_vl")
    seen: list[str] = []
    moved = encoder(SAMPLES).map(lambda key, tensor: seen.append(key) or tensor + 0)  # type: ignore[func-returns-value]
    starts = [prompt["start"] for prompt in moved.inputs]
    assert all(isinstance(start, SharedStart) and start is starts[0] for start in starts)
    assert seen.count("pixel_values") == 4


def test_a_processor_that_refuses_several_images_is_named() -> None:
    class SingleImageProcessor:
        def __call__(self, **_: Any) -> dict[str, Any]:
            raise ValueError("expected one image per text")

    with pytest.raises(ConfigurationError, match="SingleImageProcessor refuses a prompt with 2 images: expected one"):
        processed(SingleImageProcessor(), "", [1, 2], {})
    with pytest.raises(ValueError, match=r"^expected one image per text"):
        processed(SingleImageProcessor(), "", [1], {})
