"""Real and fake vLLM servers of a small policy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.helpers.vllm_rollouts import (
    REAL,
    launch,
)
from tests.helpers.vllm_server import VLLM
from vrft.policy.tiny import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a small policy that vLLM's CPU backend can run, and return its folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "untied"
    write_checkpoint(folder, width=128, tied=False)
    return str(folder)


@pytest.fixture(scope="session")
def real(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Yield a function that starts a real server for `lora`, `full` or `reload` (no plugin) and returns its address."""
    running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}

    def start(kind: str) -> str:
        if kind not in running:
            running[kind] = launch(kind, checkpoint, tmp_path_factory.mktemp("server"))
        return running[kind][1]

    yield start
    for process, _ in running.values():
        process.terminate()
        process.wait(60)


@pytest.fixture
def fake(checkpoint: str) -> Iterator[VLLM]:
    server = VLLM(checkpoint)
    yield server
    server.stop()


@pytest.fixture
def fakes(checkpoint: str) -> Iterator[Callable[..., VLLM]]:
    """Yield a function that makes fake servers with the given flags."""
    made: list[VLLM] = []

    def make(path: str = checkpoint, **flags: Any) -> VLLM:
        made.append(VLLM(path, **flags))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture(params=["lora", "full", "reload"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["fake", pytest.param("real", marks=REAL)])
def server(request: pytest.FixtureRequest, kind: str, fakes: Callable[..., VLLM], real: Callable[[str], str]) -> str:
    """Return the address of the server under test, real or fake."""
    if request.param == "real":
        return real(kind)
    return fakes(backend=None if kind == "reload" else "vrft").url
