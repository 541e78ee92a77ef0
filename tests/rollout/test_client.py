"""The HTTP client against hostile servers: one deadline for a whole request, whatever part of the response is late."""

from __future__ import annotations

import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.helpers import CSV_ONLY, Command
from vrft.__main__ import main
from vrft.errors import ConfigurationError, RolloutFailed, RolloutRefused
from vrft.rollout import VLLMServer
from vrft.rollout.vllm.client import Client
from vrft.rollout.vllm.completions import CompletionRequest
from vrft.rollout.vllm.server import Server
from vrft.rollout.vllm.weights import Weights
from vrft.utils.http_client import Refused, Unavailable

TIMEOUT = 0.3
LASTS = 300.0
"""Seconds that a response without end lasts, and that a request without its own deadline waits."""
LATE = LASTS / 10
"""Seconds that count as waiting for such a response, and that no loaded machine needs for a wait of up to a second."""
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

DRIPS = {
    "silence": (b"", b""),
    "the status byte by byte": (b"HTTP/1.1 2", b"0"),
    "a header byte by byte": (OK + b"X-Slow: ", b"a"),
    "headers without end": (OK, b"X-One: a\r\n"),
    "100 Continue without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 Early Hints without end": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a body byte by byte": (OK + b"Content-Length: 1000000\r\n\r\n", b"a"),
    "a body without length": (OK + b"\r\n", b"a"),
    "chunks of a byte": (CHUNKED, b"1\r\na\r\n"),
    "a chunk's size byte by byte": (CHUNKED, b"0"),
    "a chunk's extension byte by byte": (CHUNKED + b"1;x=", b"a"),
    "trailers without end": (CHUNKED + b"0\r\n", b"X-Trailer: a\r\n"),
}
FLOODS = {
    "100 Continue at once": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "headers at once": (OK, b"X-One: a\r\n" * 1000),
    "trailers at once": (CHUNKED + b"0\r\n", b"X-Trailer: a\r\n" * 1000),
    "a chunk's extension at once": (CHUNKED + b"1", b";x=a" * 1000),
    "a status line at once": (b"HTTP/1.1 200 ", b"O" * 1000),
}
BROKEN = {
    "no HTTP": b"220 mail.example.org ESMTP\r\n",
    "nothing": b"",
    "half a header": OK + b"Content-",
    "half a body": OK + b"Content-Length: 10\r\n\r\nabc",
    "half a chunk": CHUNKED + b"5\r\nab",
    "a chunk's size that is no number": CHUNKED + b"x\r\n",
    "a negative length": OK + b"Content-Length: -1\r\n\r\nabc",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a NUL in a header": OK + b"X: \0\r\n\r\n",
    "a header without a name": OK + b": a\r\n\r\n",
}


def serve(listener: socket.socket, opened: list[socket.socket], answer: Callable[[socket.socket], None]) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            opened.append(connection)
            with connection, suppress(OSError):
                connection.recv(2**16)
                answer(connection)


@pytest.fixture
def hostile() -> Iterator[Callable[..., Client]]:
    """Yield a function that starts a server which answers a request by a function, and returns a client of it."""
    opened: list[socket.socket] = []

    def start(answer: Callable[[socket.socket], None]) -> Client:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)
        threading.Thread(target=serve, args=(listener, opened, answer), daemon=True).start()
        return Client(f"http://127.0.0.1:{listener.getsockname()[1]}")

    yield start
    for one in opened:  # which ends a silent answer too
        one.close()


def repeat(start: bytes, piece: bytes, pause: float) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        end = time.monotonic() + LASTS
        while time.monotonic() < end:
            connection.sendall(piece)
            time.sleep(pause)

    return answer


def closing(response: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(response)


ANSWERS = {name: repeat(*parts, 0.02) for name, parts in DRIPS.items()}
ANSWERS |= {name: repeat(*parts, 0) for name, parts in FLOODS.items()}
HOSTILE = [*ANSWERS, *BROKEN]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_response_that_never_ends_costs_the_timeout_once(name: str, hostile: Callable[..., Client]) -> None:
    start = time.monotonic()
    with pytest.raises(Unavailable):
        hostile(ANSWERS[name]).request("GET", "/", timeout=TIMEOUT)
    assert time.monotonic() - start < LATE


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_response_is_unavailable(name: str, hostile: Callable[..., Client]) -> None:
    client = hostile(lambda connection: connection.sendall(BROKEN[name]))
    with pytest.raises(Unavailable, match=client.url):
        client.request("POST", "/x", {"a": 1}, timeout=5)


@pytest.mark.parametrize("name", HOSTILE)
def test_patience_ends_the_wait_for_every_server(name: str, hostile: Callable[..., Client]) -> None:
    client = hostile(ANSWERS.get(name) or closing(BROKEN[name]))
    engine = VLLMServer([client.url], timeout=0.1, patience=0.3)
    engine.weights = cast(Weights, SimpleNamespace(version="1", timeout=0.1, model_name=lambda name: name))
    engine.servers = [Server(client)]
    engine.servers[0].update = lambda *_: None  # type: ignore[method-assign]
    request = cast(CompletionRequest, SimpleNamespace(body={}, sample_name="sample 3"))
    start = time.monotonic()
    with pytest.raises(RolloutFailed, match=r"no server answered the prompt of sample 3 within 0\.3 s"):
        engine._complete(request, 0, threading.Event())
    assert time.monotonic() - start < LATE


@pytest.mark.parametrize(("servers", "seconds"), [(1, 450), (2, 300), (8, 300)])
def test_a_prompt_may_be_queued_for_a_share_of_the_patience(servers: int, seconds: float) -> None:
    """If a response is lost, each server can be asked once more."""
    asked: list[float] = []

    def request(*_: object, timeout: float) -> bytes:
        asked.append(timeout)
        raise RolloutRefused

    engine = VLLMServer([f"http://127.0.0.1:{i + 1}" for i in range(servers)], timeout=300.0, patience=900.0)
    engine.weights = cast(Weights, SimpleNamespace(version="1", timeout=300.0, model_name=lambda name: name))
    engine.servers = [Server(client) for client in engine.clients]
    for server in engine.servers:
        server.update = lambda *_: None  # type: ignore[method-assign]
        server.client.request = request  # type: ignore[method-assign]
    with pytest.raises(RolloutRefused):
        engine._complete(cast(CompletionRequest, SimpleNamespace(body={}, sample_name="")), 0, threading.Event())
    assert asked == [seconds]


@pytest.mark.parametrize(
    ("count", "env", "refused"),
    [
        (1024, {"VLLM_USE_V2_MODEL_RUNNER": None}, False),
        (1025, {"VLLM_USE_V2_MODEL_RUNNER": None}, True),
        (1025, {"VLLM_USE_V2_MODEL_RUNNER": True}, True),
        (1025, {"VLLM_USE_V2_MODEL_RUNNER": False}, False),
        (1025, {}, False),
    ],
)
def test_a_server_that_can_not_ban_all_special_tokens_is_refused(
    count: int, env: dict[str, Any], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = SimpleNamespace(check=lambda *_: None)
    monkeypatch.setattr(Server, "check_settings", lambda *_: SimpleNamespace(vllm_env=env))
    engine = VLLMServer(["http://127.0.0.1:1"])
    engine.num_banned, engine.weights = count, cast(Weights, weights)
    said = r"127.0.0.1:1 bans at most 1024 tokens .* has 1025 special tokens: start it with VLLM_USE_V2_MODEL_RUNNER=0"
    with pytest.raises(ConfigurationError, match=said) if refused else nullcontext():
        engine._checked_server(engine.clients[0], 0.0)


def test_an_update_of_the_weights_in_vain_is_part_of_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is put forward by the timeout of each request stands for a silent server."""
    late, monotonic, timeouts = [0.0], time.monotonic, list[float]()
    monkeypatch.setattr("vrft.rollout.vllm.engine.time.monotonic", lambda: monotonic() + late[0])

    async def silent(method: str, path: str, data: bytes | None, timeout: float) -> None:
        timeouts.append(timeout)
        late[0] += timeout
        raise TimeoutError

    client = Client("http://127.0.0.1:1")
    monkeypatch.setattr(client, "_send", silent)
    engine = VLLMServer([client.url], timeout=3600, patience=600)
    update = SimpleNamespace(version="1", update=lambda server: server.request("GET", "/", timeout=3600))
    engine.weights = cast(Weights, update)
    engine.servers = [Server(client)]
    request = cast(CompletionRequest, SimpleNamespace(body={}, sample_name="sample 3"))
    engine.update_servers()
    with pytest.raises(RolloutFailed, match=r"within 600 s \(model\.engine\.patience\); the last error was: http"):
        engine._complete(request, 0, threading.Event())
    assert timeouts == [pytest.approx(600, abs=LATE)]


@pytest.mark.parametrize("name", ["silence", "headers at once"])
def test_patience_ends_a_run(
    name: str, hostile: Callable[..., Client], quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    client = hostile(ANSWERS.get(name) or closing(BROKEN[name]))
    settings = f"urls: [{client.url}], patience: 1, timeout: 60"
    words = [CSV_ONLY, f"--model.engine={{class_path: VLLMServer, init_args: {{{settings}}}}}"]
    assert main(quick_fit(*words)) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"vrft: model.engine: {client.url} does not report how it was started: ")
    assert re.search("no complete response within 1 s|buffer too long", said[-1])


def test_the_deadline_of_a_run_bounds_a_request(hostile: Callable[..., Client]) -> None:
    start = time.monotonic()
    client = hostile(ANSWERS["a header byte by byte"]).with_deadline(start)
    with pytest.raises(Unavailable, match="no complete response within 1 s"):
        client.request("GET", "/", timeout=LASTS)
    assert time.monotonic() - start < LATE


def test_a_request_can_be_cancelled(hostile: Callable[..., Client]) -> None:
    def cancel(connection: socket.socket) -> None:
        while not client.in_flight:  # the server may be first
            time.sleep(0.001)
        client.with_deadline(math.inf).cancel()
        ANSWERS["silence"](connection)

    client = hostile(cancel)
    with pytest.raises(Unavailable, match="cancelled"):
        client.request("GET", "/", timeout=LASTS)
    assert not client.in_flight


def test_a_valid_response_is_returned_and_errors_are_told_apart(hostile: Callable[..., Client]) -> None:
    def answering(text: bytes) -> Client:
        return hostile(lambda connection: connection.sendall(text))

    assert answering(OK + b"Content-Length: 2\r\n\r\n{}").request("GET", "/", timeout=5) == b"{}"
    assert answering(CHUNKED + b"2\r\n{}\r\n0\r\n\r\n").request("GET", "/", timeout=5) == b"{}"
    with pytest.raises(Refused, match=r"404: .*no such route"):
        answering(b"HTTP/1.1 404 No\r\nContent-Length: 13\r\n\r\nno such route").request("GET", "/", timeout=5)
    with pytest.raises(Unavailable, match="503: "):
        answering(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").request("GET", "/", timeout=5)
