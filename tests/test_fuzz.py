"""The fuzzer itself: it reports what it should. What it finds in the readers is for `make fuzz`."""

from __future__ import annotations

import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import ROOT
from vrft.errors import ConfigurationError

FUZZ = ROOT / "tests" / "fuzz"
RUN = SimpleNamespace(**runpy.run_path(str(FUZZ / "run.py")))


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setattr(sys, "path", [str(FUZZ), *sys.path])
    return SimpleNamespace(**runpy.run_path(str(FUZZ / "targets.py")))


def refuses(_: bytes) -> None:
    raise ConfigurationError("one line")


def fails(content: bytes) -> None:
    if b"7" in content:
        raise KeyError("7")


def computes(_: bytes) -> None:
    while True:
        pass


def loses_a_number(_: bytes) -> None:
    assert float("nan") < 1


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        pytest.param(len, None, id="read"),
        pytest.param(refuses, None, id="refused"),
        pytest.param(fails, "KeyError", id="an-error-that-is-not-for-users"),
        pytest.param(computes, "TimeoutError: computes for too long", id="no-end"),
        pytest.param(loses_a_number, "AssertionError", id="a-check-of-the-target"),
    ],
)
def test_what_is_run_command(read: Callable[[bytes], Any], problem: str | None, tmp_path: Path, targets: Any) -> None:
    target = targets.Target("planted", [b"1234567"], read, lambda _, content: content, weight=1)
    found = RUN.give([target], range(2), 0, seconds=0.05, keep=tmp_path)
    assert [problem in text for text in found.problems] == [True] * 2 if problem else found.problems == []
    assert found.read.total() + found.refused.total() == (0 if problem else 2)
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == ([b"1234567"] * 2 if problem else [])


@pytest.mark.parametrize("breaks", ["broken_text", "broken_bytes", "broken_json", "broken_lines"])
def test_inputs_are_broken_and_the_same_each_time(breaks: str, targets: Any) -> None:
    whole = b'{"images": [{"id": 1, "width": 30}], "annotations": [[1, 2], null, "text"]}'
    broken = [getattr(targets, breaks)(random.Random(seed), whole) for seed in range(40)]
    again = [getattr(targets, breaks)(random.Random(seed), whole) for seed in range(40)]
    assert broken == again
    assert len({*broken} - {whole}) > 30
