"""How many kernels each phase of a step launches, and how often it waits for the GPU, at the layers of a 3 B model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

KERNELS = {
    "image of 1,000 tokens": 600,
    "prefill": 1000,
    "evaluation: prefill": 1000,
    "reference": 1200,
    "update": 8000,  # the aim is 6,000: each of the 252 adapters takes 16
}


def test_phases_keep_to_their_budgets(tmp_path: Path) -> None:
    script, found = ROOT / "benchmarks" / "gpu_counts.py", tmp_path / "counts.json"
    command = [sys.executable, script, "--small", "--modes", "lora", "--json", found]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(found.read_text())["lora"]
    launched = {name: counts[name]["launches"] for name in KERNELS}
    assert {name: count for name, count in launched.items() if count > KERNELS[name]} == {}
    waits = {name: counts[name]["syncs"] for name in KERNELS}
    assert {name: count for name, count in waits.items() if count > 4} == {}
    assert waits["image of 1,000 tokens"] <= 2
    assert counts["load"]["peak"] <= 1.05 * counts["load"]["stays"]
