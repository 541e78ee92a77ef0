"""Check the images and targets of records before training."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from vrft.answers import MAX_BOXES
from vrft.data.bad_records import BadRecords, counted
from vrft.data.files import brief
from vrft.data.image_checks import check_images, main_image, read_headers
from vrft.data.image_folders import ImageFolders
from vrft.data.images import Convention, Header
from vrft.data.record import Record, category, image_key, source_key
from vrft.data.several_images import check_places
from vrft.data.tiles import tiles_of
from vrft.errors import ConfigurationError
from vrft.tasks import Task
from vrft.types import Detection
from vrft.utils import notices
from vrft.utils.display import LONE_SURROGATE

TooManyBoxes = Literal["largest", "tiles", "refuse"]


class UsableImages:
    """Predicate: whether the images of a record are usable. Reports each unusable image to `bad_records` once."""

    def __init__(self, bad_records: BadRecords, folders: ImageFolders | None) -> None:
        self.bad_records, self.folders = bad_records, folders
        self.known: dict[Hashable, bool] = {}

    def __call__(self, record: Record) -> bool:
        key = (image_key(record), *map(source_key, record.images))
        if key not in self.known:
            self.known[key] = bool(check_images([record], self.bad_records, self.folders))
        return self.known[key]


def limit_targets(records: list[Record], too_many_boxes: TooManyBoxes) -> list[Record]:
    """Return training records whose targets have at most MAX_BOXES boxes, the maximum of an answer.

    Raises:
        ConfigurationError: a target has more boxes, and `too_many_boxes` is "refuse".
    """
    over = [record for record in records if is_over_limit(record)]
    if not over:
        return records
    largest = max(over, key=lambda record: len(record.target))
    found = (
        f"{len(over)} of {counted(len(records), 'training record')} with more than {MAX_BOXES} boxes, the limit of an "
        f"answer; up to {len(largest.target)} in {largest.location}"
    )
    if too_many_boxes == "refuse":
        raise ConfigurationError(
            f"data.too_many_boxes: {found}; data.too_many_boxes=tiles trains on parts of the images with fewer boxes, "
            f"data.too_many_boxes=largest on the {MAX_BOXES} largest of each"
        )
    if too_many_boxes == "tiles":
        tiled = [part for record in records for part in (tiles_of(record) if is_over_limit(record) else [record])]
        count = len(tiled) - len(records) + len(over)
        said = f"data: {found}. They train as {count} tiles, parts of their images with up to {MAX_BOXES} boxes"
        if left_out := sum(len(record.target) - MAX_BOXES for record in tiled if is_over_limit(record)):
            full = sum(map(is_over_limit, tiled))
            said += (
                f". {full} of them can't be cut further, since their sides are too short or they have several images: "
                f"they train on their {MAX_BOXES} largest boxes, without {counted(left_out, 'smaller box')}"
            )
        notices.warn(said)
        records = tiled
    else:
        notices.warn(
            f"data: {found}. They train on their {MAX_BOXES} largest boxes; data.too_many_boxes=tiles trains on more "
            "in parts of their images, and data.too_many_boxes=refuse stops instead"
        )
    return [replace(record, target=largest_boxes(record)) if is_over_limit(record) else record for record in records]


def is_over_limit(record: Record) -> bool:
    """Return whether the target has more boxes than an answer can hold."""
    return isinstance(record.target, tuple) and len(record.target) > MAX_BOXES


def largest_boxes(record: Record) -> tuple[Detection, ...]:
    """Return the MAX_BOXES largest boxes of a target in their original order."""
    assert isinstance(record.target, tuple)
    areas = [(found.box[2] - found.box[0]) * (found.box[3] - found.box[1]) for found in record.target]
    kept = {*sorted(range(len(areas)), key=lambda i: -areas[i])[:MAX_BOXES]}
    return tuple(found for i, found in enumerate(record.target) if i in kept)


def targets_over_limit(records: Sequence[Record]) -> str | None:
    """Return a warning if an answer can't hold all objects of an evaluated record, else None."""
    if not (over := sum(map(is_over_limit, records))):
        return None
    return (
        f"data: {over} of {counted(len(records), 'evaluated record')} with more than {MAX_BOXES} boxes, the limit "
        "of an answer; the objects beyond it count as missed"
    )


def warn_of_targets_over_limit(records: Sequence[Record]) -> None:
    """Warn if an answer can't hold all objects of an evaluated record."""
    if message := targets_over_limit(records):
        rank_zero_warn(message)


def usable_records(
    records: Sequence[Record],
    everything: Sequence[Record],
    task: Task,
    bad_records: BadRecords,
    folders: ImageFolders | None,
    image_bits: int | None,
) -> list[Record]:
    """Return the records whose texts, images and targets are usable.

    Args:
        records: the records of a split.
        everything: all records of the same file.
        task: the task that asks about them.
        bad_records: receives the unusable records.
        folders: folders that must contain the images; None: no restriction.
        image_bits: bits per colour of the camera, if known.
    """
    records = check_places(check_texts(records, bad_records), bad_records)
    records = check_queries(records, task, bad_records)
    records = check_images(records, bad_records, folders)
    if image_bits is None:
        warn_of_guessed_depths(records)
    warn_of_first_frames(records)
    return settle_orientation(records, everything, bad_records, folders)


def check_texts(records: Sequence[Record], bad_records: BadRecords) -> list[Record]:
    """Return the records whose questions and answers have no lone surrogates, which can't be tokenized or written."""
    found = []
    for record in records:
        texts = (record.query, record.target) if isinstance(record.target, str) else (record.query,)
        broken = next((text for text in texts if LONE_SURROGATE.search(text)), None)
        if broken is None:
            found.append(record)
        else:
            bad_records.add(record.location, f"expected text in UTF-8, got {brief(broken)}")
    return found


def check_queries(records: Sequence[Record], task: Task, bad_records: BadRecords) -> list[Record]:
    """Return the records whose queries the task can ask."""
    problems = {query: task.query_problem(query) for query in {record.query for record in records}}
    for record in records:
        if problem := problems[record.query]:
            bad_records.add(record.location, problem)
    return [record for record in records if not problems[record.query]]


def settle_orientation(
    records: list[Record], everything: Sequence[Record], bad_records: BadRecords, folders: ImageFolders | None
) -> list[Record]:
    """Decide whether boxes refer to upright or stored pixels if the annotated size fits both.

    Annotation tools treat all images alike, so the other images of the same file decide.

    Args:
        records: checked records.
        everything: all records of the file, a superset of `records`.
        bad_records: receives undecidable images, for which the other images contradict each other.
        folders: folders that must contain the images.
    """
    boxed = [record for record in records if isinstance(record.target, tuple)]
    ambiguous = {image_key(record): record for record in boxed if record.convention == "ambiguous"}
    if not ambiguous:
        return records
    others = {image_key(record): record for record in everything}
    for record in records:
        others.pop(image_key(record), None)
    headers = read_headers([*map(main_image, others.values())], "orientations read", folders)
    found = {record.convention for record in boxed} | {
        header.convention for header in headers if isinstance(header, Header)
    }
    if {"upright", "stored"} <= found:
        for record in ambiguous.values():
            bad_records.add(
                record.location,
                f"{record.image}: its Exif orientation keeps the size, and other images contradict each other on "
                "whether boxes belong to the upright image; rotate the image, or remove the tag",
            )
        return [record for record in records if image_key(record) not in ambiguous]
    convention: Convention = "stored" if "stored" in found else "upright"
    if convention not in found:
        example = next(iter(ambiguous.values())).image
        notices.warn(
            f"data: {counted(len(ambiguous), 'image')} with an Exif orientation, e.g. {example}: "
            "no annotated size shows whether the boxes refer to the upright image, which is assumed"
        )
    return [replace(record, convention=convention) if image_key(record) in ambiguous else record for record in records]


def warn_of_guessed_depths(records: Sequence[Record]) -> None:
    """Warn if the depth of images is guessed."""
    if deep := list(dict.fromkeys(record.image for record in records if record.deep)):
        notices.warn(
            f"data: {counted(len(deep), 'image')} with more than 8 bits per colour, e.g. {deep[0]}. The depth of each "
            "is guessed from its brightest pixel, so images of one camera may differ in brightness; data.image_bits=12 "
            "states it"
        )


def warn_of_first_frames(records: Sequence[Record]) -> None:
    """Warn of image files with further frames or pages, which are not read."""
    if several := list(dict.fromkeys(record.image for record in records if record.several_frames)):
        notices.warn(
            f"data: {counted(len(several), 'image')} with several frames or pages, e.g. {several[0]}; the first frame "
            "is read"
        )


def warn_about_shared_images(used: Sequence[Record], others: Sequence[Record], name: str, use: str) -> None:
    """Warn if `others`, described by `name`, share images with `used`, whose purpose is `use`."""
    keys = {source_key(image) for record in used for image in record.images}
    shared = [next((image for image in record.images if source_key(image) in keys), None) for record in others]
    shared = [image for image in shared if image is not None]
    if shared:
        records = counted(len(shared), f"{name} record")
        notices.warn(f"data: {records} with an image of the {use} data, e.g. {shared[0]}")


def warn_about_test_split(
    train: Sequence[Record], val: Sequence[Record], test: Sequence[Record], bad: Sequence[str]
) -> None:
    """Warn before training if the test split shares images with the others, or has bad records that stop `test`."""
    warn_about_shared_images(train, test, "test", "training")
    warn_about_shared_images(val, test, "test", "held-out")
    if bad:
        count = counted(len(bad), "bad record")
        notices.warn(f"data: `test` will stop at {count} of the test split, e.g. {bad[0]}")


def warn_about_similar_names(records: Iterable[Record]) -> None:
    """Warn if names of categories or classes differ only in case, blanks or Unicode normalisation."""
    names: dict[str, str] = {}
    similar = []
    for name in dict.fromkeys(map(category, records)):
        other = names.setdefault(unicodedata.normalize("NFKC", "".join(name.split())).casefold(), name)
        if other != name:
            similar.append(f"{other!r} and {name!r}")
    if similar:
        notices.warn(
            f"data: {counted(len(similar), 'pair')} of names that differ only in case, blanks or Unicode form, e.g. "
            f"{similar[0]}; rename one of each if they mean the same"
        )


def at_least_one(records: list[Record], name: str, bad_records: BadRecords) -> list[Record]:
    """Return the records. Raise ConfigurationError if there are none, and count the skipped bad records, if any."""
    if not records:
        skipped = [*bad_records.missing, *bad_records.found]
        reason = f"; {counted(len(skipped), 'bad record')} skipped, e.g. {skipped[0]}" if skipped else ""
        raise ConfigurationError(f"data: no {name} records; expected at least one{reason}")
    return records
