"""The memory of loading is measured at the smallest size."""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_checkpoint
import loading
import pytest

from tests.helpers.forks import Fork


def run(arguments: list[str]) -> int:
    """Run the script in this process, as its own processes do."""
    loading.main(arguments)
    return 0


@pytest.mark.slow
def test_each_process_and_all_together_are_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fork the process that loads, whose imports take longer than loading."""

    def build(folder: Path, preset: str) -> None:
        build_checkpoint.main([str(folder), "--preset", preset, "--arch", "qwen2_vl", "--dtype", "bfloat16"])
        capsys.readouterr()

    def fork(command: list[str], **_: Any) -> Fork:
        assert command[:2] == [sys.executable, loading.__file__]
        return Fork(run, command[2:], output=tmp_path / "output")

    monkeypatch.setattr(loading, "build", build)
    monkeypatch.setattr(loading, "subprocess", SimpleNamespace(Popen=fork))
    loading.main(["--preset", "tiny", "--way", "full with a reference"])
    found = json.loads(capsys.readouterr().out)
    least = (4 + 2) * found["parameters"]  # float32 and the reference in bfloat16
    assert found["bytes_per_parameter"][0] * found["parameters"] >= 0.99 * least
    assert found["node_peak_GB"] * 1e9 >= found["libraries_GB"][0] * 1e9 + least - 1e7  # rounded to 0.01 GB


def test_the_peak_is_sampled() -> None:
    with loading.peak(lambda: loading.anonymous(os.getpid())) as largest:
        before = largest[0]
        # a tensor may lie in memory that earlier tests have used and freed
        kept = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        kept.write(bytes(2**26))
    kept.close()  # alive while the last sample is taken
    assert largest[0] - before >= 0.9 * 2**26
