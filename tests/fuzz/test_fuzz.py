"""Broken inputs for every reader of foreign texts and files: a few in `make test`, a million in `make fuzz`.

FUZZ_INPUTS sets the number of inputs, which are the same in every run unless FUZZ_RANDOM is set. With it, Hypothesis
shrinks a failing input, keeps it in `.hypothesis`, and begins the next run with it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, event, given, settings

from tests.fuzz import broken
from tests.fuzz.targets import SECONDS, WEIGHTS, Target, all_targets
from vrft.errors import ConfigurationError

INPUTS = int(os.environ.get("FUZZ_INPUTS", "2000"))
RANDOM = "FUZZ_RANDOM" in os.environ
PROFILE = settings(
    derandomize=not RANDOM,
    deadline=None,  # `limits` enforces a limit on CPU time instead
    print_blob=RANDOM,
    suppress_health_check=list(HealthCheck),
    **({} if RANDOM else {"database": None}),
)


@contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after `seconds` of CPU time, and RecursionError where Python does by default."""

    def interrupt(*_: Any) -> None:
        raise TimeoutError(f"computes for more than {seconds} s")

    before, depth = signal.signal(signal.SIGVTALRM, interrupt), sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Hypothesis raises it
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        sys.setrecursionlimit(depth)
        signal.signal(signal.SIGVTALRM, before)


def fuzz(target: Target, inputs: int, seconds: float = SECONDS, **more: Any) -> None:
    """Check that a target reads or refuses broken inputs."""

    @settings(PROFILE, max_examples=inputs, **more)
    @given(target.inputs())
    def reads_or_refuses(content: bytes) -> None:
        with suppress(ConfigurationError), limits(seconds):
            target.read(content)
            event("read")

    reads_or_refuses()


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    logging.disable(logging.CRITICAL)  # readers warn of what they leave out
    yield all_targets(tmp_path_factory.mktemp("fuzz"))
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_broken_input_is_read_or_refused(name: str, targets: dict[str, Target]) -> None:
    fuzz(targets[name], math.ceil(INPUTS * WEIGHTS[name] / sum(WEIGHTS.values())))


def test_every_target_gets_inputs(targets: dict[str, Target]) -> None:
    assert targets.keys() == WEIGHTS.keys()


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


@pytest.mark.parametrize("read", [len, refuses])
def test_reading_and_refusing_are_not_failures(read: Callable[[bytes], object]) -> None:
    fuzz(Target("planted", [b"1234567"], read, broken.broken_bytes), 20)


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        pytest.param(fails, KeyError, id="unexpected-error"),
        pytest.param(computes, TimeoutError, id="endless"),
        pytest.param(loses_a_number, AssertionError, id="failed-check"),
    ],
)
def test_a_bug_in_a_reader_is_a_failure(read: Callable[[bytes], object], problem: type[Exception]) -> None:
    target = Target("planted", [b"1234567"], read, broken.broken_bytes)
    with pytest.raises(problem):
        fuzz(target, 20, seconds=0.05, phases=[Phase.generate], verbosity=Verbosity.quiet)


@pytest.mark.parametrize("breaks", ["broken_text", "broken_bytes", "broken_json", "broken_lines"])
def test_inputs_are_broken_and_equal_in_each_run(breaks: str) -> None:
    whole = b'{"images": [{"id": 1, "width": 30}], "annotations": [[1, 2], null, "text"]}'
    runs: list[list[bytes]] = [[], []]
    for inputs in runs:
        target = Target("planted", [whole], inputs.append, getattr(broken, breaks))
        fuzz(target, 100, derandomize=True, database=None)
    assert runs[0] == runs[1]
    assert len({*runs[0]} - {whole}) > 30
