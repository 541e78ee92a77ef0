"""An HTTP client that connects only to addresses from the config, without redirects and proxies."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from functools import cache
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from vrft.errors import ConfigurationError, RolloutRefused
from vrft.utils.redact import redact

MAX_RESPONSE_BYTES = 2**28  # a group of completions with log-probabilities takes a few megabytes
CLOSING_SECONDS = 0.2  # to close the connection of a late response
RETRYABLE_STATUSES = (408, 425, 429)  # the 4xx statuses timeout, too early, too many requests


class Unavailable(Exception):
    """Raised if the server gives no valid response; another attempt may succeed."""


class Refused(Exception):
    """Raised if the server refuses a request; another attempt would be refused too."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class HttpClient:
    """A client of one server. Each request opens its own connection, so threads can share a client."""

    def __init__(self, url: str, field: str, key_variable: str, max_bytes: int = MAX_RESPONSE_BYTES) -> None:
        """Parse the address.

        Args:
            url: the base address, to which requests append their paths.
            field: the setting that names the address, for messages.
            key_variable: environment variable with the API key; no key is sent if it is not set.
            max_bytes: maximum size of a response.

        Raises:
            ConfigurationError: the address is not http or https, or contains a login.
        """
        expected = f"{field}: expected addresses like http://127.0.0.1:8000, got {redact(url)!r}"
        try:
            parts = urlsplit(url)
            httpx.URL(url)
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigurationError(expected) from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(expected)
        if parts.username is not None:
            raise ConfigurationError(f"{expected}; without a login")
        self.url, self.field, self.key_variable = url.rstrip("/"), field, key_variable
        self.max_bytes = max_bytes
        self.deadline = math.inf
        self.in_flight: set[Future[tuple[int, bytes]]] = set()
        """Pending requests, including those of copies."""

    def with_deadline(self, deadline: float) -> Self:
        """Return a client whose requests end by `deadline`, a time of `time.monotonic`, or up to a second later."""
        limited = copy.copy(self)
        limited.deadline = deadline
        return limited

    def cancel(self) -> None:
        """Cancel all pending requests, which raise Unavailable."""
        for sent in [*self.in_flight]:
            sent.cancel()

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float) -> bytes:
        """Send a request and return the body of the response.

        Args:
            method: GET or POST.
            path: path of the route.
            body: content to send as JSON.
            timeout: seconds for the whole request, from the DNS look-up to the end of the response.

        Raises:
            Unavailable: the connection fails, or the response is late, incomplete, too long, or has a temporary
                status: 5xx, 408, 425 or 429.
            Refused: the response has another 4xx status.
            RolloutRefused: the response is a redirect.
        """
        timeout = min(timeout, max(1.0, self.deadline - time.monotonic()))
        data = None if body is None else json.dumps(body).encode()
        sent = asyncio.run_coroutine_threadsafe(self._send(method, path, data, timeout), _event_loop(os.getpid()))
        self.in_flight.add(sent)
        try:
            status, content = sent.result(timeout + CLOSING_SECONDS)
        except CancelledError as error:
            raise Unavailable(f"{self.url}{path}: cancelled") from error
        except TimeoutError as error:
            raise Unavailable(f"{self.url}{path}: no complete response within {timeout:.3g} s") from error
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"{self.url}{path}: {error or type(error).__name__}") from error
        finally:
            sent.cancel()  # if this thread was interrupted
            self.in_flight.discard(sent)
        return self._content(path, status, content)

    async def _send(self, method: str, path: str, data: bytes | None, timeout: float) -> tuple[int, bytes]:
        """Send a request and return the status and the body of the response.

        Raises:
            TimeoutError: the response is late.
            OSError: the response is too long.
            httpx.HTTPError: the connection fails, or the response is not valid HTTP.
        """
        headers = {"Content-Type": "application/json", "Connection": "close", "Accept-Encoding": "identity"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        verify = _tls() if self.url.startswith("https") else False
        async with (
            asyncio.timeout(timeout),
            httpx.AsyncClient(verify=verify, trust_env=False, timeout=None) as client,
            client.stream(method, self.url + path, content=data, headers=headers) as response,
        ):
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > self.max_bytes:
                    raise OSError(f"the response has more than {self.max_bytes} bytes")
            return response.status_code, bytes(content)

    def _content(self, path: str, status: int, content: bytes) -> bytes:
        if 200 <= status < 300:
            return content
        if 300 <= status < 400:
            raise RolloutRefused(
                f"{self.field}: {self.url} answers {path} with a redirect, which is not followed: name the "
                "address itself"
            )
        message = " ".join(content[:500].decode(errors="replace").split())
        if status >= 500 or status in RETRYABLE_STATUSES:
            raise Unavailable(f"{self.url}{path}: {status}: {message}")
        raise Refused(status, f"{self.url}{path}: {message}")


@cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop that sends the requests of a process, in a separate thread.

    Only an asynchronous request can have a single deadline for all of its steps and an interruptible waiting thread.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"http-{process}", daemon=True).start()
    return loop


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
