"""Base classes of data with labelled boxes for each image."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.bad_records import OUTLINES, PARTS, BadRecords
from vrft.data.categories import CategoryData
from vrft.data.files import MAX_COORDINATE, brief, clip_to, is_text, read_all, refuse_fractions, require_folder
from vrft.data.folders import count_unused
from vrft.data.ground_truth import LabelledImage, file_ids
from vrft.data.image_folders import ImageFolders
from vrft.data.image_names import without_links
from vrft.data.images import BadImage, MissingImage, check_image
from vrft.data.record import Record, Split
from vrft.data.split_sources import OtherHeldOut, annotated, beside, given
from vrft.errors import ConfigurationError
from vrft.types import Detection, Id

TOLERANCE = 1.0
"""Pixels by which a box may extend beyond its image because of rounding. Such a box is clipped."""

Corners = tuple[float, float, float, float]


class BoxImage(NamedTuple):
    """An image with its boxes in pixels, and the location of both for messages."""

    image: Path
    location: str
    size: tuple[int, int]
    annotated_size: bool
    """Whether `size` is from the annotations and not from the image."""
    boxes: Sequence[Detection]
    ignored: Sequence[Detection] = ()
    """Objects that are not asked about and neither raise nor lower a score."""


class BoxData(CategoryData):
    """Base class of images with boxes. Image ids are file names; category ids are numbers from 1, sorted by name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._files: dict[Split, tuple[dict[Id, BoxImage], BadRecords]] = {}
        self._names: list[str] | None = None

    @abstractmethod
    def read(self, split: Split, bad_records: BadRecords) -> Iterator[BoxImage | None]:
        """Yield the images of a split, with or without boxes. Report an invalid image and yield None for it."""

    def images(self, split: Split) -> dict[Id, BoxImage]:
        """Return the images of a split by id. The files are read once."""
        return self._load(split)[0]

    def _load(self, split: Split) -> tuple[dict[Id, BoxImage], BadRecords]:
        if split not in self._files:
            bad_records = BadRecords()
            found = [image for image in self.read(split, bad_records) if image is not None]
            ids = file_ids([image.image for image in found])
            self._files[split] = dict(zip(ids, found, strict=True)), bad_records
        return self._files[split]

    def ordered_categories(self) -> Sequence[str]:
        """Return the names in all splits, so that ids don't depend on which splits a command reads.

        A split that can't be read counts as empty; `records` raises its error for the commands that need it.
        """
        if self._names is None:
            names: set[str] = set()
            for split in self.splits():
                with suppress(ConfigurationError):
                    for image in self.images(split).values():
                        names.update(box.label for box in (*image.boxes, *image.ignored))
            self._names = sorted(names)
        return self._names

    def category_ids(self) -> dict[str, Id]:
        return {name: number for number, name in enumerate(self.ordered_categories(), 1)}

    def labelled_images(self) -> list[LabelledImage]:
        split = self.evaluated_split()
        evaluated = {record.image_id for record in self.evaluated_set().records}
        chosen = self.chosen_pairs()
        labelled = []
        for key, found in self.images(split).items():
            if split != "train" or key in evaluated:
                asked: list[Detection] = []
                ignored = [*found.ignored]
                for box in found.boxes:
                    (asked if chosen is None or (key, box.label) in chosen else ignored).append(box)
                labelled.append(LabelledImage(key, str(found.image), found.size, asked, ignored))
        return labelled

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        images, bad = self._load(split)
        bad_records.update(bad)
        source = self.source(split)
        wanted = self.select(split, self.ordered_categories(), source)
        asked = self.queries(split, categories_in(images, wanted), wanted, source, bad_records)
        return [self._record(key, images[key], name) for key, names in asked.items() for name in names]

    @abstractmethod
    def source(self, split: Split) -> Path:
        """Return the file or folder of a split, for messages."""

    def absent(self, images: set[Id] | None) -> Iterator[tuple[Id, str]]:
        train = self.images("train")
        wanted = self.select("train", self.ordered_categories(), self.source("train"))
        chosen = [key for key in train if images is None or key in images]
        present = {key: {box.label for box in (*train[key].boxes, *train[key].ignored)} for key in chosen}
        return ((key, name) for key in chosen for name in wanted if name not in present[key])

    def absent_record(self, image_id: Id, name: str) -> Record:
        return self._record(image_id, self.images("train")[image_id], name)

    @staticmethod
    def _record(image_id: Id, found: BoxImage, name: str) -> Record:
        target = tuple(box for box in found.boxes if box.label == name)
        return Record((found.image,), found.location, image_id, name, target, found.size, found.annotated_size)


def categories_in(images: Mapping[Id, BoxImage], wanted: Sequence[str]) -> dict[Id, list[str]]:
    """Return the categories in each image, in the order of `wanted`."""
    labels = {image_id: {box.label for box in found.boxes} for image_id, found in images.items()}
    return {image_id: [name for name in wanted if name in present] for image_id, present in labels.items()}


class Entry(NamedTuple):
    """An image with its boxes, as written in a file."""

    image: Path
    location: str
    size: tuple[int, int] | None
    """Width and height, if the file states them."""
    boxes: Sequence[tuple[str, Corners]]
    """Labels with corners in pixels."""
    ignored: Sequence[tuple[str, Corners]] = ()
    """Objects marked as difficult."""
    outlines: int = 0
    """Number of objects whose outlines in the file were converted to boxes around them."""
    parts: int = 0
    """Number of shapes that were joined to other parts of their objects."""


class AnnotatedData(BoxData):
    """Base class of formats with a file or folder of annotations for each split. A subclass implements `entries`."""

    test_setting = "data.test_annotations"
    expected: str
    """Description of the annotations that a config names, for messages."""
    image_field = "image"
    """Name of the field that names an image, for messages."""

    def __init__(
        self,
        train_annotations: str,
        train_images: str | None = None,
        val_annotations: str | None = None,
        val_images: str | None = None,
        test_annotations: str | None = None,
        test_images: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the files, which are read when training starts.

        Args:
            train_annotations: annotations of the training images.
            train_images: folder of the training images; default: the format's usual place.
            val_annotations: annotations of the held-out images; default: see `val_fraction`.
            val_images: folder of the held-out images.
            test_annotations: annotations of the images for `test`; default: the held-out images.
            test_images: folder of the images for `test`.
            kwargs: see `CategoryData`.
        """
        super().__init__(**kwargs)
        annotations = given(train_annotations, val_annotations, test_annotations)
        self.sources = annotated(annotations, {"train": train_images, "val": val_images, "test": test_images})
        self.selection.check_held_out("val" in self.sources, "val_annotations")
        for split, (source, images) in self.sources.items():
            if not source.exists():
                raise ConfigurationError(
                    f"data.{split}_annotations: no such file or folder: {source}; expected {self.expected}"
                )
            if images is not None:
                require_folder(f"{split}_images", images, "a folder of images")

    def splits(self) -> Collection[Split]:
        return self.sources

    def other_held_out(self) -> OtherHeldOut | None:
        if "val" in self.sources:
            return OtherHeldOut(str(self.sources["val"][0]))
        return beside(self.sources["train"][0], "data.val_annotations", [path for path, _ in self.sources.values()])

    def image_folders(self, split: Split) -> ImageFolders:
        annotations, images = self.sources[split]
        return ImageFolders(self.image_field, self.default_folders(annotations) if images is None else (images,))

    def default_folders(self, annotations: Path) -> tuple[Path, ...]:
        """Return the folders that must contain the images if no folder of images is configured."""
        return (annotations if annotations.is_dir() else annotations.parent,)

    def source(self, split: Split) -> Path:
        return self.sources[split][0]

    @abstractmethod
    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        """Yield the images that a file or folder annotates.

        Args:
            annotations: the file or folder.
            images: folder of the images, if one is configured.
            bad_records: receives the invalid entries.
        """

    def read(self, split: Split, bad_records: BadRecords) -> Iterator[BoxImage | None]:
        entries = [*self.entries(*self.sources[split], bad_records)]
        locations: dict[Path, list[str]] = {}
        folders = self.required_folders(split)
        for entry in entries:
            if folders is not None:
                folders.require(entry.image, entry.location)
            locations.setdefault(without_links(entry.image), []).append(entry.location)
        for entry in entries:
            found = None
            try:
                require_one_entry(entry, locations[without_links(entry.image)])
                size = check_image(entry.image) if entry.size is None else entry.size
                boxes, ignored = pixel_boxes(entry.boxes, size), pixel_boxes(entry.ignored, size)
                found = BoxImage(entry.image, entry.location, size, entry.size is not None, boxes, ignored)
                bad_records.passed_over["objects marked as difficult"] += len(ignored)
                bad_records.read_as[OUTLINES] += entry.outlines
                bad_records.read_as[PARTS] += entry.parts
            except MissingImage as error:
                bad_records.add_missing(entry.location, f"{entry.image}: {error}")
            except BadImage as error:
                bad_records.add(entry.location, f"{entry.image}: {error}")
            except ValueError as error:
                bad_records.add(entry.location, str(error))
            yield found
        if self.source(split).is_dir():
            used = [entry.image for entry in entries]
            count_unused({image.parent for image in used}, used, bad_records.passed_over)
        refuse_fractions(self.source(split), (box for entry in entries for _, box in (*entry.boxes, *entry.ignored)))


def require_one_entry(entry: Entry, locations: Sequence[str]) -> None:
    """Raise ValueError if an existing image has several entries, at `locations`, since their boxes may contradict."""
    others = [location for location in locations if location != entry.location] or locations[1:]
    if others and os.path.isfile(entry.image):
        raise ValueError(f"{entry.image} is also the image of {others[0]}; expected one entry per image")


def pixel_boxes(boxes: Iterable[tuple[str, Corners]], size: tuple[int, int]) -> list[Detection]:
    """Check boxes and clip them to their image of `size` (width, height). Equal boxes count once.

    Raises:
        ValueError: a box has no label or no area, or extends beyond the image by more than `TOLERANCE`.
    """

    def checked(i: int, box: tuple[str, Corners]) -> Detection:
        return pixel_box(i, *box, size)

    return [*dict.fromkeys(read_all(boxes, checked))]


def pixel_box(i: int, label: str, corners: Corners, size: tuple[int, int]) -> Detection:
    """Check and clip box number `i`, see `pixel_boxes`."""
    width, height = size
    if not is_text(label):
        raise ValueError(f"box {i}: expected a label, got {brief(label)}")
    shown = f"box {i} ({label.strip()}): {brief([round(value, 2) for value in corners])}"
    x0, y0, x1, y1 = corners
    if not all(abs(value) < MAX_COORDINATE for value in corners):  # false for NaN too
        raise ValueError(f"{shown}: expected finite numbers")
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{shown} has no area")
    if min(x0, y0) < -TOLERANCE or x1 > width + TOLERANCE or y1 > height + TOLERANCE:
        raise ValueError(f"{shown} extends beyond its image of {width} x {height}")
    clipped = clip_to(corners, width, height)
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise ValueError(f"{shown} has no area in its image of {width} x {height}")
    return Detection(clipped, label.strip())
