"""Checks of records before training: images and targets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from vrft.answers import MAX_BOXES
from vrft.data.bad_records import BadRecords
from vrft.data.images import BadImage, check_image
from vrft.data.record import UNKNOWN_SIZE, Record, image_key
from vrft.utils.distributed import is_rank_zero
from vrft.utils.progress import progress

CHECK_THREADS = 16
PROGRESS_MIN_IMAGES = 1000
"""Fewer images are checked without showing progress."""


class UsableImages:
    """A predicate: whether the image of a record is usable. Reports each unusable image to `bad_records` once."""

    def __init__(self, bad_records: BadRecords) -> None:
        self.bad_records = bad_records
        self.known: dict[Hashable, bool] = {}

    def __call__(self, record: Record) -> bool:
        key = image_key(record)
        if key not in self.known:
            self.known[key] = bool(check_images([record], self.bad_records))
        return self.known[key]


def check_targets(records: Sequence[Record], bad_records: BadRecords) -> list[Record]:
    """Return the records whose target an answer can hold, i.e. at most MAX_BOXES boxes."""
    for record in records:
        if isinstance(record.target, tuple) and len(record.target) > MAX_BOXES:
            bad_records.add(record.location, f"{len(record.target)} boxes; an answer has at most {MAX_BOXES}")
    return [record for record in records if isinstance(record.target, str) or len(record.target) <= MAX_BOXES]


def check_images(records: Sequence[Record], bad_records: BadRecords) -> list[Record]:
    """Return the records whose images exist, are complete and have the annotated size; `size` is filled in."""
    keys = [image_key(record) for record in records]
    firsts: dict[Hashable, Record] = {}
    for key, record in zip(keys, records, strict=True):
        firsts.setdefault(key, record)

    def check(record: Record) -> tuple[int, int] | BadImage:
        try:
            return check_image(record.image, None if record.size == UNKNOWN_SIZE else record.size)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        results = pool.map(check, firsts.values())
        sizes: dict[Hashable, tuple[int, int] | BadImage] = {}
        quiet = len(firsts) < PROGRESS_MIN_IMAGES or not is_rank_zero()
        with progress("images checked", len(firsts), quiet) as advance:
            for key, size in zip(firsts, results, strict=True):
                sizes[key] = size
                advance(len(sizes))
    for key, size in sizes.items():
        if isinstance(size, BadImage):
            bad_records.add(firsts[key].location, f"{firsts[key].image}: {size}")
    found = [(record, sizes[key]) for key, record in zip(keys, records, strict=True)]
    return [replace(record, size=size) for record, size in found if not isinstance(size, BadImage)]


def warn_about_shared_images(train: Sequence[Record], val: Sequence[Record]) -> None:
    """Warn if training and held-out records share images."""
    files = {record.image for record in train if isinstance(record.image, Path)}
    shared = [record.image for record in val if record.image in files]
    if shared:
        rank_zero_warn(f"data: {len(shared)} held-out records have an image of the training data, e.g. {shared[0]}")
