"""The lines that a run writes for people to look at, and how they are read back: whole, of the right types, or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

LONGEST = 1_000_000
"""Bytes of a line."""

Box = tuple[tuple[float, float, float, float], str, float | None]
Value = list[Box] | str | None
"""Boxes with labels and confidences, a text, or null for what can't be read."""


class Completion(msgspec.Struct):
    """A completion of `transcripts.jsonl`."""

    rollout: int
    sample: int
    image_id: int
    query: str
    generation: int
    completion: str
    reasoning: str
    valid: bool
    answer: Value
    target: Value
    rewards: dict[str, float | None]
    reward: float | None
    advantage: float | None
    task: str = ""
    image: str | None = None
    size: tuple[int, int] | None = None


class HeldOut(msgspec.Struct):
    """A held-out answer of an evaluation's `answers.jsonl`. `score` is the evaluator's, or the reward without one."""

    sample: int
    image_id: int
    query: str
    completion: str
    reasoning: str
    valid: bool
    answer: Value
    target: Value
    score: float | None
    reward: float | None
    image: str | None = None
    size: tuple[int, int] | None = None


class Warned(msgspec.Struct):
    """A line of `warnings.jsonl`."""

    rollout: int
    step: int
    guard: str
    message: str


class Fault(msgspec.Struct):
    """A line of `faults.jsonl`: a completion, or a sample, of an optimizer step that was left out."""

    rollout: int
    sample: int
    query: str
    completion: str = ""


Line = TypeVar("Line", bound=msgspec.Struct)


def read_lines(path: Path, kind: type[Line], problems: list[str]) -> Iterator[Line]:
    """The lines of a file that are what they should be; how many others there are goes to `problems`.

    A run that is going on or was killed may leave half a line at the end. A file that isn't there has no lines.
    """
    decoder = msgspec.json.Decoder(kind)
    bad = 0
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    if len(line) > LONGEST:
                        raise msgspec.DecodeError
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    bad += 1
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} can't be read: {error.strerror}")
    if bad:
        left_out = f"{bad} line{'s' if bad > 1 else ''} can't be read and {'are' if bad > 1 else 'is'} left out"
        problems.append(f"{path.name}: {left_out}")
