"""Ports for processes that need to know theirs before they listen."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a free port below those that systems choose themselves, so that it stays free until a process listens."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port
