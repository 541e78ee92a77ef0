"""Estimate the GPU memory that a run needs, from the model and the settings."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vrft.data import VisionData
from vrft.doctor.phases import GB, Estimate, Phases, Stored, Workload
from vrft.doctor.shape import FLOAT32_BYTES, model_shape
from vrft.policy import Policy
from vrft.policy.decoding_forward import decoding_layers
from vrft.policy.decoding_weights import copied_layers, fused_copies, merged
from vrft.policy.experts import experts_to_copy
from vrft.policy.four_bits import four_bit_layers
from vrft.policy.image_size import smaller_images
from vrft.policy.page_locked import places
from vrft.policy.whole_modules import copies_by_original
from vrft.rollout import RemoteEngine
from vrft.training.module import VisionModule
from vrft.types import PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESERVE = 1.5 * GB
"""Bytes for the CUDA context, libraries and fragmentation; also the assumed memory of a sleeping server."""


def check_memory(
    module: VisionModule, data: VisionData, batch: PromptBatch, gpu_memory: float | None, console: Console
) -> Iterator[str]:
    """Show the estimate. If it exceeds the available memory, yield a problem with settings to change.

    The formulas count stored tensors. They are within 15 % of the peaks of small models on a stand-in for a GPU; they
    have not been compared with a real GPU.
    """
    available = gpu_memory
    if available is None and torch.cuda.is_available():
        available = torch.cuda.get_device_properties(0).total_memory / GB
    found = estimate(module, data, batch)
    needed = (found.peak + RESERVE) / GB
    table = Table(title="GPU memory, estimated", title_justify="left")
    table.add_column("")
    table.add_column("GB", justify="right")
    for name, size in (*found.stays.items(), *((f"most during {name}", size) for name, size in found.phases.items())):
        table.add_row(name, f"{size / GB:.3f}")
    table.add_row("together: the most, and a reserve", f"{needed:.3f}")
    console.print(table)
    if locked := page_locked_bytes(module):
        console.print(
            f"each rank keeps the reference in {locked / GB:.1f} GB of page-locked CPU memory", highlight=False
        )
    if available is not None and needed > available:
        yield f"about {needed:.1f} GB of GPU memory are needed, and {available:.1f} are available; {advice(module)}"
    if available is not None and isinstance(module.engine, RemoteEngine) and module.engine.gpu_share > 0:
        copied = module.policy.dtype.itemsize * sum(p.numel() for p in module.policy.model.parameters())
        yield from check_share(module.engine.gpu_share, available, found.stays["policy"] / GB, copied / GB)


def check_share(share: float, available: float, policy: float, copied: float) -> Iterator[str]:
    """Yield a problem if the share of GPU memory for an awake server on the policy's GPU is too large or too small.

    Args:
        share: server's share of the GPU's memory, in 0..1.
        available: memory of the GPU, in GB.
        policy: the policy's weights, which stay on the GPU, in GB.
        copied: the server's copy of the weights, in GB, unless it has them in four bits.
    """
    field, awake, reserve = "model.engine.colocated.memory_share", share * available, RESERVE / GB
    if awake + policy + reserve > available:
        yield (
            f"while it is awake, the vLLM server has {awake:.1f} GB of the GPU's {available:.1f}, but the policy's "
            f"weights take {policy:.1f} and CUDA about {reserve:.1f}: {field} below "
            f"{max(0.0, 1 - (policy + reserve) / available):.2f}"
        )
    if copied > awake:
        yield (
            f"the vLLM server's copy of the weights takes {copied:.1f} GB, more than its {awake:.1f}: {field} above "
            f"{copied / available:.2f}, unless it has them in four bits"
        )


def estimate(module: VisionModule, data: VisionData, batch: PromptBatch) -> Estimate:
    """Estimate the bytes of each phase of a run."""
    policy = module.policy
    shape = model_shape(policy.base.config, policy.dtype)
    stored = stored_weights(policy, optimizer_bytes(module, policy.trained_dtype))
    if module.reference_follows and not policy.offload_reference:
        stored = stored._replace(reference=FLOAT32_BYTES * stored.trained)
    lora, checkpointing = policy.lora is not None, policy.reader.gradient_checkpointing
    phases = Phases(stored, shape, workload(module, data, batch), lora=lora, checkpointing=checkpointing)
    if isinstance(module.engine, RemoteEngine):
        phases.decodes = False
        phases.other_processes = {"vLLM server, asleep": RESERVE} if module.engine.gpu_share > 0 else {}
    return phases.estimate()


def stored_weights(policy: Policy, optimizer: float) -> Stored:
    """Count the weights of a loaded policy. `optimizer`: bytes of optimizer state per trained weight."""
    parameters = [*policy.model.parameters()]
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    frozen = sum(parameter.nbytes for parameter in parameters if not parameter.requires_grad)
    return Stored(
        trained=trained,
        frozen=frozen + scale_bytes(policy.base),
        reference=0 if policy.reference is None or policy.offload_reference else model_bytes(policy.reference),
        copied=copied_weights(policy.base, policy.dtype),
        optimizer=optimizer,
        tower_trains=not policy.frozen_vision,
        item=policy.trained_dtype.itemsize,
        modules=sum(copy.numel() for _, copy in copies_by_original(policy.model)),
    )


def page_locked_bytes(module: VisionModule) -> int:
    """Return the bytes of page-locked CPU memory in which each rank with a GPU keeps an offloaded reference."""
    policy = module.policy
    if not policy.offload_reference:
        return 0
    kept: Iterable[Tensor] = policy.start.values() if policy.reference is None else policy.reference.parameters()
    if module.reference_follows:
        kept = (parameter for parameter in policy.model.parameters() if parameter.requires_grad)
    return sum(places([tensor.nbytes for tensor in kept])[0])


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def workload(module: VisionModule, data: VisionData, batch: PromptBatch) -> Workload:
    """Return the workload of a step, with all prompts as long as the longest in `batch`."""
    image = module.policy.base.config.image_token_id
    return Workload(
        prompts=data.batch_size,
        evaluated=data.eval_batch_size,
        sampled=module.num_samples,
        generations=module.group_size,
        prompt_tokens=max(prompt["input_ids"].shape[1] for prompt in batch.inputs),
        image_tokens=max(int((prompt["input_ids"] == image).sum()) for prompt in batch.inputs),
        completion_tokens=module.max_completion_length,
        micro_batch=module.optimization.max_tokens_per_micro_batch,
        rollouts=module.batches_per_step,
        sorts=module.sampling.top_p < 1,
    )


def optimizer_bytes(module: VisionModule, dtype: torch.dtype = torch.float32) -> float:
    """Measure the bytes of optimizer state per parameter by a step on a small matrix of a dtype."""
    matrix = nn.Parameter(torch.zeros(512, 512, dtype=dtype))
    optimizer = module.optimizer_callable([matrix])
    matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    kept = [value for value in optimizer.state[matrix].values() if isinstance(value, torch.Tensor)]
    file = io.BytesIO()  # serialisation includes the inner tensors of torchao's tensor subclasses
    torch.save(kept, file)
    with zipfile.ZipFile(file) as archive:
        return sum(part.file_size for part in archive.infolist() if "/data/" in part.filename) / matrix.numel()


def copied_weights(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Count the weights that a rollout on a GPU copies: of linear layers and experts, to merge, convert or fuse them.

    Weights in four bits are not copied.
    """
    copied = copied_layers(model, dtype)
    with merged(model):
        fused = fused_copies(decoding_layers(model), copied, torch.device("cuda"))
    layers: set[Any] = {*copied}.union(*fused)
    experts = sum(module.get_parameter(name).numel() for module, name in experts_to_copy(model, dtype))
    return experts + sum(layer.weight.numel() for layer in layers)


def scale_bytes(model: nn.Module) -> int:
    """Return the bytes of the scales of weights in four bits, plus the largest dequantised weight."""
    states = [layer.weight.quant_state for layer in four_bit_layers(model)]
    scales = sum(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0) for state in states)
    return scales + max((math.prod(state.shape) * state.dtype.itemsize for state in states), default=0)


def advice(module: VisionModule) -> str:
    """List settings that reduce memory, cheapest first."""
    policy = module.policy
    steps = []
    if not policy.reader.gradient_checkpointing:
        steps.append("model.policy.gradient_checkpointing=true")
    steps.append(f"model.max_tokens_per_micro_batch below {module.optimization.max_tokens_per_micro_batch}")
    if (policy.reference is not None or module.reference_follows) and not policy.offload_reference:
        steps.append("model.policy.offload_reference=true")
    if policy.lora is None:
        steps += ["model.policy.lora.r=16", "model.optimizer=torch.optim.Adafactor"]
    elif not policy.reader.in_four_bits:
        steps.append("model.policy.quantize=nf4")
    steps += smaller_images(policy.processor.image_processor)
    steps.append("a smaller data.batch_size and data.eval_batch_size")
    return f"try, in this order, {', '.join(steps)}"
