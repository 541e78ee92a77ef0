"""Test exactness on a GPU: compare log-probabilities, gradients and rollouts of each family with the original forward.

Called by gpu.py. Models are small and have random weights (tests/helpers/families.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.helpers import families
from tests.policy.test_families import GROUP, Prompts, completions
from vrft.policy import LoRA, Policy
from vrft.policy.repeated import naive_log_probs
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.types import PromptBatch, Rollout

LENGTH = 16
"""Maximum number of tokens in a rollout."""

EXACT = 1e-4
"""Allowed error in float32."""

ROUNDING, FACTOR = 1e-3, 2
"""Allowed error in bfloat16: `FACTOR` times that of the original forward, plus `ROUNDING` in log-probabilities."""

Values = tuple[Tensor, Tensor]
"""Log-probabilities of all real tokens, and the concatenated gradients of all trained weights."""


class Errors(NamedTuple):
    """Distances from the original forward in float32."""

    log_probs: float  # mean absolute difference
    gradients: float  # relative
    decoded: float  # mean absolute difference of log-probabilities while decoding

    def __str__(self) -> str:
        return f"log-probs {self.log_probs:.1e}, gradients {self.gradients:.1e}, decoded {self.decoded:.1e}"


class Result(NamedTuple):
    """Errors of a family, and the allowed errors."""

    family: str
    mode: str
    dtype: str
    errors: Errors
    allowed: Errors
    same_tokens: bool  # whether CUDA graphs decode the same tokens as eager steps

    @property
    def verdict(self) -> str:
        if not self.same_tokens:
            return "WRONG: graphs decode other tokens"
        small = all(error <= limit for error, limit in zip(self.errors, self.allowed, strict=True))
        return "exact" if small else "WRONG"


def results(small: bool) -> Iterator[Result]:
    """Yield the errors of each family with all weights or adapters, in float32 and bfloat16."""
    torch.backends.cudnn.allow_tf32 = False
    for family in ("qwen2_5_vl",) if small else families.FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            families.write(Path(folder), family)
            for dtype in ("float32", "bfloat16"):
                for mode in ("full", "lora"):
                    yield Result(family, mode, dtype, *errors(folder, dtype, lora=mode == "lora"))


def errors(folder: str, dtype: str, lora: bool) -> tuple[Errors, Errors, bool]:
    """Return the errors, the allowed errors, and whether CUDA graphs decode the same tokens as eager steps.

    In bfloat16, different tokens are allowed, because rounding may change a token.
    """
    exact, policy = (load(folder, kind, lora) for kind in ("float32", dtype))
    made = Prompts(policy).batch
    inputs = [{key: value.to(policy.device) for key, value in prompt.items()} for prompt in made.inputs]
    batch = PromptBatch(made.samples, made.frames, inputs)
    ids, mask = (x.to(policy.device) for x in completions(policy))
    truth, own = (own_values(one, batch, ids, mask) for one in (exact, policy))
    ours = with_gradients(policy, policy(policy.prepare(batch).inputs, ids, mask, 1.0)[0][mask.bool()])
    rollouts = [generate(policy, batch, graph) for graph in (True, False)]
    decoded = []
    for done in rollouts:
        expected, _ = own_values(exact, batch, done.ids, done.mask)
        decoded.append(float((done.log_probs[done.mask.bool()] - expected).abs().mean()))
    found = Errors(*distances(ours, truth), max(decoded))
    if dtype == "float32":
        return found, Errors(EXACT, EXACT, EXACT), torch.equal(rollouts[0].ids, rollouts[1].ids)
    log_probs, gradients = distances(own, truth)
    allowed = ROUNDING + FACTOR * log_probs
    return found, Errors(allowed, FACTOR * gradients, allowed), True


def load(folder: str, dtype: Any, lora: bool) -> Policy:
    """Load a policy on the GPU, with nonzero adapters."""
    policy = Policy(folder, LoRA(r=4) if lora else None, dtype=dtype)
    with torch.device("cuda"):
        policy.load(keep_reference=False)
    policy.to("cuda").train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


def own_values(policy: Policy, batch: PromptBatch, ids: Tensor, mask: Tensor) -> Values:
    """Compute completions, (N, T), by the original forward, row by row."""
    rows = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
    log_probs = []
    for p, prompt in enumerate(batch.inputs):
        group = rows[p * GROUP : (p + 1) * GROUP]
        # float32 skips the computation of the rounding error
        own, _ = naive_log_probs(policy.base, prompt, group, policy.banned_ids, torch.float32, policy.autocast())
        log_probs.append(own)
    return with_gradients(policy, torch.cat(log_probs))


def with_gradients(policy: Policy, log_probs: Tensor) -> Values:
    """Return log-probabilities, and the gradients of their weighted sum."""
    policy.zero_grad()
    (log_probs * torch.linspace(0, 1, len(log_probs), device=log_probs.device)).sum().backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    return log_probs.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def distances(values: Values, truth: Values) -> tuple[float, float]:
    """Return the mean absolute difference of log-probabilities and the relative distance of gradients."""
    log_probs, gradients = (mine - yours for mine, yours in zip(values, truth, strict=True))
    return float(log_probs.abs().mean()), float(gradients.norm() / truth[1].norm())


def generate(policy: Policy, batch: PromptBatch, graph: bool) -> Rollout:
    """Sample completions of each prompt, with or without CUDA graphs."""
    engine = TransformersEngine()
    engine.cuda_graph = graph
    return engine.generate(
        policy,
        policy.prepare(batch),
        GROUP,
        max_completion_length=LENGTH,
        sampling=Sampling(),
        key=SamplingKey(3, 0),
        on_token=lambda *_: None,
    )
