"""`python -m vrft serve-command`: print the commands that start the vLLM servers of a config."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Sequence
from urllib.parse import urlsplit

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.rollout.base import RolloutEngine
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.engine import VLLMServer
from vrft.rollout.vllm.flags import serve, server_environment

SECURITY_NOTE = """\
# The server loads weights and files on request: whoever can reach its port controls it. Let nobody else reach it."""
PLUGIN_NOTE = """\
# Full fine-tuning needs vrft's plugin installed with vLLM: pip install --no-deps . in vrft's repository. Without it,
# leave out --weight-transfer-config; each update then loads a folder, as when the server starts."""
IMAGES_NOTE = """\
# --limit-mm-per-prompt counts one image and data.examples: raise it if your questions have several images."""
GPUS_NOTE = """\
# Each server on this machine has a GPU of its own. Keep the trainer off {servers}: start it with
# CUDA_VISIBLE_DEVICES={first} for one GPU, or with the numbers of several others, e.g. {first},{second}."""
CPU_FLAGS = ("--enforce-eager", "--no-enable-chunked-prefill")
"""Flags for CPUs, where vLLM 0.32 with chunked prefill crashes on requests with a seed."""


DEFAULT_URL = "http://127.0.0.1:8000"
OWN_URL = f"model.engine.urls=[{DEFAULT_URL}]"


def serve_commands(engine: RolloutEngine, policy: Policy, images: int = 1) -> str:
    """Return a command for each server, with comments. `images`: maximum number of images in a prompt.

    Raises:
        ConfigurationError: the engine is not a `VLLMServer`.
    """
    if not isinstance(engine, VLLMServer):
        raise ConfigurationError(
            f"model.engine: expected vrft.rollout.VLLMServer, got {type(engine).__name__}; --config engine/vllm adds it"
        )
    lines = [SECURITY_NOTE] if policy.lora is not None else [SECURITY_NOTE, PLUGIN_NOTE]
    lines.append(IMAGES_NOTE)
    lines.append(f"# If vLLM runs on a CPU, add {' '.join(CPU_FLAGS)}.")
    if not engine.clients:
        lines.append(f"# `python -m vrft fit` starts and ends this server. To start it yourself, set {OWN_URL}.")
    gpus = {} if engine.colocated else gpus_of_local_servers([client.url for client in engine.clients])
    if gpus:
        used = "GPU 0" if len(gpus) == 1 else f"GPUs 0 to {len(gpus) - 1}"
        lines.append(GPUS_NOTE.format(servers=used, first=len(gpus), second=len(gpus) + 1))
    for client in engine.clients or [Client(DEFAULT_URL)]:
        parts = urlsplit(client.url)
        if parts.scheme == "https" or parts.path:
            lines.append(f"# behind {client.url}:")
        words = serve(policy, (parts.hostname or "127.0.0.1", parts.port or 8000), engine.colocated, images)
        variables = gpus.get(client.url, {}) | server_environment(policy)
        environment = [f"{name}={value}" for name, value in variables.items()]
        lines.append(" ".join([*environment, shlex.join(words)]))
    return "\n".join(lines) + "\n"


def gpus_of_local_servers(urls: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return, by server address, the environment variable that assigns each server on this machine its own GPU."""
    local = [url for url in urls if is_loopback(urlsplit(url).hostname or "")]
    return {url: {"CUDA_VISIBLE_DEVICES": str(number)} for number, url in enumerate(local)}


def is_loopback(host: str) -> bool:
    """Return whether a host name is a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # not an IP address
        return False
