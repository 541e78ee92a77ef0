"""Schemas of the JSON lines that a run writes, and a reader that validates them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from vrft.utils.regular_files import open_regular

MAX_LINE_BYTES = 1_000_000

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Number = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""A finite number of moderate size, which the page's script can compute with."""

Box = tuple[tuple[Number, Number, Number, Number], str, Number | None]
Value = list[Box] | str | None
"""Boxes with labels and confidences, a text, or null if the answer can't be parsed."""


class Completion(msgspec.Struct):
    """A completion of `transcripts.jsonl`.

    `image` is the image that the boxes belong to. If there are several, `images` lists all of them, and `place` is the
    index of `image`.
    """

    rollout: Count
    sample: Count
    image_id: int | float | str
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
    images: list[str | None] = []
    place: Count | None = None
    size: tuple[Count, Count] | None = None
    file: str | None = None
    question: str | None = None
    prompt: str | None = None
    problem: str | None = None


class HeldOut(msgspec.Struct):
    """A held-out answer in an evaluation's `answers.jsonl`. `score` is the evaluator's score, or else the reward.

    Only answers that the report may show have `image`, `question` and `prompt`.
    """

    sample: Count
    image_id: int | float | str
    query: str
    completion: str
    reasoning: str
    valid: bool
    answer: Value
    target: Value
    score: Number | None
    reward: Number | None
    image: str | None = None
    images: list[str | None] = []
    place: Count | None = None
    size: tuple[Count, Count] | None = None
    file: str | None = None
    question: str | None = None
    prompt: str | None = None
    problem: str | None = None


class Warned(msgspec.Struct):
    """A line of `warnings.jsonl`."""

    rollout: Count
    step: Count
    guard: str
    message: str


class Fault(msgspec.Struct):
    """A line of `faults.jsonl`: a completion or a sample of a skipped optimizer step."""

    rollout: Count
    sample: Count
    query: str
    completion: str = ""


Line = TypeVar("Line", bound=msgspec.Struct)


def read_lines(path: Path, kind: type[Line], problems: list[str]) -> Iterator[Line]:
    """Yield the valid lines of a file. Report the number of invalid lines in `problems`.

    A running or killed run may leave an incomplete line at the end. A missing file has no lines.
    """
    decoder = msgspec.json.Decoder(kind)
    bad = 0
    try:
        with open_regular(path) as file:
            for line in file:
                try:
                    if len(line) > MAX_LINE_BYTES:
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
