"""What a GPU gets during rollouts: kernels by token, synchronisations and recorded graphs."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from PIL import Image

from tests.standin.device import events, gpu, phase
from vrft.policy import Policy
from vrft.rollout import Sampling, SamplingKey, TransformersEngine, transformers
from vrft.tasks import DetectionTask
from vrft.types import PromptBatch, Rollout, Sample

LOOP = "decoding"


class Counts(NamedTuple):
    """Counts of one rollout's loop over tokens."""

    nodes: float  # in the graphs recorded, on average
    launches: float  # per token, outside of graphs
    syncs: float  # per token
    recordings: int


def prompts(policy: Policy, count: int, size: int = 224, query: str = "count") -> PromptBatch:
    """Return prompts about images of size / 28 squared tokens."""
    samples = [Sample(i, (Image.new("RGB", (size, size), (i * 30, 0, 0)),), i, query, "") for i in range(count)]
    batch = policy.encoder(DetectionTask("Detect {query}"))(samples)
    inputs = [{key: value.to("cuda") for key, value in prompt.items()} for prompt in batch.inputs]
    return policy.prepare(PromptBatch(batch.samples, batch.frames, inputs))


def decoding_counts(policy: Policy, batch: PromptBatch, group_size: int, tokens: int, seed: int) -> Counts:
    """Sample once and count what happens between the prompts and the end of the last token."""
    gpu.reset()
    events.clear()
    original = transformers.decode

    def counted(*args: object) -> None:
        with phase(LOOP):
            original(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers, "decode", counted)
        generate(policy, batch, group_size, tokens, seed)
    found = gpu.counts()[LOOP]
    recordings = sum(count for (kind, *_), count in events[LOOP].items() if kind == "record")
    nodes = found["graphed"] / max(recordings, 1)
    return Counts(nodes, found["launches"] / tokens, found["syncs"] / tokens, recordings)


def generate(policy: Policy, batch: PromptBatch, group_size: int, tokens: int, seed: int) -> Rollout:
    return TransformersEngine().generate(
        policy,
        batch,
        group_size,
        max_completion_length=tokens,
        sampling=Sampling(temperature=20.0),
        key=SamplingKey(seed, 0),
        on_token=lambda *_: None,
    )


def full_length(policy: Policy) -> None:
    """Let no completion end before its last token."""
    policy.banned_ids = torch.cat([policy.banned_ids, policy.stop_ids])
