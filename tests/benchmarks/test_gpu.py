"""How benchmarks/gpu.py ends where a part fails, takes too long, or there is no GPU."""

from __future__ import annotations

from pathlib import Path

import gpu
import pytest
import torch


def test_all_parts_together_take_less_than_8_minutes() -> None:
    assert sum(gpu.LIMITS.values()) < 8 * 60


def test_a_part_that_fails_or_is_cut_is_a_row() -> None:
    [failed] = gpu.run_part("nothing", 60, [])
    assert (failed.found, failed.verdict) == ("KeyError: 'nothing'", "FAILED")
    [cut] = gpu.run_part("card", 0.01, [])
    assert (cut.found, cut.verdict) == ("cut after 0.01 s", "CUT")


def test_other_parts_run_after_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "exactness": [gpu.Row("exactness", "gemma3", "0.1", "at most 0.2", "WRONG: graphs decode other tokens")],
        "step, lora": [gpu.Row("step, lora", "a step", "2.000 s")],
        "TRL, lora": [gpu.Row("TRL, lora", "a step", "9.000 s")],
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "run_part", lambda part, limit, options: found[part])
    assert gpu.main(["--parts", *found]) == 1
    assert "| TRL, lora | TRL's step over vrft's | 4.50 |" in capsys.readouterr().out
    assert gpu.main(["--parts", "step, lora"]) == 0


def test_trl_needs_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TRL", Path("nowhere/python"))
    [row] = gpu.run_part("TRL, lora", 60, [])
    assert (row.found, row.is_fine) == ("`make bench-env` was not run", True)


def test_a_machine_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"needs a CUDA device of 80 GB"):
        gpu.main([])
