"""Records: samples whose images are not decoded yet."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vrft.data.images import Convention, ImageSource
from vrft.errors import ConfigurationError
from vrft.types import Detection, Id, Target
from vrft.utils.display import counted

Split = Literal["train", "val", "test"]

UNKNOWN_SIZE = (0, 0)

NAMES = ("category", "class")
"""Values of `RecordData.noun` for which targets are names of categories or classes."""


class Tile(NamedTuple):
    """A part of an image that is shown instead of the whole image."""

    area: tuple[int, int, int, int]
    """Left, top, right and bottom, in pixels of the image."""
    image_size: tuple[int, int]
    """Width and height of the image."""


@dataclass(frozen=True, slots=True)
class Record:
    """A sample without its image. `location` (the file and the entry in it) names the record in messages."""

    images: tuple[ImageSource, ...]
    location: str
    image_id: Id
    query: str
    target: Target
    size: tuple[int, int] = UNKNOWN_SIZE
    """Width and height of `image`, or of `tile` if there is one, to which the boxes refer."""
    annotated_size: bool = True
    """Whether `size` comes from the annotations and not from `image`."""
    convention: Convention = "ambiguous"
    """Whether the boxes refer to the upright or to the stored pixels; known once the image is checked."""
    deep: bool = False
    """Whether an image's pixels have more than 8 bits; known once the images are checked."""
    several_frames: bool = False
    """Whether the file of an image has several frames or pages; known once the images are checked."""
    metadata: dict[str, Any] = field(default_factory=dict)
    image_index: int | None = None
    """Index of the image that the boxes belong to; required for boxes on one of several images."""
    tile: Tile | None = None
    """The part of `image` that is shown; None: the whole image."""

    @property
    def image(self) -> ImageSource:
        """The image that the boxes belong to, by default the last."""
        return self.images[-1 if self.image_index is None else self.image_index]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.images)


def only_records(found: object, source: str) -> list[Record]:
    """Return `found`, which the method `source` returned. Raise ConfigurationError unless it is a list of records."""
    expected = "expected a list of vrft.data.record.Record"
    if not isinstance(found, list):
        raise ConfigurationError(f"data: {source} returned {type(found).__name__}; {expected}")
    for number, record in enumerate(found):
        if not isinstance(record, Record):
            raise ConfigurationError(f"data: {source}[{number}] is {type(record).__name__}; {expected}")
        if not isinstance(record.images, tuple) or not record.images:
            raise ConfigurationError(
                f"data: {source}[{number}].images is {type(record.images).__name__}; expected a tuple of one or more "
                "paths"
            )
    return found


def category(record: Record) -> str:
    """Return the category that shots are counted by: the query for boxes, else the target text."""
    return record.query if isinstance(record.target, tuple) else record.target


def source_key(image: ImageSource) -> Hashable:
    """Return a key that identifies an image, whichever record refers to it."""
    return image if isinstance(image, Path) else image.key()


def boxes_of(record: Record) -> Sequence[Detection]:
    """Return the boxes of the target; empty if the target is text."""
    return record.target if isinstance(record.target, tuple) else ()


def image_key(record: Record) -> Hashable:
    """Return a key that records share if their boxes or answers are about the same image."""
    return source_key(record.image)


def content(records: Sequence[Record], noun: str) -> str:
    """Describe the content of records, e.g. "12 images with 30 boxes and 1 category". `noun`: see `RecordData.noun`."""
    boxes = sum(len(record.target) for record in records if isinstance(record.target, tuple))
    with_boxes = any(isinstance(record.target, tuple) for record in records)
    parts = [counted(boxes, "box")] if with_boxes else []
    parts.append(counted(len({category(record) for record in records}), noun))
    images = {source_key(image) for record in records for image in record.images}
    return f"{counted(len(images), 'image')} with {' and '.join(parts)}"
