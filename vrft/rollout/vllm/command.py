"""`python -m vrft serve-command`: how to start the vLLM servers that a config names."""

from __future__ import annotations

import json
import shlex
from urllib.parse import urlsplit

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.rollout.base import RolloutEngine
from vrft.rollout.vllm.engine import VLLMServer

PUBLIC = """\
# These routes load weights and files: whoever reaches the port controls the server. Let nobody else reach it."""
PLUGIN = """\
# Full fine-tuning needs vrft's plugin beside vLLM: pip install --no-deps . in vrft's repository. Without it, leave
# out --weight-transfer-config; each update then loads a folder as at the start."""
ON_CPU = ("--enforce-eager", "--no-enable-chunked-prefill")
"""Seeds and chunks end vLLM 0.32 on a CPU."""


def serve_commands(engine: RolloutEngine, policy: Policy) -> str:
    """The commands, one for each server, with what has to be known about them.

    Raises:
        ConfigurationError: the engine is no `VLLMServer`.
    """
    if not isinstance(engine, VLLMServer):
        raise ConfigurationError(
            "model.engine: expected vrft.rollout.VLLMServer, got "
            f"{type(engine).__name__}; --config configs/engine/vllm.yaml adds it"
        )
    flags = server_flags(policy)
    lines = [PUBLIC] if policy.lora is not None else [PUBLIC, PLUGIN]
    lines.append(f"# Where vLLM runs on a CPU, add {' '.join(ON_CPU)}.")
    for client in engine.clients:
        parts = urlsplit(client.url)
        if parts.scheme == "https" or parts.path:
            lines.append(f"# behind {client.url}:")
        where = ["--host", parts.hostname or "127.0.0.1", "--port", str(parts.port or 8000)]
        words = ["vllm", "serve", policy.checkpoint, *where, *flags]
        environment = [f"{name}={value}" for name, value in server_environment(policy).items()]
        lines.append(" ".join([*environment, shlex.join(words)]))
    return "\n".join(lines) + "\n"


def server_environment(policy: Policy) -> dict[str, str]:
    """Variables: the routes for caches and weights, no usage statistics."""
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return variables if policy.lora is None else variables | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def server_flags(policy: Policy) -> list[str]:
    """Flags without which the server's distribution, prompts or weights would not be the trainer's."""
    flags = ["--dtype", str(policy.dtype).removeprefix("torch.")]
    flags += ["--logprobs-mode", "processed_logprobs"]  # of what is drawn
    flags += ["--generation-config", "vllm"]  # no sampling defaults of the checkpoint's
    flags += ["--chat-template-content-format", "openai"]
    flags += ["--limit-mm-per-prompt", json.dumps({"image": 1, "video": 0})]
    limits = {
        f"{name}_pixels": policy.pixels[edge] for name, edge in (("min", "shortest_edge"), ("max", "longest_edge"))
    }
    if stated := {name: value for name, value in limits.items() if value is not None}:
        flags += ["--mm-processor-kwargs", json.dumps(stated)]
    if policy.trust_remote_code:
        flags.append("--trust-remote-code")
    if policy.lora is None:
        return [*flags, "--weight-transfer-config", json.dumps({"backend": "vrft"})]
    flags += ["--enable-lora", "--max-lora-rank", str(lora_rank(policy.lora.r))]
    return flags if policy.lora.target_modules is None else [*flags, "--enable-tower-connector-lora"]


def lora_rank(rank: int) -> int:
    """The smallest that vLLM can be started for and that suffices."""
    return min((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), default=rank)
