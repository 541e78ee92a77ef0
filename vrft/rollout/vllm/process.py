"""The process of a vLLM server that belongs to a run, and ends with the run in any case."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from vrft.errors import ConfigurationError, RolloutFailed
from vrft.policy import Policy
from vrft.rollout.vllm.flags import Colocated, serve, server_environment
from vrft.utils.redact import redact

WATCHDOG = Path(__file__).with_name("watchdog.py")
ENDING_SECONDS = 15.0
"""Seconds to wait for the end of the server, more than the watchdog waits before killing it."""

LOG_LINES = 8
"""Number of lines of the log that a message quotes."""

OF_THE_TRAINER = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),  # vLLM can't sleep with expandable segments
)
"""Environment variables that the server must not inherit."""


class ServerProcess:
    """Starts and ends a server on a free port of 127.0.0.1, repeatedly if needed. Output is appended to a log."""

    def __init__(self, command: Callable[[int], list[str]], environment: dict[str, str], log: Path) -> None:
        """Set the command, without starting it.

        Args:
            command: returns the command for a port.
            environment: additional environment variables.
            log: file for the output.
        """
        self.command, self.environment, self.log = command, environment, log
        self.process: subprocess.Popen[bytes] | None = None
        self.log_start = 0

    def start(self) -> str:
        """Start the server and return its address, without waiting until it answers.

        Raises:
            RolloutFailed: the program can't be run, or the log can't be written.
        """
        self.end()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = self.command(port)
        inherited = {name: value for name, value in os.environ.items() if name not in OF_THE_TRAINER}
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                log.write(redact(f"\n$ {' '.join(words)}\n").encode())
                log.flush()
                self.log_start = log.tell()
                self.process = subprocess.Popen(
                    [sys.executable, "-I", str(WATCHDOG), str(os.getpid()), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=inherited | self.environment,
                    start_new_session=True,  # Ctrl-C must reach only the trainer, which then ends the server
                )
            weakref.finalize(self, end, self.process)
        except OSError as error:
            raise RolloutFailed(f"the vLLM server can't be started: {error}") from error
        return f"http://127.0.0.1:{port}"

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self) -> None:
        """End the server, if it runs, and wait until it has freed the GPU's memory."""
        process, self.process = self.process, None  # another thread may start the next one meanwhile
        if process is not None:
            end(process)

    def last_lines(self) -> str:
        """Return the last lines of the server's output since its last start, without secrets."""
        try:
            with self.log.open("rb") as log:
                log.seek(self.log_start)
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return redact("\n".join([line for line in text.splitlines() if line.strip()][-LOG_LINES:]))


def end(process: subprocess.Popen[bytes]) -> None:
    """End a watchdog with its server, and wait for it."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def server_process(policy: Policy, settings: Colocated, log: Path, images: int) -> ServerProcess:
    """Return the process, not started yet, of a server on a policy's GPU.

    `images` is the maximum number of images in a prompt.

    Raises:
        ConfigurationError: the program does not exist.
    """
    program = shutil.which(settings.vllm)
    if program is None:
        raise ConfigurationError(
            f"model.engine.colocated.vllm: there is no program {settings.vllm!r}; install vLLM in an environment of "
            "its own and name its program, e.g. /opt/vllm/bin/vllm"
        )
    settings = replace(settings, vllm=program)
    environment = server_environment(policy) | visible_gpu(policy.device)
    return ServerProcess(lambda port: serve(policy, ("127.0.0.1", port), settings, images), environment, log)


def visible_gpu(device: torch.device) -> dict[str, str]:
    """Return the environment variable that restricts a server to the GPU that is `device` in this process."""
    if device.type != "cuda":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = device.index or 0
    return {"CUDA_VISIBLE_DEVICES": visible[number].strip() if visible != [""] else str(number)}
