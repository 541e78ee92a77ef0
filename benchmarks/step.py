"""Seconds, memory and redundant work of one GRPO step, alone or beside TRL on the same work.

    python benchmarks/build_checkpoint.py CKPT --preset tiny
    python benchmarks/step.py --checkpoint CKPT --image-size 448x448 --beta 0.04 --against trl

A side prints one JSON line; with `--against trl` both sides run in turns, each time in a process of its own, and a last
line has the ratio of their medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RATIOS = ("samples_per_cpu_s", "samples_per_s", "peak_rss_MB", "peak_cuda_MB")


def main() -> None:
    from work import parser

    p = parser()
    p.description = __doc__
    p.add_argument("--side", choices=["vrft", "trl"], default="vrft", help="which one to measure")
    p.add_argument("--against", choices=["trl"], help="measure both, in turns")
    p.add_argument("--repeats", type=int, default=3, help="turns of each side")
    arguments = p.parse_args()
    if arguments.against:
        compare(arguments)
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


def compare(arguments: Namespace) -> None:
    """Run both sides in turns and print every line, then the ratios of medians, vrft over TRL."""
    flags = [x for x in sys.argv[1:] if x not in ("--against", "trl")]
    lines: dict[str, list[dict[str, Any]]] = {"vrft": [], "trl": []}
    for _ in range(arguments.repeats):
        for side, results in lines.items():
            command = [sys.executable, __file__, *flags, "--side", side]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(results[-1]), flush=True)
    medians = {
        side: {key: statistics.median(line[key] for line in results) for key in RATIOS if results[0].get(key)}
        for side, results in lines.items()
    }
    ratios = {key: round(value / medians["trl"][key], 3) for key, value in medians["vrft"].items()}
    print(json.dumps({"vrft_over_trl": ratios, "repeats": arguments.repeats}), flush=True)


if __name__ == "__main__":
    main()
