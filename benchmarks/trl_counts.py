"""Count kernels and synchronisations of TRL's step on the stand-in for a GPU, like gpu_counts.py for vrft.

    .venv-bench/bin/python benchmarks/trl_counts.py

Runs in the environment of `make bench-env`; needs g++ (tests/standin). Counts three models of few layers, as wide as
the model of gpu_counts.py, and extrapolates to its number of layers. Each is measured with two lengths of completions,
to separate the counts of a decoded token from those of a prompt.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from tests.standin.device import gpu, phase  # noqa: E402  before torch

# isort: split

import argparse  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from unittest.mock import patch  # noqa: E402

import build_checkpoint  # noqa: E402
import torch  # noqa: E402
import trl_side  # noqa: E402
import work  # noqa: E402

LAYERS, BLOCKS, BLOCKS_PER_FULL = 36, 32, 8
SMALL = ((2, 8), (4, 8), (2, 16))
"""Numbers of text layers and vision blocks of the counted models."""
MODES = {"full": [], "lora": ["--lora-r", "16"]}
TOKENS = (4, 12)
KINDS = ("launches", "syncs")
PHASES = ("rollout", "reference", "update")

Counts = dict[str, dict[str, float]]
"""Launches and synchronisations of each phase."""

timed = work.Clock.part


@contextmanager
def counted(clock: work.Clock, name: str) -> Iterator[None]:
    """Count the launches and synchronisations in the block under a name."""
    with phase(name), timed(clock, name):
        yield


def measure(checkpoint: str, mode: str, tokens: int) -> Counts:
    """Return the counts of a training step of 2 prompts with 4 completions each, in one micro-batch."""
    gc.collect()
    gpu.reset()
    said = [f"--checkpoint={checkpoint}", "--prompts=2", "--num-generations=4", f"--completion-tokens={tokens}"]
    said += ["--image-size=224x224", "--device=cuda", "--steps=1", "--warmup=0", "--micro-batch=8", *MODES[mode]]
    with patch.object(work.Clock, "part", counted), phase("between"):
        trl_side.measure(work.parser().parse_args(said))
    found = gpu.counts()
    return {name: {kind: float(found[name][kind]) for kind in KINDS} for name in PHASES}


def counts_of(layers: int, blocks: int, mode: str) -> Counts:
    """Return the counts of a model by phase. `token` is a decoded token; `rollout` excludes decoded tokens."""
    preset = build_checkpoint.PRESETS["narrow"]
    sizes = {
        "text": preset["text"] | {"num_hidden_layers": layers},
        "vision": preset["vision"] | {"depth": blocks, "full": [*range(BLOCKS_PER_FULL - 1, blocks, BLOCKS_PER_FULL)]},
    }
    with tempfile.TemporaryDirectory() as folder, patch.dict(build_checkpoint.PRESETS, {"narrow": preset | sizes}):
        build_checkpoint.main([folder, "--preset", "narrow"])
        short, long = (measure(folder, mode, tokens) for tokens in TOKENS)
    span = TOKENS[1] - TOKENS[0]
    token = {kind: (long["rollout"][kind] - short["rollout"][kind]) / span for kind in KINDS}
    rest = {kind: long["rollout"][kind] - TOKENS[1] * token[kind] for kind in KINDS}
    return long | {"token": token, "rollout": rest}


def extrapolated(mode: str) -> Counts:
    """Extrapolate the counts of the full-size model from three small ones, since counts are linear in layers."""
    base, deeper, taller = (counts_of(*sizes, mode) for sizes in SMALL)
    (layers, blocks), (more_layers, _), (_, more_blocks) = SMALL
    return {
        name: {
            kind: count
            + (deeper[name][kind] - count) / (more_layers - layers) * (LAYERS - layers)
            + (taller[name][kind] - count) / (more_blocks - blocks) * (BLOCKS - blocks)
            for kind, count in counts.items()
        }
        for name, counts in base.items()
    }


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the counts of each mode to this file")
    options = parser.parse_args(args)
    torch.cuda.device_count = lambda: 1  # else accelerate would distribute layers
    found = {mode: extrapolated(mode) for mode in MODES}
    print("| mode | phase | kernels | synchronisations |")
    print("|--|--|--:|--:|")
    for mode, counts in found.items():
        for name, count in counts.items():
            print(f"| {mode} | {name} | {count['launches']:,.0f} | {count['syncs']:,.0f} |")
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
