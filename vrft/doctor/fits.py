"""Estimate which ways of training fit on a GPU, from a model's config.json alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from vrft.doctor.memory import RESERVE
from vrft.doctor.phases import GB, Estimate, Phases, Stored, Workload
from vrft.doctor.shape import FLOAT32_BYTES, model_shape
from vrft.policy.whole_modules import check_whole_modules, chosen_modules

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in four bits: half a byte, a byte per block of 64, and 4 bytes per 256 of these."""

LARGEST_BATCH = 256
"""Prompts per step up to which a batch is looked for."""


class Way(NamedTuple):
    """A way of training."""

    name: str
    lora: bool
    quantized: bool = False
    optimizer: float = 8  # bytes of optimizer state per weight that trains: two numbers in float32
    reference: bool = False  # a frozen copy
    item: int = FLOAT32_BYTES  # bytes of a weight that trains


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
    server_share: float = 0.0  # part of the GPU that a vLLM server has while it is awake; 0: the policy itself decodes
    rollouts: int = 1  # in a step, those of dynamic sampling included


class Fit(NamedTuple):
    """The memory of a way of training with one prompt per step, and the largest batch that fits."""

    way: Way
    estimate: Estimate
    batch: int | None  # None: no GPU was named


class Sizes(NamedTuple):
    """Numbers of weights of a model."""

    all: int
    linear: int  # of linear layers
    quantizable: int  # of linear layers of the language model, which have adapters
    largest: int  # of the largest of these layers
    adapters: int  # of rank 1 on all of them
    modules: int  # of modules that train as a whole beside adapters
    linear_modules: int  # of the linear layers in these
    quantized_modules: bool  # some of these would be in four bits
    tower_trains: bool  # some of these are in the vision tower


def fits(config: PreTrainedConfig, request: Request, gpu_memory: float | None) -> list[Fit]:
    """Estimate each way of training a model in bfloat16 with a frozen vision tower under LoRA.

    Args:
        config: the model's config.
        request: settings of the run.
        gpu_memory: GB of the GPU.
    """
    sizes, shape = count(config, request.modules_to_save), model_shape(config, torch.bfloat16)
    server = request.server_share * (gpu_memory or 0.0) * GB
    found = []
    for way in WAYS:
        if way.quantized and sizes.quantized_modules:
            continue  # weights in four bits can't train
        stored = weights(way, sizes, request.rank)

        def needs(prompts: int, way: Way = way, stored: Stored = stored) -> Estimate:
            phases = Phases(stored, shape, load(request, prompts), lora=way.lora, checkpointing=request.checkpointing)
            if server:
                phases.decodes, phases.beside, phases.awake = False, {"vLLM server, asleep": RESERVE}, server
            return phases.estimate()

        batch = None
        if gpu_memory is not None:
            room = gpu_memory * GB - RESERVE
            batch = max((p for p in range(1, LARGEST_BATCH + 1) if needs(p).peak <= room), default=0)
            if server and server < served(way, sizes):
                batch = 0
        found.append(Fit(way, needs(1), batch))
    return found


def count(config: PreTrainedConfig, modules_to_save: tuple[str, ...] = ()) -> Sizes:
    """Count the weights of a model without making them.

    Args:
        config: the model's config.
        modules_to_save: ends of the names of modules that train as a whole beside adapters.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
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
        quantizable=sum(layer.weight.numel() for layer in layers),
        largest=max((layer.weight.numel() for layer in layers), default=0),
        adapters=sum(layer.in_features + layer.out_features for layer in layers),
        modules=sum(parameter.numel() for parameter in chosen),
        linear_modules=sum(layer.weight.numel() for layer in everywhere if layer in inside),
        quantized_modules=any(layer in inside for layer in in_decoder),
        tower_trains=not chosen <= text,
    )


def weights(way: Way, sizes: Sizes, rank: int) -> Stored:
    """Return what a way of training stores in bfloat16."""
    item = torch.bfloat16.itemsize
    if not way.lora:
        reference = item * sizes.all if way.reference else 0
        copied = sizes.linear if way.item != item else 0
        return Stored(sizes.all, 0, reference, copied, way.optimizer, tower_trains=True, item=way.item)
    four_bits = sizes.quantizable if way.quantized else 0
    frozen = item * (sizes.all - four_bits) + FOUR_BIT_BYTES * four_bits
    frozen += item * sizes.largest if way.quantized else 0  # a layer's weights while it computes
    copied, trained = sizes.quantizable - four_bits + sizes.linear_modules, rank * sizes.adapters + sizes.modules
    return Stored(trained, frozen, 0, copied, way.optimizer, tower_trains=sizes.tower_trains, modules=sizes.modules)


def served(way: Way, sizes: Sizes) -> float:
    """Return the bytes of a server's copy of the weights."""
    four_bits = sizes.quantizable if way.quantized else 0
    return torch.bfloat16.itemsize * (sizes.all - four_bits) + FOUR_BIT_BYTES * four_bits


def load(request: Request, prompts: int) -> Workload:
    """Return the work of a step with P prompts, and of an evaluation with as many."""
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
