"""Records: samples without their images, read from a user's files and checked before training.

Images are decoded on access.
"""

from __future__ import annotations

import gc
import random
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image

from vrft.answers import MAX_BOXES
from vrft.data.augmentation import augment
from vrft.data.datamodule import AugmentedSet, VisionData
from vrft.data.few_shot import choose_shots, record_shots
from vrft.data.images import BadImage, ImageSource, check_image, read_image
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.types import Sample, Target
from vrft.utils.distributed import is_rank_zero
from vrft.utils.progress import progress

Split = Literal["train", "val"]
OnBadRecord = Literal["stop", "skip"]

MAX_LISTED = 20
"""Bad records listed in an error message; the rest are only counted."""

CHECK_THREADS = 16
PROGRESS_MIN_IMAGES = 1000
"""Fewer images are checked without showing progress."""

UNKNOWN_SIZE = (0, 0)


@dataclass(frozen=True, slots=True)
class Record:
    """A sample without its image. `location` (the file and the entry in it) names the record in messages."""

    image: ImageSource
    location: str
    image_id: int
    query: str
    target: Target
    size: tuple[int, int] = UNKNOWN_SIZE
    metadata: dict[str, Any] = field(default_factory=dict)


class BadRecords:
    """Collects the bad records of all files, so that one error can report them together."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, location: str, reason: str) -> None:
        """Add a record. `location` names the file, the entry in it and its id."""
        self.found.append(f"{location}: {reason}")

    def report(self, on_bad_record: OnBadRecord, run: RunDir, *, replace_list: bool) -> None:
        """Raise ConfigurationError if there are bad records; with "skip", warn and list them in `bad_records.txt`.

        Args:
            on_bad_record: raise or warn.
            run: folder of the run.
            replace_list: overwrite an existing list. An evaluation after training sees fewer records and keeps it.
        """
        if not self.found:
            return
        count = f"{len(self.found)} bad record{'s' if len(self.found) > 1 else ''}"
        if on_bad_record == "stop":
            more = [f"and {len(self.found) - MAX_LISTED} more"] if len(self.found) > MAX_LISTED else []
            advice = "fix them, or skip them with data.on_bad_record=skip"
            raise ConfigurationError("\n".join([f"{count}; {advice}", *self.found[:MAX_LISTED], *more]))
        rank_zero_warn(f"{count} skipped, listed in {run.bad_records}: {self.found[0]}")
        if replace_list or not run.bad_records.exists():
            write_lines(run.bad_records, self.found)


@rank_zero_only
def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file in the run's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


class RecordSet(AugmentedSet):
    """A dataset that reads the image of each record on access.

    If a training image can no longer be read, the next readable sample takes its place and lists the failures in
    `metadata["replaced"]`. An unreadable held-out image becomes a blank one, so that its question still counts.
    """

    def __init__(
        self, records: Sequence[Record], *, training: bool, augmentation: Sequence[torch.nn.Module] = (), seed: int = 0
    ) -> None:
        self.records, self.training = records, training
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        replaced = []
        for offset in range(len(self.records) if self.training else 1):
            position = (index + offset) % len(self.records)
            record = self.records[position]
            try:
                image = read_image(record.image, record.size)
            except BadImage as error:
                replaced.append(f"{record.location}: {error}")
                continue
            sample = self._sample(position, record, image, replaced)
            return augment(sample, self.augmentation, (self.seed, self.epoch, position))
        if self.training:
            raise ConfigurationError(f"data: no training image can be read any more; the last error: {replaced[-1]}")
        return self._sample(index, self.records[index], Image.new("RGB", self.records[index].size), replaced)

    @staticmethod
    def _sample(index: int, record: Record, image: Image.Image, replaced: list[str]) -> Sample:
        metadata = record.metadata | ({"replaced": replaced} if replaced else {})
        return Sample(index, image, record.image_id, record.query, record.target, metadata)


class RecordData(VisionData):
    """Base class of data modules that read files. A subclass implements `records`."""

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        shots: int | None = None,
        val_fraction: float | None = None,
        val_shots: int | None = None,
        on_bad_record: OnBadRecord = "stop",
        augmentation: list[torch.nn.Module] | None = None,
    ) -> None:
        """Set the options that all file formats share. Files are read when training starts.

        Args:
            batch_size: prompts per rank and training step.
            eval_batch_size: prompts decoded together in evaluation.
            num_workers: worker processes that read and encode images; 0: the main process does.
            seed: seed of the sample order, the choice of shots and the split.
            shots: records per category to train on, chosen by `seed`; default: all.
            val_fraction: share of the training images to hold out, instead of reading a held-out file.
            val_shots: training records per category to hold out together with their images, chosen by `seed`: a fold
                to tune on. A held-out file is then left for the final test.
            on_bad_record: stop with a list of all bad records, or skip and count them.
            augmentation: kornia.augmentation modules for training images; boxes are transformed along.
        """
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ConfigurationError(f"data.val_fraction: expected a number between 0 and 1, got {val_fraction}")
        if val_fraction is not None and val_shots is not None:
            raise ConfigurationError("data.val_shots: data.val_fraction holds out training images already")
        self.shots, self.val_fraction, self.val_shots = shots, val_fraction, val_shots
        self.on_bad_record = on_bad_record
        self.augmentation = augmentation or []
        self._train: RecordSet | None = None
        self._val: RecordSet | None = None

    def check_held_out(self, given: bool, field: str) -> None:
        """Raise ConfigurationError unless exactly one of a held-out file and `val_fraction` is given.

        With `val_shots`, a held-out file is optional.
        """
        if self.val_shots is None and given == (self.val_fraction is not None):
            raise ConfigurationError(f"data.{field}: expected either held-out samples or data.val_fraction")

    @abstractmethod
    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        """Read the records of a split. Report invalid ones to `bad_records` and leave them out."""

    def extra_records(self, train: Sequence[Record]) -> list[Record]:
        """Return further training records, added to those read from the files."""
        return []

    def finish(self, records: list[Record], bad_records: BadRecords) -> list[Record]:
        """Complete records once the sizes of their images are known."""
        return records

    def ordered_categories(self) -> Sequence[str]:
        """Return the category names by ascending id; empty if the data has no ids. Call after `setup`."""
        return ()

    def category_ids(self) -> dict[str, int]:
        """Return the category ids by name; empty if the data has no ids. Call after `setup`."""
        return {}

    def setup(self, stage: str) -> None:
        """Read and check the files. A split that an earlier stage has read is kept."""
        needs_train = stage == "fit" and self._train is None
        if not needs_train and self._val is not None:
            return
        assert self.trainer is not None
        run = RunDir.of(self.trainer)
        bad_records = BadRecords()
        with gc_disabled():
            inner = self.val_fraction is not None or self.val_shots is not None
            train = self.records("train", bad_records) if needs_train or inner else []
            val = self.records("val", bad_records) if not inner else []
        try:
            train, val = self._choose(train, val, bad_records, needs_train)
        except ConfigurationError:
            bad_records.report(self.on_bad_record, run, replace_list=True)  # the likely reason for too few shots
            raise
        if needs_train:
            if self.shots is not None:
                record_shots(run, [(category(record), str(record.image)) for record in train])
            train += self.extra_records(train)
            train = check_targets(self.finish(check_images(train, bad_records), bad_records), bad_records)
            warn_about_shared_images(train, val)
        val = self.finish(check_images(val, bad_records), bad_records)
        bad_records.report(self.on_bad_record, run, replace_list=stage == "fit")
        for name, records in (("train", train), ("val", val)):
            if not records and (name == "val" or needs_train):
                raise ConfigurationError(f"data: no {name} records; expected at least one")
        self._val = RecordSet(val, training=False)
        if needs_train:
            self._train = RecordSet(train, training=True, augmentation=self.augmentation, seed=self.seed)

    def _choose(
        self, train: list[Record], val: list[Record], bad_records: BadRecords, needs_train: bool
    ) -> tuple[list[Record], list[Record]]:
        """Hold out training records if configured, then choose shots from the rest."""
        usable = UsableImages(bad_records)
        if self.val_fraction is not None:
            train, val = split_by_image(train, self.val_fraction, self.seed)
        elif self.val_shots is not None:
            train, val = split_by_shots(train, self.val_shots, self.seed, usable)
        if needs_train and self.shots is not None:
            train = choose_shots(train, category, self.shots, self.seed, usable)
        return train, val

    def train_set(self) -> RecordSet:
        assert self._train is not None
        return self._train

    def val_set(self) -> RecordSet:
        assert self._val is not None
        return self._val


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection, which would traverse a million new records again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def category(record: Record) -> str:
    """Return the category that shots are counted by: the query for boxes, else the target text."""
    return record.query if isinstance(record.target, tuple) else record.target


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


def image_key(record: Record) -> Hashable:
    """Return a key that all records of one image share."""
    return record.image if isinstance(record.image, Path) else record.image.key()


def split_by_image(records: Sequence[Record], val_fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split into train and held-out records without common images, rounding the held-out images up."""
    images = list(dict.fromkeys(map(image_key, records)))
    random.Random(f"{seed}/split").shuffle(images)
    held_out = {*images[: -int(-len(images) * val_fraction // 1)]}
    return (
        [record for record in records if image_key(record) not in held_out],
        [record for record in records if image_key(record) in held_out],
    )


def split_by_shots(
    records: Sequence[Record], val_shots: int, seed: int, usable: Callable[[Record], bool]
) -> tuple[list[Record], list[Record]]:
    """Split into train and held-out records without common images, holding out `val_shots` of each category."""
    val = choose_shots(records, category, val_shots, f"{seed}/fold", usable, "data.val_shots")
    held_out = {image_key(record) for record in val}
    return [record for record in records if image_key(record) not in held_out], val


def warn_about_shared_images(train: Sequence[Record], val: Sequence[Record]) -> None:
    """Warn if training and held-out records share images."""
    files = {record.image for record in train if isinstance(record.image, Path)}
    shared = [record.image for record in val if record.image in files]
    if shared:
        rank_zero_warn(f"data: {len(shared)} held-out records have an image of the training data, e.g. {shared[0]}")
