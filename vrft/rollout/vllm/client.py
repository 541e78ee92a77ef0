"""An HTTP client that connects only to addresses from the config: it follows no redirects and uses no proxies."""

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

MAX_RESPONSE_BYTES = 2**28  # G completions with their log-probabilities take a few megabytes
READ_BYTES = 2**16
RETRYABLE_STATUSES = (408, 425, 429)  # of the 4xx: timeout, too early, too many requests


class Unavailable(Exception):
    """The server gave no valid answer; another attempt may succeed."""


class Refused(Exception):
    """The server refused a request; another attempt would be refused too."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """A client of one server. Each request opens its own connection, so threads can share a client."""

    def __init__(self, url: str) -> None:
        """Parse the address.

        Raises:
            ConfigurationError: it is not an http or https address, or has a login or a path that ends with /v1.
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

    def with_deadline(self, deadline: float) -> Client:
        """Return a client whose requests end by a time of `time.monotonic`, or up to a second later."""
        limited = copy.copy(self)
        limited.deadline = deadline
        return limited

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float) -> bytes:
        """Send a request and return the body of the response.

        Args:
            method: GET or POST.
            path: path of the route.
            body: content, sent as JSON.
            timeout: seconds for the whole request.

        Raises:
            Unavailable: the connection fails, the response is late, incomplete, too long, or has a status that may
                change: 5xx, 408, 425 or 429.
            Refused: the response has another status 4xx.
            RolloutRefused: the response is a redirect.
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
        if status >= 500 or status in RETRYABLE_STATUSES:
            raise Unavailable(f"{self.url}{path}: {status}: {message}")
        raise Refused(status, f"{self.url}{path}: {message}")


def _read(response: HTTPResponse, deadline: float) -> bytes:
    """Read the body of a response. Raise OSError if it is incomplete, too long or late."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(READ_BYTES):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
        if size > MAX_RESPONSE_BYTES:
            raise OSError(f"the response has more than {MAX_RESPONSE_BYTES} bytes")
    if response.length:
        raise OSError(f"the connection ended {response.length} bytes too early")
    return b"".join(parts)
