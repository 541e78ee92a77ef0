"""A decoded token is one recorded graph of few kernels, and graphs are recorded once for many rollouts."""

from __future__ import annotations

import runpy
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import ROOT
from tests.standin.decoding_counts import decoding_counts, full_length, generate, prompts
from tests.standin.device import Stream, events, gpu
from vrft.policy import LoRA, Policy
from vrft.rollout import graphs
from vrft.rollout.graphs import RecordedStep
from vrft.types import PromptBatch

LAYERS: dict[str, Any] = {
    "text": {
        "hidden_size": 256,
        "num_attention_heads": 16,
        "intermediate_size": 256,
        "tie_word_embeddings": True,
    },
    "vision": {"width": 64, "depth": 2, "num_heads": 4, "intermediate_size": 96, "full": [1]},
    "vocabulary": None,
}
"""A narrow model with text layers like those of Qwen2.5-VL-3B, which has 36."""

DEPTHS = (2, 4)
"""Numbers of text layers from which the kernels of 36 follow."""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write a checkpoint for each depth."""
    folders = [str(tmp_path_factory.mktemp("narrow")) for _ in DEPTHS]
    build = runpy.run_path(str(ROOT / "benchmarks" / "build_checkpoint.py"))
    for folder, depth in zip(folders, DEPTHS, strict=True):
        build["PRESETS"]["narrow"] = LAYERS | {"text": {**LAYERS["text"], "num_hidden_layers": depth}}
        build["main"]([folder, "--preset", "narrow"])
    return folders


def load(checkpoint: str, lora: LoRA | None = None, dtype: str = "bfloat16", trained: str = "float32") -> Policy:
    policy = Policy(checkpoint, lora, dtype=dtype, trained_dtype=trained)  # type: ignore[arg-type]
    with torch.device("cuda"):
        policy.load(keep_reference=False)
    return policy


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"trained": "bfloat16"},
        {"lora": LoRA(r=4)},
        {"lora": LoRA(r=4, target_modules=["q_proj", "v_proj"])},
        {"lora": LoRA(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])},
    ],
    ids=["full", "full, bfloat16", "lora", "lora of q and v", "lora of attention"],
)
def test_kernels_and_synchronisations_of_a_token(settings: dict[str, Any], narrow: list[str]) -> None:
    nodes = []
    for checkpoint in narrow:
        policy = load(checkpoint, **settings)
        full_length(policy)
        batch = prompts(policy, 2)
        first, second = (decoding_counts(policy, batch, 4, 12, seed) for seed in range(2))
        nodes.append(first.nodes)
        assert (first.recordings, second.recordings) == (1, 0)
        assert second.launches <= 3
        assert second.syncs <= 1 / 8
    per_layer = (nodes[1] - nodes[0]) / (DEPTHS[1] - DEPTHS[0])
    assert 500 < nodes[0] + (36 - DEPTHS[0]) * per_layer <= 1000


@pytest.fixture(scope="module")
def tiny() -> Iterator[Policy]:
    yield load("tiny-detection", dtype="float32")
    gpu.limit(2**62)


def test_rollouts_record_at_most_four_graphs_and_the_next_ones_none() -> None:
    policy = load("tiny-detection", dtype="float32")
    policy.stop_ids = torch.arange(0, policy.base.config.get_text_config().vocab_size, 12, device="cuda")
    batch = prompts(policy, 8, 56)
    counts = [decoding_counts(policy, batch, 8, 40, seed) for seed in range(3)]
    assert 1 < counts[0].recordings <= 4
    assert [count.recordings for count in counts[1:]] == [0, 0]


def test_room_for_a_long_prompt_stays_for_as_many_rollouts_as_are_recent(
    tiny: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "PROMPT_STEP", 8)  # small enough that short prompts would get a room of their own
    monkeypatch.setattr(graphs, "RECENT", 3)
    tiny.decoding.kept = None
    short, long = prompts(tiny, 2, 56), prompts(tiny, 2, 56, query="count " * 50)

    def recordings(*batches: PromptBatch) -> list[int]:
        return [decoding_counts(tiny, batch, 2, 4, seed=0).recordings for batch in batches]

    assert recordings(short, long) == [1, 1]
    assert recordings(short, long, short, short, long) == [0] * 5
    assert recordings(short, short, short, short) == [0, 0, 1, 0]


def test_weights_that_moved_and_memory_that_ran_out_record_again(tiny: Policy) -> None:
    batch = prompts(tiny, 2, 56)
    generate(tiny, batch, 2, 8, seed=0)
    assert decoding_counts(tiny, batch, 2, 8, seed=0).recordings == 0
    weight = next(tiny.model.parameters())
    weight.data = weight.data.clone()
    assert decoding_counts(tiny, batch, 2, 8, seed=0).recordings == 1
    tiny.decoding.free()
    assert tiny.decoding.kept is None
    assert decoding_counts(tiny, batch, 2, 8, seed=0).recordings == 1
    assert decoding_counts(tiny, batch, 2, 8, seed=0).recordings == 1


def test_recorded_steps_see_new_weights(tiny: Policy) -> None:
    batch = prompts(tiny, 2, 56)
    tiny.decoding.short_of_memory = False
    before = generate(tiny, batch, 2, 8, seed=0)
    with torch.no_grad():
        for weight in tiny.model.parameters():
            weight.mul_(0.9)
    kept = generate(tiny, batch, 2, 8, seed=0)
    tiny.decoding.kept = None
    anew = generate(tiny, batch, 2, 8, seed=0)
    assert torch.equal(kept.ids, anew.ids)
    assert torch.equal(kept.log_probs, anew.log_probs)
    assert not torch.equal(before.log_probs[:, :1], kept.log_probs[:, :1])


def test_recordings_share_a_stream(tiny: Policy) -> None:
    batch = prompts(tiny, 2, 56)
    tiny.decoding.kept = None
    generate(tiny, batch, 2, 8, seed=0)
    tiny.decoding.kept = None
    assert decoding_counts(tiny, batch, 2, 8, seed=0).recordings == 1
    assert not any(kind == "stream" for counted in events.values() for kind, *_ in counted)


def while_recording(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    """Let steps call a function while they are recorded."""
    run = RecordedStep._run

    def step(self: RecordedStep) -> None:
        run(self)
        if gpu.capturing():
            action()

    monkeypatch.setattr(RecordedStep, "_run", step)


def test_a_thread_may_page_lock_a_batch_during_a_recording(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[torch.Tensor] = []

    def load_batch() -> None:
        thread = threading.Thread(target=lambda: found.append(torch.ones(2).pin_memory()))
        thread.start()
        thread.join()

    while_recording(monkeypatch, load_batch)
    batch = prompts(tiny, 2, 56)
    tiny.decoding.kept = None
    assert decoding_counts(tiny, batch, 2, 8, seed=0).recordings == 1
    assert found[0].is_pinned()


def test_steps_that_cannot_be_recorded_run_one_kernel_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load("tiny-detection", dtype="float32")
    batch, stream, forked = prompts(policy, 2, 56), torch.cuda.current_stream(), Stream()
    expected = generate(policy, batch, 2, 8, seed=0)
    reasons: dict[str, Callable[[], Any]] = {
        "operation not permitted when stream is capturing": lambda: torch.ones(1, device="cuda").item(),
        "unjoined work": lambda: forked.wait_stream(torch.cuda.current_stream()),
    }
    for reason, action in reasons.items():
        with monkeypatch.context() as patch:
            while_recording(patch, action)
            policy.decoding.kept = policy.decoding.check = None
            with pytest.warns(UserWarning, match=rf"decoding is slower: its steps can't be recorded .*{reason}"):
                found = generate(policy, batch, 2, 8, seed=0)
            assert torch.cuda.current_stream() is stream
            with warnings.catch_warnings(action="error"):
                again = generate(policy, batch, 2, 8, seed=0)
            kept = policy.decoding.kept
            assert kept is not None
            assert not kept.recorded  # nothing would use its keys and values again
            for rollout in (found, again):
                assert torch.equal(rollout.ids, expected.ids)
                torch.testing.assert_close(rollout.log_probs, expected.log_probs, rtol=1e-4, atol=1e-4)
            assert decoding_counts(policy, batch, 2, 8, seed=0).recordings == 0


class Router(nn.Module):
    """A layer with a weight that is no linear layer's, as a router of experts has."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight)


def test_recorded_steps_see_new_weights_of_other_layers() -> None:
    policy = load("tiny-detection")
    decoder = policy.base.get_decoder()
    router = Router(policy.base.config.get_text_config().hidden_size).to("cuda")
    decoder.norm = nn.Sequential(decoder.norm, router)
    batch = prompts(policy, 2, 56)
    generate(policy, batch, 2, 8, seed=0)
    with torch.no_grad():
        router.weight.mul_(0.5)
    kept = generate(policy, batch, 2, 8, seed=0)
    policy.decoding.kept = None
    anew = generate(policy, batch, 2, 8, seed=0)
    assert torch.equal(kept.ids, anew.ids)
    assert torch.equal(kept.log_probs, anew.log_probs)
