"""Measure time, memory and redundant work of a GRPO step, alone or compared with another side on the same work.

    python benchmarks/build_checkpoint.py CKPT --preset tiny
    python benchmarks/step.py --checkpoint CKPT --image-size 448x448
    python benchmarks/step.py --checkpoint CKPT --image-size 448x448 --against trl

A side prints a JSON line. The side `repeated` is vrft with the text of a prompt repeated for each completion in the
update. With `--against`, both sides alternate, each time in a new process, and the last line has the ratios of their
medians. TRL runs in the environment of `make bench-env`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]
PYTHON = {"trl": ROOT / ".venv-bench" / "bin" / "python"} | dict.fromkeys(("vrft", "repeated"), Path(sys.executable))
RATIOS = ("samples_per_cpu_s", "samples_per_s", "peak_rss_MB", "peak_cuda_MB")
PARTS = ("rollout", "reference", "update", "optimizer", "other")


def main(args: Sequence[str] | None = None) -> None:
    from work import parser

    p = parser()
    p.description, p.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    p.add_argument("--side", choices=list(PYTHON), help="measure this one alone (default: vrft)")
    p.add_argument("--against", choices=["repeated", "trl"], help="measure vrft and this, in turns")
    p.add_argument("--repeats", type=int, default=3, help="turns of each side")
    p.add_argument("--table", type=Path, help="with --against: append a Markdown row for every run to this file")
    said = list(sys.argv[1:] if args is None else args)
    arguments = p.parse_args(said)
    if arguments.against and not arguments.side:
        compare(arguments, said)
        return
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch

        torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments)), flush=True)


def measure(arguments: Namespace) -> dict[str, Any]:
    if arguments.side == "trl":
        import trl_side

        return trl_side.measure(arguments)
    import vrft_side

    return vrft_side.measure(arguments)


def compare(arguments: Namespace, said: Sequence[str]) -> None:
    """Run both sides alternately, print every line, then the ratios of medians, vrft / other side."""
    other = arguments.against
    if not PYTHON[other].exists():
        sys.exit(f"step.py: {PYTHON[other]} does not exist; `make bench-env` makes it")
    lines: dict[str, list[dict[str, Any]]] = {"vrft": [], other: []}
    for _ in range(arguments.repeats):
        for side, results in lines.items():
            results.append(run_side(side, said, arguments.threads))
            print(json.dumps(results[-1]), flush=True)
            if arguments.table:
                with arguments.table.open("a") as file:
                    file.write(table_row(results[-1]))
    medians = {
        side: {key: statistics.median(line[key] for line in results) for key in RATIOS if results[0].get(key)}
        for side, results in lines.items()
    }
    ratios = {key: round(value / medians[other][key], 3) for key, value in medians["vrft"].items()}
    print(json.dumps({f"vrft_over_{other}": ratios, "repeats": arguments.repeats}), flush=True)


def run_side(side: str, said: Sequence[str], threads: int) -> dict[str, Any]:
    """Run a side in a separate process and return the line that it prints."""
    command = [str(PYTHON[side]), __file__, *said, "--side", side]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}step.py: {' '.join(command)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table_row(line: dict[str, Any]) -> str:
    """Return a row for the table of runs in results/step_cpu.md, in CPU-seconds (on a GPU, in seconds)."""
    on_cpu = "split_cpu_s" in line
    step, split = line["cpu_step_s" if on_cpu else "step_s"], line["split_cpu_s" if on_cpu else "split_s"]
    seconds = [f"{value:.2f}" for value in (step, *(split[name] for name in PARTS))]
    memory = line["peak_rss_MB"] if on_cpu else line["peak_cuda_MB"]
    images = [f"{line[f'{name}_per_step']:g}" for name in ("images_preprocessed", "vision_tower_images")]
    cells = [str(line["image_tokens"]), line["mode"], line["lib"], *seconds, f"{memory:.0f}", *images]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
