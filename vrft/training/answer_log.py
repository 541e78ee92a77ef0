"""Log the answers of a test one by one, so that an interrupted test can resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from vrft.data.files import read_bytes
from vrft.types import Answer, Id, Sample

END = {"complete": True}


class Entry(msgspec.Struct):
    """A line of the log: an answer with its tokens and their log-probabilities."""

    sample: int
    image_id: Id
    query: str
    completion: str
    tokens: list[tuple[str, float]]
    token_ids: list[int]
    examples: list[tuple[Id, str]] = []


class AnswerLog:
    """A folder with one file of JSON lines per rank, whose first line identifies the test.

    The answers of an earlier test are reused if it was interrupted and identified by the same first line.
    """

    def __init__(self, folder: Path, rank: int, asked: Mapping[str, Any] | None) -> None:
        """Read the answers of an earlier test and start this rank's file.

        Args:
            folder: folder of the log.
            rank: rank of this process.
            asked: everything that the answers depend on, as plain values; None: unknown, reuse nothing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(folder.glob("answers-*.jsonl"))
        parts = [_read(file) for file in files]
        interrupted = not all(END in part for part in parts)
        head = {"asked": None if asked is None else dict(asked)}
        kept = [part for part in parts if part and part[0] == head] if interrupted and asked is not None else []
        self.known = {entry["sample"]: entry for part in kept for entry in part[1:] if _is_entry(entry)}
        self.path = folder / f"answers-{rank}.jsonl"
        mine = next((part for file, part in zip(files, parts, strict=True) if file == self.path), [])
        entries = mine if mine in kept else [head]
        lines = [f"{json.dumps(entry)}\n" for entry in entries]
        self.path.write_text("".join(lines), encoding="utf-8")  # without a partial last line

    def recall(self, sample: Sample) -> dict[str, Any] | None:
        """Return the earlier answer to a sample, or None."""
        entry = self.known.get(sample.index)
        if entry is None or (entry["image_id"], entry["query"]) != (sample.image_id, sample.query):
            return None
        return entry if entry.get("examples", []) == _examples(sample) else None

    def add(self, sample: Sample, answer: Answer) -> None:
        """Append an answer."""
        entry = {
            "sample": sample.index,
            "image_id": sample.image_id,
            "query": sample.query,
            "examples": _examples(sample),
            "completion": answer.text,
            "tokens": answer.tokens,
            "token_ids": answer.token_ids,
        }
        self._append(entry)

    def close(self) -> None:
        """Mark the test as complete, so that the next test starts from the beginning."""
        self._append(END)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")


def _examples(sample: Sample) -> list[list[Id]]:
    """Return the images and queries of the few-shot examples in the prompt of a sample."""
    return [[example.image_id, example.query] for example in sample.examples]


def _is_entry(value: Any) -> bool:
    try:
        msgspec.convert(value, type=Entry)
    except msgspec.ValidationError:
        return False
    return True


def _read(path: Path) -> list[Any]:
    """Return the decoded lines of a file, up to a partial line."""
    entries = []
    for line in read_bytes(path).splitlines():
        try:
            entries.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return entries
