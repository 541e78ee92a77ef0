"""A record: a sample without its image, which is decoded on access."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vrft.data.images import ImageSource
from vrft.types import Id, Target

Split = Literal["train", "val"]

UNKNOWN_SIZE = (0, 0)


@dataclass(frozen=True, slots=True)
class Record:
    """A sample without its image. `location` (the file and the entry in it) names the record in messages."""

    image: ImageSource
    location: str
    image_id: Id
    query: str
    target: Target
    size: tuple[int, int] = UNKNOWN_SIZE
    metadata: dict[str, Any] = field(default_factory=dict)


def category(record: Record) -> str:
    """Return the category that shots are counted by: the query for boxes, else the target text."""
    return record.query if isinstance(record.target, tuple) else record.target


def image_key(record: Record) -> Hashable:
    """Return a key that all records of one image share."""
    return record.image if isinstance(record.image, Path) else record.image.key()
