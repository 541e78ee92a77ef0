"""Check chat templates before the first prompt, and render them within limits of time and memory."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any

from vrft.errors import ConfigurationError
from vrft.policy.tiny import CHAT_TEMPLATE

LIMITS = {"cpu_seconds": 2, "memory_bytes": 2**29, "characters": 100_000}
"""Limits for rendering a short question, see `render_template`. Longer chats may have more characters."""
SECONDS = 300.0
"""Timeout for the rendering process, which first imports transformers, possibly from a slow disk."""

QUESTION, SYSTEM = "Where is it?", "Answer in English."


def check_template(processor: Any, checkpoint: str, system: bool = False) -> None:
    """Render the chat template for a question about an image, within limits of time and memory.

    Args:
        processor: the checkpoint's processor.
        checkpoint: the checkpoint, for messages.
        system: whether there is also a system turn.

    Raises:
        ConfigurationError: there is no template, it does not end, needs too much memory, fails, or has no place for the
            question, the system turn or the image.
    """
    template = template_of(processor)
    where = f"model.policy.checkpoint: {checkpoint}"
    if not template:
        raise ConfigurationError(
            f"{where} has no chat template: expected chat_template.jinja, chat_template.json or chat_template in "
            "tokenizer_config.json; copy it from the instruction-tuned model of the family"
        )
    tokens = special_tokens(processor)
    if template != CHAT_TEMPLATE and (problem := template_problem(template, tokens, system)):
        raise ConfigurationError(f"{where}: its chat template {problem}")


@lru_cache
def template_problem(template: str, tokens: str, system: bool) -> str | None:
    """Return the problem of a template, or None. `tokens`: special tokens for the template, as JSON."""
    question = {"type": "text", "text": QUESTION}
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, question]}]
    first = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}] if system else []
    conversations = [first + turns, [*first, {"role": "user", "content": [question]}]]
    request = {"template": template, "tokens": json.loads(tokens), "conversations": conversations}
    answer = render(request)
    if "error" in answer:
        return str(answer["error"]) + (" (with a system turn)" if system else "")
    text, without_image = answer["texts"]
    for wanted, name in ((QUESTION, "the question"), *([(SYSTEM, "the system turn")] if system else [])):
        if wanted not in text:
            return f"leaves out {name}"
    if text == without_image or "'type':" in text:
        return "has no place for an image; expected that of a vision-language model"
    return None


def chat_text(processor: Any, chat: Sequence[dict[str, Any]]) -> str:
    """Render a chat up to the beginning of the answer: `apply_chat_template`, within limits.

    A template that terminates for one question may not terminate for another, so all texts are rendered in the separate
    process of `check_template`, with a cache.

    Raises:
        ConfigurationError: the template does not end, needs too much memory, or fails.
    """
    template = template_of(processor)
    if template is None or template == CHAT_TEMPLATE:
        return str(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    return rendered(template, special_tokens(processor), json.dumps(chat))


@lru_cache(maxsize=4096)
def rendered(template: str, tokens: str, chat: str) -> str:
    """Render a chat. `tokens` and `chat` are JSON."""
    answer = render(
        {"template": template, "tokens": json.loads(tokens), "conversations": [json.loads(chat)]}, len(chat)
    )
    if "error" in answer:
        raise ConfigurationError(f"model.policy.checkpoint: its chat template {answer['error']}: {chat[:500]}")
    return str(answer["texts"][0])


def template_of(processor: Any) -> str | None:
    """Return a processor's default template, or None if it has none."""
    template = processor.chat_template
    return template.get("default") if isinstance(template, dict) else template


def special_tokens(processor: Any) -> str:
    """Return the special tokens for a template, as JSON."""
    return json.dumps(processor.tokenizer.special_tokens_map, default=str)


class Renderer:
    """The process that runs `render_template`. It is started on first use, and restarted after a template killed it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.stderr: IO[bytes] | None = None
        """Standard error of the process, a file because it is not read while the process runs."""
        self.owner = 0
        self.timed_out = False
        """Whether the process was ended because of a timeout, which the exit code does not show on Windows."""
        self.lock = Lock()
        """Held from a request to its answer, so that each thread reads the answer to its own request."""
        if sys.platform != "win32":
            os.register_at_fork(after_in_child=self._renew_lock)
        atexit.register(self._end)

    def answer(self, request: str) -> str:
        """Return the line that answers a request, or that states why the process ended."""
        with self.lock:
            if self.owner != os.getpid() or self.process is None or self.process.poll() is not None:
                self._start()
            process, line = self.process, None
            assert process is not None
            try:
                line = self._ask(process, request)
            finally:
                if line is None:  # interrupted: the next request must not read this answer
                    self.process = None
                    process.kill()
                    process.communicate()
            return line or json.dumps({"error": self._failure(process)})

    def _end_after_timeout(self, process: subprocess.Popen[str]) -> None:
        self.timed_out = True
        process.kill()

    def _ask(self, process: subprocess.Popen[str], request: str) -> str:
        """Return the answer of a process, or "" if the process ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(SECONDS, self._end_after_timeout, [process])
        timer.start()
        try:
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:  # a BrokenPipeError, or EINVAL on Windows
            return ""
        finally:
            timer.cancel()

    def _renew_lock(self) -> None:
        """Replace the lock in a forked process, because a thread that was not copied may hold it."""
        self.lock = Lock()

    def _start(self) -> None:
        """Start the process. A process inherited by a fork is left to the parent."""
        command = [sys.executable, "-P", str(Path(__file__).with_name("render_template.py"))]
        pipe, self.stderr = subprocess.PIPE, TemporaryFile()  # noqa: SIM115 # open as long as the process
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.stderr, text=True, encoding="utf-8"
        )
        self.owner, self.timed_out = os.getpid(), False

    def _end(self) -> None:
        """End the process. Closing its input would not suffice, because worker processes inherit the pipe."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()

    def _failure(self, process: subprocess.Popen[str]) -> str:
        """Return why a process ended."""
        process.communicate()
        if self.timed_out or process.returncode < 0:  # a limit of time killed it
            return f"does not end within {LIMITS['cpu_seconds']} s"
        assert self.stderr is not None
        self.stderr.seek(0)
        return f"can't be rendered: {' '.join(self.stderr.read().decode(errors='replace').split())[-200:]}"


RENDERER = Renderer()


def render(request: dict[str, Any], length: int = 0) -> dict[str, Any]:
    """Return the answer of `render_template` to a request. `length`: number of characters of a long chat."""
    limits = LIMITS | {"characters": LIMITS["characters"] + 2 * length}
    return dict(json.loads(RENDERER.answer(json.dumps(request | limits))))
