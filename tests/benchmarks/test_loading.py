"""The memory of loading is measured at the smallest size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import build_checkpoint
import loading
import pytest
import torch


@pytest.mark.slow
def test_each_process_and_all_together_are_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path, preset: str) -> None:
        build_checkpoint.main([str(folder), "--preset", preset, "--arch", "qwen2_vl", "--dtype", "bfloat16"])
        capsys.readouterr()

    monkeypatch.setattr(loading, "build", build)
    loading.main(["--preset", "tiny", "--way", "full with a reference"])
    found = json.loads(capsys.readouterr().out)
    least = (4 + 2) * found["parameters"]  # float32 and the reference in bfloat16
    assert found["bytes_per_parameter"][0] * found["parameters"] >= 0.99 * least
    assert found["node_peak_GB"] * 1e9 >= found["libraries_GB"][0] * 1e9 + least - 1e7  # rounded to 0.01 GB


def test_the_peak_is_sampled() -> None:
    with loading.peak(lambda: loading.anonymous(os.getpid())) as largest:
        before = largest[0]
        kept = torch.ones(2**24)
    assert kept.numel() == 2**24  # alive while the last sample is taken
    assert largest[0] - before >= 0.9 * 2**26
