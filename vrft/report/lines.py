"""The lines that a run writes for people to look at, and how they are read back: whole, of the right types, or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

LONGEST = 1_000_000
"""Bytes of a line."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Number = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""What a page can compute with."""

Box = tuple[tuple[Number, Number, Number, Number], str, Number | None]
Value = list[Box] | str | None
"""Boxes with labels and confidences, a text, or null for what can't be read."""


class Completion(msgspec.Struct):
    """A completion of `transcripts.jsonl`."""

    rollout: Count
    sample: Count
    image_id: int
    query: str
    generation: Count
    completion: str
    reasoning: str
    valid: bool
    answer: Value
    target: Value
    rewards: dict[str, Number | None]
    reward: Number | None
    advantage: Number | None
    task: str = ""
    image: str | None = None
    size: tuple[Count, Count] | None = None


class HeldOut(msgspec.Struct):
    """A held-out answer of an evaluation's `answers.jsonl`. `score` is the evaluator's, or the reward without one."""

    sample: Count
    image_id: int
    query: str
    completion: str
    reasoning: str
    valid: bool
    answer: Value
    target: Value
    score: Number | None
    reward: Number | None
    image: str | None = None
    size: tuple[Count, Count] | None = None


class Warned(msgspec.Struct):
    """A line of `warnings.jsonl`."""

    rollout: Count
    step: Count
    guard: str
    message: str


class Fault(msgspec.Struct):
    """A line of `faults.jsonl`: a completion, or a sample, of an optimizer step that was left out."""

    rollout: Count
    sample: Count
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
