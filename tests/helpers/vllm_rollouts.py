"""Rollouts on servers, and the commands that start servers."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import ROOT
from tests.helpers.policies import fresh_policy
from tests.helpers.ports import free_port
from vrft.policy import LoRA, Policy
from vrft.rollout import Sampling, SamplingKey, VLLMServer
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.command import CPU_FLAGS
from vrft.tasks import DetectionTask
from vrft.types import Detection, PromptBatch, Rollout, Sample
from vrft.utils.http_client import Unavailable

TASK = DetectionTask(template="Detect {query}")
REAL = pytest.mark.vllm
PLAIN = Sampling()


def launch(kind: str, checkpoint: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server by the command that `serve-command` prints."""
    url = f"http://127.0.0.1:{free_port()}"
    words = [f"--model.policy.checkpoint={checkpoint}", f"--model.engine.init_args.urls=[{url}]"]
    words += ["--model.policy.lora={r: 8}"] if kind == "lora" else []
    line = served(*words)
    environment, command = split_command(line)
    command += CPU_FLAGS if shutil.which("nvidia-smi") is None else []
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
            Client(url).request("GET", "/health", timeout=2)
        except Unavailable:
            time.sleep(1)
        else:
            return process, url
    raise TimeoutError(str(folder / "log"))


def served(*words: str) -> str:
    """Return the output of `serve-command` for the quickstart with a server."""
    command = ["-m", "vrft", "serve-command", "--config", "quickstart", "--config", "engine/vllm", *words]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def split_command(text: str) -> tuple[dict[str, str], list[str]]:
    """Split a command line with comments into environment and arguments."""
    words = shlex.split(text, comments=True)
    count = next(i for i, word in enumerate(words) if "=" not in word)
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def a_policy(checkpoint: str, lora: LoRA | None = None) -> Policy:
    if lora is None:
        return fresh_policy(checkpoint)
    policy = Policy(checkpoint, dtype="float32", lora=lora)
    policy.load(keep_reference=False)
    return policy


def a_batch(policy: Policy, count: int = 2) -> PromptBatch:
    rng = random.Random(0)
    samples = []
    for i, colour in enumerate(("red", "green", "blue")[:count]):
        image = Image.frombytes("RGB", (56, 56), rng.randbytes(56 * 56 * 3))
        samples.append(Sample(i, (image,), i, colour, (Detection((0, 0, 10, 10), colour),)))
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
    """Return the largest |log p of the sampler - log p of the trainer|."""
    own, _ = policy(a_batch(policy).inputs, rollout.ids, rollout.mask, temperature)
    return float((own - rollout.log_probs).abs().max())


@torch.no_grad()
def train(policy: Policy, step: int) -> None:
    """Change all trainable weights considerably."""
    generator = torch.Generator().manual_seed(step)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
