"""Records: what a user's files say of each sample, checked before training; images are read when they are asked for."""

from __future__ import annotations

import gc
import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image
from rich.progress import track

from vrft.data.augmentation import augment
from vrft.data.datamodule import AugmentedSet, VisionData
from vrft.data.few_shot import choose_shots, record_shots
from vrft.data.images import BadImage, ImageSource, check_image, read_image
from vrft.errors import ConfigurationError
from vrft.types import Sample, Target

Part = Literal["train", "val"]
OnBadRecord = Literal["stop", "skip"]

SHOWN = 20
"""Problems that an error lists; the others are counted."""

THREADS = 16
UNKNOWN_SIZE = (0, 0)


@dataclass(frozen=True, slots=True)
class Record:
    """A sample without its image. `where` names it in messages: the file, and the entry in it."""

    image: ImageSource
    where: str
    image_id: int
    query: str
    target: Target
    size: tuple[int, int] = UNKNOWN_SIZE
    metadata: dict[str, Any] = field(default_factory=dict)


class Problems:
    """Bad records of all files, gathered so that they can be reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, reason: str) -> None:
        """`where`: the file and the entry in it, with its id."""
        self.found.append(f"{where}: {reason}")

    def report(self, on_bad_record: OnBadRecord, folder: Path) -> None:
        """Raise ConfigurationError with all of them; or with "skip" warn, and list them in `bad_records.txt`."""
        if not self.found:
            return
        count = len(self.found)
        if on_bad_record == "stop":
            more = [f"and {count - SHOWN} more"] if count > SHOWN else []
            advice = "mend them, or leave them out with data.on_bad_record=skip"
            raise ConfigurationError("\n".join([f"{count} bad records; {advice}", *self.found[:SHOWN], *more]))
        rank_zero_warn(f"{count} bad records are left out, listed in {folder / 'bad_records.txt'}: {self.found[0]}")
        write_lines(folder / "bad_records.txt", self.found)


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
                replaced.append(f"{record.where}: {error}")
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
            on_bad_record: stop with a list of all bad records, or skip and count them.
            augmentation: modules of kornia.augmentation for training images; boxes follow.
        """
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ConfigurationError(f"data.val_fraction: expected a number between 0 and 1, got {val_fraction}")
        self.shots, self.val_fraction, self.on_bad_record = shots, val_fraction, on_bad_record
        self.augmentation = augmentation or []

    @abstractmethod
    def records(self, part: Part, problems: Problems) -> list[Record]:
        """Read the records of a part. What is wrong with one goes to `problems`, and the record is left out."""

    def finish(self, records: list[Record], problems: Problems) -> list[Record]:
        """What can only be done once the sizes of images are known."""
        return records

    def ordered_categories(self) -> Sequence[str]:
        """Names of the categories in the order of their ids, where the data has ids. Known after `setup`."""
        return ()

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        folder = Path(self.trainer.default_root_dir)
        problems = Problems()
        with garbage_kept():
            train = self.records("train", problems) if stage == "fit" or self.val_fraction is not None else []
            val = self.records("val", problems) if self.val_fraction is None else []
        if self.val_fraction is not None:
            train, val = split_by_image(train, self.val_fraction, self.seed)
        if stage == "fit":
            if self.shots is not None:
                usable = UsableImages(problems)
                train = choose_shots(train, category, self.shots, self.seed, usable)
                record_shots(str(folder), [(category(record), str(image_key(record))) for record in train])
            train = self.finish(check_images(train, problems), problems)
            self._train = RecordSet(train, training=True, augmentation=self.augmentation, seed=self.seed)
            warn_of_shared_images(train, val)
        val = self.finish(check_images(val, problems), problems)
        self._val = RecordSet(val, training=False)
        problems.report(self.on_bad_record, folder)
        for name, records in (("train", train), ("val", val)):
            if not records and (name == "val" or stage == "fit"):
                raise ConfigurationError(f"data: no {name} records; expected at least one")

    def train_set(self) -> RecordSet:
        return self._train

    def val_set(self) -> RecordSet:
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
    """Whether a record's image can be used; if not, says so to `problems`, once."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def __call__(self, record: Record) -> bool:
        return bool(check_images([record], self.problems))


def check_images(records: Sequence[Record], problems: Problems) -> list[Record]:
    """The records whose images are there, whole, and of the size that the file says; with that size."""
    sizes: dict[int | Path, tuple[int, int] | BadImage] = {}
    firsts = {image_key(record): record for record in records}

    def check(record: Record) -> tuple[int, int] | BadImage:
        try:
            return check_image(record.image, None if record.size == UNKNOWN_SIZE else record.size)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(check, firsts.values())
        shown = track(results, "images", total=len(firsts), transient=True, disable=len(firsts) < 1000)
        sizes = dict(zip(firsts, shown, strict=True))
    for key, size in sizes.items():
        if isinstance(size, BadImage):
            problems.add(firsts[key].where, f"{firsts[key].image} {size}")
    found = [(record, sizes[image_key(record)]) for record in records]
    return [replace(record, size=size) for record, size in found if not isinstance(size, BadImage)]


def image_key(record: Record) -> int | Path:
    """The same for all records of one image."""
    return record.image if isinstance(record.image, Path) else record.image_id


def split_by_image(records: Sequence[Record], val_fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Train and held-out records that share no image; the share of images that is held out is rounded up."""
    images = list(dict.fromkeys(map(image_key, records)))
    random.Random(f"{seed}/split").shuffle(images)
    held_out = {*images[: -int(-len(images) * val_fraction // 1)]}
    return (
        [record for record in records if image_key(record) not in held_out],
        [record for record in records if image_key(record) in held_out],
    )


def warn_of_shared_images(train: Sequence[Record], val: Sequence[Record]) -> None:
    """Warn if an image is trained on and held out."""
    files = {record.image for record in train if isinstance(record.image, Path)}
    shared = [record.image for record in val if record.image in files]
    if shared:
        rank_zero_warn(f"data: {len(shared)} held-out records have an image that is trained on, e.g. {shared[0]}")


def choose_negatives(candidates: Sequence[Record], count: int, seed: int) -> list[Record]:
    """`count` of the records that ask for what is not there, or all if there are fewer, in their order."""
    chosen = random.Random(f"{seed}/negatives").sample(range(len(candidates)), min(count, len(candidates)))
    return [candidates[position] for position in sorted(chosen)]
