"""The HTTP client of a vLLM server."""

from __future__ import annotations

from vrft.errors import ConfigurationError
from vrft.utils.http_client import HttpClient
from vrft.utils.redact import redact


class Client(HttpClient):
    """A client of one vLLM server."""

    def __init__(self, url: str) -> None:
        """Parse the address.

        Raises:
            ConfigurationError: the address is not http or https, contains a login, or ends with /v1.
        """
        super().__init__(url, "model.engine.urls", "VLLM_API_KEY")
        if self.url.endswith("/v1"):
            raise ConfigurationError(
                f"model.engine.urls: expected addresses like http://127.0.0.1:8000, got {redact(url)!r}; without a "
                "login and without /v1"
            )
