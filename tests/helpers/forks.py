"""Processes forked from one that has imported vrft: a new interpreter takes longer to start than a short run takes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.helpers import ROOT

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests", "vrft.rollout", "peft", "scipy.io", "tests.helpers.warm"])


class Fork:
    """A process that calls a function, with its output in a file; the interface is that of `subprocess.Popen`."""

    def __init__(
        self, function: Callable[..., int], *args: Any, output: Path, cwd: Path = ROOT, **environment: str
    ) -> None:
        self.output = output
        # the fork server keeps the environment of its start, perhaps in the middle of another run
        environment = {**os.environ, **environment}
        self._process = FORKS.Process(target=_call, args=(function, args, output, cwd, environment))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        self._process.join()
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and its children."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def run_python(command: list[str], **_: object) -> SimpleNamespace:
    """Run `python -P -c CODE ARGUMENTS` like `subprocess.run`."""
    with tempfile.TemporaryDirectory() as folder:
        words = command[command.index("-c") + 1 :]
        process = Fork(_run_code, words, output=Path(folder, "output"), cwd=Path.cwd())
        code = process.wait()
        printed = process.output.read_bytes()
    return SimpleNamespace(returncode=code, stdout=printed, stderr=printed)


def _run_code(words: list[str]) -> int:
    code, *sys.argv[1:] = words
    exec(code, {"__name__": "__main__"})
    return 0


def fork_vrft(command: list[str], output: Path, cwd: Path = ROOT, **environment: str) -> Fork:
    """Start a command as `python -m vrft` does."""
    return Fork(_run_vrft, command, output=output, cwd=cwd, **environment)


def _run_vrft(command: list[str]) -> int:
    from vrft.__main__ import main

    return main(command)


def _call(
    function: Callable[..., int], args: tuple[Any, ...], output: Path, cwd: Path, environment: dict[str, str]
) -> None:
    gc.freeze()
    gc.enable()  # which `tests/__init__.py` turns off
    multiprocessing.set_start_method(None, force=True)  # that of a new interpreter, not of the fork server
    os.setsid()  # the process leads a group of its own, so that its children can be killed with it
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    # those of the fork server can't write to a terminal
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(cwd)
    code = function(*args)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
