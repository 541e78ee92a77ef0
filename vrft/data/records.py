"""Records: what a user's files say of each sample, checked before training; images are read when they are asked for."""

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
from lightning.fabric.utilities.rank_zero import _get_rank
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
from vrft.utils.progress import progress

Split = Literal["train", "val"]
OnBadRecord = Literal["stop", "skip"]

SHOWN = 20
"""BadRecords that an error lists; the others are counted."""

THREADS = 16
MANY = 1000
"""Images from which checking them shows how far it is."""

UNKNOWN_SIZE = (0, 0)


@dataclass(frozen=True, slots=True)
class Record:
    """A sample without its image. `location` names it in messages: the file, and the entry in it."""

    image: ImageSource
    location: str
    image_id: int
    query: str
    target: Target
    size: tuple[int, int] = UNKNOWN_SIZE
    metadata: dict[str, Any] = field(default_factory=dict)


class BadRecords:
    """Bad records of all files, gathered so that they can be reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, location: str, reason: str) -> None:
        """`location`: the file and the entry in it, with its id."""
        self.found.append(f"{location}: {reason}")

    def report(self, on_bad_record: OnBadRecord, run: RunDir, *, replace_list: bool) -> None:
        """Raise ConfigurationError with all of them; or with "skip" warn, and list them in `bad_records.txt`.

        `replace_list`: also where there is such a list, which an evaluation after training would cut short.
        """
        if not self.found:
            return
        count = f"{len(self.found)} bad record{'s' if len(self.found) > 1 else ''}"
        if on_bad_record == "stop":
            more = [f"and {len(self.found) - SHOWN} more"] if len(self.found) > SHOWN else []
            advice = "mend them, or leave them out with data.on_bad_record=skip"
            raise ConfigurationError("\n".join([f"{count}; {advice}", *self.found[:SHOWN], *more]))
        rank_zero_warn(f"{count} left out, listed in {run.bad_records}: {self.found[0]}")
        if replace_list or not run.bad_records.exists():
            write_lines(run.bad_records, self.found)


@rank_zero_only
def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file in the run's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


class RecordSet(AugmentedSet):
    """Samples of records.

    A training image that turns unreadable while a run is on is replaced by the next one that can be read, which says
    so in `metadata["replaced"]`. A held-out one becomes a blank image, so that its question still counts.
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
        for following in range(len(self.records) if self.training else 1):
            position = (index + following) % len(self.records)
            record = self.records[position]
            try:
                image = read_image(record.image, record.size)
            except BadImage as error:
                replaced.append(f"{record.location}: {error}")
                continue
            sample = self._sample(position, record, image, replaced)
            return augment(sample, self.augmentation, (self.seed, self.epoch, position))
        if self.training:
            raise ConfigurationError(f"no image of the training data can be read any more; the last: {replaced[-1]}")
        return self._sample(index, self.records[index], Image.new("RGB", self.records[index].size), replaced)

    @staticmethod
    def _sample(index: int, record: Record, image: Image.Image, replaced: list[str]) -> Sample:
        metadata = record.metadata | ({"replaced": replaced} if replaced else {})
        return Sample(index, image, record.image_id, record.query, record.target, metadata)


class RecordData(VisionData):
    """Samples out of files. A subclass says what the files hold: `records`."""

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
        """What all files have in common; they are read when training starts.

        Args:
            batch_size: prompts per rank and training step.
            eval_batch_size: prompts decoded at once in evaluation.
            num_workers: processes that read and encode images; 0: the main one.
            seed: of the order, the choice of shots and the split.
            shots: records per category to train on, chosen by `seed`; default: all.
            val_fraction: hold out this share of the training images instead of reading a file of held-out ones.
            val_shots: hold out this many training records per category, chosen by `seed`, and all their images: a fold
                to tune on. Whatever is said of held-out files is left for the test.
            on_bad_record: stop with a list of all bad records, or skip and count them.
            augmentation: modules of kornia.augmentation for training images; boxes follow.
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
        """Raise ConfigurationError unless either a file of held-out samples or `val_fraction` is given.

        With `val_shots` there may be a file as well.
        """
        if self.val_shots is None and given == (self.val_fraction is not None):
            raise ConfigurationError(f"data.{field}: expected either held-out samples or data.val_fraction")

    @abstractmethod
    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        """Read the records of a part. What is wrong with one goes to `bad_records`, and the record is left out."""

    def extra_records(self, train: Sequence[Record]) -> list[Record]:
        """Records to train on beside those that were read and chosen."""
        return []

    def finish(self, records: list[Record], bad_records: BadRecords) -> list[Record]:
        """What can only be done once the sizes of images are known."""
        return records

    def ordered_categories(self) -> Sequence[str]:
        """Names of the categories in the order of their ids, where the data has ids. Known after `setup`."""
        return ()

    def category_ids(self) -> dict[str, int]:
        """Ids of the categories by name, where the data has ids. Known after `setup`."""
        return {}

    def setup(self, stage: str) -> None:
        """Read and check the files; what has been read is kept for the next stage."""
        needs_train = stage == "fit" and self._train is None
        if not needs_train and self._val is not None:
            return
        assert self.trainer is not None
        run = RunDir.of(self.trainer)
        bad_records = BadRecords()
        with garbage_kept():
            inner = self.val_fraction is not None or self.val_shots is not None
            train = self.records("train", bad_records) if needs_train or inner else []
            val = self.records("val", bad_records) if not inner else []
        try:
            train, val = self._choose(train, val, bad_records, needs_train)
        except ConfigurationError:
            bad_records.report(self.on_bad_record, run, replace_list=True)  # why there are too few
            raise
        if needs_train:
            if self.shots is not None:
                record_shots(run, [(category(record), str(record.image)) for record in train])
            train += self.extra_records(train)
            train = check_targets(self.finish(check_images(train, bad_records), bad_records), bad_records)
            warn_of_shared_images(train, val)
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
        """Hold out records of the training data, if that is asked for, then choose shots of the others."""
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
def garbage_kept() -> Iterator[None]:
    """Without Python's collector, which would go through a million new records again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def category(record: Record) -> str:
    """What few-shot selection counts: the class that is asked for, or the class name that is the answer."""
    return record.query if isinstance(record.target, tuple) else record.target


class UsableImages:
    """Whether a record's image can be used; if not, says so to `bad_records`, once."""

    def __init__(self, bad_records: BadRecords) -> None:
        self.bad_records = bad_records
        self.known: dict[Hashable, bool] = {}

    def __call__(self, record: Record) -> bool:
        key = image_key(record)
        if key not in self.known:
            self.known[key] = bool(check_images([record], self.bad_records))
        return self.known[key]


def check_targets(records: Sequence[Record], bad_records: BadRecords) -> list[Record]:
    """The records whose answer can be read back: no more boxes than an answer may have."""
    for record in records:
        if isinstance(record.target, tuple) and len(record.target) > MAX_BOXES:
            bad_records.add(record.location, f"{len(record.target)} boxes; an answer has at most {MAX_BOXES}")
    return [record for record in records if isinstance(record.target, str) or len(record.target) <= MAX_BOXES]


def check_images(records: Sequence[Record], bad_records: BadRecords) -> list[Record]:
    """The records whose images are there, whole, and of the size that the file says; with that size."""
    keys = [image_key(record) for record in records]
    firsts: dict[Hashable, Record] = {}
    for key, record in zip(keys, records, strict=True):
        firsts.setdefault(key, record)

    def check(record: Record) -> tuple[int, int] | BadImage:
        try:
            return check_image(record.image, None if record.size == UNKNOWN_SIZE else record.size)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(check, firsts.values())
        sizes: dict[Hashable, tuple[int, int] | BadImage] = {}
        with progress("images checked", len(firsts), len(firsts) < MANY or _get_rank() not in (None, 0)) as advance:
            for key, size in zip(firsts, results, strict=True):
                sizes[key] = size
                advance(len(sizes))
    for key, size in sizes.items():
        if isinstance(size, BadImage):
            bad_records.add(firsts[key].location, f"{firsts[key].image}: {size}")
    found = [(record, sizes[key]) for key, record in zip(keys, records, strict=True)]
    return [replace(record, size=size) for record, size in found if not isinstance(size, BadImage)]


def image_key(record: Record) -> Hashable:
    """The same for all records of one image."""
    return record.image if isinstance(record.image, Path) else record.image.key()


def split_by_image(records: Sequence[Record], val_fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Train and held-out records that share no image; the share of images that is held out is rounded up."""
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
    """Train and held-out records that share no image; these are `val_shots` of each category."""
    val = choose_shots(records, category, val_shots, f"{seed}/fold", usable, "data.val_shots")
    held_out = {image_key(record) for record in val}
    return [record for record in records if image_key(record) not in held_out], val


def warn_of_shared_images(train: Sequence[Record], val: Sequence[Record]) -> None:
    """Warn if an image is trained on and held out."""
    files = {record.image for record in train if isinstance(record.image, Path)}
    shared = [record.image for record in val if record.image in files]
    if shared:
        rank_zero_warn(f"data: {len(shared)} held-out records have an image that is trained on, e.g. {shared[0]}")
