"""A server on the trainer's GPU: it sleeps, wakes, dies and fails to start, and is never sampled with other weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import CSV_ONLY, Command
from tests.helpers.sleepy_server import SleepyVLLM, is_alive
from tests.helpers.vllm_rollouts import a_policy, engine, gap, roll, split_command, train
from vrft.__main__ import main
from vrft.errors import ConfigurationError, RolloutFailed
from vrft.policy import LoRA, Policy
from vrft.rollout import VLLMServer
from vrft.rollout.vllm.colocated import SleepingServer, check_combination
from vrft.rollout.vllm.flags import Colocated
from vrft.rollout.vllm.process import WATCHDOG, ServerProcess, visible_gpu
from vrft.types import Rollout

pytestmark = pytest.mark.slow(seconds=0.4)

MEMORY = {"weights", "kv_cache"}


@pytest.fixture
def sleepy(checkpoint: str) -> Iterator[SleepyVLLM]:
    server = SleepyVLLM(checkpoint)
    yield server
    server.stop()


@pytest.fixture
def colocated(sleepy: SleepyVLLM, tmp_path: Path) -> Iterator[Callable[..., VLLMServer]]:
    """Yield a function that makes engines whose server belongs to them."""
    made: list[VLLMServer] = []

    def make(policy: Policy, level: int = 1, **settings: Any) -> VLLMServer:
        own = Colocated(sleep_level=level, vllm=sleepy.write_program(tmp_path))  # type: ignore[arg-type]
        made.append(engine(policy, tmp_path, colocated=own, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def few(made: VLLMServer, policy: Policy) -> Rollout:
    """Sample two short completions of two prompts."""
    return roll(made, policy, group=2, limit=3)


@pytest.mark.parametrize(("lora", "level"), [(None, 2), (LoRA(r=4), 1), (LoRA(r=4), 2)], ids=["full", "lora", "lora-2"])
def test_each_waking_brings_the_current_weights(
    lora: LoRA | None, level: int, sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    policy = a_policy(checkpoint, lora)
    made = colocated(policy, level)
    assert sleepy.asleep == MEMORY, "until the first rollout"
    gaps = []
    for step in (0, 1, None):
        if step is not None:
            train(policy, step)
            made.write_weights(policy, first=True)
            made.update_servers()
        gaps.append(gap(policy, few(made, policy)))
        made.sleep()
        assert sleepy.asleep == MEMORY
    assert max(gaps) < 1e-4
    assert made.wakings == 3
    assert len(sleepy.starts) == 1


def test_weights_are_sent_before_the_cache_takes_its_memory(
    sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    policy = a_policy(checkpoint)
    made = colocated(policy)
    sleepy.requests.clear()
    few(made, policy)
    first, last = (sleepy.requests.index(path) for path in ("/update_weights", "/update_weight_version"))
    wakings = [i for i, path in enumerate(sleepy.requests) if path == "/wake_up"]
    assert wakings[0] < first < last < wakings[1] < sleepy.requests.index("/v1/chat/completions")


def test_a_server_that_can_not_say_whether_it_sleeps_is_ended_with_one_error(
    sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    sleepy.instead["/is_sleeping"] = ({"error": {"message": "EngineCore died"}}, 500)
    with pytest.raises(ConfigurationError, match=r"model\.engine: .*/is_sleeping: 500: .*EngineCore died"):
        colocated(a_policy(checkpoint))
    assert not is_alive(sleepy.starts[0]["pid"])


@pytest.mark.parametrize(
    ("where", "fault", "starts"),
    [
        pytest.param("sleep_faults", "dies", 2, id="dies-asleep"),
        pytest.param("sleep_faults", "stays-awake", 2, id="stays-awake"),
        pytest.param("wake_faults", "dies", 2, id="dies-while-it-wakes"),
        pytest.param("wake_faults", "out-of-memory", 2, id="out-of-memory-on-waking"),
        pytest.param("start_faults", "[Errno 98] error: address already in use", 2, id="port-in-use"),
    ],
)
@pytest.mark.filterwarnings("ignore:the vLLM server is started again")
def test_a_server_that_fails_is_started_again_and_gets_the_weights(
    where: str, fault: str, starts: int, sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    getattr(sleepy, where).append(fault)
    policy = a_policy(checkpoint)
    train(policy, 1)
    made = colocated(policy)
    assert gap(policy, few(made, policy)) < 1e-4
    assert not getattr(sleepy, where)
    assert len(sleepy.starts) == starts


def test_a_server_that_dies_while_it_samples_is_started_again(
    sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    policy = a_policy(checkpoint, LoRA(r=4))
    train(policy, 1)
    made = colocated(policy)
    sleepy.on_error = sleepy.kill
    sleepy.faults.append("500")
    assert gap(policy, few(made, policy)) < 1e-4
    assert len(sleepy.starts) == 2


def test_a_server_that_wakes_with_old_weights_is_noticed(
    sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    """It reports the version that it was sent; only the log-probabilities differ."""
    policy = a_policy(checkpoint)
    train(policy, 1)
    made = colocated(policy)
    sleepy.wake_faults.append("old-weights")
    assert gap(policy, few(made, policy)) > made.max_gap


@pytest.mark.parametrize("route", ["/server_info", "/v1/models"])
def test_a_server_that_is_started_again_and_does_not_report_its_settings_gets_another_attempt(
    route: str, sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    """Two attempts that fail end the rollout, so that the run saves its last step; the next rollout has two again."""
    policy = a_policy(checkpoint)
    made = colocated(policy)
    sleepy.instead[route] = ({"error": {"message": "EngineCore died"}}, 500)
    sleepy.kill()
    while made.sleeper is not None and made.sleeper.process is not None and made.sleeper.process.is_running():
        time.sleep(0.02)  # else the first attempt is to wake it
    with pytest.warns(UserWarning, match="is started again"), pytest.raises(RolloutFailed, match="does not report how"):
        few(made, policy)
    assert len(sleepy.starts) == 3
    sleepy.instead.clear()
    assert gap(policy, few(made, policy)) < 1e-4


@pytest.mark.filterwarnings("ignore:the vLLM server is started again")
def test_too_little_memory_ends_the_rollout_after_the_second_attempt(
    sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer]
) -> None:
    policy = a_policy(checkpoint)
    made = colocated(policy)
    sleepy.wake_faults.append("out-of-memory")
    sleepy.start_faults.append("ValueError: Free memory on device is less than desired")
    with pytest.raises(RolloutFailed, match=r"2 times in a row(.|\n)*Free memory on device(.|\n)*memory_share"):
        few(made, policy)
    assert not is_alive(sleepy.starts[0]["pid"])
    assert len(sleepy.starts) == 2, "no more for the other prompt"


class NeverReady(ServerProcess):
    """A process that runs and doesn't answer. The first start calls `on_start`."""

    def __init__(self, on_start: Callable[[], None]) -> None:
        super().__init__(lambda port: [], {}, Path(os.devnull))
        self.on_start, self.starts, self.running = on_start, 0, False

    def start(self) -> str:
        self.starts, self.running = self.starts + 1, True
        self.on_start()
        return "http://127.0.0.1:9"

    def is_running(self) -> bool:
        return self.running

    def end(self) -> None:
        self.running = False


@pytest.mark.parametrize("event", ["cancelled", "closed", "fails"])
@pytest.mark.filterwarnings("ignore:the vLLM server is started again")
def test_threads_that_wait_for_a_server_start_no_other(event: str) -> None:
    stopped, deadline = threading.Event(), time.monotonic() + (0 if event == "fails" else 60)

    def on_start() -> None:
        if event == "cancelled":
            stopped.set()
        if event == "closed":
            closing.start()
            while not sleeper.closed:
                time.sleep(0.001)

    process = NeverReady(on_start)
    sleeper = SleepingServer(Colocated(), None, process, None)  # type: ignore[arg-type]
    closing = threading.Thread(target=sleeper.close)
    said = []

    def wake() -> None:
        with pytest.raises(RolloutFailed) as error:
            sleeper.wake(deadline, stopped)
        said.append(str(error.value))

    threads = [threading.Thread(target=wake) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.starts == (2 if event == "fails" else 1)
    assert len(said) == 8
    assert all(("2 times in a row" if event == "fails" else "was cancelled") in text for text in said)
    if event == "closed":
        closing.join()
        assert not process.running


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param("never-ready", r"is not ready in time \(model\.engine\.patience\)", id="never-ready"),
        pytest.param("no such flag", "has ended before it was ready(.|\n)*ERROR no such flag", id="exits"),
    ],
)
def test_a_server_that_does_not_start_is_one_error_with_the_end_of_its_log(
    fault: str,
    said: str,
    sleepy: SleepyVLLM,
    checkpoint: str,
    colocated: Callable[..., VLLMServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock is put forward by an hour once the program of a server that never gets ready has started."""
    monkeypatch.setenv("SECRET_API_KEY", "hunter2hunter2")
    sleepy.start_faults.append(fault)
    monotonic = time.monotonic
    late = 3600.0 if fault == "never-ready" else 0.0
    monkeypatch.setattr("vrft.rollout.vllm.colocated.time.monotonic", lambda: monotonic() + late * len(sleepy.starts))
    with pytest.raises(ConfigurationError, match=said) as error:
        colocated(a_policy(checkpoint))
    assert "hunter2" not in str(error.value)
    assert len(sleepy.starts) == 1
    assert not is_alive(sleepy.starts[0]["pid"])
    log = (tmp_path / "vllm.log").read_text()
    assert "--enable-sleep-mode --gpu-memory-utilization 0.4" in log


def test_the_server_gets_its_own_environment(
    sleepy: SleepyVLLM, checkpoint: str, colocated: Callable[..., VLLMServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    colocated(a_policy(checkpoint))
    environment = sleepy.starts[0]["environment"]
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert not {"WORLD_SIZE", "PYTORCH_CUDA_ALLOC_CONF"} & {*environment}


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [("", "cuda:1", "1"), ("4,5", "cuda:1", "5"), ("GPU-a, GPU-b", "cuda:1", "GPU-b"), ("", "cuda", "0")],
)
def test_the_server_sees_the_trainers_gpu(
    visible: str, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpu(torch.device(device)) == {"CUDA_VISIBLE_DEVICES": expected}


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
def test_a_server_that_is_already_there_is_woken_and_put_to_sleep(
    lora: LoRA | None, sleepy: SleepyVLLM, checkpoint: str, tmp_path: Path
) -> None:
    """It sleeps at an unknown level, so that it may have discarded its weights."""
    policy = a_policy(checkpoint, lora)
    sleepy.sleep(2)
    made = engine(policy, tmp_path, sleepy.url, colocated=True)
    assert gap(policy, few(made, policy)) < 1e-4
    made.sleep()
    assert sleepy.asleep == MEMORY
    sleepy.wake_faults.append("out-of-memory")
    made.patience = 0.0
    with pytest.raises(RolloutFailed, match="no server answered the prompt"):
        few(made, policy)


def test_a_server_that_can_not_sleep_is_refused(sleepy: SleepyVLLM, checkpoint: str, tmp_path: Path) -> None:
    sleepy.flags["sleep"] = False
    with pytest.raises(ConfigurationError, match="can't sleep: start it with --enable-sleep-mode"):
        engine(a_policy(checkpoint), tmp_path, sleepy.url, colocated=True)


def test_a_missing_program_is_reported(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"colocated\.vllm: there is no program 'no-such-vllm'"):
        engine(a_policy(checkpoint), tmp_path, colocated=Colocated(vllm="no-such-vllm"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"colocated": True, "one_step_ahead": True}, "one_step_ahead: a server on the trainer's GPU"),
        ({"colocated": True, "urls": ["http://127.0.0.1:1", "http://127.0.0.1:2"]}, "urls: expected one server"),
        ({"colocated": False}, "urls: expected at least one address"),
        ({"colocated": Colocated(memory_share=1.5)}, "memory_share: expected a number between 0 and 1, got 1.5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        VLLMServer(**settings)


def test_weights_in_four_bits_are_not_discarded() -> None:
    check_combination(Colocated(sleep_level=1), four_bits=True)
    with pytest.raises(ConfigurationError, match="sleep_level: 2 discards weights in four bits"):
        check_combination(Colocated(sleep_level=2), four_bits=True)


KILLED = """
import os, signal, subprocess, sys
watchdog, ready = sys.argv[1:]
server = f"import os, time; open({ready!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}}'); time.sleep(3600)"
command = [sys.executable, "-IS", "-c", server]
subprocess.Popen([sys.executable, "-I", watchdog, str(os.getpid()), *command], start_new_session=True)
while not os.path.exists(ready) or len(open(ready).read().split()) < 2:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A run that is killed once its server has started."""


def test_a_server_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    run = subprocess.run([sys.executable, "-IS", "-c", KILLED, str(WATCHDOG), str(ready)], check=False)
    assert run.returncode == -signal.SIGKILL
    watchdog, server = map(int, ready.read_text().split())
    while is_alive(server) or is_alive(watchdog):
        time.sleep(0.05)


def test_a_server_ends_with_its_watchdog(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = f"import os, time; open({str(ready)!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    command = [sys.executable, "-I", str(WATCHDOG), str(os.getpid()), sys.executable, "-IS", "-c", code]
    watchdog = subprocess.Popen(command, start_new_session=True)
    while not ready.exists() or not ready.read_text():
        time.sleep(0.02)
    watchdog.kill()
    watchdog.wait()
    while is_alive(int(ready.read_text())):
        time.sleep(0.02)


def test_serve_command_prints_how_the_server_sleeps(capsys: pytest.CaptureFixture[str]) -> None:
    own = "{memory_share: 0.25, vllm: /opt/vllm, arguments: [--max-num-seqs, '64']}"
    words = ["serve-command", "--config", "quickstart", "--config", "engine/vllm_same_gpu"]
    assert main([*words, f"--model.engine.init_args.colocated={own}"]) == 0
    printed = capsys.readouterr().out
    environment, command = split_command(printed)
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert command[:2] == ["/opt/vllm", "serve"]
    assert "CUDA_VISIBLE_DEVICES" not in environment  # it shares the trainer's GPU
    assert command.count("--max-model-len") == 1
    assert " ".join(command).endswith("--enable-sleep-mode --gpu-memory-utilization 0.25 --max-num-seqs 64")
    assert "set model.engine.urls=[http://127.0.0.1:8000]" in printed


@pytest.mark.parametrize("fault", ["", "old-weights"])
def test_a_run_starts_and_ends_its_server(
    fault: str, quick_fit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains on no completions of old weights: the second waking leaves those of the first step."""
    sleepy = SleepyVLLM("tiny-detection")
    sleepy.wake_faults.extend(["", fault])
    own = f"{{vllm: {sleepy.write_program(tmp_path)}, sleep_level: 2}}"
    words = ["--data.batch_size=2", "--model.num_generations=2", "--model.max_completion_length=8", CSV_ONLY]
    words += ["--config", "engine/vllm_same_gpu", f"--model.engine.init_args.colocated={own}"]
    words += ["--model.engine.init_args.patience=60", "--model.optimizer.lr=0.02", "--model.lr_scheduler=null"]
    assert main(quick_fit(*words, "--trainer.limit_val_batches=0")) == (1 if fault else 0)
    sleepy.stop()
    assert not is_alive(sleepy.starts[-1]["pid"])
    assert ("log-probabilities differ from the trainer's by" in capsys.readouterr().out) == bool(fault)
    assert "$ " in (tmp_path / "run" / "vllm.log").read_text()
