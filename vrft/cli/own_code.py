"""One-line messages about exceptions in a user's own code."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from vrft.utils.own_code import PACKAGE, is_own_code

WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback")
FRAME = re.compile(r'^  File "([^"\n]+)", line (\d+), in (\S+)$', re.M)


def own_error(error: Exception) -> str | None:
    """Return one line about an exception if a user's own code raised it, else None.

    An exception that vrft raised in a call from a user's code keeps its traceback, which may be needed.
    """
    frames, said = _worker_frames(str(error)) if WORKER.match(str(error)) else _frames(error)
    for file, line, name in reversed(frames):
        path = Path(file).resolve()
        if PACKAGE in path.parents:
            return None
        if is_own_code(path):
            return " ".join(f"{path.name}, line {line}, in {name}: {said}".split())
    return None


def _frames(error: Exception) -> tuple[list[tuple[str, int, str]], str]:
    """Return the frames of an exception, outermost first, and its text with its notes."""
    frames = [(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    return frames, "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


def _worker_frames(text: str) -> tuple[list[tuple[str, int, str]], str]:
    """Return `_frames` of an exception in a DataLoader worker, which torch re-raises with the traceback as text."""
    found = [*FRAME.finditer(text)]
    rest = text[found[-1].end() :] if found else text
    said = [line for line in rest.splitlines() if line and not line.startswith(" ")]
    return [(match[1], int(match[2]), match[3]) for match in found], "; ".join(said)
