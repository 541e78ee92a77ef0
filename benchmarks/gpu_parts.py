"""The parts of gpu.py. `python benchmarks/gpu_parts.py PART` prints a JSON list for each row of the table.

The parts `TRL, …` run in the environment of `make bench-env`, which lacks vrft.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
GB = 1e9
MODES = {"full": [], "lora": ["--lora-r=16"]}
FULL_SIZE = ["--prompts=8", "--image-size=1120x700", "--prompt-tokens=68", "--num-generations=8", "--micro-batch=8"]
FULL_SIZE += ["--completion-tokens=256", "--gradient-checkpointing", "--steps=2"]
SMALL = ["--prompts=2", "--image-size=56x56", "--num-generations=2", "--micro-batch=2", "--completion-tokens=4"]
SMALL += ["--steps=1"]


def say(what: str, found: str, beside: str = "", verdict: str = "") -> None:
    """Print a row of the table."""
    print(json.dumps([what, found, beside, verdict]), flush=True)


def say_step(line: dict[str, Any]) -> None:
    """Print the seconds that a side of step.py measured."""
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in line["split_s"].items())
    say("a step", f"{line['step_s']:.3f} s", parts)


def arguments_of(folder: str, mode: str, small: bool) -> Namespace:
    """Write a checkpoint without weights and return the arguments of a side of step.py."""
    import build_checkpoint
    import work

    build_checkpoint.main([folder, "--preset", "tiny" if small else "3b", "--no-weights"])
    said = [f"--checkpoint={folder}", "--device=cuda", "--warmup=1", *MODES[mode], *(SMALL if small else FULL_SIZE)]
    arguments: Namespace = work.parser().parse_args(said)
    arguments.side = None
    return arguments


def card(small: bool) -> None:
    """Print the name and the measured memory bandwidth of the GPU."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    say("name", properties.name)
    say("memory", f"{properties.total_memory / GB:.0f} GB", f"compute capability {properties.major}.{properties.minor}")
    say("torch", torch.__version__)
    say("copies", f"{copy_bandwidth(small) / GB:,.0f} GB/s", "bytes read and written")


def copy_bandwidth(small: bool) -> float:
    """Return the bytes per second that copies within the GPU's memory read and write."""
    import torch

    source = torch.ones(2**20 if small else 2**30, dtype=torch.uint8, device="cuda")
    target, rounds = torch.empty_like(source), 20
    target.copy_(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        target.copy_(source)
    torch.cuda.synchronize()
    return 2 * rounds * source.nbytes / (time.perf_counter() - start)


def exactness(small: bool) -> None:
    """Compare log-probabilities, gradients and rollouts of each family with those of the original forward."""
    import gpu_exactness

    for found in gpu_exactness.results(small):
        say(
            f"{found.family}, {found.mode}, {found.dtype}", str(found.errors), f"at most {found.allowed}", found.verdict
        )


def step(mode: str, small: bool) -> None:
    """Measure a step, its decoding and its memory."""
    import gpu_step

    with tempfile.TemporaryDirectory() as folder:
        found = gpu_step.measure(arguments_of(folder, mode, small))
    say_step(found.line)
    bandwidth = copy_bandwidth(small)
    bound = found.rows * bandwidth / found.weights
    limit = f"{bound:,.0f} if a token only read {found.weights / GB:.2f} GB of weights at {bandwidth / GB:,.0f} GB/s"
    say("decoded tokens/s", f"{found.tokens_per_second:,.0f}", limit, f"{found.tokens_per_second / bound:.2f}")
    for name, estimate in found.estimates.items():
        peak = found.peaks[name] / GB
        say(f"memory: {name}", f"{peak:.3f} GB", f"doctor {estimate / GB:.3f} GB", f"{estimate / GB / peak:.2f}")
    say("memory: first step", f"{found.peaks['first step'] / GB:.3f} GB", "with checks and recordings")


def trl(mode: str, small: bool) -> None:
    """Measure TRL's step on the same work."""
    import trl_side

    with tempfile.TemporaryDirectory() as folder:
        line = trl_side.measure(arguments_of(folder, mode, small))
    say_step(line)
    say("memory", f"{line['peak_cuda_MB'] * 2**20 / GB:.3f} GB")


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--standin", action="store_true")
    options = parser.parse_args(args)
    part, _, mode = options.part.partition(", ")
    if options.standin and part in ("card", "TRL"):
        from tests.standin.device import torch  # installs the stand-in

        torch.cuda.device_count = lambda: 1  # else accelerate would distribute layers
    elif options.standin:
        import tests.standin.run  # noqa: F401  before torch
    if mode:
        {"step": step, "TRL": trl}[part](mode, options.small)
    else:
        {"card": card, "exactness": exactness}[part](options.small)


if __name__ == "__main__":
    main()
