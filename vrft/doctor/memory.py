"""How much GPU memory a run will need, estimated from the model and the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from vrft.data import VisionData
from vrft.training.module import VisionModule
from vrft.types import PromptBatch

GB = 1e9
FLOAT32 = 4
LOGITS = 1024
"""Completion tokens that have logits at a time."""

RESERVE = 1.5 * GB
"""CUDA itself, libraries and fragments."""


class Shape(NamedTuple):
    """What decides about memory."""

    layers: int
    hidden: int
    intermediate: int
    key_values: int  # numbers per token and layer: keys and values
    vocabulary: int
    bytes: int  # of the computation's dtype


class Load(NamedTuple):
    """Tokens at work."""

    prompts: int
    rows: int
    prompt_tokens: int
    completion_tokens: int
    micro_batch: int


def check_memory(
    module: VisionModule, data: VisionData, batch: PromptBatch, gpu_memory: float | None, console: Console
) -> Iterator[str]:
    """Show the estimate, and yield that it does not fit, with what to change.

    The formulas count what is stored; they have not been compared with a GPU.
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
        yield f"about {total:.1f} GB of GPU memory are needed and there are {available:.1f}; {advice(module)}"


def estimate(module: VisionModule, data: VisionData, batch: PromptBatch) -> dict[str, float]:
    """Bytes of each part."""
    policy = module.policy
    shape, load = model_shape(module), workload(module, data, batch)
    trained = sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in policy.model.parameters() if not parameter.requires_grad)
    reference = 0 if policy.reference is None or policy.offload_reference else trained + frozen
    copies = shape.bytes < FLOAT32 or policy.lora is not None  # rollouts decode through them
    tokens = load.prompts * load.prompt_tokens + load.rows * load.completion_tokens
    per_layer = load.micro_batch * (14 * shape.hidden + 4 * shape.intermediate) * shape.bytes
    kept = load.micro_batch * shape.hidden * shape.bytes
    activations = kept * shape.layers + per_layer if policy.gradient_checkpointing else per_layer * shape.layers
    return {
        "policy": FLOAT32 * trained + shape.bytes * frozen,
        "gradients": FLOAT32 * trained,
        "optimizer": optimizer_bytes(module) * trained,
        "reference": shape.bytes * reference,
        "rollout: decoding weights": shape.bytes * linear_parameters(policy.base) if copies else 0,
        "rollout: keys and values": tokens * shape.key_values * shape.layers * shape.bytes,
        "update: activations": activations,
        "update: logits": 4 * LOGITS * shape.vocabulary * FLOAT32,
        "reserve": RESERVE,
    }


def model_shape(module: VisionModule) -> Shape:
    """The language model's sizes."""
    text = module.policy.base.config.get_text_config().to_dict()
    heads = text["num_attention_heads"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    return Shape(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        key_values=2 * head * (text.get("num_key_value_heads") or heads),
        vocabulary=text["vocab_size"],
        bytes=module.policy.dtype.itemsize,
    )


def workload(module: VisionModule, data: VisionData, batch: PromptBatch) -> Load:
    """Tokens of the larger of a training rollout and an evaluation, and of a forward and backward."""
    prompt = max(prompt["input_ids"].shape[1] for prompt in batch.inputs)
    prompts = max(data.batch_size, data.eval_batch_size)
    rows = max(data.batch_size * module.group_size, data.eval_batch_size)
    whole = data.batch_size * (prompt + module.group_size * module.max_completion_length)
    return Load(
        prompts, rows, prompt, module.max_completion_length, min(whole, module.optimization.max_tokens_per_micro_batch)
    )


def optimizer_bytes(module: VisionModule) -> float:
    """Bytes per parameter that the optimizer keeps, found by a step on a small matrix."""
    matrix = nn.Parameter(torch.zeros(512, 512))
    optimizer = module.optimizer_callable([matrix])
    matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    kept = [value for value in optimizer.state[matrix].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in kept) / matrix.numel()


def linear_parameters(model: nn.Module) -> int:
    """Weights of linear layers."""
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


def advice(module: VisionModule) -> str:
    """What makes it smaller, the cheapest first."""
    policy = module.policy
    steps = []
    if not policy.gradient_checkpointing:
        steps.append("model.policy.gradient_checkpointing=true")
    steps.append(f"model.max_tokens_per_micro_batch below {module.optimization.max_tokens_per_micro_batch}")
    if policy.reference is not None and not policy.offload_reference:
        steps.append("model.policy.offload_reference=true")
    if policy.lora is None:
        steps += ["model.policy.lora.r=16", "model.optimizer=torch.optim.Adafactor"]
    steps += ["model.policy.max_pixels=200704", "a smaller data.batch_size and data.eval_batch_size"]
    return f"try, in this order, {', '.join(steps)}"
