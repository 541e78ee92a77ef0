"""TRL's step is counted at the smallest size, in the environment of `make bench-env`."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.helpers import ROOT

PYTHON = ROOT / ".venv-bench" / "bin" / "python"
COUNT = """
import json, sys
sys.path.insert(0, "benchmarks")
import trl_counts, torch
torch.cuda.device_count = lambda: 1
print(json.dumps(trl_counts.counts_of(1, 8, "full")))
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-bench: `make bench-env` makes it")
def test_a_step_of_trl_is_counted() -> None:
    done = subprocess.run([PYTHON, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: counts["launches"] for name, counts in json.loads(done.stdout.splitlines()[-1]).items()}
    assert found.keys() == {"rollout", "reference", "update", "token"}
    assert 0 < found["token"] < found["reference"] < found["update"]  # a backward has more kernels than its forward
