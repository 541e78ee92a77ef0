"""Show the progress of long work: a bar in a terminal, or a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

INTERVAL = 10.0
"""Seconds between two lines about progress."""


class ThrottledPrinter:
    """Prints a line if the next call would probably come more than `interval` seconds after the last line.

    Short work prints nothing, and regular calls print at least one line per interval.
    """

    def __init__(self, interval: float | None = None) -> None:
        self.interval = INTERVAL if interval is None else interval
        self.last = self.called = time.monotonic()

    def say(self, text: str, *, always: bool = False) -> bool:
        """Print a line if it is due or `always` is true. Return whether it was printed."""
        now = time.monotonic()
        since_call, self.called = now - self.called, now
        due = always or now - self.last + since_call >= self.interval
        if due:
            self.last = now
            print(text, flush=True)
        return due


def has_terminal() -> bool:
    """Return whether a progress bar can be drawn."""
    console = Console()
    return console.is_terminal or console.is_jupyter


@contextmanager
def progress(name: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show progress in the block. Yield a function to call with the number of finished parts.

    Args:
        name: name of the work.
        total: number of parts.
        quiet: show nothing, e.g. on all ranks but the first.
    """
    if quiet:
        yield lambda _: None
    elif has_terminal():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task(name, total=total)
            yield lambda done: progress.update(task, completed=done)
    else:
        lines = ThrottledPrinter()

        def print_line(done: int) -> None:
            lines.say(f"{name} {done}/{total}")

        yield print_line
