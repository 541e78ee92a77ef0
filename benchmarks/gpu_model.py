"""Model a GRPO step of Qwen2.5-VL on GPUs, for scaling.py --gpu. Nothing was measured on a GPU.

Numbers of kernels, graph nodes and synchronisations are those that gpu_counts.py counted on the stand-in for a GPU.
Operations and bytes follow from the sizes of the model. Memory is estimated by `python -m vrft fits`. A phase takes as
long as the slowest of its arithmetic, its memory traffic and its kernel launches, plus a wait for each synchronisation.

P prompts, G completions each, N = P * G rows, L prompt tokens, T completion tokens, all on one GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import Qwen2_5_VLConfig

from vrft.doctor.fits import WAYS, Request, Sizes, count, load, weights
from vrft.doctor.memory import RESERVE
from vrft.doctor.phases import GB, Phases
from vrft.doctor.shape import ModelShape, model_shape

RANK = 16
"""Rank of adapters."""
COUNTED_LAYERS = 36
"""Number of text layers of the counted model. Counts of phases of the text model are scaled by layers."""

Counts = Mapping[str, Mapping[str, float]]
"""Launches, synchronisations and graph nodes of each phase."""


class Speeds(NamedTuple):
    """Assumptions about any GPU and its host."""

    matmul: float  # share of the datasheet's dense bfloat16 operations per second that large matrix products achieve
    memory: float  # share of the datasheet's bandwidth that is achieved
    launch: float  # seconds of Python and dispatch per kernel outside of graphs
    node: float  # seconds per kernel in a graph
    sync: float  # seconds of waiting per synchronisation


FAST = Speeds(matmul=0.6, memory=0.85, launch=4e-6, node=1.2e-6, sync=10e-6)
ASSUMED = Speeds(matmul=0.45, memory=0.75, launch=6e-6, node=1.8e-6, sync=20e-6)
SLOW = Speeds(matmul=0.3, memory=0.6, launch=10e-6, node=3e-6, sync=50e-6)


class Gpu(NamedTuple):
    """Values from datasheets."""

    name: str
    operations: float  # per second, dense bfloat16 with float32 accumulation
    bandwidth: float  # bytes per second
    memory: float  # GB
    ranks: int = 1
    link: float = 0  # bytes per second in one direction between ranks


GPUS = (
    Gpu("1 H200", 989e12, 4.8e12, 141),
    Gpu("1 RTX 4090", 165e12, 1.01e12, 24),
    Gpu("8 H100", 989e12, 3.35e12, 80, ranks=8, link=450e9),
)


class Work(NamedTuple):
    """The work of a GPU in a step."""

    prompts: int = 8
    generations: int = 8
    image_tokens: int = 1000
    text_tokens: int = 100
    completion_tokens: int = 256  # of every completion
    micro_batch: int = 8192  # tokens

    @property
    def rows(self) -> int:
        return self.prompts * self.generations

    @property
    def prompt_tokens(self) -> int:
        return self.image_tokens + self.text_tokens

    @property
    def micro_batches(self) -> int:
        """Return the number of micro-batches of an update, each with as many whole groups as fit."""
        group = self.prompt_tokens + self.generations * self.completion_tokens
        return -(-self.prompts // max(1, self.micro_batch // group))


WORK = Work()


class Model(NamedTuple):
    """Sizes of a model."""

    name: str
    config: Any
    sizes: Sizes
    shape: ModelShape

    @property
    def head(self) -> int:
        return self.shape.vocabulary * self.shape.hidden

    @property
    def vision(self) -> int:
        """Return the weights of the vision tower's linear layers."""
        return self.sizes.linear - self.sizes.quantizable - self.head


@cache
def models() -> list[Model]:
    """Return Qwen2.5-VL of 3 B and 7 B by their published sizes."""
    text = {
        "3 B": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
                "intermediate_size": 11008, "vocab_size": 151936},
        "7 B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                "intermediate_size": 18944, "vocab_size": 152064},
    }  # fmt: skip
    found = []
    for name, sizes in text.items():
        vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": sizes["hidden_size"]}
        config = Qwen2_5_VLConfig(text_config=sizes, vision_config=vision, tie_word_embeddings=name == "3 B")
        found.append(Model(name, config, count(config), model_shape(config, torch.bfloat16)))
    return found


# --------------------------------------------------------------------------------------------------------------- time


class Clock:
    """Computes the seconds of phases on a GPU, given speeds."""

    def __init__(self, gpu: Gpu, speeds: Speeds) -> None:
        self.gpu, self.speeds = gpu, speeds

    def seconds(self, *, operations: float = 0, moved: float = 0, launches: float = 0, syncs: float = 0) -> float:
        """Return the seconds of a phase without graphs. `moved`: bytes of memory traffic."""
        return max(self.device(operations, moved), launches * self.speeds.launch) + syncs * self.speeds.sync

    def device(self, operations: float, moved: float) -> float:
        """Return the seconds that the GPU needs, without launches and synchronisations."""
        arithmetic = operations / self.gpu.operations / self.speeds.matmul
        return max(arithmetic, moved / self.gpu.bandwidth / self.speeds.memory)


def attention_operations(shape: ModelShape, config: Any, tokens: float, keys: float) -> float:
    """Return the operations of attention of `tokens` tokens to `keys` keys each, in all layers."""
    text = config.get_text_config()
    return 4 * tokens * keys * text.hidden_size * shape.layers


def tower_operations(model: Model, work: Work) -> float:
    """Return the operations of the vision tower for one image."""
    vision, patches = model.config.vision_config, 4 * work.image_tokens
    full = len(vision.fullatt_block_indexes)
    window = (vision.window_size // vision.patch_size) ** 2
    keys = full * patches + (vision.depth - full) * window
    return 2 * model.vision * patches + 4 * patches * keys * vision.hidden_size


def forward_operations(model: Model, work: Work) -> float:
    """Return the operations of the text model, without its head, for prompts and completions."""
    tokens = work.prompts * work.prompt_tokens + work.rows * work.completion_tokens
    own = work.completion_tokens / 2
    attention = [
        attention_operations(model.shape, model.config, work.prompts * work.prompt_tokens, work.prompt_tokens / 2),
        attention_operations(model.shape, model.config, work.rows * work.completion_tokens, work.prompt_tokens + own),
    ]
    return 2 * model.sizes.quantizable * tokens + sum(attention)


def step_seconds(model: Model, full: bool, gpu: Gpu, work: Work, counts: Counts, speeds: Speeds) -> dict[str, float]:
    """Return the seconds of each part of a step after the first one, which records the graph.

    With LoRA, the vision tower is frozen and images are encoded once. Full fine-tuning encodes them in the rollout, the
    reference and the update. Layers and the head are checkpointed: the backward repeats their forward.
    """
    clock, scale = Clock(gpu, speeds), model.shape.layers / COUNTED_LAYERS
    nodes = counts["decoding"]["graphed"] * scale
    started = nodes * (speeds.launch if full and gpu.ranks > 1 else speeds.node)  # FSDP2 records no graph
    tower = work.prompts * tower_operations(model, work)
    towers = {"launches": work.prompts * counts["image of 1,000 tokens"]["launches"], "syncs": 0.0}
    one_tower = clock.seconds(operations=tower, **towers)

    def counted(name: str, times: int = 1) -> dict[str, float]:
        return {kind: times * scale * counts[name][kind] for kind in ("launches", "syncs")}

    matrices = 2 * (model.sizes.quantizable + model.head)  # bytes
    prompts = work.prompts * work.prompt_tokens
    prefill = clock.seconds(
        operations=2 * model.sizes.quantizable * prompts
        + attention_operations(model.shape, model.config, prompts, work.prompt_tokens / 2),
        moved=matrices,
        **counted("prefill"),
    )
    copied = model.sizes.linear * 6 if full else model.sizes.quantizable * 4
    around = clock.seconds(moved=copied, **counted("rollout"))
    forward = forward_operations(model, work)
    head = 2 * model.head * work.rows * work.completion_tokens
    rounds = work.micro_batches
    reference = clock.seconds(operations=forward + head, moved=rounds * matrices, **counted("reference", rounds))
    # the gradients of weights, the gradients of inputs and the repeated forward each cost as much as a forward
    times = 4 if full else 3
    update = clock.seconds(operations=times * (forward + head), moved=times * rounds * matrices,
                           **counted("update", rounds))  # fmt: skip
    trained = model.sizes.all if full else RANK * model.sizes.adapters
    casts = clock.device(0, rounds * 18 * model.sizes.linear) if full else 0.0  # to bfloat16, gradients to float32
    return {
        "vision": 6 * one_tower if full else one_tower,  # one each in rollout and reference, four in the update
        "prefill": prefill + around,
        "decoding": work.completion_tokens * token_seconds(model, clock, work, started),
        "reference": reference,
        "update": update + casts,
        "optimizer": clock.seconds(moved=32 * trained, **counted("optimizer")),
        "network": network_seconds(model, full, gpu, work, trained),
    }


def token_seconds(model: Model, clock: Clock, work: Work, started: float) -> float:
    """Return the seconds of decoding a token of each row, with `started` seconds to start the kernels."""
    slots = work.prompts * work.prompt_tokens + work.rows * work.completion_tokens
    matrices = model.sizes.quantizable + model.head
    moved = 2 * matrices + slots * model.shape.key_values * model.shape.bytes
    return max(clock.device(2 * matrices * work.rows, moved), started)


TRL_ROWS = 8
"""Number of completions in TRL's micro-batch when kernels were counted."""


def trl_step_seconds(model: Model, full: bool, gpu: Gpu, work: Work, counts: Counts, speeds: Speeds) -> float:
    """Return the seconds of TRL's step by the same model.

    Rollout, reference and update compute the prompt and its images for each completion. Decoding launches each kernel
    from Python.
    """
    clock, scale = Clock(gpu, speeds), model.shape.layers / COUNTED_LAYERS
    rounds, length = -(-work.rows // TRL_ROWS), work.prompt_tokens + work.completion_tokens

    def counted(name: str, times: int = 1) -> dict[str, float]:
        return {kind: times * scale * counts[name][kind] for kind in ("launches", "syncs")}

    def text(tokens: float) -> float:
        attention = attention_operations(model.shape, model.config, work.rows * tokens, tokens / 2)
        return 2 * model.sizes.quantizable * work.rows * tokens + attention

    matrices = 2 * (model.sizes.quantizable + model.head)
    tower = work.rows * tower_operations(model, work)
    forward = text(length) + 2 * model.head * work.rows * work.completion_tokens
    slots = work.rows * length * model.shape.key_values * model.shape.bytes
    token = clock.seconds(operations=matrices * work.rows, moved=matrices + slots, **counted("token"))
    prompts = clock.seconds(operations=tower + text(work.prompt_tokens), moved=matrices, **counted("rollout"))
    reference = clock.seconds(operations=tower + forward, moved=rounds * matrices, **counted("reference", rounds))
    times, towers = (4, 4) if full else (3, 1)
    update = clock.seconds(operations=times * forward + towers * tower, moved=times * rounds * matrices,
                           **counted("update", rounds))  # fmt: skip
    trained = model.sizes.all if full else RANK * model.sizes.adapters
    optimizer = clock.seconds(moved=32 * trained)
    network = network_seconds(model, full, gpu, work, trained)
    return prompts + work.completion_tokens * token + reference + update + optimizer + network


def network_seconds(model: Model, full: bool, gpu: Gpu, work: Work, trained: int) -> float:
    """Return the seconds of communication between ranks: gradients under DDP, gradients and weights under FSDP2.

    DDP averages the float32 gradients of adapters. Under FSDP2, each rank gathers float32 weights for the rollout and,
    in each micro-batch, for the forward and for the backward, gathers the reference, and scatters the gradients.
    """
    if gpu.ranks == 1:
        return 0.0
    others = (gpu.ranks - 1) / gpu.ranks
    if not full:
        return 2 * others * 4 * trained / gpu.link
    gathers = 4 * (1 + 2 * work.micro_batches) + 2 * work.micro_batches
    return others * model.sizes.all * (gathers + 4 * work.micro_batches) / gpu.link


# ------------------------------------------------------------------------------------------------------------- memory


def memory(model: Model, full: bool, gpu: Gpu, work: Work) -> float:
    """Return the memory of a step on one GPU in GB, by the formulas of `python -m vrft fits`.

    FSDP2 shards the stored tensors of full fine-tuning over ranks; a rollout gathers the policy in float32.
    """
    [way] = [way for way in WAYS if way.name == ("all, AdamW, beta>0" if full else "LoRA")]
    request = Request(
        image_tokens=work.image_tokens,
        text_tokens=work.prompt_tokens - work.image_tokens,
        completion_tokens=work.completion_tokens,
        generations=work.generations,
        micro_batch=work.micro_batch,
        rank=RANK,
        checkpointing=True,
    )
    stored = weights(way, model.sizes, RANK)
    phases = Phases(stored, model.shape, load(request, work.prompts), lora=way.lora, checkpointing=True)
    found = phases.estimate()
    total = found.peak + RESERVE
    if full and gpu.ranks > 1:
        sharded = sum(found.stays[part] for part in ("policy", "gradients", "optimizer", "reference"))
        total += found.stays["policy"] - sharded * (1 - 1 / gpu.ranks)
    return total / GB


# ------------------------------------------------------------------------------------------------------------- report


def results(counts: Mapping[str, Counts], trl: Mapping[str, Counts]) -> Iterator[list[str]]:
    """Yield a row for each model, way of training and GPU."""
    for model in models():
        for mode in ("lora", "full"):
            for gpu in GPUS:
                full = mode == "full"
                seconds, quick, slow = (
                    step_seconds(model, full, gpu, WORK, counts[mode], speeds) for speeds in (ASSUMED, FAST, SLOW)
                )
                needed = memory(model, full, gpu, WORK)
                whole = sum(seconds.values())
                cells = [f"{value:.2f}" for value in seconds.values()]
                bounds = f"{sum(quick.values()):.1f} to {sum(slow.values()):.1f}"
                tokens = f"{gpu.ranks * WORK.rows / whole:,.1f}"
                fits_there = "yes" if needed <= gpu.memory else "no"
                theirs = trl_step_seconds(model, full, gpu, WORK, trl[mode], ASSUMED)
                cells += [f"{whole:.1f}", bounds, tokens, f"{needed:.0f}", fits_there]
                yield [model.name, mode, gpu.name, *cells, f"{theirs:.1f}"]


def assumptions() -> list[list[str]]:
    """Return a table row for each assumption, with its values for the bounds."""
    meanings = {
        "matmul": "part of the datasheet's dense bfloat16 operations that matrix products reach",
        "memory": "part of the datasheet's bandwidth that is reached",
        "launch": "seconds per kernel outside of graphs: Python and dispatch",
        "node": "seconds per kernel in a graph",
        "sync": "seconds of waiting per synchronisation",
    }
    pairs = zip(FAST._asdict().values(), ASSUMED._asdict().values(), SLOW._asdict().values(), strict=True)
    return [[meaning, *(f"{x:g}" for x in values)] for meaning, values in zip(meanings.values(), pairs, strict=True)]


def report(
    counts: Mapping[str, Counts],
    trl: Mapping[str, Counts],
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]],
) -> str:
    """Return the model's results as Markdown. `trl`: counts of TRL's step."""
    header = ["model", "training", "GPU", "vision", "prefill", "decoding", "reference", "update", "optimizer",
              "network", "step s", "bounds s", "completions/s", "GB", "fits", "TRL step s"]  # fmt: skip
    gpus = [
        [gpu.name, f"{gpu.operations / 1e12:g}", f"{gpu.bandwidth / 1e12:g}", f"{gpu.memory:g}", f"{gpu.link / 1e9:g}"]
        for gpu in GPUS
    ]
    lines = [
        "# A step on GPUs, computed, not measured",
        "",
        "`python benchmarks/scaling.py --gpu --write`, from the counts in [gpu_counts.md](gpu_counts.md). No GPU was",
        "used. The table says what limits a step and what fits, not how long a step will take.",
        "",
        f"Qwen2.5-VL. Each GPU has {WORK.prompts} prompts of {WORK.image_tokens:,} image tokens and {WORK.text_tokens}"
        f" of text, {WORK.generations} completions",
        f"each, all of {WORK.completion_tokens} tokens, and micro-batches of {WORK.micro_batch:,} tokens, with gradient"
        " checkpointing and a",
        f"reference (beta above 0). lora: rank {RANK}, weights in bfloat16, frozen vision tower; full: all weights in",
        "float32 with AdamW. Seconds are those of a step after the first, which records the graph.",
        "",
        *table(header, [*results(counts, trl)]),
        "",
        "`bounds`: all five assumptions below at their fast or at their slow value. `GB`: of each GPU, the most of all",
        "phases, by `python -m vrft fits`. Where it doesn't fit, the seconds",
        "are those of a GPU with more memory.",
        "",
        "## Assumptions",
        "",
        *table(["", "fast", "assumed", "slow"], assumptions()),
        "",
        *table(["GPU", "dense bfloat16, TFLOP/s", "memory, TB/s", "memory, GB", "link, GB/s in one direction"], gpus),
        "",
        "- A phase takes as long as the slowest of arithmetic, memory traffic and launches. Phases don't overlap.",
        f"- Kernels were counted at {COUNTED_LAYERS} text layers and 32 vision blocks. For 7 B, those of the text",
        "  model are scaled by its layers, including the few outside of layers. A micro-batch of any size launches as",
        "  many as the counted one of 2 prompts.",
        "- The update was counted without gradient checkpointing; the repeated forward adds operations, no launches.",
        "- A decoded token reads all weights of the text model and all slots of keys and values once.",
        "- The vision tower's forward and backward in the update take four times as long as its forward, an image at a",
        "  time, since checkpointing repeats the forward.",
        "- AdamW moves 32 bytes per trained weight. Casts in full fine-tuning move 18 in each micro-batch.",
        "- 8 GPUs: lora under DDP, full under FSDP2 with float32 weights. No communication is hidden behind",
        "  computation, and ranks are equally fast. FSDP2 records no graph: a token launches as many kernels from",
        "  Python as a graph has.",
        "- Left out: rewards, the data loader, logging, the first step, evaluation, checkpoints.",
        "",
        "`TRL step s`: the step of TRL 1.16 with transformers' `generate`, by the same clock at the assumed values,",
        "from its counts on the same stand-in (`benchmarks/trl_counts.py`, [gpu_counts.md](gpu_counts.md)):",
        "",
        f"- Micro-batches have {TRL_ROWS} completions. Each has its own copy of prompt and image in the rollout, the",
        "  reference and the update, and keys and values of its own, which each token reads.",
        "- A decoded token launches its kernels from Python. TRL with vLLM would decode as fast as vLLM does.",
        "- TRL computes log-probabilities by a Triton kernel, which the stand-in lacks. The torch code that replaces",
        "  it is counted.",
        "- TRL's memory was not estimated: where our step doesn't fit, its seconds too are those of a larger GPU.",
    ]
    return "\n".join(lines) + "\n"
