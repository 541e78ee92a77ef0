"""Test vrft on a GPU in less than 8 minutes: exactness, times, bandwidth and memory, beside predictions.

    make install bench-env
    python benchmarks/gpu.py --write

Needs a CUDA device of compute capability 8.0 or more with 80 GB; with 24 GB, full fine-tuning fails. Each part runs in
a separate process with its own time limit, so that the others still run if it fails. Models have random weights; those
of the parts `step` and `TRL` have the sizes of Qwen2.5-VL-3B and are created on the GPU. `--small --standin` tests the
script on the stand-in for a GPU (tests/standin), which needs g++.

The exit status is 0 if all parts were completed and all results are exact.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TRL = HERE.parent / ".venv-bench" / "bin" / "python"
LIMITS = {
    "card": 25,
    "exactness": 100,
    "step, lora": 75,
    "step, full": 75,
    "TRL, lora": 95,
    "TRL, full": 95,
}
"""Time limit of each part in seconds. The sum is below 8 minutes."""

SLOWNESS = 10
"""Factor of the time limits on the stand-in, which runs on a CPU with other work."""

HEADER = ["part", "what", "found", "beside", "verdict"]


class Row(NamedTuple):
    """A row of the table. The verdict of an inexact result is `WRONG`."""

    part: str
    what: str
    found: str
    beside: str = ""
    verdict: str = ""

    @property
    def is_fine(self) -> bool:
        return not self.verdict.startswith((WRONG, FAILED, CUT))


WRONG, FAILED, CUT = "WRONG", "FAILED", "CUT"


def run_part(part: str, limit: float, options: Sequence[str]) -> Iterator[Row]:
    """Run a part in a separate process and yield its rows, and another row if it failed or exceeded its time limit."""
    python = TRL if part.startswith("TRL") else Path(sys.executable)
    if not python.exists():
        yield Row(part, "not measured", "`make bench-env` was not run")
        return
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        command = [python, HERE / "gpu_parts.py", part, *options]
        process = subprocess.Popen(command, stdout=printed, stderr=errors, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed.seek(0)
        errors.seek(0)
        lines, said = printed.read().splitlines(), errors.read().strip().splitlines()
    for line in lines:
        if line.startswith("["):
            yield Row(part, *json.loads(line))
    if code is None:
        yield Row(part, "not finished", f"cut after {limit:g} s", verdict=CUT)
    elif code:
        print("\n".join(said), file=sys.stderr)
        yield Row(part, "not finished", said[-1] if said else f"exit code {code}", verdict=FAILED)


def ratio(mode: str, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the ratio of the seconds of TRL's step to those of vrft's, if both were measured."""
    seconds = {row.part: float(row.found.split()[0]) for row in rows if row.what == "a step"}
    ours, theirs = seconds.get(f"step, {mode}"), seconds.get(f"TRL, {mode}")
    if ours and theirs:
        yield Row(f"TRL, {mode}", "TRL's step over vrft's", f"{theirs / ours:.2f}")


def markdown(rows: Sequence[Row], about: str) -> str:
    """Return the page with the table."""
    cells = [HEADER, ["--"] * len(HEADER), *([cell.replace("|", "/") for cell in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(["# vrft on a GPU", "", about, "", *lines, ""])


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="to benchmarks/results/gpu_CARD.md")
    parser.add_argument("--small", action="store_true", help="tiny models and few steps")
    parser.add_argument("--standin", action="store_true", help="run on the stand-in for a GPU")
    parser.add_argument("--parts", nargs="+", default=[*LIMITS], choices=[*LIMITS], metavar="PART", help="only these")
    options = parser.parse_args(args)
    import torch

    if not options.standin and not torch.cuda.is_available():
        sys.exit(
            "gpu.py needs a CUDA device of 80 GB (24 GB: without full fine-tuning), torch built for CUDA and 8 minutes"
        )
    passed = [f"--{name}" for name in ("small", "standin") if getattr(options, name)]
    patience = SLOWNESS if options.standin else 1
    rows: list[Row] = []
    for part in options.parts:
        limit = patience * LIMITS[part]
        print(f"{part}: at most {limit} s", end=" ... ", file=sys.stderr, flush=True)
        start = time.monotonic()
        rows += run_part(part, limit, passed)
        print(f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    for mode in ("lora", "full"):
        rows += ratio(mode, rows)
    names = [row.found for row in rows if row.what == "name"] or ["unknown"]
    page = markdown(rows, f"`python benchmarks/gpu.py {' '.join(['--write', *passed])}`, {date.today()}.")
    print(page)
    if options.write:
        name = re.sub(r"\W+", "_", names[0]).strip("_").lower()
        (HERE / "results" / f"gpu_{name}.md").write_text(page)
    return 0 if all(row.is_fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
