"""A fake vLLM server that sleeps, and a program `vllm` that stands for its process.

The routes are those of vLLM 0.33. The program only forwards connections to the server in this process, which forgets
everything whenever the program starts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

from tests.helpers.vllm_server import VLLM, Routes

PROGRAM = """#!{python} -IS
import json, os, socket, sys, threading, time, urllib.request
port = int(sys.argv[sys.argv.index("--port") + 1])
body = json.dumps({{"pid": os.getpid(), "words": sys.argv[1:], "environment": dict(os.environ)}}).encode()
asked = urllib.request.Request({url!r} + "/started", body)
fault = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(asked))["fault"]
print("INFO started with API key", os.environ.get("SECRET_API_KEY"), flush=True)
if fault == "never-ready":
    time.sleep(3600)
if fault:
    sys.exit("ERROR " + fault)

def forward(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)

listener = socket.create_server(("127.0.0.1", port))
while True:
    client, _ = listener.accept()
    server = socket.create_connection(("127.0.0.1", {port}))
    for pair in ((client, server), (server, client)):
        threading.Thread(target=forward, args=pair, daemon=True).start()
"""


class SleepyVLLM(VLLM):
    """The server and its state.

    Attributes:
        asleep: tags of the memory that is asleep.
        start_faults: one for each start of the program: `never-ready`, or the last line of a program that fails.
        sleep_faults: one for each /sleep: `dies`, `stays-awake`.
        wake_faults: one for each /wake_up of weights: `out-of-memory`, `old-weights`, `dies`.
        starts: what the program said about each start: its pid, words and environment.
    """

    def __init__(self, checkpoint: str, **flags: Any) -> None:
        self.start_faults: deque[str] = deque()
        self.sleep_faults: deque[str] = deque()
        self.wake_faults: deque[str] = deque()
        self.starts: list[dict[str, Any]] = []
        super().__init__(checkpoint, **({"sleep": True} | flags))

    def routes(self) -> type[Routes]:
        return SleepyRoutes

    def forget(self) -> None:
        super().forget()
        self.asleep: set[str] = set()
        self.broken = self.deaf = False

    def info(self) -> dict[str, Any]:
        info = super().info()
        info["vllm_config"]["model_config"]["enable_sleep_mode"] = self.flags["sleep"]
        return info

    def load_file(self, path: Path) -> None:
        if not self.deaf:
            super().load_file(path)

    def kill(self) -> None:
        """Kill the program that was started last."""
        os.kill(self.starts[-1]["pid"], signal.SIGKILL)

    def sleep(self, level: int) -> None:
        self.asleep = {"weights", "kv_cache"}
        self.cache.clear()
        if level == 2:  # what comes back is any memory
            self.weights = {name: torch.randn_like(value) for name, value in self.original.items()}
            self.merged.clear()

    def write_program(self, folder: Path) -> str:
        """Write the program and return its path."""
        path = folder / "bin" / "vllm"
        path.parent.mkdir(exist_ok=True)
        path.write_text(PROGRAM.format(python=sys.executable, url=self.url, port=self.http.server_port))
        path.chmod(0o755)
        return str(path)


class SleepyRoutes(Routes):
    """The routes of a server that sleeps, which needs its memory for everything else."""

    vllm: SleepyVLLM

    def do_GET(self) -> None:
        if self.path in self.vllm.instead:
            return super().do_GET()
        if self.path == "/is_sleeping":
            return self.answer({"is_sleeping": bool(self.vllm.asleep)})
        if self.path == "/health":
            return self.answer({})
        return super().do_GET()

    def do(self, path: str, body: dict[str, Any]) -> None:
        vllm, query = self.vllm, parse_qs(urlsplit(self.path).query)
        if path == "/started":
            vllm.forget()
            vllm.starts.append(body)
            return self.answer({"fault": vllm.start_faults.popleft() if vllm.start_faults else ""})
        if vllm.broken or (path in NEED_WEIGHTS and "weights" in vllm.asleep):
            return self.answer({"error": {"message": "CUDA error: an illegal memory access"}}, 500)
        if path == "/v1/chat/completions" and vllm.asleep:
            return self.answer({"error": {"message": "asleep"}}, 500)
        if path == "/sleep":
            return self.fall_asleep(int(query["level"][0]))
        if path == "/wake_up":
            return self.wake_up({*query["tags"]})
        if path == "/collective_rpc" and "kwargs" not in body:
            vllm.weights = vllm.original
            vllm.merged.clear()
            return self.answer({"results": [None]})
        return super().do(path, body)

    def fall_asleep(self, level: int) -> None:
        fault = self.vllm.sleep_faults.popleft() if self.vllm.sleep_faults else ""
        if fault != "stays-awake":
            self.vllm.sleep(level)
        self.answer({"status": "sleeping", "level": level})
        if fault == "dies":
            self.vllm.kill()

    def wake_up(self, tags: set[str]) -> None:
        vllm = self.vllm
        fault = vllm.wake_faults.popleft() if vllm.wake_faults and "weights" in tags else ""
        if fault == "dies":
            vllm.kill()
        if fault == "out-of-memory":
            vllm.broken = True
            return self.answer({"error": {"message": "CUDA Error: out of memory"}}, 500)
        vllm.deaf = fault == "old-weights"
        vllm.asleep -= tags
        return self.answer({"status": "sleeping" if vllm.asleep else "awake", "tags": [*tags]})


NEED_WEIGHTS = ("/update_weights", "/collective_rpc", "/v1/load_lora_adapter")


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it has ended, perhaps while the file was read
        return False
