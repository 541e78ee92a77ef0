"""Check the images of records in threads."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vrft.data.bad_records import BadRecords
from vrft.data.image_folders import ImageFolders
from vrft.data.images import BadImage, Header, ImageSource, MissingImage, check_header
from vrft.data.record import UNKNOWN_SIZE, Record, image_key, source_key
from vrft.utils.distributed import is_rank_zero
from vrft.utils.progress import progress

CHECK_THREADS = 16
PROGRESS_MIN_IMAGES = 1000
"""Minimum number of images for which progress is shown."""


class NamedImage(NamedTuple):
    """An image, the location of the record that names it, and the annotated size, if there is one."""

    source: ImageSource
    location: str
    size: tuple[int, int] | None


def check_images(records: Sequence[Record], bad_records: BadRecords, folders: ImageFolders | None) -> list[Record]:
    """Return the records whose images exist, are complete and have the annotated size; `size` is filled in.

    Raises:
        ConfigurationError: an image is outside of `folders`.
    """
    keys = [image_key(record) for record in records]
    firsts: dict[Hashable, NamedImage] = {}
    for key, record in zip(keys, records, strict=True):
        firsts.setdefault(key, main_image(record))
    for record in records:
        for image in record.images if record.num_images > 1 else ():
            firsts.setdefault(source_key(image), NamedImage(image, record.location, None))

    headers = dict(zip(firsts, read_headers([*firsts.values()], "images checked", folders), strict=True))
    for key, header in headers.items():
        if isinstance(header, MissingImage):
            bad_records.add_missing(firsts[key].location, f"{firsts[key].source}: {header}")
        elif isinstance(header, BadImage):
            bad_records.add(firsts[key].location, f"{firsts[key].source}: {header}")
    found = []
    for key, record in zip(keys, records, strict=True):
        header = headers[key]
        others = [headers[source_key(image)] for image in record.images] if record.num_images > 1 else []
        if isinstance(header, Header) and not any(isinstance(other, BadImage) for other in others):
            all_headers = [header, *(other for other in others if isinstance(other, Header))]
            deep = any(one.deep for one in all_headers)
            several = any(one.several_frames for one in all_headers)
            found.append(checked(record, header._replace(deep=deep, several_frames=several)))
    return found


def main_image(record: Record) -> NamedImage:
    """Return the image that a record's boxes belong to."""
    known = record.annotated_size and record.size != UNKNOWN_SIZE
    return NamedImage(record.image, record.location, record.size if known else None)


def checked(record: Record, header: Header) -> Record:
    """Return a record completed with the facts from its image's header."""
    annotated = record.annotated_size and record.size != UNKNOWN_SIZE
    return replace(
        record,
        size=header.size,
        annotated_size=annotated,
        convention=header.convention,
        deep=header.deep,
        several_frames=header.several_frames,
    )


def read_headers(images: Sequence[NamedImage], title: str, folders: ImageFolders | None) -> list[Header | BadImage]:
    """Read the headers of images in threads; show progress under `title` if there are many.

    Raises:
        ConfigurationError: an image is outside of `folders`. In that case, no image is opened.
    """
    for image in images:
        if folders is not None and isinstance(image.source, Path):
            folders.require(image.source, image.location)

    def read(image: NamedImage) -> Header | BadImage:
        try:
            return check_header(image.source, image.size)
        except BadImage as error:
            return error

    quiet = len(images) < PROGRESS_MIN_IMAGES or not is_rank_zero()
    headers: list[Header | BadImage] = []
    with ThreadPoolExecutor(CHECK_THREADS) as pool, progress(title, len(images), quiet) as advance:
        for header in pool.map(read, images):
            headers.append(header)
            advance(len(headers))
    return headers
