"""Estimate which ways of training fit on a GPU, from a model's config.json only."""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from vrft.doctor.memory import RESERVE, copied_weights
from vrft.doctor.phases import GB, Estimate, Phases, Stored, Workload
from vrft.doctor.shape import FLOAT32_BYTES, model_shape
from vrft.policy.whole_modules import check_whole_modules, chosen_modules

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in four bits: half a byte, a byte per block of 64, and 4 bytes per 256 of these."""

MAX_BATCH = 256
"""Maximum number of prompts per step that is tried."""


class Way(NamedTuple):
    """A way of training."""

    name: str
    lora: bool
    quantized: bool = False
    optimizer: float = 8  # bytes of optimizer state per trained weight: two float32 numbers
    reference: bool = False  # whether a frozen copy is the reference
    item: int = FLOAT32_BYTES  # bytes of a trained weight


WAYS = (
    Way("LoRA, nf4", lora=True, quantized=True),
    Way("LoRA", lora=True),
    Way("all, Adafactor, beta=0", lora=False, optimizer=0.01),
    Way("all, bf16, 8 bits", lora=False, optimizer=2.03, item=torch.bfloat16.itemsize),
    Way("all, AdamW, beta=0", lora=False),
    Way("all, AdamW, beta>0", lora=False, reference=True),
)


class Request(NamedTuple):
    """The settings of a run that determine memory."""

    image_tokens: int
    text_tokens: int
    completion_tokens: int
    generations: int
    micro_batch: int
    rank: int
    checkpointing: bool
    modules_to_save: tuple[str, ...] = ()
    server_share: float = 0.0  # share of the GPU for an awake vLLM server; 0: the policy itself decodes
    rollouts: int = 1  # per step, including those of dynamic sampling


class Fit(NamedTuple):
    """The memory of a way of training with one prompt per step, and the largest batch that fits."""

    way: Way
    estimate: Estimate
    batch: int | None  # None: no GPU memory was given


class Sizes(NamedTuple):
    """Numbers of weights of a model."""

    all: int
    linear: int  # in linear layers
    fused: int  # in linear layers that rollouts copy only to fuse them
    quantizable: int  # in linear layers of the language model, which have adapters
    largest: int  # in the largest quantizable layer
    adapters: int  # in adapters of rank 1 on all quantizable layers
    modules: int  # in whole modules that train in addition to adapters
    linear_modules: int  # in the linear layers of these modules
    quantized_modules: bool  # whether a linear layer of these modules would be in four bits
    tower_trains: bool  # whether one of these modules is in the vision tower


def fits(config: PreTrainedConfig, request: Request, gpu_memory: float | None) -> list[Fit]:
    """Estimate each way of training a model in bfloat16 with a frozen vision tower under LoRA.

    Args:
        config: the model's config.
        request: settings of the run.
        gpu_memory: memory of the GPU in GB.
    """
    sizes, shape = count(config, request.modules_to_save), model_shape(config, torch.bfloat16)
    server = request.server_share * (gpu_memory or 0.0) * GB
    found = []
    for way in WAYS:
        if way.quantized and sizes.quantized_modules:
            continue  # weights in four bits can't be trained
        stored = weights(way, sizes, request.rank)

        def needs(prompts: int, way: Way = way, stored: Stored = stored) -> Estimate:
            phases = Phases(stored, shape, load(request, prompts), lora=way.lora, checkpointing=request.checkpointing)
            if server:
                phases.decodes, phases.other_processes, phases.awake = False, {"vLLM server, asleep": RESERVE}, server
            return phases.estimate()

        batch = None
        if gpu_memory is not None:
            room = gpu_memory * GB - RESERVE
            # a larger batch never needs less, so the largest that fits is the number of those that fit
            batch = bisect(range(1, MAX_BATCH + 1), room, key=lambda prompts: needs(prompts).peak)
            if server and server < served(way, sizes):
                batch = 0
        found.append(Fit(way, needs(1), batch))
    return found


def count(config: PreTrainedConfig, modules_to_save: tuple[str, ...] = ()) -> Sizes:
    """Count the weights of a model without allocating them.

    Args:
        config: the model's config.
        modules_to_save: suffixes of the names of whole modules that train in addition to adapters.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    check_whole_modules(model, modules_to_save)
    whole = chosen_modules(model, modules_to_save)
    inside = {part for module in whole.values() for part in module.modules()}
    in_decoder = [module for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]
    layers = [layer for layer in in_decoder if layer not in inside]
    everywhere = [module for module in model.modules() if isinstance(module, nn.Linear)]
    chosen = {parameter for module in whole.values() for parameter in module.parameters()}
    text = {*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()}
    return Sizes(
        all=sum(parameter.numel() for parameter in model.parameters()),
        linear=sum(layer.weight.numel() for layer in everywhere),
        fused=copied_weights(model, torch.bfloat16),
        quantizable=sum(layer.weight.numel() for layer in layers),
        largest=max((layer.weight.numel() for layer in layers), default=0),
        adapters=sum(layer.in_features + layer.out_features for layer in layers),
        modules=sum(parameter.numel() for parameter in chosen),
        linear_modules=sum(layer.weight.numel() for layer in everywhere if layer in inside),
        quantized_modules=any(layer in inside for layer in in_decoder),
        tower_trains=not chosen <= text,
    )


def weights(way: Way, sizes: Sizes, rank: int) -> Stored:
    """Return the weights that a way of training stores, for a compute dtype of bfloat16."""
    item = torch.bfloat16.itemsize
    if not way.lora:
        reference = item * sizes.all if way.reference else 0
        copied = sizes.linear if way.item != item else sizes.fused
        return Stored(sizes.all, 0, reference, copied, way.optimizer, tower_trains=True, item=way.item)
    four_bits = sizes.quantizable if way.quantized else 0
    frozen = item * (sizes.all - four_bits) + FOUR_BIT_BYTES * four_bits
    frozen += item * sizes.largest if way.quantized else 0  # the dequantised weights of a layer while it computes
    adapters = rank * sizes.adapters
    copied = sizes.quantizable - four_bits + sizes.linear_modules
    copied += adapters if way.quantized else 0  # others are merged
    trained = adapters + sizes.modules
    return Stored(trained, frozen, 0, copied, way.optimizer, tower_trains=sizes.tower_trains, modules=sizes.modules)


def served(way: Way, sizes: Sizes) -> float:
    """Return the bytes of a server's copy of the weights."""
    four_bits = sizes.quantizable if way.quantized else 0
    return torch.bfloat16.itemsize * (sizes.all - four_bits) + FOUR_BIT_BYTES * four_bits


def load(request: Request, prompts: int) -> Workload:
    """Return the workload of a step, and of an evaluation batch, with `prompts` prompts."""
    return Workload(
        prompts=prompts,
        evaluated=prompts,
        sampled=request.generations,
        generations=request.generations,
        prompt_tokens=request.image_tokens + request.text_tokens,
        image_tokens=request.image_tokens,
        completion_tokens=request.completion_tokens,
        micro_batch=request.micro_batch,
        rollouts=request.rollouts,
    )
