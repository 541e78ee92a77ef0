"""Plain HTTP to addresses that the user gave, and to no others: no redirects, no proxies of the environment."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from vrft.errors import ConfigurationError, RolloutRefused
from vrft.utils.redact import redact

MAX_BODY = 2**28
"""Bytes of an answer: G completions with their log-probabilities are a few megabytes."""
CHUNK = 2**16
RETRIED = (408, 425, 429)
"""What a 4xx answer says of the moment and not of the request."""


class Unavailable(Exception):
    """No good answer this time; another attempt may get one."""


class Refused(Exception):
    """The server won't, and would not the next time."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """One server. Each request has a connection of its own, so that threads can share a client."""

    def __init__(self, url: str) -> None:
        """Reads the address.

        Raises:
            ConfigurationError: it is none.
        """
        expected = f"model.engine.urls: expected addresses like http://127.0.0.1:8000, got {redact(url)!r}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(expected) from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(expected)
        if parts.username is not None or parts.path.rstrip("/").endswith("/v1"):
            raise ConfigurationError(f"{expected}; without a login and without /v1")
        self.url = url.rstrip("/")
        self.connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.host, self.port, self.prefix = parts.hostname, port, parts.path.rstrip("/")
        self.deadline = math.inf

    def until(self, deadline: float) -> Client:
        """The same server, for requests that end by then (of `time.monotonic`), give or take a second."""
        limited = copy.copy(self)
        limited.deadline = deadline
        return limited

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float) -> bytes:
        """The body of the answer.

        Args:
            method: GET or POST.
            path: of the route.
            body: sent as JSON.
            timeout: seconds for all of it.

        Raises:
            Unavailable: no connection, no answer in time, not all of it, or one of status 5xx.
            Refused: an answer of status 4xx.
            RolloutRefused: it sends elsewhere.
        """
        timeout = max(1.0, min(timeout, self.deadline - time.monotonic()))
        deadline = time.monotonic() + timeout
        connection = self.connection(self.host, self.port, timeout=timeout)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self.prefix + path, data, headers)
            response = connection.getresponse()
            content = _read(response, deadline)
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self.url}{path}: {reason}") from error
        finally:
            connection.close()
        return self._content(path, response.status, content)

    def _content(self, path: str, status: int, content: bytes) -> bytes:
        if 200 <= status < 300:
            return content
        if 300 <= status < 400:
            raise RolloutRefused(
                f"model.engine.urls: {self.url} answers {path} with a redirect, which is not followed: name the "
                "address itself"
            )
        message = " ".join(content[:500].decode(errors="replace").split())
        if status >= 500 or status in RETRIED:
            raise Unavailable(f"{self.url}{path}: {status}: {message}")
        raise Refused(status, f"{self.url}{path}: {message}")


def _read(response: HTTPResponse, deadline: float) -> bytes:
    """All of a body that is as long as it says, not too long, and there in time."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(CHUNK):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
        if size > MAX_BODY:
            raise OSError(f"an answer of more than {MAX_BODY} bytes")
    if response.length:
        raise OSError(f"the connection ended {response.length} bytes too early")
    return b"".join(parts)
