"""`python -m vrft serve-command`: print the commands that start the vLLM servers of a config."""

from __future__ import annotations

import shlex
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
CPU_FLAGS = ("--enforce-eager", "--no-enable-chunked-prefill")
"""Flag for CPUs, where vLLM 0.32 with chunked prefill crashes on requests that have a seed."""


DEFAULT_URL = "http://127.0.0.1:8000"
OWN_URL = f"model.engine.urls=[{DEFAULT_URL}]"


def serve_commands(engine: RolloutEngine, policy: Policy, images: int = 1) -> str:
    """Return one command for each server, with comments. `images`: most images in a prompt.

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
    for client in engine.clients or [Client(DEFAULT_URL)]:
        parts = urlsplit(client.url)
        if parts.scheme == "https" or parts.path:
            lines.append(f"# behind {client.url}:")
        words = serve(policy, (parts.hostname or "127.0.0.1", parts.port or 8000), engine.colocated, images)
        environment = [f"{name}={value}" for name, value in server_environment(policy).items()]
        lines.append(" ".join([*environment, shlex.join(words)]))
    return "\n".join(lines) + "\n"
