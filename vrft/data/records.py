"""The base class of data modules that read a user's files and check them before training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from vrft.data.bad_records import BadRecords, OnBadRecord
from vrft.data.datamodule import VisionData, module_of
from vrft.data.depths import check_image_bits
from vrft.data.examples import ExamplePool, most_images
from vrft.data.few_shot import record_shots
from vrft.data.files import UTF8, check_encoding
from vrft.data.ground_truth import LabelledImage, coco_tables, labelled_images
from vrft.data.held_out import Selection, unused_held_out
from vrft.data.image_folders import ImageFolders
from vrft.data.record import NAMES, Record, Split, category, content, only_records
from vrft.data.record_checks import (
    TooManyBoxes,
    UsableImages,
    at_least_one,
    limit_targets,
    usable_records,
    warn_about_shared_images,
    warn_about_similar_names,
    warn_about_test_split,
    warn_of_targets_over_limit,
)
from vrft.data.record_set import RecordSet
from vrft.data.several_images import refuse_augmentation
from vrft.data.split_sources import OtherHeldOut
from vrft.data.success_rates import fingerprints, kept_records
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.types import Id
from vrft.utils import notices
from vrft.utils.bounds import Fraction, Seed
from vrft.utils.garbage import gc_disabled
from vrft.utils.own_code import check_overrides


class RecordData(VisionData):
    """Base class of data modules that read a user's files. A subclass implements `records`."""

    noun = "answer"
    """Noun for a record's target, for messages."""
    test_setting = "a test split"
    """Setting or folder that provides a test split, for messages."""

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        seed: Seed = 0,
        shots: int | None = None,
        val_fraction: Fraction | None = None,
        val_shots: int | None = None,
        on_bad_record: OnBadRecord = "stop",
        on_missing_image: OnBadRecord = "stop",
        encoding: str = UTF8,
        too_many_boxes: TooManyBoxes = "largest",
        allow_outside: bool = False,
        image_bits: int | None = None,
        augmentation: list[torch.nn.Module] | None = None,
        examples: int = 0,
        keep: str | None = None,
    ) -> None:
        """Set the options that all file formats share. Files are read when training starts.

        Args:
            batch_size: prompts per rank and training step.
            eval_batch_size: prompts decoded together in evaluation.
            num_workers: worker processes that read and encode images; 0: use the main process.
            seed: seed of the sample order, the choice of shots and the split.
            shots: records per category to train on, chosen by `seed`; default: all.
            val_fraction: share of the training images to hold out, instead of reading a held-out file.
            val_shots: training records per category to hold out together with their images, chosen by `seed`: a fold
                to tune on. Other objects in these images are ignored. A held-out file is kept for the final test.
            on_bad_record: stop with a list of all bad records, or skip and count them.
            on_missing_image: stop with a list of all records whose image does not exist, or skip and count them.
            encoding: encoding of text files that have no byte order mark.
            too_many_boxes: what to do with training records that have more boxes than an answer may have, 100: train on
                the largest, on tiles of the image with fewer boxes, or refuse. A tile that can't be cut further trains
                on its largest boxes. In held-out records, the objects beyond the limit count as missed.
            allow_outside: also read images outside of their folder, reached by absolute paths, `..` or links.
            image_bits: bits per colour of the camera, for images of more than 8 bits; default: as many as the brightest
                value of each image needs.
            augmentation: kornia.augmentation modules for training images, which transform the boxes too.
            examples: number of labelled training images that each prompt shows before its question, with their correct
                answers. They are chosen by `seed`, from each category in turn, and are the same for all prompts of a
                batch.
            keep: file of success rates written by `python -m vrft filter`, which selects the training samples. Applied
                last, after `shots` and the held-out fold.
        """
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_overrides(self, RecordData)
        self.selection = Selection(shots, val_fraction, val_shots, seed)
        check_image_bits(image_bits)
        check_encoding(encoding)
        self.shots, self.val_fraction, self.val_shots = shots, val_fraction, val_shots
        self.on_bad_record, self.on_missing_image = on_bad_record, on_missing_image
        self.encoding, self.too_many_boxes = encoding, too_many_boxes
        self.allow_outside, self.image_bits = allow_outside, image_bits
        self.augmentation = augmentation or []
        if examples < 0:
            raise ConfigurationError(f"data.examples: expected at least 0, got {examples}")
        self.examples = examples
        self.keep = None if keep is None else Path(keep)
        self.pool: ExamplePool | None = None
        self._train: RecordSet | None = None
        self._val: RecordSet | None = None
        self._test: RecordSet | None = None

    @abstractmethod
    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        """Read the records of a split. Report invalid ones to `bad_records` and leave them out."""

    def splits(self) -> Collection[Split]:
        """Return the splits for which the config gives files or folders."""
        return ["train"]

    def image_folders(self, split: Split) -> ImageFolders | None:
        """Return the folders that must contain the images of a split. Default: None, no restriction."""
        return None

    def required_folders(self, split: Split) -> ImageFolders | None:
        """Return `image_folders`, or None if `allow_outside` is set."""
        return None if self.allow_outside else self.image_folders(split)

    def tested_split(self) -> Split | None:
        """Return the split that `test` reads, or None if it uses the held-out images.

        Without a test split, `test` reads the "val" split if training images are held out instead of it.
        """
        if "test" in self.splits():
            return "test"
        return "val" if self.selection.holds_out and "val" in self.splits() else None

    def other_held_out(self) -> OtherHeldOut | None:
        """Return the held-out samples of the files if the run holds out training samples instead of using them."""
        return OtherHeldOut("the held-out split of the files") if "val" in self.splits() else None

    def extra_records(self, train: Sequence[Record]) -> list[Record]:
        """Return training records to add to those of the files."""
        return []

    def finish(self, records: list[Record], bad_records: BadRecords) -> list[Record]:
        """Complete records once the sizes of their images are known."""
        return records

    def ordered_categories(self) -> Sequence[str]:
        """Return the category names by ascending id; empty if the data has no ids. Call after `setup`."""
        return ()

    def category_ids(self) -> dict[str, Id]:
        """Return the category ids by name; empty if the data has no ids. Call after `setup`."""
        return {}

    def evaluated_set(self) -> RecordSet:
        if self.trainer is not None and self.trainer.predicting and self.predicts == "train":
            return self._evaluated(self.train_set().records)
        return self.test_set() if self.is_testing else self.val_set()

    def evaluated_split(self) -> Split:
        """Return the split of the evaluated images; "train" if they are a fold of the training images."""
        if self.is_testing and (split := self.tested_split()) is not None:
            return split
        return "train" if self.selection.holds_out else "val"

    def labelled_images(self) -> list[LabelledImage]:
        """Return the evaluated images with all their boxes. Default: the boxes of the questions about them."""
        return labelled_images(self.evaluated_set().records)

    def truth_file(self) -> Path | None:
        """Return the COCO or LVIS file with exactly the evaluated images, or None if there is none."""
        return None

    def truth_tables(self) -> dict[str, Any]:
        """Return the ground truth of the evaluated images in COCO's format. Call after `setup`."""
        return coco_tables(self.labelled_images(), self.category_ids())

    def setup(self, stage: str) -> None:
        """Read and check the files. A split that an earlier stage has read is kept."""
        assert self.trainer is not None
        tests = stage == "test" or (stage == "predict" and self.predicts == "test")
        module = module_of(self.trainer) if self.examples and stage == "fit" else None
        if module is not None and module.difficulty is not None:  # a prompt may be in two batches with other examples
            raise ConfigurationError(
                "data.examples: expected 0 with model.difficulty, whose passes may ask a prompt more than once"
            )
        if self.examples and self.pool is None:
            self._setup_train_and_val(True, replace_list=stage == "fit")
        if self.pool is not None and module is not None:
            self.pool.check_batches(self.batch_size * module.batches_per_step * self.trainer.world_size)
        if tests and (split := self.tested_split()) is not None:
            self._setup_test(split)
            return
        if tests:
            rank_zero_info(
                f"data: no test split is given, so the test uses the held-out images, which may also have chosen the "
                f"checkpoint; {self.test_setting} provides one"
            )
        trains = stage == "fit" or (stage == "predict" and self.predicts == "train")
        needs_train = trains and self._train is None
        if needs_train or self._val is None:
            self._setup_train_and_val(needs_train, replace_list=stage == "fit")

    def _read_records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        return only_records(self.records(split, bad_records), f"{type(self).__name__}.records({split!r})")

    def _setup_test(self, split: Split) -> None:
        if self._test is not None:
            return
        bad_records = BadRecords()
        with gc_disabled():
            test = self._read_test(split, bad_records)
        test = self._checked(test, test, split, bad_records)
        self._report(bad_records, replace_list=False)
        warn_of_targets_over_limit(test)
        self._test = self._evaluated(at_least_one(test, "test", bad_records))
        bad_records.say([f"{content(test, self.noun)} to test on"])

    def _read_test(self, split: Split, bad_records: BadRecords) -> list[Record]:
        """Read the records of `test`. The ConfigurationError for an invalid split says how to test without one."""
        try:
            return self._read_records(split, bad_records)
        except ConfigurationError as error:
            hint = f"; without {self.test_setting}, `test` uses the held-out images" if split == "test" else ""
            raise ConfigurationError(f"{error}{hint}") from error

    def _setup_train_and_val(self, needs_train: bool, *, replace_list: bool) -> None:
        assert self.trainer is not None
        bad_records = BadRecords()
        with gc_disabled():
            inner = self.selection.holds_out
            all_train = self._read_records("train", bad_records) if needs_train or inner else []
            all_val = self._read_records("val", bad_records) if not inner else all_train
        if inner:
            self._warn_of_other_held_out()
        try:
            usable = UsableImages(bad_records, self.required_folders("train"))
            train, val, available = self.selection.choose(all_train, [] if inner else all_val, usable, needs_train)
        except ConfigurationError:
            self._report(bad_records, replace_list=True)  # bad records are the likely reason for too few shots
            raise
        chosen = len(train)
        if needs_train:
            if self.shots is not None:
                record_shots(RunDir.of(self.trainer), [(category(record), str(record.image)) for record in train])
            train += self.extra_records(train)
            refuse_augmentation(train if self.augmentation else [])
            train = limit_targets(self._checked(train, all_train, "train", bad_records), self.too_many_boxes)
            train, left_out = self._kept(train)
            warn_about_shared_images(train, val, "held-out", "training")
            self._check_test_split(train, val)
            if self.noun in NAMES:
                warn_about_similar_names([*train, *val])
        val = self._checked(val, all_val, "train" if inner else "val", bad_records)
        self._report(bad_records, replace_list=replace_list)
        if needs_train:
            at_least_one(train, "train", bad_records)
            self.pool = ExamplePool(train, self.examples, self.seed) if self.examples else None
        warn_of_targets_over_limit(val)
        self._val = self._evaluated(at_least_one(val, "val", bad_records))
        said = [f"{content(val, self.noun)} held out"]
        if inner and self.tested_split() == "val":
            said.append("the held-out split of the files is left for `test`")
        if needs_train:
            self._train = RecordSet(
                train,
                training=True,
                augmentation=self.augmentation,
                seed=self.seed,
                image_bits=self.image_bits,
                examples=self.pool,
            )
            said = [f"{content(train, self.noun)} to train on", *said]
            if self.shots is not None:
                said.append(f"data.shots={self.shots} leaves out {available - chosen} of {available} training records")
            said += left_out
        bad_records.say(said)

    def _kept(self, train: list[Record]) -> tuple[list[Record], list[str]]:
        """Return the training records that `data.keep` keeps, and notices about the others."""
        if self.keep is None or not train:
            return train, []
        assert self.trainer is not None
        task = module_of(self.trainer).task
        asked = {"task": type(task).__name__, "template": task.template}
        kept, said = kept_records(train, self.keep, asked, self.image_folders("train"))
        return kept, [said]

    def _evaluated(self, records: Sequence[Record]) -> RecordSet:
        """Return a dataset of records to evaluate on."""
        return RecordSet(records, training=False, image_bits=self.image_bits, examples=self.pool)

    def _warn_of_other_held_out(self) -> None:
        """Warn of held-out samples in the files that are not used, or that `test` uses by default."""
        other, is_tested = self.other_held_out(), self.tested_split() == "val"
        if other is None or (is_tested and self.val_shots is not None):
            return
        count = ""
        if "val" in self.splits():
            with suppress(ConfigurationError):  # an unused split may be invalid
                count = f" ({content(self._read_records('val', BadRecords()), self.noun)})"
        notices.warn(unused_held_out(other, count, self.selection.fold, is_tested=is_tested))

    def _check_test_split(self, train: Sequence[Record], val: Sequence[Record]) -> None:
        """Warn before training if the test split shares images with the others, or has bad records."""
        if (split := self.tested_split()) is None:
            return
        bad_records = BadRecords()
        try:
            test = self._read_test(split, bad_records)
        except ConfigurationError as error:  # a data.yaml often names a test split that isn't there
            notices.warn(f"data: `test` will stop, because its split can't be read: {error}")
            return
        warn_about_test_split(train, val, test, bad_records.found if self.on_bad_record == "stop" else [])

    def _checked(
        self, records: list[Record], everything: list[Record], split: Split, bad_records: BadRecords
    ) -> list[Record]:
        """Return the records whose images and targets are usable. `everything`: all records of the same file."""
        assert self.trainer is not None
        task, folders = module_of(self.trainer).task, self.required_folders(split)
        records = usable_records(records, everything, task, bad_records, folders, self.image_bits)
        return self.finish(records, bad_records)

    def _report(self, bad_records: BadRecords, *, replace_list: bool) -> None:
        assert self.trainer is not None
        run = RunDir.of(self.trainer)
        bad_records.report(self.on_bad_record, self.on_missing_image, run, replace_list=replace_list)

    def images_per_turn(self) -> list[int]:
        sets = [found for found in (self._train, self._val, self._test) if found is not None]
        shown = [self.pool.most_shown] * self.examples if self.pool is not None else []
        return [*shown, max(most_images(found.records) for found in sets)]

    def train_set(self) -> RecordSet:
        assert self._train is not None
        return self._train

    def val_set(self) -> RecordSet:
        assert self._val is not None
        return self._val

    def train_fingerprints(self) -> list[int]:
        return fingerprints(self.train_set().records)

    def test_set(self) -> RecordSet:
        return self.val_set() if self._test is None else self._test
