"""Processes that start once for many commands, with the environment that torchrun gives to its own.

Each process runs `serve(FOLDER, OWNER)`: until the process OWNER ends, it waits for `FOLDER/0.json`, `FOLDER/1.json`
and so on, runs the command in each and writes exit code and output beside it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import psutil
from lightning.fabric.utilities.rank_zero import rank_zero_only

from tests.helpers import ROOT
from tests.helpers.forks import Fork
from tests.helpers.ports import free_port

PATIENCE = 600.0
"""Seconds that a command may take on a busy machine."""


class Ranks:
    """Processes that run commands together; they are replaced after a failed command."""

    def __init__(self, folder: Path, count: int) -> None:
        self.root, self.count, self.number, self.starts = folder, count, 0, 0
        self.processes: list[Fork] = []

    def start(self) -> None:
        self.stop()
        self.folder, self.number, self.starts = self.root / str(self.starts), 0, self.starts + 1
        self.folder.mkdir()
        together = {"WORLD_SIZE": str(self.count), "LOCAL_WORLD_SIZE": str(self.count), "TORCHELASTIC_RUN_ID": "ranks"}
        together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in map(str, range(self.count)):
            own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0"}
            log = self.folder / f"process-{rank}.txt"
            self.processes.append(Fork(serve, self.folder, os.getpid(), output=log, **together, **own))

    @property
    def alive(self) -> bool:
        return bool(self.processes) and all(process.poll() is None for process in self.processes)

    def run(self, command: list[str], cwd: Path = ROOT) -> str:
        """Run a command of vrft on every rank and return the output. Each rank has to end with exit code 0."""
        if not self.alive:
            self.start()
        number, self.number = self.number, self.number + 1
        write(self.folder / f"{number}.json", json.dumps({"command": command, "cwd": str(cwd)}))
        codes = [self.folder / f"{number}-{rank}.code" for rank in range(self.count)]
        deadline = time.monotonic() + PATIENCE
        while not all(code.exists() for code in codes):
            failed = any(code.exists() and code.read_text() != "0" for code in codes)
            if failed or not self.alive or time.monotonic() > deadline:
                self.stop()  # the other ranks may wait for a dead one
                raise AssertionError(f"{command}\n{self.printed(number)}")
            time.sleep(0.02)
        if any(code.read_text() != "0" for code in codes):
            raise AssertionError(f"{command}\n{self.printed(number)}")
        return self.printed(number)

    def printed(self, number: int) -> str:
        names = [f"{kind}-{rank}.txt" for kind in (number, "process") for rank in range(self.count)]
        return "\n".join((self.folder / name).read_text() for name in names if (self.folder / name).exists())

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        self.processes = []


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def run(command: list[str]) -> int:
    from vrft.__main__ import main

    try:
        with warnings.catch_warnings():  # so that each command repeats warnings of earlier ones
            return main(command)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def serve(folder: Path, owner: int) -> int:
    rank, number = os.environ["RANK"], 0
    rank_zero_only.rank = int(rank)  # as Lightning sets it in a new process
    while psutil.pid_exists(owner):
        file = folder / f"{number}.json"
        if not file.exists():
            time.sleep(0.02)
            continue
        job = json.loads(file.read_text())
        output = os.open(folder / f"{number}-{rank}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.chdir(job["cwd"])
        code = run(job["command"])
        sys.stdout.flush()
        sys.stderr.flush()
        write(folder / f"{number}-{rank}.code", str(code))
        number += 1
    return 0
