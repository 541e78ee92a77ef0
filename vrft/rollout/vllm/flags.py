"""Flags for vLLM servers that make their distribution, prompts and weights equal to the trainer's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from vrft.errors import ConfigurationError
from vrft.policy import Policy
from vrft.policy.image_size import AREA_EDGES, AREA_PROCESSORS, ImageLimits, config_fields, is_a, limited_fields
from vrft.policy.pretrained import TRUST_REMOTE_CODE_HINT
from vrft.utils.hub import loading
from vrft.utils.processors import load_processor


@dataclass(frozen=True)
class Colocated:
    """Settings of a server on the trainer's GPU, which sleeps while the trainer uses the GPU.

    Args:
        memory_share: share of the GPU's memory for the awake server, including its copy of the model.
        sleep_level: 1 keeps the weights of the sleeping server in CPU memory; 2 discards them and sends all again.
        vllm: the program that starts servers, e.g. /opt/vllm/bin/vllm.
        arguments: further arguments of this program, e.g. ['--max-num-seqs', '64'].
    """

    memory_share: float = 0.4
    sleep_level: Literal[1, 2] = 1
    vllm: str = "vllm"
    arguments: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise ConfigurationError for an invalid share."""
        if not 0 < self.memory_share < 1:
            raise ConfigurationError(
                f"model.engine.colocated.memory_share: expected a number between 0 and 1, got {self.memory_share}"
            )

    def flags(self) -> list[str]:
        """Return the flags for a server that can sleep."""
        return ["--enable-sleep-mode", "--gpu-memory-utilization", f"{self.memory_share:g}", *self.arguments]


def serve(policy: Policy, address: tuple[str, int], colocated: Colocated | None, images: int) -> list[str]:
    """Return the command that starts a server at (host, port). `images`: maximum number of images in a prompt."""
    program = "vllm" if colocated is None else colocated.vllm
    host, port = address
    words = [program, "serve", policy.checkpoint, "--host", host, "--port", str(port), *server_flags(policy, images)]
    return words if colocated is None else words + colocated.flags()


def server_environment(policy: Policy) -> dict[str, str]:
    """Return the environment variables that enable the routes for caches and weights and disable usage statistics."""
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return variables if policy.lora is None else variables | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def server_flags(policy: Policy, images: int = 1) -> list[str]:
    """Return the flags that make the server's distribution, prompts and weights equal to the trainer's.

    `images`: maximum number of images in a prompt.
    """
    flags = ["--dtype", str(policy.dtype).removeprefix("torch.")]
    flags += ["--logprobs-mode", "processed_logprobs"]  # under the distribution from which tokens are sampled
    flags += ["--generation-config", "vllm"]  # ignore the sampling defaults of the checkpoint
    flags += ["--chat-template-content-format", "openai"]
    flags += ["--max-model-len", "auto"]  # otherwise vLLM does not start if the model's full context doesn't fit
    flags += ["--limit-mm-per-prompt", json.dumps({"image": images, "video": 0})]
    if given := image_arguments(policy):
        flags += ["--mm-processor-kwargs", json.dumps(given)]
        if repeated := config_fields(given):
            flags += ["--hf-overrides", json.dumps(repeated)]
    if policy.quantize:  # vLLM recognises a checkpoint in four bits
        flags += ["--quantization", "bitsandbytes"]
    if policy.trust_remote_code:
        flags.append("--trust-remote-code")
    if policy.lora is None:
        return [*flags, "--weight-transfer-config", json.dumps({"backend": "vrft"})]
    flags += ["--enable-lora", "--max-lora-rank", str(lora_rank(policy.lora.r))]
    return flags if policy.lora.target_modules is None else [*flags, "--enable-tower-connector-lora"]


def image_arguments(policy: Policy) -> dict[str, Any]:
    """Return the arguments of the server's image processor that implement the policy's limits on image size."""
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
    """Return the smallest value of vLLM's `--max-lora-rank` that allows a rank."""
    return min((allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank), default=rank)
