"""A real Ctrl-C ends every wait that comes before training within two seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.helpers.forks import Fork
from vrft.__main__ import entry
from vrft.utils.interrupts import INTERRUPTED, exit_with

SLOW = 60.0
"""Seconds that count as waiting: a loaded machine is slow, and every wait below lasts for ten minutes."""


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
    time.sleep(600)
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
    waited = _MultiProcessingDataLoaderIter._get_data

    def wait(batches: _MultiProcessingDataLoaderIter) -> tuple[bool, object]:
        announce(folder)  # after the fork of the worker, in the middle of which Python ignores a Ctrl-C
        return waited(batches)

    with patch.object(_MultiProcessingDataLoaderIter, "_get_data", wait):
        next(iter(loader))
    return 0


def wait_for_download(folder: Path) -> int:
    """Download the weights of a checkpoint in several files, of which a server sends a part."""
    from huggingface_hub import snapshot_download

    from vrft.utils.hub import loading

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            for name, value in (("ETag", '"1"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", "1000000")):
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                self.do_HEAD()
                self.wfile.write(b"x")
                self.wfile.flush()
                announce(folder)
                time.sleep(600)
            files = [{"type": "file", "path": f"{i}.safetensors", "size": 1000000, "oid": "1" * 40} for i in range(2)]
            body = json.dumps(files if "/tree/" in self.path else {"id": "org/model", "sha": "0" * 40}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    hub.daemon_threads = True
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    with patch("huggingface_hub.constants.HF_HUB_OFFLINE", False), loading("model.policy.checkpoint", "org/model"):
        snapshot_download("org/model", endpoint=endpoint, cache_dir=folder / "cache", etag_timeout=600)
    return 0


def interrupted(wait: Callable[[Path], int], folder: Path) -> int:
    """Run a wait and return the exit code of the command line after a Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return wait(folder)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)


WAITS = [wait_for_server, wait_for_rank_zero, wait_for_lock, wait_for_template, wait_for_workers, wait_for_download]


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


def leave_a_thread(code: int, finished: Path) -> int:
    """Exit while a thread runs: for a second if it is waited for, else for longer than the exit takes anywhere."""
    threading.Timer(1 if code != INTERRUPTED else 600, finished.touch).start()
    exit_with(code)


@pytest.mark.parametrize("code", [130, 2])
def test_only_an_interrupted_command_leaves_threads_behind(code: int, tmp_path: Path) -> None:
    process = Fork(leave_a_thread, code, tmp_path / "finished", output=tmp_path / "output")
    assert process.wait() == code
    assert (tmp_path / "finished").exists() == (code != 130)


def test_an_interrupted_command_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vrft.__main__.main", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr("vrft.utils.interrupts.threading.enumerate", list)
    monkeypatch.setattr("vrft.utils.interrupts.atexit._run_exitfuncs", lambda: None)
    monkeypatch.setattr("vrft.utils.interrupts.os._exit", sys.exit)
    with pytest.raises(SystemExit, match="130"):
        entry()
    assert capsys.readouterr().err == "vrft: interrupted\n"


def wait_in_collective(folder: Path, rank: int) -> int:
    """Sum a number over two ranks, of which rank 1 never comes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    dist.all_reduce(torch.ones(1))
    (folder / f"rank{rank}").touch()
    if rank == 0:
        dist.all_reduce(torch.ones(1))
    time.sleep(600)
    return 0


def test_one_ctrl_c_in_the_terminal_ends_a_rank_in_a_collective(tmp_path: Path) -> None:
    """The signal reaches all ranks. The one in the collective ends with the others, whose connections are then lost."""
    ranks = [
        Fork(interrupted, partial(wait_in_collective, rank=rank), tmp_path, output=tmp_path / f"output{rank}")
        for rank in (0, 1)
    ]
    try:
        while len([*tmp_path.glob("rank*")]) < 2:
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.01)
        time.sleep(0.2)
        start = time.monotonic()
        for rank in ranks:
            rank.send_signal(signal.SIGINT)
        assert [rank.wait() for rank in ranks] == [130, 130]
        assert time.monotonic() - start < SLOW
    finally:
        for rank in ranks:
            rank.kill()
