"""How many kernels each phase of a step launches, and how often it waits for the GPU, at the layers of a 3 B model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

LIMITS = {
    "image of 1,000 tokens": {"full": 580, "lora": 545},
    "prefill": {"full": 910, "lora": 910},
    "evaluation: prefill": {"full": 910, "lora": 910},
    "reference": {"full": 1100, "lora": 1100},
    "update": {"full": 5180, "lora": 4440},
    "optimizer": {"full": 2510, "lora": 1540},
}
"""Kernels of each phase, at most: a little above what was counted, and below the aims of benchmarks/gpu_counts.py."""


def test_phases_keep_to_their_budgets(tmp_path: Path) -> None:
    script, found = ROOT / "benchmarks" / "gpu_counts.py", tmp_path / "counts.json"
    command = [sys.executable, script, "--small", "--json", found]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    both = json.loads(found.read_text())
    above = {
        (mode, name): counts[name]["launches"]
        for mode, counts in both.items()
        for name, limits in LIMITS.items()
        if counts[name]["launches"] > limits[mode]
    }
    assert above == {}
    for counts in both.values():
        waits = {name: counts[name]["syncs"] for name in LIMITS}
        assert {name: count for name, count in waits.items() if count > 4} == {}
        assert waits["image of 1,000 tokens"] == 0
        assert counts["load"]["peak"] <= 1.05 * counts["load"]["stays"]
        assert counts["decoding"]["graphed"] <= 895
