"""Count kernels, synchronisations, graph nodes and bytes of each phase of a step, on the stand-in for a GPU.

    python benchmarks/gpu_counts.py
    python benchmarks/gpu_counts.py --small
    python benchmarks/gpu_counts.py --small --where

The model has as many layers as Qwen2.5-VL-3B, but is narrow; counts do not depend on the width. `--small` counts three
models of few layers and extrapolates, since counts are linear in the number of layers; bytes are then left out. Needs
g++ (tests/standin). The vision tower's kernels have separate rows in each phase except the update, whose backward can't
be divided.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from tests.standin.run import count_phases  # noqa: E402  before torch

# isort: split

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from typing import Any  # noqa: E402
from unittest.mock import patch  # noqa: E402

import build_checkpoint  # noqa: E402
import torch  # noqa: E402
import vrft_side  # noqa: E402
import work  # noqa: E402
from lightning.pytorch import Callback, Trainer  # noqa: E402
from PIL import Image  # noqa: E402

from tests.standin.device import events, gpu, phase, phases  # noqa: E402
from vrft.policy import Policy, prompts  # noqa: E402
from vrft.rollout import decoding, transformers  # noqa: E402
from vrft.types import Sample  # noqa: E402

LAYERS, BLOCKS, BLOCKS_PER_FULL = 36, 32, 8
SMALL = ((2, 8), (4, 8), (2, 16))
"""Numbers of text layers and vision blocks of the models that `--small` counts."""

MODES = {"full": [], "lora": ["--lora-r", "16", "--freeze-vision"]}
PROMPTS, GENERATIONS, TOKENS = 2, 4, 12
IMAGE = (1120, 700)
TOWER = "image of 1,000 tokens"

BUDGETS: dict[str, tuple[int, int]] = {
    TOWER: (600, 2),
    "prefill": (1000, 4),
    "evaluation: prefill": (1000, 4),
    "reference": (1200, 4),
    "update": (6000, 4),
}
"""Maximum numbers of kernels and synchronisations of each phase."""
LOAD_BUDGET = 1.05
"""Maximum ratio of the peak memory while loading to the memory that stays allocated."""

Counts = dict[str, dict[str, float]]
"""Launches, synchronisations, graph nodes and peak bytes of each phase."""


class Watch(Callback):
    """Counts the forward of an image at the end of training."""

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        policy, image = module.policy, Image.new("RGB", IMAGE)
        batch = policy.encoder(module.task)([Sample(0, (image,), 0, "count", "")])
        prompt = {key: value.to("cuda", non_blocking=True) for key, value in batch.inputs[0].items()}
        prompt["image_grid_thw"] = batch.inputs[0]["image_grid_thw"]
        with torch.no_grad(), policy.autocast(), phase(TOWER):
            prompts.encode_images(policy.base, prompt)


@contextlib.contextmanager
def towers_apart() -> Iterator[None]:
    """Count the vision tower's work in each phase under a separate name."""
    features = prompts.image_features

    def counted(*args: Any) -> Any:
        with contextlib.nullcontext() if phases[-1] in (TOWER, "update") else phase(f"{phases[-1]}: tower"):
            return features(*args)

    with patch.object(prompts, "image_features", counted):
        yield


def evaluations_apart() -> None:
    """Count the prefill and the tokens of an evaluation under separate names.

    Call before `count_phases`, whose counters enclose these.
    """
    for owner, method, name in ((decoding, "prefill", "prefill"), (transformers, "decode", "tokens")):
        setattr(owner, method, counted_in_evaluations(getattr(owner, method), f"evaluation: {name}"))


def counted_in_evaluations(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap a function to count its work during an evaluation under a separate name."""

    def counted(*args: Any) -> Any:
        evaluated = any(outer.startswith("evaluation") for outer in phases)
        with phase(name) if evaluated else contextlib.nullcontext():
            return function(*args)

    return counted


def measure(checkpoint: str, mode: str) -> Counts:
    """Train one step, evaluate on two prompts, and return the counts of each phase."""
    said = [f"--checkpoint={checkpoint}", f"--prompts={PROMPTS}", f"--num-generations={GENERATIONS}"]
    said += [f"--completion-tokens={TOKENS}", "--image-size=224x224", "--device=cuda", *MODES[mode]]
    arguments = work.parser().parse_args([*said, "--steps=1", "--warmup=0", "--micro-batch=8"])
    gpu.reset()
    events.clear()
    module = vrft_side.build_module(arguments)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        max_steps=1,
        accelerator="gpu",
        devices=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[Watch()],
        **quiet,  # type: ignore[arg-type]
    )
    stays: list[int] = []
    before, load = gpu.memory(), Policy.load

    def measured(policy: Policy, *args: Any, **kwargs: Any) -> None:
        load(policy, *args, **kwargs)
        stays.append(gpu.memory() - before)

    with phase("between"), towers_apart(), patch.object(Policy, "load", measured):
        trainer.fit(module, datamodule=vrft_side.Pictures(arguments))
    counts = {name: {key: float(value) for key, value in count.items()} for name, count in gpu.counts().items()}
    counts["load"] |= {"stays": float(stays[0]), "peak": counts["load"]["peak"] - before}
    return counts


def counts_of(layers: int, blocks: int, mode: str) -> Counts:
    """Return the counts of a model with the given numbers of layers and blocks."""
    full = [*range(BLOCKS_PER_FULL - 1, blocks, BLOCKS_PER_FULL)]
    preset = build_checkpoint.PRESETS["narrow"]
    sizes = {
        "text": preset["text"] | {"num_hidden_layers": layers},
        "vision": preset["vision"] | {"depth": blocks, "full": full},
    }
    with tempfile.TemporaryDirectory() as folder, patch.dict(build_checkpoint.PRESETS, {"narrow": preset | sizes}):
        build_checkpoint.main([folder, "--preset", "narrow"])
        return measure(folder, mode)


def extrapolated(mode: str) -> Counts:
    """Extrapolate the counts of the full-size model from three small ones."""
    base, deeper, taller = (counts_of(*sizes, mode) for sizes in SMALL)
    (layers, blocks), (more_layers, _), (_, more_blocks) = SMALL
    result: Counts = {}
    for name, counts in base.items():
        result[name] = {}
        for kind, count in counts.items():
            per_layer = (deeper[name][kind] - count) / (more_layers - layers)
            per_block = (taller[name][kind] - count) / (more_blocks - blocks)
            result[name][kind] = count + per_layer * (LAYERS - layers) + per_block * (BLOCKS - blocks)
    result["load"] |= {key: base["load"][key] for key in ("peak", "stays")}
    return result


def table(mode: str, counts: Counts, with_bytes: bool) -> list[str]:
    """Return Markdown rows of the counts of each phase beside its budget."""
    rows = []
    for name, count in counts.items():
        if not (count["launches"] or count["graphed"]):
            continue
        budget = "{:,} and {}".format(*BUDGETS[name]) if name in BUDGETS else ""
        if name == "load":
            budget = f"{LOAD_BUDGET} of what stays; {count['peak'] / count['stays']:.2f}"
        peak = f"{count['peak'] / 1e6:.0f} MB" if with_bytes else ""
        numbers = [f"{count[kind]:,.0f}" for kind in ("launches", "syncs", "graphed")]
        rows.append(f"| {mode} | {name} | {' | '.join(numbers)} | {peak} | {budget} |")
    return rows


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=[*MODES], choices=[*MODES])
    parser.add_argument("--small", action="store_true", help="count small models and extrapolate")
    parser.add_argument("--where", action="store_true", help="print where each synchronisation comes from")
    parser.add_argument("--json", type=Path, help="write the counts of each mode to this file")
    options = parser.parse_args(args)
    warnings.filterwarnings("ignore")
    evaluations_apart()
    count_phases()
    lines = [
        "| mode | phase | kernels | synchronisations | graph nodes | peak | at most |",
        "|--|--|--:|--:|--:|--:|--|",
    ]
    found = {}
    for mode in options.modes:
        found[mode] = extrapolated(mode) if options.small else counts_of(LAYERS, BLOCKS, mode)
        lines += table(mode, found[mode], not options.small)
        if options.where:
            for name, counter in events.items():
                lines += [f"{name}: {n} {op} {where}" for (kind, op, where), n in counter.items() if kind == "sync"]
    print("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
