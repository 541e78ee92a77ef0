"""Estimate of the GPU memory that a run needs, from the model and the settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from vrft.data import VisionData
from vrft.policy import Policy
from vrft.policy.four_bits import four_bit_layers, is_in_four_bits
from vrft.policy.image_size import smaller_images
from vrft.training.module import VisionModule
from vrft.types import PromptBatch

GB = 1e9
FLOAT32_BYTES = 4
LOGITS_CHUNK = 1024
"""Completion tokens whose logits exist at the same time."""

RESERVE = 1.5 * GB
"""CUDA context, libraries and fragmentation."""


class ModelShape(NamedTuple):
    """The sizes of the language model that determine memory."""

    layers: int
    hidden: int
    intermediate: int
    key_values: int  # elements of keys and values per token and layer
    vocabulary: int
    bytes: int  # per element of the compute dtype


class Workload(NamedTuple):
    """The largest numbers of prompts, rows and tokens that are processed together."""

    prompts: int
    rows: int
    prompt_tokens: int
    completion_tokens: int
    micro_batch: int


def check_memory(
    module: VisionModule, data: VisionData, batch: PromptBatch, gpu_memory: float | None, console: Console
) -> Iterator[str]:
    """Show the estimate; if it exceeds the available memory, yield that with settings to change.

    The formulas count stored tensors. Those of the update are within a fifth of the peak of small models on a stand-in
    for a GPU; nothing has been compared with a GPU.
    """
    available = gpu_memory
    if available is None and torch.cuda.is_available():
        available = torch.cuda.get_device_properties(0).total_memory / GB
    parts = estimate(module, data, batch)
    total = sum(parts.values()) / GB
    table = Table(title="GPU memory, estimated", title_justify="left")
    table.add_column("")
    table.add_column("GB", justify="right")
    for name, size in parts.items():
        table.add_row(name, f"{size / GB:.3f}")
    table.add_row("together", f"{total:.3f}")
    console.print(table)
    if available is not None and total > available:
        yield f"about {total:.1f} GB of GPU memory are needed, and {available:.1f} are available; {advice(module)}"


def estimate(module: VisionModule, data: VisionData, batch: PromptBatch) -> dict[str, float]:
    """Estimate the bytes of each part."""
    policy = module.policy
    shape, load = model_shape(policy), workload(module, data, batch)
    trained = sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)
    frozen = [parameter for parameter in policy.model.parameters() if not parameter.requires_grad]
    whole = policy.reference is not None and not policy.offload_reference
    reference = trained + sum(parameter.numel() for parameter in frozen) if whole else 0
    copies = shape.bytes < FLOAT32_BYTES or policy.lora is not None  # rollouts decode with copies of the linear layers
    tokens = load.prompts * load.prompt_tokens + load.rows * load.completion_tokens
    activations, logits = update_bytes(policy, shape, load.micro_batch)
    return {
        "policy": FLOAT32_BYTES * trained + sum(parameter.nbytes for parameter in frozen) + scale_bytes(policy.base),
        "gradients": FLOAT32_BYTES * trained,
        "optimizer": optimizer_bytes(module) * trained,
        "reference": shape.bytes * reference,
        "rollout: decoding weights": shape.bytes * linear_parameters(policy.base) if copies else 0,
        "rollout: keys and values": tokens * shape.key_values * shape.layers * shape.bytes,
        "update: activations": activations,
        "update: logits": logits,
        "reserve": RESERVE,
    }


def update_bytes(policy: Policy, shape: ModelShape, tokens: int) -> tuple[float, float]:
    """Estimate the bytes of activations and logits in the forward and backward of some tokens."""
    logits = min(tokens, LOGITS_CHUNK) * shape.vocabulary * (3 * FLOAT32_BYTES + shape.bytes)
    # Trained embeddings are float32, and with them the sum of the layers' outputs, which norms keep.
    residual = tokens * shape.hidden * (FLOAT32_BYTES if policy.lora is None else shape.bytes)
    per_layer = tokens * (8 * shape.hidden + 4 * shape.intermediate) * shape.bytes + 2 * residual
    if not policy.gradient_checkpointing:
        return per_layer * shape.layers, logits
    return residual * shape.layers + max(per_layer - logits, 0), logits  # logits are freed before a layer is repeated


def model_shape(policy: Policy) -> ModelShape:
    """Read the sizes of the language model from its config."""
    text = policy.base.config.get_text_config().to_dict()
    heads = text["num_attention_heads"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    return ModelShape(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        key_values=2 * head * (text.get("num_key_value_heads") or heads),
        vocabulary=text["vocab_size"],
        bytes=policy.dtype.itemsize,
    )


def workload(module: VisionModule, data: VisionData, batch: PromptBatch) -> Workload:
    """Return the larger of a training rollout and an evaluation, and the tokens of a micro-batch."""
    prompt = max(prompt["input_ids"].shape[1] for prompt in batch.inputs)
    prompts = max(data.batch_size, data.eval_batch_size)
    rows = max(data.batch_size * module.group_size, data.eval_batch_size)
    step = data.batch_size * (prompt + module.group_size * module.max_completion_length)
    return Workload(
        prompts, rows, prompt, module.max_completion_length, min(step, module.optimization.max_tokens_per_micro_batch)
    )


def optimizer_bytes(module: VisionModule) -> float:
    """Measure the bytes of optimizer state per parameter, by a step on a small matrix."""
    matrix = nn.Parameter(torch.zeros(512, 512))
    optimizer = module.optimizer_callable([matrix])
    matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    kept = [value for value in optimizer.state[matrix].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in kept) / matrix.numel()


def linear_parameters(model: nn.Module) -> int:
    """Count the weights of linear layers that a rollout copies: those in four bits stay as they are."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear) and not is_in_four_bits(layer))
    return sum(layer.weight.numel() for layer in layers)


def scale_bytes(model: nn.Module) -> int:
    """Return the bytes of the scales of weights in four bits, and of the largest of these weights while it is used."""
    states = [layer.weight.quant_state for layer in four_bit_layers(model)]
    scales = sum(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0) for state in states)
    return scales + max((math.prod(state.shape) * state.dtype.itemsize for state in states), default=0)


def advice(module: VisionModule) -> str:
    """List settings that reduce memory, cheapest first."""
    policy = module.policy
    steps = []
    if not policy.gradient_checkpointing:
        steps.append("model.policy.gradient_checkpointing=true")
    steps.append(f"model.max_tokens_per_micro_batch below {module.optimization.max_tokens_per_micro_batch}")
    if policy.reference is not None and not policy.offload_reference:
        steps.append("model.policy.offload_reference=true")
    if policy.lora is None:
        steps += ["model.policy.lora.r=16", "model.optimizer=torch.optim.Adafactor"]
    elif not policy.in_four_bits:
        steps.append("model.policy.quantize=nf4")
    steps += smaller_images(policy.processor.image_processor)
    steps.append("a smaller data.batch_size and data.eval_batch_size")
    return f"try, in this order, {', '.join(steps)}"
