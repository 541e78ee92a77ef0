"""A chat server with faults on demand, whose marks follow from the image and the answer that it gets."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

FAULTS = {
    "error": (500, b"no memory"),
    "busy": (429, b"slow down"),
    "no JSON": (200, b"<html>"),
    "no choice": (200, b'{"choices": []}'),
    "no text": (200, b'{"choices": [{"message": {"content": null}}]}'),
    "cut": (200, b'{"choices": [{"message": {"content": "3"}, "finish_reason": "length"}]}'),
    "redirect": (302, b""),
    "refused": (401, b"wrong key: "),
}
"""Status and body of a response, by the name of the fault. The body of a refusal ends with the key that was sent."""


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


class ChatServer:
    """Answers with `mark` of the mean grey of the image and the text; `faults` come first, one per request.

    A fault is a name of `FAULTS`, "hang up", or a text to reply with. `delay`: seconds before each answer.
    """

    def __init__(self, mark: Callable[[int, str], object], delay: float = 0.0) -> None:
        self.mark, self.delay = mark, delay
        self.faults: deque[str] = deque()
        self.asked: list[dict[str, Any]] = []
        self.running, self.most_running = 0, 0
        self.lock = threading.Lock()
        server = self

        class Handler(Routes):
            chat = server

        self.http = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def reply(self, body: dict[str, Any], key: str) -> tuple[int, bytes] | None:
        with self.lock:
            self.asked.append(body)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            fault = self.faults.popleft() if self.faults else None
        try:
            time.sleep(self.delay)
            return self.response(fault, body, key)
        finally:
            with self.lock:
                self.running -= 1

    def response(self, fault: str | None, body: dict[str, Any], key: str) -> tuple[int, bytes] | None:
        if fault == "hang up":
            return None
        if fault in FAULTS:
            status, content = FAULTS[fault]
            return status, content + key.encode() if fault == "refused" else content
        (image, text) = body["messages"][0]["content"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        grey = Image.open(io.BytesIO(data)).convert("RGB").resize((1, 1)).getpixel((0, 0))
        assert isinstance(grey, tuple)
        said = f"Let me see.\n{self.mark(grey[0], text['text'])}\n" if fault is None else fault
        return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()


class Routes(BaseHTTPRequestHandler):
    chat: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        if (answer := self.chat.reply(body, self.headers.get("Authorization", ""))) is None:
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def log_message(self, *_: object) -> None:
        pass
