"""Model when vLLM pays: rollouts with the built-in decoder and with a vLLM server on the same GPU.

    python benchmarks/vllm_model.py --write

The built-in decoder's seconds are those of `gpu_model.py`, from kernels counted on the stand-in for a GPU. vLLM's are
based on the assumptions in the table, none of which was measured here. The results apply to a rollout, not to a step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gpu_model
from gpu_model import GPUS, Clock, Counts, Gpu, Model, Speeds, Work

RESULTS = Path(__file__).with_name("results")
LENGTHS = (64, 256, 1024, 4096)
BATCHES = ((8, 8), (32, 8), (32, 16))
"""Numbers of prompts and of completions per prompt."""

ONE_GPU = [gpu for gpu in GPUS if gpu.ranks == 1]


class Server(NamedTuple):
    """Assumptions about vLLM and the host."""

    kernels: float  # kernels of a decoding step per layer
    token: float  # CPU seconds per decoded token during which the GPU waits: scheduler, sampler, log-probabilities
    rereads: float  # share of the completions that read the keys and values of their prompt again for each token
    prompt: float  # seconds per prompt: PNG encoding, request, the server's image processor
    waking: float  # seconds of waking and falling asleep, without moving weights
    disk: float  # bytes per second of weights through a file in memory, written by the trainer and read by the server
    to_host: float  # bytes per second from the GPU to CPU memory at sleep level 1
    to_gpu: float  # bytes per second from CPU memory to the GPU


QUICK = Server(kernels=8, token=0.3e-3, rereads=0.0, prompt=0.01, waking=0.3, disk=2e9, to_host=20e9, to_gpu=20e9)
ASSUMED = Server(kernels=10, token=1.5e-3, rereads=0.5, prompt=0.03, waking=1.0, disk=1e9, to_host=4e9, to_gpu=8e9)
SLOW = Server(kernels=14, token=5e-3, rereads=1.0, prompt=0.1, waking=2.0, disk=0.5e9, to_host=1.5e9, to_gpu=4e9)

CASES = ((gpu_model.ASSUMED, ASSUMED), (gpu_model.SLOW, QUICK), (gpu_model.FAST, SLOW))
"""The central assumptions, the bounds in favour of vLLM, and those in favour of the built-in decoder."""


def built_in(model: Model, full: bool, gpu: Gpu, work: Work, counts: Counts, speeds: Speeds) -> float:
    """Return the seconds of a rollout with the built-in decoder."""
    parts = gpu_model.step_seconds(model, full, gpu, work, counts, speeds)
    return parts["vision"] / (6 if full else 1) + parts["prefill"] + parts["decoding"]


def vllm(model: Model, full: bool, gpu: Gpu, work: Work, speeds: Speeds, server: Server) -> tuple[float, float]:
    """Return the seconds of a rollout on an awake server, and of waking, moving weights and falling asleep."""
    clock = Clock(gpu, speeds)
    prompts = work.prompts * work.prompt_tokens
    tower = work.prompts * gpu_model.tower_operations(model, work)
    prefill = 2 * model.sizes.quantizable * prompts
    attention = gpu_model.attention_operations(model.shape, model.config, prompts, work.prompt_tokens / 2)
    first = clock.device(tower + prefill + attention, 2 * (model.sizes.quantizable + model.head))
    token = token_seconds(model, clock, work, server) + server.token
    sampling = work.prompts * server.prompt + first + work.completion_tokens * token
    size = 2 * model.sizes.all
    # sleep level 2 for full fine-tuning, where all weights are sent; level 1 for LoRA, whose adapters are small
    moved = size / server.disk if full else size / server.to_host + size / server.to_gpu
    return sampling, server.waking + moved


def token_seconds(model: Model, clock: Clock, work: Work, server: Server) -> float:
    """Return the mean seconds of decoding a token of each row, reading only the used slots of completions."""
    prompts = work.prompts * work.prompt_tokens * (1 + (work.generations - 1) * server.rereads)
    slots = prompts + work.rows * work.completion_tokens / 2
    matrices = model.sizes.quantizable + model.head
    moved = 2 * matrices + slots * model.shape.key_values * model.shape.bytes
    nodes = server.kernels * model.shape.layers
    return max(clock.device(2 * matrices * work.rows, moved), nodes * clock.speeds.node)


def verdict(ratios: Sequence[float]) -> str:
    """Return the recommendation for ratios of seconds, built-in decoder / vLLM: central, and at both bounds."""
    assumed, favoured, disfavoured = ratios
    if disfavoured > 1:
        return "vLLM"
    if favoured < 1:
        return "built-in"
    return "vLLM, probably" if assumed > 1.25 else "built-in, probably" if assumed < 0.8 else "either"


def cases() -> Iterator[tuple[Model, bool, Gpu]]:
    """Yield each model, way of training and GPU on which it fits."""
    for model in gpu_model.models():
        for full in (False, True):
            for gpu in ONE_GPU:
                if gpu_model.memory(model, full, gpu, gpu_model.WORK) <= gpu.memory:
                    yield model, full, gpu


def rows(counts: Mapping[str, Counts]) -> Iterator[list[str]]:
    """Yield a row for each case and batch, with a cell for each length."""
    for model, full, gpu in cases():
        mode = "full" if full else "lora"
        for prompts, generations in BATCHES:
            works = [Work(prompts=prompts, generations=generations, completion_tokens=length) for length in LENGTHS]
            cells = [cell(model, full, gpu, work, counts[mode]) for work in works]
            yield [model.name, mode, gpu.name, f"{prompts} x {generations}", *cells]


def cell(model: Model, full: bool, gpu: Gpu, work: Work, counts: Counts) -> str:
    """Return the recommendation, the seconds of both sides, and the bounds of their ratio."""
    ratios, seconds = [], []
    for speeds, server in CASES:
        own = built_in(model, full, gpu, work, counts, speeds)
        sampling, around = vllm(model, full, gpu, work, speeds, server)
        ratios.append(own / (sampling + around))
        seconds.append(f"{own:.1f} : {sampling:.1f} + {around:.1f}")
    return f"{verdict(ratios)}; {seconds[0]} s; {ratios[2]:.2f} to {ratios[1]:.2f}"


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (header, ["--"] * len(header), *cells)]


def report(counts: Mapping[str, Counts]) -> str:
    """Return the results as Markdown."""
    meanings = {
        "kernels": "kernels of a decoding step per layer",
        "token": "seconds per decoded token that the GPU waits for the scheduler, the sampler and log-probabilities",
        "rereads": "part of the completions that read their prompt's keys and values again for each token",
        "prompt": "seconds per prompt: PNG, request, image processor, one prompt after another",
        "waking": "seconds of waking and falling asleep, without moving weights",
        "disk": "bytes per second of weights through a file in memory, written and read",
        "to_host": "bytes per second from the GPU to CPU memory (level 1)",
        "to_gpu": "bytes per second back (level 1)",
    }
    values = zip(QUICK._asdict().values(), ASSUMED._asdict().values(), SLOW._asdict().values(), strict=True)
    assumed = [[meaning, *(f"{x:g}" for x in line)] for meaning, line in zip(meanings.values(), values, strict=True)]
    header = ["model", "training", "GPU", "P x G", *(f"{length:,} tokens" for length in LENGTHS)]
    return "\n".join(
        [
            "# Built-in decoder or vLLM on the same GPU: computed, not measured",
            "",
            "`python benchmarks/vllm_model.py --write`. The built-in decoder's kernels were counted on a stand-in for",
            "a GPU ([gpu_counts.md](gpu_counts.md)); operations and bytes follow from the widths of Qwen2.5-VL.",
            "Everything about vLLM is an assumption. No GPU was used.",
            "",
            f"A rollout of P prompts of {gpu_model.WORK.image_tokens:,} image tokens and {gpu_model.WORK.text_tokens}"
            " of text, with G completions each, all of the",
            "same number of tokens. A cell has what to use, the seconds of the built-in decoder, of vLLM while it",
            "samples, and of waking, weights and falling asleep; then the bounds of the ratio of the built-in",
            "decoder's seconds to all of vLLM's, with all assumptions against vLLM and all in its favour. Only if both",
            "agree, the word stands without `probably`. Ways of training that don't fit a GPU",
            "([scaling_gpu_model.md](scaling_gpu_model.md)) are left out.",
            "",
            *table(header, [*rows(counts)]),
            "",
            "## Assumptions",
            "",
            *table(["", "fast", "assumed", "slow"], assumed),
            "",
            "The GPU and the built-in decoder: as in [scaling_gpu_model.md](scaling_gpu_model.md), slow where vLLM is",
            "fast and the other way round. Both sides read all weights once per token. The built-in decoder reads the",
            "keys and values of a prompt once for its completions and all slots of these; vLLM reads the slots in use.",
            "All completions start together, so that continuous batching gains nothing, and each side's cache has room",
            "for all. LoRA sleeps at level 1, full fine-tuning at level 2. Servers elsewhere do without it,",
            "but for the weights, and sample while the trainer works, with `one_step_ahead`.",
            "",
        ]
    )


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="to benchmarks/results/vllm_model.md")
    options = parser.parse_args(args)
    text = report(json.loads((RESULTS / "gpu_counts.json").read_text()))
    print(text, end="")
    if options.write:
        (RESULTS / "vllm_model.md").write_text(text)


if __name__ == "__main__":
    main()
