"""Rollouts on vLLM servers: the protocol, what goes wrong, and what is never learnt from.

Everything runs against the server of `vllm_server.py`; with `pytest -m vllm`, what is about the protocol runs against a
real one, started as `serve-command` says, from the environment that `make vllm-env` makes (or $VLLM_ENV).
"""

from __future__ import annotations

import csv
import math
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError

from tests.helpers import CSV_ONLY, ROOT
from tests.helpers.vllm_server import VLLM
from vrft.__main__ import main
from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.errors import ConfigurationError, RolloutFailed
from vrft.policy import LoRA, Policy
from vrft.policy.tiny import write_checkpoint
from vrft.rollout import Sampling, SamplingKey, VLLMServer
from vrft.rollout.vllm.client import Client, Unavailable
from vrft.rollout.vllm.command import ON_CPU
from vrft.tasks import DetectionTask
from vrft.training.grpo import PolicyLoss, importance_weights, mismatch, policy_loss
from vrft.training.prefetch import RolloutPrefetcher
from vrft.training.rft import RFT
from vrft.types import Detection, PromptBatch, Rollout, Sample

Command = Callable[..., list[str]]
TASK = DetectionTask(template="Detect {query}")
REAL = pytest.mark.vllm
PLAIN = Sampling()
TOWER = LoRA(r=4, target_modules="all-linear")


# --------------------------------------------------------------------------------------------------------- servers


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small policy that vLLM's CPU backend can run."""
    folder = tmp_path_factory.mktemp("checkpoint") / "untied"
    write_checkpoint(folder, width=128, tied=False)
    return str(folder)


@pytest.fixture(scope="session")
def real(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Starts real servers: for `lora`, `full` or `reload` (full without the plugin); their addresses."""
    running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}

    def start(kind: str) -> str:
        if kind not in running:
            running[kind] = launch(kind, checkpoint, tmp_path_factory.mktemp("server"))
        return running[kind][1]

    yield start
    for process, _ in running.values():
        process.terminate()
        process.wait(60)


def launch(kind: str, checkpoint: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Run what `serve-command` prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = [f"--model.policy.checkpoint={checkpoint}", f"--model.engine.init_args.urls=[{url}]"]
    words += ["--model.policy.lora={r: 8}"] if kind == "lora" else []
    line = served(*words)
    environment, command = split_command(line)
    command += ON_CPU if shutil.which("nvidia-smi") is None else []
    if kind == "reload":
        place = command.index("--weight-transfer-config")
        del command[place : place + 2]
    home = Path(os.environ.get("VLLM_ENV", ROOT / ".venv-vllm")) / "bin"
    log = (folder / "log").open("wb")
    more = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    process = subprocess.Popen(
        [str(home / command[0]), *command[1:], "--max-model-len", "2048"],
        env=os.environ | environment | more | {"PATH": f"{home}:{os.environ['PATH']}"},
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        try:
            Client(url).ask("GET", "/health", timeout=2)
        except Unavailable:
            time.sleep(1)
        else:
            return process, url
    raise TimeoutError(str(folder / "log"))


def served(*words: str) -> str:
    """What `serve-command` prints for the quickstart with a server."""
    configs = [str(ROOT / "configs" / name) for name in ("quickstart.yaml", "engine/vllm.yaml")]
    command = ["-m", "vrft", "serve-command", "--config", configs[0], "--config", configs[1], *words]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def split_command(text: str) -> tuple[dict[str, str], list[str]]:
    """Environment and words of a command line with comments."""
    words = shlex.split(text, comments=True)
    count = next(i for i, word in enumerate(words) if "=" not in word)
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


@pytest.fixture
def fake(checkpoint: str) -> Iterator[VLLM]:
    server = VLLM(checkpoint)
    yield server
    server.stop()


@pytest.fixture
def fakes(checkpoint: str) -> Iterator[Callable[..., VLLM]]:
    """Makes servers with given flags."""
    made: list[VLLM] = []

    def make(path: str = checkpoint, **flags: Any) -> VLLM:
        made.append(VLLM(path, **flags))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture(params=["lora", "full", "reload"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["fake", pytest.param("real", marks=REAL)])
def server(request: pytest.FixtureRequest, kind: str, fakes: Callable[..., VLLM], real: Callable[[str], str]) -> str:
    """The address of a server that a test runs against, real or not."""
    if request.param == "real":
        return real(kind)
    return fakes(backend=None if kind == "reload" else "vrft").url


def a_policy(checkpoint: str, lora: LoRA | None = None) -> Policy:
    policy = Policy(checkpoint, dtype="float32", lora=lora)
    policy.load(keep_reference=False)
    return policy


def a_batch(policy: Policy, count: int = 2) -> PromptBatch:
    rng = random.Random(0)
    samples = []
    for i, colour in enumerate(("red", "green", "blue")[:count]):
        pixels = bytes(rng.randrange(256) for _ in range(56 * 56 * 3))
        image = Image.frombytes("RGB", (56, 56), pixels)
        samples.append(Sample(i, image, i, colour, (Detection((0, 0, 10, 10), colour),)))
    return policy.encoder(TASK)(samples)


def engine(policy: Policy, folder: Path, *urls: str, **settings: Any) -> VLLMServer:
    made = VLLMServer([*urls], **({"timeout": 120.0, "patience": 240.0} | settings))
    made.connect(policy, TASK, folder, os.urandom(4).hex())
    made.write_weights(policy, first=True)
    made.update_servers()
    return made


def roll(
    made: VLLMServer, policy: Policy, sampling: Sampling = PLAIN, group: int = 4, step: int = 0, limit: int = 12
) -> Rollout:
    return made.generate(
        policy,
        a_batch(policy),
        group,
        max_completion_length=limit,
        sampling=sampling,
        key=SamplingKey(0, step),
        on_token=lambda *_: None,
    )


@torch.no_grad()
def gap(policy: Policy, rollout: Rollout, temperature: float = 1.0) -> float:
    """Largest |log p of the sampler - log p of the trainer|."""
    own, _ = policy(a_batch(policy).inputs, rollout.ids, rollout.mask, temperature)
    return float((own - rollout.log_probs).abs().max())


@torch.no_grad()
def train(policy: Policy, step: int) -> None:
    """Move all that trains by a good deal."""
    generator = torch.Generator().manual_seed(step)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


# --------------------------------------------------------------------------- the protocol, also against real servers


def test_log_probs_are_the_trainers_after_every_update(kind: str, server: str, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint, LoRA(r=8) if kind == "lora" else None)
    made = engine(policy, tmp_path, server)
    gaps = [gap(policy, roll(made, policy))]
    for step in range(1, 4):
        train(policy, step)
        stale = gap(policy, roll(made, policy))
        assert stale > 0.01, "an update that changes nothing would prove nothing"
        made.write_weights(policy, first=True)
        made.update_servers()
        gaps.append(gap(policy, roll(made, policy)))
        gaps.append(gap(policy, roll(made, policy, Sampling(temperature=0.7)), 0.7))
        gaps.append(gap(policy, roll(made, policy, Sampling(greedy=True), group=1)))
    print(f"{kind}: gaps {', '.join(f'{value:.1e}' for value in gaps)}")
    assert max(gaps) <= 1e-4


def test_a_step_is_sampled_the_same_again(kind: str, server: str, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint, LoRA(r=8) if kind == "lora" else None)
    made = engine(policy, tmp_path, server)
    one, again, other = (roll(made, policy, step=step).ids for step in (3, 3, 4))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)
    rows = {tuple(row) for row in one.tolist()}
    assert len(rows) == len(one), "each completion has key of its own"


def test_banned_tokens_are_never_sampled_and_top_p_is_the_servers(
    kind: str, server: str, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, LoRA(r=8) if kind == "lora" else None)
    made = engine(policy, tmp_path, server)
    free = roll(made, policy, Sampling(temperature=2.0), group=16, limit=24)
    assert not torch.isin(free.ids, policy.banned_ids).any()
    few = roll(made, policy, Sampling(top_k=1), group=4)
    assert few.sampling_log_probs.abs().max() < 1e-5  # one candidate has all the probability
    groups = few.ids.view(2, 4, -1)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))


@pytest.mark.parametrize("where", ["fake", pytest.param("real", marks=REAL)])
def test_weights_that_a_server_does_not_see_are_said_at_once(
    where: str, checkpoint: str, fake: VLLM, real: Callable[[str], str], tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, LoRA(r=8))
    url = real("lora") if where == "real" else fake.url
    made = VLLMServer([url])
    made.connect(policy, TASK, tmp_path, "there")
    made.write_weights(policy, first=True)
    (made.weights.path / "adapter_config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"model\.engine\.weights_dir"):
        made.update_servers()


# ------------------------------------------------------------------------------------------ servers that won't do


@pytest.mark.parametrize(
    ("flags", "lora", "said"),
    [
        pytest.param({"logprobs_mode": "raw_logprobs"}, None, "--logprobs-mode processed_logprobs", id="log-probs"),
        pytest.param({"max_lora_rank": 0}, LoRA(), "--enable-lora", id="no-lora"),
        pytest.param({"runtime_lora": False}, LoRA(), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", id="no-runtime-lora"),
        pytest.param({"max_lora_rank": 8}, LoRA(r=16), "--max-lora-rank 16", id="rank"),
        pytest.param({}, TOWER, "--enable-tower-connector-lora", id="tower"),
    ],
)
def test_a_server_that_is_started_wrongly_is_refused(
    flags: dict[str, Any], lora: LoRA | None, said: str, fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, lora)
    with pytest.raises(ConfigurationError, match=said):
        engine(policy, tmp_path, fakes(**flags).url)


def test_adapters_of_the_tower_work_where_the_server_says_so(
    fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, TOWER)
    made = engine(policy, tmp_path, fakes(tower=True).url)
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.update_servers()
    assert gap(policy, roll(made, policy)) < 1e-4


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://me:pw@host:1",
        "http://host/v1",
        "http://host?a=1",
        "http://h:x",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.engine\.urls") as error:
        VLLMServer([url])
    assert "pw" not in str(error.value)


def test_caches_are_reset_after_the_weights_and_before_requests(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    roll(made, policy)
    fake.requests.clear()
    train(policy, 1)
    made.write_weights(policy, first=True)
    made.update_servers()
    assert fake.requests == [
        "/pause",
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/resume",
        "/update_weight_version",
    ]


def test_old_weights_are_unloaded_and_deleted(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint, LoRA(r=8))
    made = engine(policy, tmp_path, fake.url)
    for _ in range(2):
        made.write_weights(policy, first=True)
        made.update_servers()
    assert list(fake.adapters) == [made.weights.version]
    assert [path.name for path in (tmp_path / "vllm").iterdir() if path.is_dir()] == [made.weights.version]


def test_an_image_is_sent_once_per_prompt(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    roll(engine(policy, tmp_path, fake.url), policy, group=4)
    assert [body["n"] for body in fake.bodies] == [4, 4]
    images = [part for body in fake.bodies for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(images) == 2


def test_several_servers_share_the_prompts_with_the_same_result(
    fakes: Callable[..., VLLM], checkpoint: str, tmp_path: Path
) -> None:
    policy, servers = a_policy(checkpoint), [fakes(), fakes()]
    alone = roll(engine(policy, tmp_path / "one", servers[0].url), policy)
    for server in servers:
        server.bodies.clear()
    shared = roll(engine(policy, tmp_path / "two", *(server.url for server in servers)), policy)
    assert [len(server.bodies) for server in servers] == [1, 1]
    assert torch.equal(alone.ids, shared.ids)


# ---------------------------------------------------------------------------------------------------------- faults


FAULTS = [(fault, None) for fault in ("500", "cut", "fewer", "nan", "aborted", "restart", "restart-silently", "slow")]
FAULTS += [(fault, LoRA(r=8)) for fault in ("restart", "restart-silently")]


@pytest.mark.parametrize(
    ("fault", "lora"), FAULTS, ids=[f"{fault}-{'lora' if lora else 'full'}" for fault, lora in FAULTS]
)
def test_after_a_fault_the_rollout_is_that_without_it(
    fault: str, lora: LoRA | None, fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint, lora)
    made = engine(policy, tmp_path, fake.url, timeout=1.0 if fault == "slow" else 60.0)
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
def test_an_update_that_is_cut_off_is_made_again(route: str, fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
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
    made = engine(policy, tmp_path, *(server.url for server in servers))
    servers[0].stop()
    start = time.monotonic()
    assert gap(policy, roll(made, policy)) < 1e-4
    assert time.monotonic() - start < 5


def test_a_server_that_was_away_gets_the_weights_it_missed(
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


def test_rests_grow_until_a_completion_is_there(
    fake: VLLM, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    now, rests = [1000.0], []
    monkeypatch.setattr("vrft.rollout.vllm.engine.time.monotonic", lambda: now[0])
    for _ in range(1100):
        with pytest.raises(Unavailable), made.servers[0]._trying():
            raise Unavailable("no")
        rests.append(made.servers[0].retry_at - now[0])
        now[0] += rests[-1]
    assert rests == [0.5, 1, 2, 4, 8, 16, *[30] * 1094]
    made.servers[0].update(made.weights, now[0] + 1)  # whose routes answer: that alone proves little
    assert made.servers[0].failures == 1100
    roll(made, policy)
    assert made.servers[0].failures == 0


def test_in_the_end_there_is_one_clear_error(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url, patience=1.2)
    fake.faults.extend(["500"] * 20)
    with pytest.raises(RolloutFailed, match=r"sample [01] .* within 1\.2 s .*EngineCore died"):
        roll(made, policy)


def test_a_server_that_hangs_costs_no_more_than_the_patience(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url, patience=2.0)
    fake.stop()
    with socket.create_server(("127.0.0.1", fake.http.server_port)):  # takes connections, says nothing
        made.servers[0].has = None
        start = time.monotonic()
        with pytest.raises(RolloutFailed, match=r"within 2 s"):
            roll(made, policy)
        assert time.monotonic() - start < 5


def test_a_process_that_brings_weights_for_long_is_not_waited_for_any_longer(
    fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url, patience=1.0)
    made.servers[0].has = None
    with made.weights._lock(made.servers[0].client), pytest.raises(RolloutFailed, match="another process still brings"):
        roll(made, policy)


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        pytest.param("/weight_info", ({"detail": "Forbidden"}, 403), "Forbidden", id="forbidden"),
        pytest.param("/reset_prefix_cache", (b"", 200), "can't be read", id="empty"),
    ],
)
def test_control_routes_that_fail_are_tried_again(
    path: str, answer: tuple[Any, int], said: str, fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url, patience=2.0)
    made.write_weights(policy, first=True)
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


@pytest.mark.parametrize("lora", [None, LoRA()], ids=["full", "lora"])
def test_a_server_that_says_too_little_of_itself_is_refused(
    lora: LoRA | None, fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
    policy, info = a_policy(checkpoint, lora), fake.info()
    del info["vllm_config"]["weight_transfer_config" if lora is None else "lora_config"]
    fake.instead["/server_info"] = (info, 200)
    with pytest.raises(ConfigurationError, match="does not say how it was started"):
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
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    policy = a_policy(checkpoint)
    assert gap(policy, roll(engine(policy, tmp_path, fake.url), policy)) < 1e-4


def test_a_prompt_that_the_server_reads_otherwise_is_refused(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
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
    with pytest.raises(ConfigurationError, match=r"16 image tokens instead of 4: other min_pixels or max_pixels"):
        roll(made, policy)


def test_weights_of_another_run_are_not_taken_for_ones_own(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy, other = a_policy(checkpoint), a_policy(checkpoint)
    train(other, 1)
    made = engine(policy, tmp_path / "mine", fake.url)
    roll(made, policy)
    engine(other, tmp_path / "other", fake.url)
    assert gap(policy, roll(made, policy)) < 1e-4


def test_what_another_run_trained_and_this_one_does_not_is_overwritten(
    fake: VLLM, checkpoint: str, tmp_path: Path
) -> None:
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
def test_a_folder_that_a_server_sees_late_is_waited_for(
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


def test_an_adapter_that_is_being_loaded_is_waited_for(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
    policy = a_policy(checkpoint, LoRA(r=8))
    message = {"error": {"message": "The lora adapter 'x' has already been loaded."}}
    fake.instead["/v1/load_lora_adapter"] = (message, 400)
    made = engine(policy, tmp_path, fake.url)
    fake.instead.clear()
    assert gap(policy, roll(made, policy)) < 1e-4


def test_weights_are_collected_where_they_are_written(
    fake: VLLM, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_policy(checkpoint)
    made = engine(policy, tmp_path, fake.url)
    monkeypatch.setattr(policy, "trained_weights", None)
    made.write_weights(policy, first=False)
    assert made.weights.number == 1


def test_a_rollout_ends_when_it_is_told_to(fake: VLLM, checkpoint: str, tmp_path: Path) -> None:
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
    with pytest.raises(RolloutFailed, match="was given up"):
        rollout.result(timeout=0)
    fake.faults.clear()
    assert gap(policy, roll(made, policy)) < 1e-4


# --------------------------------------------------------------------------------------------------- the mathematics


def test_importance_weights_by_hand() -> None:
    ratios = torch.tensor([[0.25, 0.5, 1.0, 2.0, 4.0]])
    weigh = lambda mode: importance_weights(ratios.log(), mode, 2.0)  # noqa: E731
    torch.testing.assert_close(weigh("truncate"), torch.tensor([[0.25, 0.5, 1.0, 2.0, 2.0]]))
    torch.testing.assert_close(weigh("mask"), torch.tensor([[0.0, 0.5, 1.0, 2.0, 0.0]]))
    assert weigh("none").tolist() == [[1.0] * 5]
    for mode, largest in (("truncate", 2.0), ("mask", 0.0)):
        assert importance_weights(torch.tensor([[100.0, -200.0]]), mode, 2.0).tolist() == [[largest, 0.0]]  # type: ignore[arg-type]


def test_corrected_gradient_is_that_of_the_trainers_own_samples() -> None:
    """E_q[p / q * A * grad log p] = E_p[A * grad log p], summed over a whole vocabulary instead of sampled."""
    generator = torch.Generator().manual_seed(0)
    logits, sampler = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    q, reward = sampler.softmax(0), torch.randn(6, generator=generator, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    log_p = leaf.log_softmax(0)
    loss = policy_loss(
        log_p[:, None],
        log_p.detach()[:, None],
        reward,
        torch.ones(6, 1),
        q,  # each token as often as the sampler draws it
        correction=importance_weights((log_p.detach() - q.log())[:, None], "truncate", math.inf),
    ).loss
    loss.backward()
    own = logits.clone().requires_grad_()
    (own.softmax(0) @ -reward).backward()
    torch.testing.assert_close(leaf.grad, own.grad)


def test_mismatch_by_hand() -> None:
    found = mismatch(torch.tensor([0.0, 0.5, -1.5, math.nan]), cap=2.0)
    assert found.gap == pytest.approx(2 / 3)
    assert found.gap_max == 1.5
    assert found.ratio_p50 == 1.0
    assert found.beyond == pytest.approx(1 / 3)  # exp(-1.5) is below 1 / 2
    assert mismatch(torch.tensor([]), cap=2.0).gap == 0


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def built_in(fakes: Callable[..., VLLM]) -> VLLM:
    """A server of the built-in policy."""
    return fakes("tiny-detection")


@pytest.fixture
def fit(quick_fit: Command) -> Command:
    """The command of a short run on servers."""

    def command(*urls: str, more: tuple[str, ...] = ()) -> list[str]:
        words = [CSV_ONLY, "--data.batch_size=2", "--model.num_generations=4", "--model.max_completion_length=24"]
        words += ["--trainer.limit_val_batches=1", "--model.lr_scheduler=null"]
        if urls:
            words += ["--config", str(ROOT / "configs" / "engine" / "vllm.yaml")]
            words += [f"--model.engine.init_args.urls=[{', '.join(urls)}]"]
        return quick_fit(*words, *more)

    return command


def logged(run: Path, version: int = 0) -> list[dict[str, float]]:
    """Rows of training steps."""
    with (run / "logs" / f"version_{version}" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/reward")]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def files_of_weights(run: Path) -> list[Path]:
    """What is left of weights that were written for servers."""
    return [path for path in (run / "vllm").iterdir() if path.is_dir()]


def comparable(row: dict[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in row.items() if not name.startswith(("time/", "memory/", "train/samples_per"))
    }


@pytest.mark.parametrize("lora", [(), ("--model.policy.lora={r: 4}",)], ids=["full", "lora"])
def test_a_run_trains_and_measures_the_mismatch(
    lora: tuple[str, ...], fit: Command, built_in: VLLM, tmp_path: Path
) -> None:
    assert main(fit(built_in.url, more=lora)) == 0
    rows = logged(tmp_path / "run")
    assert [row["train/sampling_gap_max"] < 1e-4 for row in rows] == [True, True]
    assert [row["train/importance/ratio_p50"] for row in rows] == pytest.approx([1, 1], abs=1e-4)
    assert max(row["train/grad_norm"] for row in rows) > 0
    assert not rows[0].get("train/staleness")
    assert not files_of_weights(tmp_path / "run")
    assert not built_in.adapters


def test_other_weights_on_the_server_end_the_run_before_anything_is_learnt(
    fit: Command, fakes: Callable[..., VLLM], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fakes("tiny-digits")
    more = ("--model.policy.lora={r: 4}", "--trainer.limit_val_batches=0")
    assert main(fit(other.url, more=more)) == 1
    assert "log-probabilities differ from the trainer's by" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("command", ["validate", "predict"])
@pytest.mark.parametrize("config", ["quickstart.yaml", "quickstart_sft.yaml"])
def test_other_weights_on_the_server_are_not_evaluated(
    command: str, config: str, fit: Command, fakes: Callable[..., VLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    words = fit(fakes("tiny-digits").url, more=("--model.policy.lora={r: 4}",))[1:]
    words = [word for word in words if command == "validate" or "callbacks" not in word]
    if config == "quickstart_sft.yaml":
        words = [word for word in words if "num_generations" not in word]
        words[words.index(str(ROOT / "configs" / "quickstart.yaml"))] = str(ROOT / "configs" / config)
    assert main([command, *words]) == 1
    assert "log-probabilities differ from the trainer's by" in capsys.readouterr().out


@pytest.mark.parametrize("images", [pytest.param(12, id="in-an-epoch"), pytest.param(1, id="at-the-start-of-one")])
def test_a_run_that_no_server_answers_saves_and_goes_on_as_if_nothing_had_been(
    images: int, fit: Command, built_in: VLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("--trainer.max_steps=4", "--trainer.limit_val_batches=0", f"--data.train_size={images}")
    assert main(fit(built_in.url, more=(*steps, f"--run_dir={tmp_path}/whole"))) == 0
    capsys.readouterr()
    command = fit(built_in.url, more=(*steps, "--model.engine.init_args.patience=1"))
    built_in.faults.extend([""] * 4 + ["500"] * 20)
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "stopped: no server answered the prompt of sample" in said
    assert "last.ckpt" in said
    assert not files_of_weights(tmp_path / "run")
    assert "--ckpt_path last" in said
    built_in.faults.clear()
    assert main([*command, "--ckpt_path=last"]) == 0
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "run") + logged(tmp_path / "run", 1)
    steps_of = {row["step"]: comparable(row) for row in parts}
    assert [steps_of[row["step"]] for row in whole] == [pytest.approx(comparable(row), abs=1e-4) for row in whole]


def test_one_step_ahead_is_one_step_stale_and_corrected(
    fit: Command, built_in: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrections: list[float] = []

    def spied(*args: Any, correction: torch.Tensor, **settings: Any) -> PolicyLoss:
        corrections.append(float((correction - 1).abs().max()))
        return policy_loss(*args, correction=correction, **settings)

    monkeypatch.setattr("vrft.training.rft.policy_loss", spied)
    more = ("--model.engine.init_args.one_step_ahead=true", "--trainer.max_steps=4", "--trainer.val_check_interval=2")
    assert main(fit(built_in.url, more=more)) == 0
    rows = logged(tmp_path / "run")
    assert [row["train/staleness"] for row in rows] == [0, 1, 1, 1]
    assert rows[0]["train/sampling_gap_max"] < 1e-4
    assert all(row["train/sampling_gap_max"] > 1e-4 for row in rows[1:]), "sampled with the weights of a step before"
    assert corrections[0] < 1e-3
    assert corrections[-1] > 1e-4, "what is learnt from them counts by its ratio"


def test_two_ranks_share_a_server(fit: Command, built_in: VLLM, tmp_path: Path) -> None:
    more = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=3")
    more += ("--model.engine.init_args.one_step_ahead=true", "--model.engine.init_args.max_gap=1")
    command = fit(built_in.url, more=more)
    done = subprocess.run(
        [sys.executable, "-m", "vrft", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    rows = logged(tmp_path / "run")
    assert rows[0]["train/sampling_gap_max"] < 1e-4
    assert [row["train/staleness"] for row in rows] == [0, 1, 1]
    seeds = [body["seed"] for body in built_in.bodies if "seed" in body]
    assert len({*seeds}) == len(seeds) == 3 * 2 * 2, "steps, ranks, prompts"
    assert not files_of_weights(tmp_path / "run")


def test_other_mistakes_of_the_user_do_not_count_batches(
    fit: Command, built_in: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only one rank may know of them, and the loader may not have handed out the batch."""

    def dead(*_: Any) -> None:
        raise ConfigurationError("data.num_workers: 3 workers died")

    monkeypatch.setattr(RFT, "on_train_batch_start", dead)
    monkeypatch.setattr(RunCheckpoint, "_take_batch_back", dead)
    assert main(fit(built_in.url, more=("--trainer.limit_val_batches=0",))) == 2
    assert "stopped" not in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("vllm/*/"))


@pytest.mark.parametrize("config", ["quickstart.yaml", "quickstart_sft.yaml", "digits.yaml"])
def test_the_fragment_changes_the_engine_of_any_config(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [f"--config={ROOT / 'configs' / name}" for name in (config, "engine/vllm.yaml")]
    with pytest.raises(SystemExit):
        main(["fit", *configs, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["model"]["init_args"]["engine"]["class_path"] == "vrft.rollout.VLLMServer"
    assert found["run_dir"] == f"runs/{config.removesuffix('.yaml')}"


@pytest.mark.parametrize(
    ("more", "expected", "absent"),
    [
        pytest.param([], ["--weight-transfer-config", '{"backend": "vrft"}'], "--enable-lora", id="full"),
        pytest.param(
            ["--model.policy.lora={r: 20}"],
            ["--enable-lora", "--max-lora-rank", "32"],
            "--weight-transfer-config",
            id="lora",
        ),
        pytest.param(
            ["--model.policy.lora={target_modules: all-linear}"],
            ["--enable-tower-connector-lora"],
            "min_pixels",
            id="tower",
        ),
        pytest.param(
            ["--model.policy.lora={target_modules: all-linear}", "--model.policy.freeze_vision=true"],
            ["--enable-tower-connector-lora"],  # adapters train on a tower that is frozen
            "--enforce-eager",
            id="frozen-tower",
        ),
        pytest.param(
            ["--model.policy.trust_remote_code=true"],
            ["--trust-remote-code"],
            "--no-enable-chunked-prefill",
            id="trust",
        ),
        pytest.param(
            ["--model.policy.max_pixels=3136", "--model.policy.dtype=bfloat16"],
            ["--mm-processor-kwargs", '{"max_pixels": 3136}', "--dtype", "bfloat16"],
            "--enable-lora",
            id="pixels",
        ),
    ],
)
def test_serve_command_prints_what_a_server_needs(
    more: list[str], expected: list[str], absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [str(ROOT / "configs" / name) for name in ("quickstart.yaml", "engine/vllm.yaml")]
    assert main(["serve-command", "--config", configs[0], "--config", configs[1], *more]) == 0
    printed = capsys.readouterr().out
    environment, words = split_command(printed)
    assert words[:2] == ["vllm", "serve"]
    assert words[3:7] == ["--host", "127.0.0.1", "--port", "8000"]
    assert {*expected} <= {*words}
    assert {"--logprobs-mode", "processed_logprobs"} <= {*words}
    assert absent not in printed.splitlines()[-1]
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert ("VLLM_ALLOW_RUNTIME_LORA_UPDATING" in environment) == ("lora" in "".join(more))


def test_serve_command_of_a_config_without_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-command", "--config", str(ROOT / "configs" / "quickstart.yaml")]) == 2
    assert "expected vrft.rollout.VLLMServer, got TransformersEngine" in capsys.readouterr().err


def test_nothing_listens(fit: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fit("http://127.0.0.1:9")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vrft: model.engine: http://127.0.0.1:9 does not say how it was started")
    assert "serve-command" in said
