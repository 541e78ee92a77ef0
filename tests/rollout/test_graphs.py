"""Recorded steps: when they are used, and when their memory is freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import families
from tests.policy.test_families import Prompts, generate, load
from vrft.policy import Policy
from vrft.policy.decoding_model import DecodingModel
from vrft.rollout import Sampling, graphs, transformers


@pytest.fixture(scope="module")
def load_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Policy]:
    written = families.written_once(tmp_path_factory)
    return lambda **settings: load(written("qwen2_5_vl"), **settings)


@pytest.fixture
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def rollout(policy: Policy, **settings: Any) -> None:
    generate(policy, policy.prepare(Prompts(policy).batch), 2, Sampling(), record=True, **settings)


@pytest.mark.usefixtures("_no_garbage_collection")
def test_recordings_are_freed_once_nothing_keeps_them(
    load_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, alive = load_policy(), []

    def watch(owner: Any) -> None:
        start = owner.__init__

        def init(self: Any, *arguments: Any, **options: Any) -> None:
            alive.append(weakref.ref(self))
            start(self, *arguments, **options)

        monkeypatch.setattr(owner, "__init__", init)

    for owner in (DecodingModel, graphs.GraphSteps, graphs.RecordedStep):
        watch(owner)

    def kept() -> list[str]:
        return [type(found).__name__ for found in (ref() for ref in alive) if found is not None]

    rollout(policy, limit=4)
    assert {*kept()} == {"DecodingModel", "GraphSteps", "RecordedStep"}
    before = kept()
    for limit in (5, 6):  # only so many shapes are kept
        rollout(policy, limit=limit)
    assert kept().count("GraphSteps") == graphs.KEPT < len(alive) - len(before)
    policy.decoding.free()
    assert not kept()
    rollout(policy, limit=4)  # nothing is kept from here on
    assert not kept()


def test_steps_of_sharded_weights_are_not_recorded(
    load_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "graph_steps", None)
    policy = load_policy()
    with pytest.raises(TypeError):
        rollout(policy, limit=2)
    monkeypatch.setattr(Policy, "is_sharded", True)
    rollout(policy, limit=2)
    assert policy.decoding.kept is None


@torch.no_grad()
def test_a_recording_converts_trained_weights_at_each_use(load_policy: Callable[..., Policy]) -> None:
    policy = load_policy(dtype="bfloat16")
    weight = torch.nn.Parameter(torch.ones(1, 1))  # as those of a router, which no linear layer has
    products = []
    with policy.decoding(keep=True):
        for _ in range(2):
            products.append(F.linear(torch.ones(1, 1), weight))
            weight.mul_(2)
    assert [product.dtype for product in products] == [torch.bfloat16] * 2
    assert [product.item() for product in products] == [1, 2]
