"""A vLLM server on the trainer's GPU: awake while it samples, asleep while the trainer uses the GPU.

A sleeping server has no valid weights: their version is withdrawn before the server falls asleep, so that weights are
sent again at each waking, whatever the server has kept.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable

from vrft.errors import ConfigurationError, RolloutFailed
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.flags import Colocated
from vrft.rollout.vllm.process import ServerProcess
from vrft.rollout.vllm.server import Server
from vrft.rollout.vllm.status import ServerInfo, is_sleeping
from vrft.rollout.vllm.weights import Weights
from vrft.utils.http_client import Refused, Unavailable

POLL_SECONDS = 0.25  # seconds between two checks whether a server is ready
MAX_ATTEMPTS = 2
"""Number of consecutive failed starts and wakings after which the run ends."""

PORT_IN_USE = "address already in use"
"""Part of the message of a server whose port was taken by another program after it was chosen."""


def check_combination(settings: Colocated, four_bits: bool) -> None:
    """Raise ConfigurationError for weights that can't be restored after a server has discarded them."""
    if settings.sleep_level == 2 and four_bits:
        raise ConfigurationError(
            "model.engine.colocated.sleep_level: 2 discards weights in four bits (model.policy.quantize), which are "
            "not sent again; expected 1"
        )


def check_sleep_mode(server: Client, info: ServerInfo) -> None:
    """Raise ConfigurationError if a server was started without sleep mode."""
    if not info.vllm_config.model_config.enable_sleep_mode:
        raise ConfigurationError(
            f"model.engine: {server.url} can't sleep: start it with --enable-sleep-mode, or leave "
            "model.engine.colocated out"
        )


def checked_clients(urls: list[str], colocated: Colocated | None) -> list[Client]:
    """Return clients of the addresses.

    Raises:
        ConfigurationError: there are too few or too many addresses, or an address is invalid or repeated.
    """
    clients = [Client(url) for url in urls]
    if len({client.url for client in clients}) < len(clients):
        raise ConfigurationError("model.engine.urls: the same address twice")
    if colocated is None and not clients:
        raise ConfigurationError("model.engine.urls: expected at least one address, e.g. [http://127.0.0.1:8000]")
    if colocated is not None and len(clients) > 1:
        raise ConfigurationError(
            f"model.engine.urls: expected one server on the trainer's GPU (model.engine.colocated), got {len(clients)}"
        )
    return clients


class SleepingServer:
    """Wakes a server for rollouts and puts it to sleep. Restarts its process, if it belongs to the run, after it died.

    Attributes:
        wakings: number of times that the server was given weights after sleeping or starting.
    """

    def __init__(
        self,
        settings: Colocated,
        weights: Weights,
        source: Client | ServerProcess,
        make_server: Callable[[Client, float], Server],
    ) -> None:
        """Set the server, without contacting it.

        Args:
            settings: settings of the server.
            weights: versions of the weights.
            source: client of the server, or the process to start.
            make_server: checks the settings of the server of a client until a deadline, a time of `time.monotonic`.
                Raises Unavailable if the server does not answer.
        """
        self.settings, self.weights, self.make_server = settings, weights, make_server
        self.process = source if isinstance(source, ServerProcess) else None
        self.client = source if isinstance(source, Client) else None
        self.server: Server | None = None
        self.awake = self.discarded = False  # `discarded`: whether the server has discarded the frozen weights
        self.failures = self.wakings = 0
        self.closed = False
        self.failed: tuple[threading.Event, str] | None = None
        """`stopped` of the last rollout whose server failed too often, and the error for its other threads."""
        self.lock = threading.Lock()

    def connect(self, deadline: float, stopped: threading.Event) -> None:
        """Start the server, if it belongs to the run, check its settings, and put it to sleep.

        Raises:
            ConfigurationError: the server doesn't start, or was started with unsuitable settings.
        """
        for again in (True, False):
            try:
                server = self._start(deadline, stopped)
                self.discarded = is_sleeping(server.client)  # at an unknown level
                break
            except Unavailable as error:
                if not (again and self.process and PORT_IN_USE in self.process.last_lines().lower()):
                    self.close()
                    raise ConfigurationError(f"model.engine: {error}") from error
        self.awake = not self.discarded
        self.sleep()

    def wake(self, deadline: float, stopped: threading.Event) -> Server:
        """Wake the server, load the current weights, and return it. Thread-safe.

        Args:
            deadline: time of `time.monotonic` by which the server must be awake.
            stopped: set if the rollout is cancelled.

        Raises:
            Unavailable: the server doesn't wake; another attempt may succeed.
            RolloutFailed: the server failed to start or wake too often, `stopped` is set, or the run has closed it.
        """
        with self.lock:
            self._check_wanted(stopped)
            while not self.awake or self.server is None or not self._runs():
                try:
                    if self.server is None or not self._runs():
                        self._start(deadline, stopped)
                    self._wake(deadline)
                except (Unavailable, Refused) as error:
                    self._after_failure(error, stopped)
            self.failures = 0
            return self.server

    def sleep(self, seconds: float = math.inf) -> None:
        """Put the server to sleep, which frees the GPU's memory. End a server that is not asleep after `seconds`.

        Raises:
            RolloutFailed: a server that does not belong to the run doesn't fall asleep.
        """
        with self.lock:
            if not self.awake or self.server is None:
                return
            self.awake = False
            self.server.weights_version = None
            client, level = self.server.client.with_deadline(time.monotonic() + seconds), self.settings.sleep_level
            try:
                self.weights.withdraw(client)
                self.discarded |= level == 2
                self.weights.post(client, f"/sleep?level={level}")
                if not is_sleeping(client):
                    raise Unavailable(f"{client.url} is awake although it was asked to sleep")
            except (Unavailable, Refused) as error:
                if self.process is None:
                    raise RolloutFailed(f"the vLLM server doesn't give the GPU's memory back: {error}") from error
                warnings.warn(f"the vLLM server is started again: it doesn't fall asleep: {error}", stacklevel=2)
                self.process.end()

    def close(self) -> None:
        """End the server's process, if it belongs to the run."""
        self.closed = True
        if self.process is not None:
            self.process.end()  # makes a thread that waits for the server give up
            with self.lock:
                self.process.end()  # a thread may have restarted it meanwhile
                self.awake = False

    def cancel(self) -> None:
        """Cancel all pending requests. Can be called from any thread."""
        if self.server is not None:
            self.server.client.cancel()

    def _runs(self) -> bool:
        return self.process is None or self.process.is_running()

    def _start(self, deadline: float, stopped: threading.Event) -> Server:
        """Start the process, if there is one, wait until the server answers, and check its settings."""
        client = self.client or Client(self._started(deadline, stopped))
        self.server = self.make_server(client, deadline)
        self.awake = self.discarded = False
        return self.server

    def _started(self, deadline: float, stopped: threading.Event) -> str:
        """Start the process, wait until it answers, and return its address."""
        assert self.process is not None
        url = self.process.start()
        client = Client(url)
        while self.process.is_running():
            try:
                client.request("GET", "/health", timeout=2.0)
            except (Unavailable, Refused):
                pass
            else:
                return url
            if time.monotonic() > deadline:
                raise Unavailable(f"the vLLM server is not ready in time (model.engine.patience); {self._log()}")
            stopped.wait(POLL_SECONDS)
            self._check_wanted(stopped)
        raise Unavailable(f"the vLLM server has ended before it was ready; {self._log()}")

    def _wake(self, deadline: float) -> None:
        """Wake the memory of the weights, send the weights, and wake the remaining memory."""
        assert self.server is not None
        client = self.server.client.with_deadline(deadline)
        asleep = is_sleeping(client)
        if asleep:
            self.weights.post(client, "/wake_up?tags=weights")
        if self.discarded:
            self.weights.restore_frozen(client)
            self.discarded = False
        self.server.update(self.weights, deadline)
        if asleep:
            self.weights.post(client, "/wake_up?tags=kv_cache")
            if is_sleeping(client):
                raise Unavailable(f"{client.url} is still asleep after it was woken")
        self.awake = True
        self.wakings += 1

    def _check_wanted(self, stopped: threading.Event) -> None:
        """Raise RolloutFailed if the server must not be started for a rollout any more."""
        if self.failed is not None and self.failed[0] is stopped:
            raise RolloutFailed(self.failed[1])
        if self.closed or stopped.is_set():
            self.failures = 0
            raise RolloutFailed("the rollout was cancelled before the vLLM server was awake")

    def _after_failure(self, error: Unavailable | Refused, stopped: threading.Event) -> None:
        """End a server of the run that failed to start or wake and whose state is unknown, or raise an error."""
        if self.process is None:
            stopped.wait(POLL_SECONDS)
            raise Unavailable(str(error)) from error
        log = self._log()
        self.process.end()
        self._check_wanted(stopped)
        self.failures += 1
        if self.failures >= MAX_ATTEMPTS:
            self.failures = 0
            said = (
                f"the vLLM server on this GPU has failed {MAX_ATTEMPTS} times in a row: {error}; {log}; if memory ran "
                "out, try another model.engine.colocated.memory_share or less for the trainer (docs/vllm.md)"
            )
            self.failed = (stopped, said)
            raise RolloutFailed(said) from error
        warnings.warn(f"the vLLM server is started again: {error}", stacklevel=2)

    def _log(self) -> str:
        assert self.process is not None
        return f"the end of {self.process.log}:\n{self.process.last_lines()}"
