"""A `python` for launchers that forks a process which has imported vrft, in place of starting an interpreter."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

from tests.helpers.forks import Fork
from vrft.__main__ import main

STUB = """#!{python} -ISE
import json, os, sys, time
request = {folder!r} + "/" + str(os.getpid())
with open(request + ".part", "w") as file:
    json.dump({{"command": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}}, file)
os.rename(request + ".part", request + ".json")
while not os.path.exists(request + ".code"):
    time.sleep(0.02)
sys.stderr.write(open(request + ".txt").read())
sys.exit(int(open(request + ".code").read()))
"""
"""Asks for a fork, waits for its end, and prints what it printed."""


def fork(request: Path) -> Fork:
    """Start what a request asks for: `-m vrft ARGUMENTS`."""
    asked = json.loads(request.read_text())
    words = asked["command"][asked["command"].index("-m") + 1 :]
    assert words[0] == "vrft"
    output, cwd = request.with_suffix(".txt"), Path(asked["cwd"])
    return Fork(run_rank, words[1:], output=output, cwd=cwd, **asked["environment"])


def run_rank(command: list[str]) -> int:
    rank = os.environ.get("RANK") or os.environ["SLURM_PROCID"]
    rank_zero_only.rank = int(rank)  # as Lightning sets it in a new process
    return main(command)


@contextmanager
def forking_python(folder: Path) -> Iterator[Path]:
    """Write a program `python` to a folder, and answer its requests until the end."""
    requests = folder / "requests"
    requests.mkdir()
    stub = folder / "python"
    stub.write_text(STUB.format(python=sys.executable, folder=str(requests)))
    stub.chmod(0o755)
    ended = threading.Event()
    running: dict[Path, Fork] = {}

    def serve() -> None:
        while not ended.wait(0.02):
            for request in {*requests.glob("*.json")} - {*running}:
                running[request] = fork(request)
            for request, process in running.items():
                code = request.with_suffix(".code")
                if process.poll() is not None and not code.exists():
                    partial = request.with_suffix(".part")
                    partial.write_text(str(process.returncode))
                    partial.rename(code)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield stub
    finally:
        ended.set()
        thread.join()
        for process in running.values():
            process.kill()
