"""Memory that runs out in any phase of a step: the work is done in smaller parts, with the same result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.standin.conftest import Run, assert_same, run
from tests.standin.device import gpu, phase
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.training import module, step_state

ENOUGH = 2**62
SETTINGS = (
    *("--model.policy.dtype=float32", "--data.batch_size=4", "--model.max_completion_length=24"),
    "--trainer.limit_val_batches=1",
)
SAID = {
    "rollout": "rollouts are of at most",
    "reference": "micro-batches have at most",
    "update": "micro-batches have at most",
    "decoding": "rollouts are of at most",
}


class Memory:
    """Memory at the start of each phase and what it takes in addition; one phase may be given less."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}
        self.limited, self.share = "", 1.0
        self.show = step_state.phase

    @contextlib.contextmanager
    def phase(self, trainer: Any, name: str, total: int) -> Iterator[Callable[..., None]]:
        start = gpu.memory()
        if name == self.limited:
            gpu.limit(start + int(self.share * self.taken[name]))
        try:
            with phase(name), self.show(trainer, name, total) as advance:
                yield advance
        finally:
            gpu.limit(ENOUGH)
            if not self.limited:
                self.taken[name] = max(self.taken.get(name, 0), gpu.counts()[name]["peak"] - start)


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    measured = Memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_state, "phase", measured.phase)
        patch.setattr(module, "phase", measured.phase)
        yield measured


@pytest.fixture(scope="module")
def enough(memory: Memory, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    gpu.reset()
    return run(tmp_path_factory.mktemp("enough"), "cuda", data, *SETTINGS)


@pytest.mark.parametrize("name", SAID)
def test_a_run_with_less_memory_ends_the_same(
    name: str, enough: Run, memory: Memory, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not enough.warnings
    monkeypatch.setattr(memory, "limited", name)
    monkeypatch.setattr(memory, "share", 0.7)
    less = run(tmp_path / "less", "cuda", data, *SETTINGS)
    assert any(SAID[name] in said for said in less.warnings)
    for row in (*enough.metrics, *less.metrics):
        row.pop("train/out_of_memory", None)
    assert_same(enough, less, 2e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"lora": LoRA(r=4)}, {"dtype": "bfloat16"}, {"lora": LoRA(r=4), "dtype": "bfloat16"}], ids=str
)
def test_loading_takes_no_more_than_what_stays(settings: dict[str, Any]) -> None:
    before, policy = gpu.memory(), Policy("tiny-detection", **{"dtype": "float32"} | settings)
    gpu.reset()
    with phase("load"), torch.device("cuda"):
        policy.load(keep_reference=True)
    largest = max(weight.nbytes for weight in policy.parameters())
    assert gpu.counts()["load"]["peak"] - before < 1.05 * (gpu.memory() - before) + largest


def test_a_model_that_does_not_fit_is_one_line() -> None:
    policy = Policy("tiny-detection", dtype="float32")
    gpu.limit(gpu.memory() + 2_000_000)
    try:
        with pytest.raises(ConfigurationError, match="out of memory"), torch.device("cuda"):
            policy.load(keep_reference=True)
    finally:
        gpu.limit(ENOUGH)
