"""The common work of both sides of step.py: arguments, pictures, questions, and the counting of time and images.

Imports neither vrft nor TRL, because each side runs in a separate environment.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

WORDS = "how many red circle square are in the image at left of box"
PARTS = ("rollout", "reference", "update", "optimizer")


def parser() -> argparse.ArgumentParser:
    """Return a parser of the arguments of a measurement."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="folder from build_checkpoint.py, or a real Qwen2(.5)-VL")
    p.add_argument("--prompts", type=int, default=2, help="images with a question per optimizer step")
    p.add_argument("--image-size", default="448x448", help="WxH; 28 x 28 pixels are a token")
    p.add_argument("--prompt-tokens", type=int, default=32, help="text tokens in each question")
    p.add_argument("--num-generations", type=int, default=8)
    p.add_argument(
        "--completion-tokens", type=int, default=64, help="length of every completion: the end token can't be sampled"
    )
    p.add_argument("--beta", type=float, default=0.04)
    p.add_argument("--lora-r", type=int, default=0, help="rank of adapters on the language model; 0 trains everything")
    p.add_argument("--freeze-vision", action="store_true", help="vrft alone: train all but the vision tower")
    p.add_argument("--micro-batch", type=int, default=8, help="completions in one forward and backward")
    p.add_argument("--gradient-checkpointing", action="store_true")
    p.add_argument("--steps", type=int, default=4, help="measured steps")
    p.add_argument("--warmup", type=int, default=1, help="leading steps that are not measured")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--threads", type=int, default=1, help="torch threads on the CPU")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--profile", action="store_true", help="vrft alone: print the costliest operations to stderr")
    return p


def image_size(arguments: argparse.Namespace) -> tuple[int, int]:
    """Return width and height in pixels."""
    width, height = arguments.image_size.lower().split("x")
    return int(width), int(height)


def image_tokens(width: int, height: int) -> int:
    """Return the number of tokens of an image."""
    return (width // 28) * (height // 28)


def pictures(arguments: argparse.Namespace, tokenizer: Any) -> list[tuple[Image.Image, str]]:
    """Generate a picture and a question for every prompt of the run."""
    random = np.random.default_rng(arguments.seed)
    width, height = image_size(arguments)
    return [
        (_picture(random, width, height), _question(i, tokenizer, arguments.prompt_tokens))
        for i in range(arguments.prompts * (arguments.steps + arguments.warmup))
    ]


def _picture(random: np.random.Generator, width: int, height: int) -> Image.Image:
    pixels = np.full((height, width, 3), random.integers(0, 255, 3), np.uint8)
    for _ in range(6):
        x, y, w, h = (int(random.integers(low, high)) for low, high in ((0, width), (0, height), (20, 120), (20, 120)))
        pixels[y : y + h, x : x + w] = random.integers(0, 255, 3)
    return Image.fromarray(pixels)


def _question(i: int, tokenizer: Any, tokens: int) -> str:
    words = WORDS.split() * tokens
    for k in range(1, len(words)):
        text = f"{i} " + " ".join(words[:k])
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) >= tokens:
            return text
    raise ValueError(f"no question of {tokens} tokens")


@dataclass
class Clock:
    """Measures wall and CPU seconds of the parts of each step. On a GPU, synchronises before reading the time."""

    device: str
    steps: list[dict[str, float]] = field(default_factory=list)

    def now(self) -> tuple[float, float]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def start_step(self) -> None:
        self.steps.append({})

    def add(self, part: str, start: tuple[float, float]) -> None:
        """Add the time since `start` to a part of the current step."""
        wall, cpu = (now - then for now, then in zip(self.now(), start, strict=True))
        for name, seconds in ((part, wall), (f"{part}@cpu", cpu)):
            self.steps[-1][name] = self.steps[-1].get(name, 0.0) + seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.add(name, start)


def count_images(counts: dict[str, int], image_processor: Any, towers: Sequence[Any]) -> None:
    """Count preprocessed images, and images processed by the vision towers of policy and reference."""

    def counted(name: str, function: Callable[..., Any], number: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + number(*args, **kwargs)
            return function(*args, **kwargs)

        return call

    def in_call(*args: Any, **kwargs: Any) -> int:
        return len(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])

    for tower in towers:
        tower.forward = counted("tower", tower.forward, in_call)
    kind = type(image_processor)  # the processor would take an attribute for a setting
    kind._preprocess = counted("preprocessed", kind._preprocess, lambda _, images, *args, **kwargs: len(images))


def result(
    arguments: argparse.Namespace, clock: Clock, counts: dict[str, int], about: dict[str, Any]
) -> dict[str, Any]:
    """Return the line that a side prints. All values are means over the measured steps."""
    measured = clock.steps[arguments.warmup :]
    samples = arguments.prompts * arguments.num_generations

    def mean(name: str) -> float:
        return float(np.mean([step.get(name, 0.0) for step in measured]))

    def split(suffix: str) -> dict[str, float]:
        parts = {name: round(mean(name + suffix), 4) for name in PARTS}
        return parts | {"other": round(mean(f"step{suffix}") - sum(parts.values()), 4)}

    cpu = {"cpu_step_s": round(mean("step@cpu"), 4), "samples_per_cpu_s": round(samples / mean("step@cpu"), 4)}
    return about | {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "mode": f"lora-r{arguments.lora_r}" if arguments.lora_r else "full",
        "beta": arguments.beta,
        "samples_per_step": samples,
        "image_tokens": image_tokens(*image_size(arguments)),
        "completion_len": arguments.completion_tokens,
        "step_s": round(mean("step"), 4),
        "samples_per_s": round(samples / mean("step"), 4),
        "split_s": split(""),
        **(cpu | {"split_cpu_s": split("@cpu")} if arguments.device == "cpu" else {}),
        "images_preprocessed_per_step": counts["preprocessed"] / len(measured),
        "vision_tower_images_per_step": counts["tower"] / len(measured),
        "peak_rss_MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "peak_cuda_MB": round(torch.cuda.max_memory_allocated() / 2**20, 1) if arguments.device == "cuda" else None,
    }
