"""Progress of long work: a bar in a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

INTERVAL = 10.0
"""Minimum seconds between two lines."""


class ThrottledPrinter:
    """Prints at most one line per `INTERVAL` seconds, so that short work prints nothing."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a line, unless one was printed recently and `always` is false."""
        if always or time.monotonic() - self.last >= INTERVAL:
            self.last = time.monotonic()
            print(text, flush=True)


def has_terminal() -> bool:
    """Return whether a progress bar can be drawn."""
    console = Console()
    return console.is_terminal or console.is_jupyter


@contextmanager
def progress(name: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show progress, and yield a function that takes the number of finished parts.

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
        yield lambda done: lines.say(f"{name} {done}/{total}")
