"""COCO and LVIS instances files: one sample per pair of image and category, or one per image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from lightning.pytorch.utilities import rank_zero_info

from vrft.data.bad_records import BadRecords
from vrft.data.categories import ANNOTATED, CategoryData
from vrft.data.files import UTF8, brief, is_text, refuse_fractions, require_file, require_folder
from vrft.data.formats.coco_entries import (
    EXPECTED,
    CategoryEntry,
    ImageEntry,
    LabelledEntry,
    TruthFile,
    box_reason,
    clip,
    empty_parents,
    file_of,
    image_reason,
    read_instances,
    read_parts,
    rotation_reason,
    truth_tables,
)
from vrft.data.formats.coco_fields import id_order, is_json_id, read_flag, values_reason
from vrft.data.formats.other_formats import refuse_other_format
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record, Split
from vrft.data.split_sources import OtherHeldOut, annotated, beside, given
from vrft.errors import ConfigurationError
from vrft.types import Detection, Id
from vrft.utils import notices
from vrft.utils.display import counted


class CocoData(CategoryData):
    """Images with a COCO or LVIS instances file for each split.

    An entry of `images` may have `context_images`, a list of file names of images that the prompt shows before the
    image that the boxes belong to.
    """

    test_setting = "data.test_annotations"

    def __init__(
        self,
        train_annotations: str,
        train_images: str | None = None,
        val_annotations: str | None = None,
        val_images: str | None = None,
        per_image: bool = False,
        test_annotations: str | None = None,
        test_images: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the files, which are read when training starts.

        Args:
            train_annotations: COCO or LVIS instances file of the training images.
            train_images: folder of the training images; default: the folder of the instances file.
            val_annotations: instances file of the held-out images; default: see `val_fraction`.
            val_images: folder of the held-out images.
            per_image: ask for all categories in one prompt per image; for `MultiCategoryDetectionTask`.
            test_annotations: instances file of the images for `test`; default: the held-out images.
            test_images: folder of the images for `test`.
            kwargs: see `CategoryData`.
        """
        super().__init__(**kwargs)
        annotations = given(train_annotations, val_annotations, test_annotations)
        named = annotated(annotations, {"train": train_images, "val": val_images, "test": test_images})
        self.files = {split: (file, images or file.parent) for split, (file, images) in named.items()}
        self.selection.check_held_out("val" in self.files, "val_annotations")
        if per_image and self.negatives:
            raise ConfigurationError("data.negatives: prompts of data.per_image ask for absent categories already")
        self.per_image = per_image
        self.instances: Instances | None = None
        self.check_paths()

    def check_paths(self) -> None:
        """Raise ConfigurationError if a file or folder is missing."""
        for split, (file, images) in self.files.items():
            if file.is_dir():
                refuse_other_format(file, EXPECTED)
            require_file(f"{split}_annotations", file, EXPECTED)
            require_folder(f"{split}_images", images, "a folder of images")

    def splits(self) -> Collection[Split]:
        return self.files

    def other_held_out(self) -> OtherHeldOut | None:
        if "val" in self.files:
            return OtherHeldOut(str(self.files["val"][0]))
        return beside(self.files["train"][0], "data.val_annotations", [path for path, _ in self.files.values()])

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders("file_name", (self.files[split][1],))

    def ordered_categories(self) -> Sequence[str]:
        if self.instances is None:
            return []
        names = self.instances.names
        return list(dict.fromkeys(names[key] for key in sorted(names, key=id_order)))

    def file_categories(self) -> Sequence[str]:
        return Instances(*self.files["train"], BadRecords(), self.encoding).known

    def category_ids(self) -> dict[str, Id]:
        names = {} if self.instances is None else self.instances.names
        # a name with several ids gets the first
        return {names[key]: key for key in sorted(names, key=id_order, reverse=True)}

    def truth_file(self) -> Path | None:
        split = self.evaluated_split()
        return None if split == "train" else self.files[split][0]

    def truth_tables(self) -> dict[str, Any]:
        """Return the entries of the file that belong to the evaluated images."""
        content = read_parts(self.files[self.evaluated_split()][0], TruthFile, self.encoding)
        evaluated = {record.image_id for record in self.evaluated_set().records}
        return truth_tables(content, evaluated, None if self.per_image else self.chosen_pairs())

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        instances = Instances(*self.files[split], bad_records, self.encoding)
        if split == "train" or self.instances is None:  # an evaluation reads no training file
            self.instances = instances
        wanted = self.select(split, instances.known, instances.path)
        present = {image: list(by_name) for image, by_name in instances.boxes.items()}
        asked = self.queries(split, present, wanted, instances.path, bad_records)
        if not self.per_image:
            return list(instances.questions(asked))
        if with_comma := [name for name in wanted if ", " in name]:
            raise ConfigurationError(f"data.per_image: category names are joined by commas; {with_comma[0]!r} has one")
        if split == "train" or self.val_queries == ANNOTATED:
            asked = dict.fromkeys(asked, wanted)  # the question names absent categories too
        return list(instances.image_questions(asked))

    def absent(self, images: set[Id] | None) -> Iterator[tuple[Id, str]]:
        assert self.instances is not None
        return self.instances.absent(self.select("train", self.instances.known, self.instances.path), images)

    def absent_record(self, image_id: Id, name: str) -> Record:
        assert self.instances is not None
        return self.instances.record(image_id, name, [])


class Instances:
    """A checked COCO or LVIS instances file. An image with an invalid annotation is left out."""

    def __init__(self, path: Path, folder: Path, bad_records: BadRecords, encoding: str = UTF8) -> None:
        self.path, self.folder, self.bad_records = path, folder, bad_records
        content = read_instances(path, encoding)
        self.names = self._names(content.categories)
        self.empty_parents = empty_parents(content)
        if self.empty_parents:
            listed = ", ".join(map(repr, sorted(self.empty_parents)))
            said = f"{path}: {listed} has no boxes and is the supercategory of all others; it is not asked for"
            rank_zero_info(said)
            notices.keep(said)
        self.images = self._images(content.images)
        self.locations: dict[Id, tuple[tuple[Path, ...], str]] = {}
        self.crowds: set[tuple[Id, str]] = set()
        self.boxes: dict[Id, dict[str, list[Detection]]] = {image_id: {} for image_id in self.images}
        self._read_boxes(content.annotations)

    @property
    def known(self) -> list[str]:
        """Category names in the order of the file, without duplicates or empty supercategories."""
        return [name for name in dict.fromkeys(self.names.values()) if name not in self.empty_parents]

    def questions(self, asked: Mapping[Id, Sequence[str]]) -> Iterator[Record]:
        """Yield a record for each pair of image and category to ask for."""
        for image_id, names in asked.items():
            for name in names:
                yield self.record(image_id, name, self.boxes[image_id].get(name, ()))

    def absent(self, wanted: Sequence[str], images: set[Id] | None) -> Iterator[tuple[Id, str]]:
        """Yield pairs of image id and category known to be absent. A category with a crowd is not absent."""
        everything = {*wanted}
        for image_id in self.boxes:
            if images is not None and image_id not in images:
                continue
            negatives = self.images[image_id].neg_category_ids
            candidates = everything if negatives is None else {self.names.get(key) for key in negatives} & everything
            for name in wanted:
                if name in candidates and name not in self.boxes[image_id] and (image_id, name) not in self.crowds:
                    yield image_id, name

    def image_questions(self, asked: Mapping[Id, Sequence[str]]) -> Iterator[Record]:
        """Yield one record per image that asks for all its categories."""
        for image_id, names in asked.items():
            boxes = [box for name in names for box in self.boxes[image_id].get(name, ())]
            yield self.record(image_id, ", ".join(names), boxes)

    def record(self, image_id: Id, query: str, boxes: Iterable[Detection]) -> Record:
        """Return a record that asks about an image."""
        entry = self.images[image_id]
        if image_id not in self.locations:
            images = (*(self.folder / name for name in entry.context_images or ()), self._file(entry))
            self.locations[image_id] = images, f"{self.path}: image {image_id!r}"
        images, location = self.locations[image_id]
        size, index = (entry.width, entry.height), len(images) - 1 if len(images) > 1 else None
        return Record(images, location, image_id, query, tuple(boxes), size, image_index=index)

    def _file(self, entry: ImageEntry) -> Path:
        if isinstance(entry.file_name, str):
            file = self.folder / entry.file_name
            from_windows = "\\" in entry.file_name and not os.path.isfile(file)
            return self.folder / entry.file_name.replace("\\", "/") if from_windows else file
        # LVIS's held-out images are in two of COCO's folders, train2017 and val2017
        parts = entry.coco_url.rsplit("/", 2)[-2:]
        nested = self.folder.joinpath(*parts)
        return nested if os.path.isdir(nested.parent) else self.folder / parts[-1]

    def _names(self, entries: Sequence[CategoryEntry]) -> dict[Id, str]:
        """Return category names by id. Raise ConfigurationError for an invalid entry, since boxes depend on it."""
        names: dict[Id, str] = {}
        for i, entry in enumerate(entries):
            location = f"{self.path}: categories[{i}]"
            if not is_json_id(entry.id):
                raise ConfigurationError(f"{location}.id: expected a whole number or text, got {brief(entry.id)}")
            if not is_text(entry.name):
                raise ConfigurationError(f"{location}.name: expected text, got {brief(entry.name)}")
            if names.get(entry.id, entry.name) != entry.name:  # merged files repeat equal entries
                raise ConfigurationError(
                    f"{location}.id: {entry.id!r} appears twice, as {names[entry.id]!r} and {entry.name!r}"
                )
            names[entry.id] = entry.name
        return names

    def _images(self, entries: Sequence[ImageEntry]) -> dict[Id, ImageEntry]:
        seen = Counter(entry.id for entry in entries if is_json_id(entry.id))
        images = {}
        for i, entry in enumerate(entries):
            reason = image_reason(entry, seen)
            if reason is None:
                entry.width, entry.height = int(entry.width), int(entry.height)
                images[entry.id] = entry
            else:
                self.bad_records.add(f"{self.path}: images[{i}] (id {entry.id!r})", reason)
        self.known_ids = seen
        files = Counter(file_of(entry) for entry in images.values())
        if shared := [name for name, count in files.items() if count > 1]:
            notices.warn(
                f"{self.path}: {counted(len(shared), 'file')} with several entries of images, e.g. {shared[0]!r}; each "
                "entry is used with its own boxes only"
            )
        return images

    def _read_boxes(self, entries: Sequence[LabelledEntry]) -> None:
        bad: set[Any] = set()
        crowds = 0
        for i, entry in enumerate(entries):
            reason = self._reason(entry)
            if reason is not None:
                self.bad_records.add(f"{self.path}: annotations[{i}] (id {entry.id!r})", reason)
                bad |= {entry.image_id} if is_json_id(entry.image_id) else set()
            elif entry.image_id not in self.images:
                continue  # the image itself is invalid
            elif read_flag(entry.iscrowd):
                crowds += 1
                self.crowds.add((entry.image_id, self.names[entry.category_id]))
            else:
                name = self.names[entry.category_id]
                box = clip(entry.bbox, self.images[entry.image_id])
                self.boxes[entry.image_id].setdefault(name, []).append(Detection(box, name))
        for image_id in bad:
            self.boxes.pop(image_id, None)
        if crowds:
            said = f"{self.path}: {counted(crowds, 'crowd region')} ignored"
            rank_zero_info(said)
            notices.keep(said)
        boxes = [box.box for by_name in self.boxes.values() for found in by_name.values() for box in found]
        refuse_fractions(self.path, boxes)

    def _reason(self, entry: LabelledEntry) -> str | None:
        """Return why an annotation is invalid, or None if it is valid. Annotations may share an id."""
        if entry.id is not None and not is_json_id(entry.id):
            return "expected a whole number, text or null as id"
        if not is_json_id(entry.image_id) or entry.image_id not in self.known_ids:
            return f"no image has id {entry.image_id!r}"
        if not is_json_id(entry.category_id) or entry.category_id not in self.names:
            known = ", ".join(str(key) for key in sorted(self.names, key=id_order)[:20])
            return f"no category has id {entry.category_id!r}; ids are {known}"
        if reason := values_reason(msgspec.structs.asdict(entry)) or rotation_reason(entry.attributes):
            return reason
        image = self.images.get(entry.image_id)
        return None if image is None else box_reason(entry.bbox, image, crowd=bool(read_flag(entry.iscrowd)))
