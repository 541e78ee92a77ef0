"""Measure weak scaling from 1 to 2 processes, count the communication of a step, and model it on up to 1,024 ranks.

    python benchmarks/scaling.py --write
    python benchmarks/scaling.py --gpu --write

Each side is the quickstart with four prompts per process and completions of full length, so that all processes do the
same work. Sides alternate, each run in a separate process group. Separate runs count the calls and bytes of
collectives, which must equal the formulas below. The terms of the model are measured, except for the network's
bandwidth and latency, which are assumed and stated in the table.

`--gpu` does not measure, but models the step of larger models on GPUs (gpu_model.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gpu_model
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback

from vrft.training.strategies import ALLREDUCE_BUCKET_BYTES, buckets

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BANDWIDTH = 50e9
"""Assumed bytes per second in and out of a GPU, with a port of 400 Gbit/s per GPU."""
LATENCY = 10e-6
"""Assumed seconds for a message from one GPU to another."""
PARAMETERS = 2.2e9
"""Number of parameters of the example of a larger model in the last table."""
RANKS = (1, 2, 8, 64, 256, 1024)
COLLECTIVES = (
    "all_reduce",
    "all_gather_single",
    "all_gather_into_tensor",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
)
PROMPTS, GENERATIONS, TOKENS = 4, 8, 48
WARMUP = 2

Traffic = dict[str, list[int]]
"""Calls and bytes of each kind of collective in a step of a rank."""


# ------------------------------------------------------------------------------------------------- formulas and model


def ddp_traffic(weights: Sequence[int]) -> Traffic:
    """Return the traffic of an optimizer step under DDP, which averages gradients by buckets.

    `weights`: bytes of each trained parameter.
    """
    return {"all_reduce": [len(buckets(weights, ALLREDUCE_BUCKET_BYTES)), sum(weights)]}


def fsdp2_traffic(groups: Sequence[dict[str, Any]], micro_batches: int) -> Traffic:
    """Return the traffic of a step with one optimizer step under FSDP2, with a frozen copy as the reference.

    The rollout gathers every group of the policy once. For each micro-batch, decoder layers are gathered in the forward
    and again in the backward. The vision tower and the rest stay gathered from a forward to its backward or, without a
    backward, to the next forward. Gradients are scattered after each backward.
    """
    times = {
        "layer": 1 + 2 * micro_batches,
        "tower": 1 + micro_batches,
        "rest": 1 + 1 + (micro_batches - 1),
        "reference layer": micro_batches,
        "reference tower": 1,
    }
    gathers = [(times[group["kind"]], group["bytes"]) for group in groups]
    scatters = [(micro_batches, group["trained_bytes"]) for group in groups if group["trained_bytes"]]
    return {
        name: [sum(calls for calls, _ in parts), sum(calls * size for calls, size in parts)]
        for name, parts in (("all_gather", gathers), ("reduce_scatter", scatters))
    }


def expected_maximum(values: Sequence[float], draws: int) -> float:
    """Return the expected maximum of independent draws from the distribution of `values`."""
    found, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    below = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()]) ** draws
    return float((found * np.diff(below)).sum())


def network_seconds(traffic: Traffic, ranks: int) -> float:
    """Return the seconds of a step's collectives between n ranks, without overlap with computation.

    In a ring, a rank sends (n - 1) / n of the bytes, twice in an all-reduce. The latency is that of n - 1 consecutive
    messages, or of 2 log2 n messages in an all-reduce, which can use a tree.
    """
    seconds = 0.0
    for kind, (calls, size) in traffic.items():
        both = kind == "all_reduce"
        hops = 2 * math.log2(ranks) if both else ranks - 1
        seconds += (2 if both else 1) * size * (ranks - 1) / ranks / BANDWIDTH + calls * hops * LATENCY
    return seconds


def step_seconds(terms: dict[str, Any], traffic: Traffic, ranks: int) -> dict[str, float]:
    """Return the seconds of a step, in which all ranks wait for the longest completion, then for the network."""
    longest = expected_maximum(terms["lengths"], ranks * terms["rows"])
    parts = {
        "longest": longest,
        "rollout": terms["rollout_base"] + terms["rollout_per_token"] * longest,
        "rest": terms["rest"],
        "network": network_seconds(traffic, ranks),
    }
    return parts | {"step": parts["rollout"] + parts["rest"] + parts["network"]}


# -------------------------------------------------------------------------------------------------------- measurement


class Watch(Callback):
    """Writes the seconds of each step's phases, the lengths of its completions and its traffic to a file."""

    def __init__(self, file: str, full_length: bool, count: bool) -> None:
        self.file, self.full_length, self.count = file, full_length, count
        self.steps: list[dict[str, Any]] = []
        self.phases = ["other"]
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.lengths: list[int] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        policy, engine = module.policy, module.engine
        if self.full_length:
            policy.banned_ids = torch.cat([policy.banned_ids, policy.stop_ids])
        phase, generate, forward = module.step.phase, engine.generate, policy.forward

        @contextmanager
        def watched_phase(name: str, total: int) -> Iterator[Callable[..., None]]:
            self.phases.append(name)
            with phase(name, total) as advance:
                yield advance
            self.phases.pop()

        def watched_generate(*args: Any, **kwargs: Any) -> Any:
            rollout = generate(*args, **kwargs)
            self.lengths += rollout.mask.sum(1).tolist()
            return rollout

        def watched_forward(*args: Any, **kwargs: Any) -> Any:
            self.calls[self.phases[-1], "forward"] += 1
            return forward(*args, **kwargs)

        module.step.phase, engine.generate, policy.forward = watched_phase, watched_generate, watched_forward

    def on_train_batch_start(self, *_: Any) -> None:
        for counted in (self.calls, self.bytes, self.lengths):
            counted.clear()
        self.stack = ExitStack()
        if self.count:
            for name in vars(dist).keys() & {*COLLECTIVES}:
                self.stack.enter_context(patch.object(dist, name, self.counted(name, getattr(dist, name))))

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kind = name.removesuffix("_single").removesuffix("_into_tensor").removesuffix("_tensor")

        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            largest = max(tensors, key=torch.Tensor.numel)
            if largest.numel() > 1:  # skip scalars, which are logged values and decisions of all ranks
                self.calls[self.phases[-1], kind] += 1
                self.bytes[self.phases[-1], kind] += largest.nbytes
            return function(*args, **kwargs)

        return call

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.stack.close()
        traffic = {f"{phase} {kind}": [n, self.bytes[phase, kind]] for (phase, kind), n in self.calls.items()}
        self.steps.append({"seconds": module.step.seconds, "lengths": [*self.lengths], "traffic": traffic})

    def on_train_end(self, trainer: Any, module: Any) -> None:
        weights = [p.numel() * p.element_size() for p in module.parameters() if p.requires_grad]
        content = {"steps": self.steps[WARMUP:], "weights": weights, "groups": [*groups_of(module.policy)]}
        if trainer.is_global_zero:
            Path(self.file).write_text(json.dumps(content))


def groups_of(policy: Any) -> Iterator[dict[str, Any]]:
    """Yield, for each group that FSDP2 gathers together, its kind and its bytes including the padding of shards."""
    from vrft.policy.sharding import decoder_modules, fsdp_modules

    layers = decoder_modules(policy.models)
    for module in fsdp_modules(policy):
        of_reference = policy.reference is not None and module in {*policy.reference.modules()}
        kind = "rest" if module is policy else "layer" if module in layers else "tower"
        inner = {parameter for child in fsdp_modules(module) if child is not module for parameter in child.parameters()}
        size: Counter[bool] = Counter()
        for parameter in module.parameters():
            if parameter not in inner:
                share = math.ceil(parameter.shape[0] / dist.get_world_size())
                size[parameter.requires_grad] += 4 * dist.get_world_size() * share * parameter[0].numel()
        yield {
            "kind": f"reference {kind}" if of_reference else kind,
            "bytes": sum(size.values()),
            "trained_bytes": size[True],
        }


def run(folder: Path, strategy: str, steps: int, *, full_length: bool = True, count: bool = False) -> dict[str, Any]:
    """Run the quickstart in one process, or in two with a strategy, and return the first rank's measurements."""
    file = folder / "watched.json"
    processes = 1 if strategy == "one" else 2
    watch = f"{{class_path: scaling.Watch, init_args: {{file: {file}, full_length: {full_length}, count: {count}}}}}"
    places = [f"--data.{part}_annotations={folder}/{part}.json" for part in ("train", "val")]
    places += [f"--data.{part}_images={folder}/{part}" for part in ("train", "val")]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "vrft"),
        *("fit", "--config", "quickstart", *places, f"--run_dir={folder}/run"),
        *("--trainer.accelerator=cpu", f"--trainer.devices={processes}", f"--trainer.max_steps={steps + WARMUP}"),
        *("--data.val_size=2", f"--data.batch_size={PROMPTS}", f"--model.num_generations={GENERATIONS}"),
        *(f"--model.max_completion_length={TOKENS}", "--model.max_tokens_per_micro_batch=900"),
        *(f"--trainer.callbacks+={watch}", "--trainer.enable_progress_bar=false", "--trainer.logger=false"),
        *([] if strategy == "one" else [f"--trainer.strategy={strategy}"]),
    ]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    launch(command, folder, environment)
    return json.loads(file.read_text())


def launch(command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a command in `folder`. If it fails, exit with its error output."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}scaling.py: {' '.join(command)} ended with exit code {done.returncode}")


def seconds_of(step: dict[str, Any]) -> float:
    """Return the seconds of a step, summed over its phases."""
    return sum(step["seconds"].values())


def check_traffic(watched: dict[str, Any], strategy: str) -> tuple[Traffic, int]:
    """Return the traffic of the last step and its number of micro-batches.

    Raises:
        AssertionError: the traffic of a step differs from the formulas.
    """
    for step in watched["steps"]:
        counted: dict[str, list[int]] = {}
        for name, (calls, size) in step["traffic"].items():
            phase, kind = name.split()
            if kind in ("all_gather", "reduce_scatter") or (phase, kind) == ("optimizer", "all_reduce"):
                before = counted.get(kind, [0, 0])
                counted[kind] = [before[0] + calls, before[1] + size]
        rounds = step["traffic"]["update forward"][0]
        expected = ddp_traffic(watched["weights"]) if strategy == "ddp" else fsdp2_traffic(watched["groups"], rounds)
        assert counted == expected, f"{strategy}: counted {counted}, expected {expected}"
    return expected, rounds


def terms_of(free: Sequence[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Return the model's terms, measured in steps of one process without forced lengths of completions."""
    longest = [max(step["lengths"]) for step in free]
    slope, base = np.polyfit(longest, [step["seconds"]["rollout"] for step in free], 1)
    rest = [seconds_of(step) - step["seconds"]["rollout"] for step in free]
    return {
        "lengths": [length for step in free for length in step["lengths"]],
        "rows": rows,
        "rollout_per_token": float(slope),
        "rollout_base": float(base),
        "rest": statistics.median(rest),
    }


# ------------------------------------------------------------------------------------------------------------- report


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["--:"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" if i != 1 else "|" + "|".join(line) + "|" for i, line in enumerate(lines)]


def report(
    seconds: dict[str, list[float]], traffic: dict[str, Traffic], rounds: int, terms: dict[str, Any]
) -> list[str]:
    """Return the measurements and the model's results as Markdown lines."""
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    weak = [
        [side, f"{1 if side == 'one' else 2}", " ".join(f"{v:.3f}" for v in values), f"{medians[side]:.3f}",
         f"{medians['one'] / medians[side]:.2f}"]
        for side, values in seconds.items()
    ]  # fmt: skip
    sent = [
        [side, kind, str(calls), f"{size:,}"]
        for side, kinds in traffic.items()
        for kind, (calls, size) in kinds.items()
    ]
    lengths, modelled = terms["lengths"], []
    for side, kinds in traffic.items():
        alone = step_seconds(terms, kinds, 1)["step"]
        for ranks in RANKS:
            parts = step_seconds(terms, kinds, ranks)
            cells = (f"{parts['longest']:.1f}", *(f"{parts[n]:.3f}" for n in ("rollout", "rest", "network", "step")))
            modelled.append([side, f"{ranks:,}", *cells, f"{alone / parts['step']:.2f}"])
    scale = PARAMETERS * 4 / sum(size for _, size in traffic["ddp"].values())
    larger = [
        [side, f"{ranks:,}", f"{network_seconds({k: [c, int(b * scale)] for k, (c, b) in kinds.items()}, ranks):.2f}"]
        for side, kinds in traffic.items()
        for ranks in RANKS[1:]
    ]
    return [
        "## Weak scaling, measured",
        "",
        "Seconds of a step (the sum over its phases, median of a run's steps) for each run in turn. Efficiency is the",
        "time of one process over that of two with twice the prompts, by medians.",
        "",
        *table(["side", "processes", "runs", "median s", "efficiency"], weak),
        "",
        "## Communication of a step, counted",
        "",
        f"Per rank, in one optimizer step of {rounds} micro-batches; every step had what the formulas give",
        "(`ddp_traffic`, `fsdp2_traffic`). Scalars are left out.",
        "",
        *table(["side", "collective", "calls", "bytes"], sent),
        "",
        "## A step on n ranks, modelled",
        "",
        f"Measured here on one process: a rollout takes {terms['rollout_base']:.4f} s and",
        f"{terms['rollout_per_token']:.5f} s per token of its longest completion (least squares), everything else",
        f"{terms['rest']:.3f} s. Lengths are those of {len(lengths)} completions: {min(lengths)} to {max(lengths)}",
        f"tokens, {statistics.mean(lengths):.1f} on average.",
        f"Assumed: {BANDWIDTH / 1e9:.0f} GB/s and {LATENCY * 1e6:.0f} microseconds per message between any two ranks;",
        "nothing of it hidden behind computation; ranks equally fast, lengths independent, the same work in everything",
        f"but the rollout. A rank is a core of this machine with {terms['rows']} completions. `longest` is the",
        "expected maximum of the lengths on all ranks.",
        "",
        *table(["side", "ranks", "longest", "rollout s", "rest s", "network s", "step s", "efficiency"], modelled),
        "",
        f"The network alone for {PARAMETERS / 1e9:.1f} billion float32 weights (an assumption, as are the calls: as",
        "many as above, though such a model has more layers):",
        "",
        *table(["side", "ranks", "network s"], larger),
    ]


def model_gpus(write: bool) -> None:
    """Print the model of a step on GPUs."""
    counts = json.loads((RESULTS / "gpu_counts.json").read_text())
    trl = json.loads((RESULTS / "gpu_counts_trl.json").read_text())
    text = gpu_model.report(counts, trl, table)
    print(text, end="")
    if write:
        (RESULTS / "scaling_gpu_model.md").write_text(text)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="measured in each run")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--write", action="store_true", help="to a file in benchmarks/results")
    parser.add_argument("--gpu", action="store_true", help="model GPUs instead, from results/gpu_counts.json")
    options = parser.parse_args(args)
    if options.gpu:
        model_gpus(options.write)
        return
    seconds: dict[str, list[float]] = {"one": [], "ddp": [], "fsdp2": []}
    traffic: dict[str, Traffic] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        free = run(folder, "one", 3 * options.steps, full_length=False)["steps"]
        for side in ("ddp", "fsdp2"):
            traffic[side], rounds = check_traffic(run(folder, side, 3, count=True), side)
        for _ in range(options.repeats):
            for side, values in seconds.items():
                values.append(statistics.median(map(seconds_of, run(folder, side, options.steps)["steps"])))
                print(side, f"{values[-1]:.3f} s", flush=True)
    lines = [
        "# From one process to many",
        "",
        f"`python benchmarks/scaling.py --steps {options.steps} --repeats {options.repeats} --write`, torch"
        f" {torch.__version__},",
        f"{platform.machine()} CPU, {os.cpu_count()} cores, gloo, one thread per process. The quickstart's policy,",
        f"{PROMPTS} prompts x {GENERATIONS} completions x {TOKENS} tokens per process, beta 0.04.",
        "",
        *report(seconds, traffic, rounds, terms_of(free, PROMPTS * GENERATIONS)),
    ]
    print("\n".join(lines))
    if options.write:
        (RESULTS / "scaling_cpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
