"""The script that measures a GPU runs from its beginning to its table."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers import ROOT

PARTS = ["card", "exactness", "step, lora", "TRL, full"]


def test_every_kind_of_part_ends_in_rows() -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--standin", "--parts", *PARTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]
    assert [*dict.fromkeys(part for part, *_ in rows)] == PARTS
    verdicts = {(part, what): verdict for part, what, _, _, verdict in rows}
    exact = {what: verdict for (part, what), verdict in verdicts.items() if part == "exactness"}
    assert len(exact) == 4
    assert {*exact.values()} == {"exact"}
    phases = ("load", "rollout", "reference", "update", "evaluation")
    ratios = [float(verdicts["step, lora", f"memory: {phase}"]) for phase in phases]
    assert all(abs(ratio - 1) < 0.15 for ratio in ratios), ratios
    assert float(verdicts["step, lora", "decoded tokens/s"]) > 0
    assert any(part == "TRL, full" and (found.endswith(" s") or "bench-env" in found) for part, _, found, *_ in rows)
