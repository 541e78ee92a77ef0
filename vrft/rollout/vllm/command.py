"""`python -m vrft serve-command`: print the commands that start the vLLM servers of a config."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import urlsplit

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.image_size import AREA_EDGES, AREA_PROCESSORS, ImageLimits, config_fields, is_a, limited_fields
from vrft.policy.pretrained import TRUST_REMOTE_CODE_HINT
from vrft.policy.processor import load_processor
from vrft.rollout.base import RolloutEngine
from vrft.rollout.vllm.engine import VLLMServer
from vrft.utils.hub import loading

SECURITY_NOTE = """\
# The server loads weights and files on request: whoever can reach its port controls it. Let nobody else reach it."""
PLUGIN_NOTE = """\
# Full fine-tuning needs vrft's plugin installed with vLLM: pip install --no-deps . in vrft's repository. Without it,
# leave out --weight-transfer-config; each update then loads a folder, as when the server starts."""
CPU_FLAGS = ("--enforce-eager", "--no-enable-chunked-prefill")
"""Flag for CPUs, where vLLM 0.32 with chunked prefill crashes on requests that have a seed."""


def serve_commands(engine: RolloutEngine, policy: Policy, images: int = 1) -> str:
    """Return one command for each server, with comments. `images`: most images in a prompt.

    Raises:
        ConfigurationError: the engine is not a `VLLMServer`.
    """
    if not isinstance(engine, VLLMServer):
        raise ConfigurationError(
            f"model.engine: expected vrft.rollout.VLLMServer, got {type(engine).__name__}; --config engine/vllm adds it"
        )
    flags = server_flags(policy, images)
    lines = [SECURITY_NOTE] if policy.lora is not None else [SECURITY_NOTE, PLUGIN_NOTE]
    lines.append(f"# If vLLM runs on a CPU, add {' '.join(CPU_FLAGS)}.")
    for client in engine.clients:
        parts = urlsplit(client.url)
        if parts.scheme == "https" or parts.path:
            lines.append(f"# behind {client.url}:")
        address = ["--host", parts.hostname or "127.0.0.1", "--port", str(parts.port or 8000)]
        words = ["vllm", "serve", policy.checkpoint, *address, *flags]
        environment = [f"{name}={value}" for name, value in server_environment(policy).items()]
        lines.append(" ".join([*environment, shlex.join(words)]))
    return "\n".join(lines) + "\n"


def server_environment(policy: Policy) -> dict[str, str]:
    """Return the environment variables that enable the routes for caches and weights and disable usage statistics."""
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return variables if policy.lora is None else variables | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def server_flags(policy: Policy, images: int = 1) -> list[str]:
    """Return the flags that make the server's distribution, prompts and weights equal to the trainer's.

    `images`: most images in a prompt.
    """
    flags = ["--dtype", str(policy.dtype).removeprefix("torch.")]
    flags += ["--logprobs-mode", "processed_logprobs"]  # those of the distribution that tokens are sampled from
    flags += ["--generation-config", "vllm"]  # ignore the sampling defaults of the checkpoint
    flags += ["--chat-template-content-format", "openai"]
    flags += ["--limit-mm-per-prompt", json.dumps({"image": images, "video": 0})]
    if given := image_arguments(policy):
        flags += ["--mm-processor-kwargs", json.dumps(given)]
        if repeated := config_fields(given):
            flags += ["--hf-overrides", json.dumps(repeated)]
    if policy.quantize:  # a checkpoint in four bits says so itself
        flags += ["--quantization", "bitsandbytes"]
    if policy.trust_remote_code:
        flags.append("--trust-remote-code")
    if policy.lora is None:
        return [*flags, "--weight-transfer-config", json.dumps({"backend": "vrft"})]
    flags += ["--enable-lora", "--max-lora-rank", str(lora_rank(policy.lora.r))]
    return flags if policy.lora.target_modules is None else [*flags, "--enable-tower-connector-lora"]


def image_arguments(policy: Policy) -> dict[str, Any]:
    """Return the arguments of the server's image processor that limit images as the policy's does."""
    if policy.limits == ImageLimits():
        return {}
    with loading("model.policy.checkpoint", policy.checkpoint, TRUST_REMOTE_CODE_HINT):
        image_processor = load_processor(policy.folder, policy.trust_remote_code).image_processor
    fields = limited_fields(image_processor, policy.limits)
    if not is_a(image_processor, AREA_PROCESSORS):
        return fields
    own, size = dict(image_processor.size), fields["size"]
    changed = [edge for edge, name in AREA_EDGES.items() if name in policy.limits.pixels or size[edge] != own[edge]]
    return {AREA_EDGES[edge]: size[edge] for edge in changed}


def lora_rank(rank: int) -> int:
    """Return the smallest `--max-lora-rank` of vLLM that is large enough."""
    return min((allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank), default=rank)
