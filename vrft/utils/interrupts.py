"""Make Ctrl-C end waits for the threads of a pool."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""

REPEAT_AFTER = 0.5
"""Seconds between Ctrl-C and its repetition."""


@contextmanager
def repeated_interrupts() -> Iterator[None]:
    """Repeat Ctrl-C if it does not end the block within `REPEAT_AFTER` seconds.

    A thread pool that is left by an exception waits for its threads, which in the Hub's client download whole files. A
    second KeyboardInterrupt ends that wait.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    received, left = threading.Event(), threading.Event()

    def repeat() -> None:
        if not left.wait(REPEAT_AFTER):
            if sys.platform == "win32":
                _thread.interrupt_main()  # os.kill would end the process at once
            else:
                os.kill(os.getpid(), signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if not received.is_set():
            received.set()
            threading.Thread(target=repeat, daemon=True).start()
        before(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        left.set()
        signal.signal(signal.SIGINT, before)


def exit_with(code: int) -> NoReturn:
    """Exit. After Ctrl-C, do not wait for running threads or for the interpreter to free memory."""
    running = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    if code == INTERRUPTED:
        if not running:
            atexit._run_exitfuncs()  # remove temporary folders; the interpreter's further clean-up takes seconds
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
