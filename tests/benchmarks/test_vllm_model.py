"""The table of when vLLM pays."""

from __future__ import annotations

import json

import pytest
import vllm_model


@pytest.mark.slow(seconds=3)
def test_the_written_table_is_what_the_counts_give() -> None:
    counts = json.loads((vllm_model.RESULTS / "gpu_counts.json").read_text())
    assert (vllm_model.RESULTS / "vllm_model.md").read_text() == vllm_model.report(counts)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        pytest.param((2.0, 3.0, 1.1), "vLLM", id="under-all-assumptions"),
        pytest.param((0.5, 0.9, 0.1), "built-in", id="under-none"),
        pytest.param((1.5, 3.0, 0.9), "vLLM, probably", id="mostly"),
        pytest.param((1.1, 3.0, 0.9), "either", id="close"),
        pytest.param((0.7, 1.1, 0.2), "built-in, probably", id="hardly"),
    ],
)
def test_the_verdict_follows_from_the_bounds(ratios: tuple[float, float, float], expected: str) -> None:
    assert vllm_model.verdict(ratios) == expected
