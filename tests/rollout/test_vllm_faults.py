"""Servers that fail, hang, restart or have other weights: which requests are retried, and what ends the run."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tests.helpers.vllm_rollouts import a_policy, engine, gap, train
from tests.helpers.vllm_rollouts import roll as roll_more
from tests.helpers.vllm_server import VLLM
from vrft.errors import ConfigurationError, RolloutFailed, RolloutRefused
from vrft.policy import LoRA, Policy
from vrft.rollout import VLLMServer
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.weights import FullWeights
from vrft.training.prefetch import RolloutPrefetcher
from vrft.types import Rollout
from vrft.utils.http_client import Unavailable

pytestmark = pytest.mark.slow(seconds=0.5)


def roll(made: VLLMServer, policy: Policy) -> Rollout:
    """Sample two short completions of two prompts."""
    return roll_more(made, policy, group=2, limit=4)


FAULTS = [(fault, None) for fault in ("500", "cut", "fewer", "nan", "aborted", "restart", "restart-silently", "slow")]
FAULTS += [(fault, LoRA(r=8)) for fault in ("restart", "restart-silently")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "lora"), FAULTS, ids=[f"{fault}-{'lora' if lora else 'full'}" for fault, lora in FAULTS]
)
def test_a_rollout_after_a_fault_equals_one_without(
    fault: str, lora: LoRA | None, fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, lora)
    limits = {"timeout": 3.0, "patience": 12.0} if fault == "slow" else {"timeout": 60.0}
    made = engine(policy, tmp_path, fake.url, **limits)
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.update_servers()
    expected = roll(made, policy)
    fake.faults.extend(["", fault])
    found = roll(made, policy)
    assert not fake.faults
    assert torch.equal(found.ids, expected.ids)
    assert gap(policy, found) < 1e-4


@pytest.mark.parametrize("route", ["/finish_weight_update", "/reset_prefix_cache", "/resume", "/update_weight_version"])
def test_an_interrupted_update_is_retried(route: str, fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url, timeout=10.0, patience=30.0)
    train(policy, 1)
    fake.lost.append(route)
    made.write_weights(policy, first=True)
    made.update_servers()
    assert not fake.lost
    assert gap(policy, roll(made, policy)) < 1e-4
    assert not fake.paused


def test_another_server_takes_over(fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path) -> None:
    policy, servers = a_policy(checkpoint), [fakes(), fakes()]
    made = engine(policy, tmp_path, *(server.url for server in servers), patience=3000.0)
    servers[0].stop()
    start = time.monotonic()
    assert gap(policy, roll(made, policy)) < 1e-4
    assert time.monotonic() - start < 60  # the patience is 3000 s


def test_a_restarted_server_gets_the_weights_that_it_missed(
    fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path
) -> None:
    policy, first = a_policy(checkpoint), fakes()
    made = engine(policy, tmp_path, first.url)
    port = first.http.server_port
    first.stop()
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.update_servers()  # in vain
    again = VLLM(checkpoint, port=port)
    assert gap(policy, roll(made, policy)) < 1e-4
    again.stop()


def test_delays_grow_until_a_completion_arrives(
    fake: VLLM, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    now, rests = [1000.0], []
    monkeypatch.setattr("vrft.rollout.vllm.engine.time.monotonic", lambda: now[0])
    for _ in range(1100):
        with pytest.raises(Unavailable), made.servers[0]._delay_after_failure():
            raise Unavailable("no")
        rests.append(made.servers[0].retry_at - now[0])
        now[0] += rests[-1]
    assert rests == [0.5, 1, 2, 4, 8, 16, *[30] * 1094]
    made.servers[0].update(made.weights, now[0] + 1)  # does not prove that completions work
    assert made.servers[0].failures == 1100
    roll(made, policy)
    assert made.servers[0].failures == 0


@pytest.mark.slow
def test_failures_beyond_the_patience_end_in_one_clear_error(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    made.patience = 3.0
    fake.faults.extend(["500"] * 20)
    with pytest.raises(RolloutFailed, match=r"sample [01] .* within 3 s .*EngineCore died"):
        roll(made, policy)


@pytest.mark.slow
def test_a_hanging_server_costs_no_more_than_the_patience(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url, timeout=3000.0)
    made.patience = 2.0
    fake.stop()
    with socket.create_server(("127.0.0.1", fake.http.server_port)):  # accepts connections but never responds
        made.servers[0].weights_version = None
        start = time.monotonic()
        with pytest.raises(RolloutFailed, match=r"within 2 s"):
            roll(made, policy)
        assert time.monotonic() - start < 60  # the timeout of a request is 3000 s


def test_waiting_for_another_process_that_updates_a_server_ends(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    made.patience = 1.0
    made.servers[0].weights_version = None
    said = "is still updating its weights|has not loaded the weights in time"  # one thread waits for the file lock
    with made.weights._lock(made.servers[0].client), pytest.raises(RolloutFailed, match=said):
        roll(made, policy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        pytest.param("/weight_info", ({"detail": "Forbidden"}, 403), "Forbidden", id="forbidden"),
        pytest.param("/reset_prefix_cache", (b"", 200), "can't be read", id="empty"),
    ],
)
def test_failing_control_routes_are_retried(
    path: str, answer: tuple[Any, int], said: str, fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    made.write_weights(policy, first=True)
    made.patience = 5.0
    fake.instead[path] = answer
    with pytest.raises(RolloutFailed, match=said):
        roll(made, policy)
    made.patience = 240.0
    fake.instead.clear()
    assert gap(policy, roll(made, policy)) < 1e-4


def test_weights_that_cannot_be_written_or_seen_end_the_run(
    fake: VLLM, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    made.write_weights(policy, first=True)
    shutil.rmtree(tmp_path / "vllm")
    with pytest.raises(RolloutFailed, match=r"weights_dir: every rank has to see that folder"):
        roll(made, policy)

    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: no space left")

    monkeypatch.setattr("vrft.rollout.vllm.weights.save_file", full)
    with pytest.raises(RolloutFailed, match=r"can't be written .*no space left"):
        made.write_weights(policy, first=True)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    weights = FullWeights(tmp_path, "run", 1.0)
    said = f"weights_dir: the file system of {tmp_path} has no locks .{os.strerror(code)}.: name a folder on one that"
    with pytest.raises(RolloutRefused, match=said):
        weights.update(Client("http://127.0.0.1:1"))


@pytest.mark.parametrize("lora", [None, LoRA()], ids=["full", "lora"])
def test_a_server_that_reports_too_little_is_refused(
    lora: LoRA | None, fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy, info = a_policy(checkpoint, lora), fake.info()
    del info["vllm_config"]["weight_transfer_config" if lora is None else "lora_config"]
    fake.instead["/server_info"] = (info, 200)
    with pytest.raises(ConfigurationError, match="does not report how it was started"):
        engine(policy, tmp_path, fake.url)


def test_no_redirect_is_followed(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    fake.faults.append("redirect")
    with pytest.raises(ConfigurationError, match="redirect, which is not followed"):
        roll(made, policy)


def test_proxies_of_the_environment_are_not_used(
    fake: VLLM, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a closed port
    policy = a_policy(checkpoint)
    assert gap(policy, roll(engine(policy, tmp_path, fake.url), policy)) < 1e-4


def test_a_prompt_that_the_server_encodes_differently_is_refused(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    template = fake.policy.processor.tokenizer.chat_template
    fake.policy.processor.chat_template = "{{ 'system\n' }}" + template
    with pytest.raises(ConfigurationError, match="from token 0 on: another chat template"):
        roll(made, policy)
    fake.policy.processor.chat_template = template.replace("<|image_pad|>", "<|image_pad|><|image_pad|>")
    policy.processor.image_processor.size["longest_edge"] = 4 * 56 * 56
    fake.policy.processor.chat_template = template
    fake.policy.processor.image_processor.size["shortest_edge"] = 4 * 56 * 56
    fake.policy.processor.image_processor.size["longest_edge"] = 4 * 56 * 56
    with pytest.raises(ConfigurationError, match=r"16 image tokens instead of 4: other limits for images"):
        roll(made, policy)


def test_weights_of_another_run_are_replaced(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy, other = a_policy(checkpoint), a_policy(checkpoint)
    train(other, 1)
    made = engine(policy, tmp_path / "mine", fake.url)
    roll(made, policy)
    engine(other, tmp_path / "other", fake.url)
    assert gap(policy, roll(made, policy)) < 1e-4


def test_weights_that_only_another_run_trained_are_overwritten(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    other, policy = a_policy(checkpoint), Policy(checkpoint, dtype="float32", freeze_vision=True)
    policy.load(keep_reference=False)
    train(other, 1)
    engine(other, tmp_path, fake.url)
    made = engine(policy, tmp_path, fake.url)
    assert gap(policy, roll(made, policy)) < 1e-4
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.update_servers()
    assert gap(policy, roll(made, policy)) < 1e-4


@pytest.mark.parametrize("lora", [None, LoRA(r=8)], ids=["full", "lora"])
def test_a_folder_that_a_server_sees_late_is_retried(
    lora: LoRA | None, fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, lora)
    made = engine(policy, tmp_path, fake.url)
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.weights.path.rename(tmp_path / "late")
    made.update_servers()  # in vain
    (tmp_path / "late").rename(made.weights.path)
    assert gap(policy, roll(made, policy)) < 1e-4


def test_an_adapter_that_is_still_being_loaded_is_retried(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint, LoRA(r=8))
    message = {"error": {"message": "The lora adapter 'x' has already been loaded."}}
    fake.instead["/v1/load_lora_adapter"] = (message, 400)
    made = engine(policy, tmp_path, fake.url)
    fake.instead.clear()
    assert gap(policy, roll(made, policy)) < 1e-4


def test_only_the_writing_process_collects_weights(
    fake: VLLM, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    monkeypatch.setattr(policy, "trained_weights", None)
    made.write_weights(policy, first=False)
    assert made.weights.number == 1


def test_a_rollout_can_be_cancelled(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    fake.faults.extend(["500"] * 100)
    prefetcher = RolloutPrefetcher()
    prefetcher.submit([0], 0, lambda: roll(made, policy))
    assert prefetcher.pending is not None
    rollout = prefetcher.pending.rollout
    while len(fake.faults) > 96:
        time.sleep(0.05)
    made.stop()
    assert prefetcher.pop([1]) is None, "of other samples"
    assert rollout.done()
    with pytest.raises(RolloutFailed, match="was cancelled"):
        rollout.result(timeout=0)
    fake.faults.clear()
    assert gap(policy, roll(made, policy)) < 1e-4
    assert prefetcher.pool is not None
    prefetcher.pool.shutdown()
