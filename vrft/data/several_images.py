"""Check questions about several images."""

from __future__ import annotations

from collections.abc import Sequence

from vrft.data.bad_records import BadRecords
from vrft.data.record import Record
from vrft.errors import ConfigurationError


def place_problem(index: int | None, count: int) -> str | None:
    """Return why `index`, counted from 0, is not the index of one of `count` images, or None if it is."""
    if index is None or 0 <= index < count:
        return None
    return f"image_index: expected 0 to {count - 1}, got {index}"


def check_places(records: Sequence[Record], bad_records: BadRecords) -> list[Record]:
    """Return the records with a valid `image_index`; report the others."""
    found = []
    for record in records:
        count, index = record.num_images, record.image_index
        if problem := place_problem(index, count):
            bad_records.add(record.location, problem)
        elif count > 1 and index is None and isinstance(record.target, tuple):
            bad_records.add(
                record.location,
                f"image_index: expected the place, from 0, of the image that the boxes belong to, as there are {count}",
            )
        else:
            found.append(record)
    return found


def refuse_augmentation(records: Sequence[Record]) -> None:
    """Raise ConfigurationError if a record to augment has several images."""
    for record in records:
        if record.num_images > 1:
            raise ConfigurationError(
                f"data.augmentation: {record.location} has {record.num_images} images; expected one, since "
                "augmentations would change each image of a question in another way"
            )
