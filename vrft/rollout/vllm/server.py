"""Track the version of a vLLM server's weights, and when to ask the server again after a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vrft.errors import ConfigurationError, RolloutRefused
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.completions import Completion, CompletionRequest
from vrft.rollout.vllm.status import ServerInfo, get_json, model_names
from vrft.rollout.vllm.weights import Weights
from vrft.utils.http_client import Refused, Unavailable

SERVER_INFO_TIMEOUT = 60.0  # seconds
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.5, 30.0  # seconds; the delay doubles with each failure


MAX_BANNED_TOKENS = 1024
"""Maximum number of logit biases in a request to vLLM's model runner V2."""


def check_banned_tokens(server: Client, info: ServerInfo, count: int) -> None:
    """Raise ConfigurationError if a server does not accept a logit bias for each of `count` tokens.

    vLLM's model runner V1 has no limit. Versions without V2 do not report the variable. None means the version's
    default, which is V2 for a growing number of models.
    """
    if count > MAX_BANNED_TOKENS and info.vllm_env.get("VLLM_USE_V2_MODEL_RUNNER", False) is not False:
        raise ConfigurationError(
            f"model.engine: {server.url} bans at most {MAX_BANNED_TOKENS} tokens from completions, and the checkpoint "
            f"has {count} special tokens: start it with VLLM_USE_V2_MODEL_RUNNER=0, or sample without vLLM"
        )


class Server:
    """A server with the version of its weights and, after failures, the time of the next attempt.

    Attributes:
        weights_version: version that the server is known to have; None if unknown.
        failures: number of failures since the last completions.
        retry_at: time of `time.monotonic` before which no requests are sent.
        last_error: error of the last failure.
        accepts_seeds: whether requests may have a seed.
        model_name: the server's name for the base model.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.weights_version: str | None = None
        self.failures, self.retry_at = 0, 0.0
        self.last_error: Unavailable | None = None
        self.accepts_seeds = True
        self.model_name = ""
        self.lock = threading.Lock()

    def check_settings(self, deadline: float) -> ServerInfo:
        """Request the server's settings, check its kind of log-probabilities, and return the settings.

        Args:
            deadline: time of `time.monotonic` by which the server must have answered.

        Raises:
            ConfigurationError: log-probabilities are not those of the distribution from which tokens are sampled.
            Unavailable: the server does not answer.
        """
        client = self.client.with_deadline(deadline)
        info = get_json(client, "/server_info?config_format=json", ServerInfo, timeout=SERVER_INFO_TIMEOUT)
        config = info.vllm_config
        if config.model_config.logprobs_mode != "processed_logprobs":
            raise ConfigurationError(
                f"model.engine: {self.client.url} returns log-probabilities of another distribution than it samples "
                "from: start it with --logprobs-mode processed_logprobs"
            )
        on_cpu = str(config.device_config.device).startswith("cpu")
        # on a CPU, vLLM 0.32 with chunked prefill crashes on requests with a seed
        self.accepts_seeds = not (on_cpu and config.scheduler_config.enable_chunked_prefill)
        self.model_name = model_names(client)[0]
        return info

    def update(self, weights: Weights, deadline: float) -> None:
        """Make the server load the current weights, unless it has them. Raise Unavailable if that fails."""
        if not self.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Unavailable(f"{self.client.url} has not loaded the weights in time")
        try:
            if self.last_error is not None and time.monotonic() < self.retry_at:  # it failed while this thread waited
                raise Unavailable(str(self.last_error))
            if self.weights_version != weights.version:
                with self._delay_after_failure():
                    weights.update(self.client.with_deadline(deadline))
                self.weights_version = weights.version
        finally:
            self.lock.release()

    def complete(
        self, request: CompletionRequest, weights: Weights, deadline: float, seconds: float
    ) -> list[Completion]:
        """Return completions under the current weights.

        Args:
            request: the request.
            weights: the current weights.
            deadline: time of `time.monotonic` by which the server must have answered.
            seconds: timeout for the completions, including the time in the server's queue.

        Raises:
            Unavailable: the server returns no valid completions.
            RolloutRefused: the server refuses the request.
        """
        self.update(weights, deadline)
        client, model = self.client.with_deadline(deadline), weights.model_name(self.model_name)
        body = request.body | {"model": model}
        if not self.accepts_seeds:
            body.pop("seed", None)
        with self._delay_after_failure():
            try:
                content = client.request("POST", "/v1/chat/completions", body, timeout=seconds)
            except Refused as error:
                if error.status == 404:  # a restarted server has no adapter
                    raise Unavailable(str(error)) from error
                raise RolloutRefused(
                    f"model.engine: the prompt of {request.sample_name} is refused: {error}"
                ) from error
            completions = request.parse(content, model)
            if not weights.is_current(client):
                raise Unavailable(f"{self.client.url} answered with other weights than it was sent")
        self.failures, self.retry_at = 0, 0.0
        return completions

    @contextmanager
    def _delay_after_failure(self) -> Iterator[None]:
        """Set the time of the next attempt and forget the version of the weights if the block raises Unavailable."""
        try:
            yield
        except Unavailable as error:
            self.last_error = error
            now = time.monotonic()
            if now >= self.retry_at:  # if several requests fail together, count only the first
                self.retry_at = now + min(MAX_RETRY_DELAY, MIN_RETRY_DELAY * 2 ** min(self.failures, 10))
                self.failures += 1
            self.weights_version = None
            raise
