"""A real Ctrl-C ends every wait that comes before training within two seconds."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.forks import Fork

SLOW = 10.0
"""Seconds that count as waiting: a loaded machine is slow, and every wait below lasts for a minute or more."""


def announce(folder: Path) -> None:
    (folder / "waiting").touch()


def wait_for_server(folder: Path) -> int:
    from vrft.rollout.vllm.client import Client

    with socket.create_server(("127.0.0.1", 0)) as listener:
        announce(folder)
        Client(f"http://127.0.0.1:{listener.getsockname()[1]}").request("GET", "/", timeout=600)
    return 0


def wait_for_rank_zero(folder: Path) -> int:
    from vrft.cli.run_folder import _choice_of_rank_zero

    announce(folder)
    _choice_of_rank_zero(folder / "run")
    return 0


def wait_for_lock(folder: Path) -> int:
    from types import SimpleNamespace

    from vrft.rollout.vllm.client import Client
    from vrft.rollout.vllm.weights import Weights

    client = Client("http://127.0.0.1:9")
    weights = SimpleNamespace(folder=folder)
    held = Weights._lock(weights, client)  # type: ignore[arg-type]
    announce(folder)
    Weights._lock(weights, client)  # type: ignore[arg-type]
    held.close()
    return 0


def wait_for_template(folder: Path) -> int:
    from vrft.policy import chat_template

    sleeping = folder / "render_template.py"
    sleeping.write_text("import time\ntime.sleep(600)\n")
    chat_template.__file__ = str(folder / "chat_template.py")
    announce(folder)
    chat_template.render({})
    return 0


def slow_images(items: list[int]) -> list[int]:
    time.sleep(60)
    return items


def wait_for_workers(folder: Path) -> int:
    from vrft.data.loaders import IndexSampler, WorkerRestartLoader, ignore_signals

    loader = WorkerRestartLoader(
        [0, 1],  # type: ignore[arg-type]
        batch_size=1,
        sampler=IndexSampler([0, 1]),
        num_workers=1,
        collate_fn=slow_images,
        worker_init_fn=ignore_signals,
    )
    announce(folder)
    next(iter(loader))
    return 0


def interrupted(wait: Callable[[Path], int], folder: Path) -> int:
    """Run a wait and return the exit code of the command line after a Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return wait(folder)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)


WAITS = [wait_for_server, wait_for_rank_zero, wait_for_lock, wait_for_template, wait_for_workers]


@pytest.mark.parametrize("wait", WAITS)
def test_one_ctrl_c_ends_a_wait(wait: Callable[[Path], int], tmp_path: Path) -> None:
    process = Fork(interrupted, wait, tmp_path, output=tmp_path / "output")
    try:
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None, process.output.read_text()
            time.sleep(0.01)
        time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, process.output.read_text()
        assert time.monotonic() - start < SLOW
    finally:
        process.kill()
