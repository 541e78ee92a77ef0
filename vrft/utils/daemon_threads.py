"""Run work in threads that don't delay the end of the process, unlike those of concurrent.futures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def for_each(work: Callable[[T], None], items: Iterable[T], most: int, name: str, stop: Callable[[], None]) -> None:
    """Call a function that raises nothing with each item, in daemon threads.

    Args:
        work: the function.
        items: its arguments.
        most: maximum number of threads.
        name: name of the threads.
        stop: called if this thread is interrupted, to make the running calls return soon.
    """
    left = deque(items)

    def run() -> None:
        with suppress(IndexError):  # no items are left
            while True:
                work(left.popleft())

    threads = [threading.Thread(target=run, name=name, daemon=True) for _ in range(min(most, len(left)))]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        for thread in started:
            thread.join()
    except BaseException:
        stop()
        for thread in started:
            thread.join()
        raise
