"""Progress of long work: a bar where there is a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

INTERVAL = 10.0
"""Seconds between two lines."""


class ThrottledPrinter:
    """Prints a line if the last one is `INTERVAL` seconds ago, so that short work leaves none."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def say(self, text: str, *, always: bool = False) -> None:
        """Print it, or not yet."""
        if always or time.monotonic() - self.last >= INTERVAL:
            self.last = time.monotonic()
            print(text, flush=True)


def has_terminal() -> bool:
    """Whether a bar can be drawn."""
    console = Console()
    return console.is_terminal or console.is_jupyter


@contextmanager
def progress(name: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show how far work is; yields a function that is told how much of `total` is done.

    Args:
        name: of the work.
        total: parts that it has.
        quiet: show nothing, as on all ranks but the first.
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
