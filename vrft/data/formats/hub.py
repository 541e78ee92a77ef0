"""Hugging Face datasets with a problem and a solution as text."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vrft.boxes import Coordinates
from vrft.data.folders import walk
from vrft.data.formats.solutions import SolutionData
from vrft.data.image_folders import ImageFolders
from vrft.data.images import BadImage, ImageSource
from vrft.data.record import Split
from vrft.data.split_sources import HELD_OUT_NAMES, OtherHeldOut, given
from vrft.errors import ConfigurationError
from vrft.utils.interrupts import repeated_interrupts
from vrft.utils.regular_files import read_regular


@dataclass(frozen=True)
class HubImage:
    """An image in a row of a Hugging Face dataset, read on access."""

    rows: Any
    """The dataset with only its column of images."""
    index: int
    place: int | None
    """Index of the image in the row's list; None if the row has a single image."""
    source: str
    folders: ImageFolders | None
    """Folders that must contain an image whose row gives only its path; None: no restriction."""

    def read(self) -> bytes:
        (cell,) = self.rows[self.index].values()
        cell = (cell if self.place is None else cell[self.place]) or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if not cell.get("path"):
            raise BadImage("is empty")
        path = Path(cell["path"])
        if self.folders is not None:
            self.folders.require(path, f"{self.source}: {self}")
        try:
            return read_regular(path)
        except (OSError, ValueError) as error:
            raise BadImage(f"can't be opened: {error}") from error

    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        try:
            return hashlib.sha256(self.read()).hexdigest()
        except BadImage:
            return str(self)

    def __str__(self) -> str:
        return f"row {self.index}" + ("" if self.place is None else f", image {self.place}")


class HubData(SolutionData):
    """A Hugging Face dataset with the columns image, problem and solution; other columns become metadata.

    Instead of `image`, a dataset may have a column `images` with a list of images in each row, and a column
    `image_index` with the index from 0 of the image that the boxes belong to.
    """

    test_setting = "data.test or data.test_split"

    def __init__(
        self,
        train: str,
        val: str | None = None,
        split: str = "train",
        coordinates: Coordinates = "thousandths",
        test: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        subset: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the datasets, which are read when training starts.

        Args:
            train: training data: a dataset on the Hub, a folder of parquet files, a parquet file, or a folder written
                by `save_to_disk`.
            val: held-out data, in the same form; default: `train` if `val_split` is set, otherwise see `val_fraction`.
            split: name of the split to train on. A single table is called "train".
            coordinates: unit of boxes in solutions: thousandths of the image, pixels, or 0..1.
            test: data for `test`, in the same form; default: `train` if `test_split` is set, otherwise held-out data.
            val_split: name of the held-out split; default: `split`.
            test_split: name of the split for `test`; default: `split`.
            subset: name of the subset (configuration) of each dataset on the Hub or folder of files.
            kwargs: see `RecordData`.
        """
        self.split_names: dict[Split, str] = {"train": split, "val": val_split or split, "test": test_split or split}
        sources = given(train, val or (val_split and train), test or (test_split and train))
        super().__init__(sources, coordinates, **kwargs)
        self.subset = subset
        self._check_distinct()
        self.tables: dict[Split, Any] = {}
        self.folders: dict[Split, ImageFolders | None] = {}

    def _check_distinct(self) -> None:
        """Raise ConfigurationError if two splits have the same rows of the same data."""
        rows: dict[tuple[str, str], Split] = {}
        for split, source in self.sources.items():
            name = self.split_names[split]
            first = rows.setdefault((os.path.realpath(source), name), split)
            if first != split:
                raise ConfigurationError(
                    f"data.{split}_split: {source}: split {name!r} is data.{first} already; expected another split"
                )

    def rows(self, split: Split) -> Iterator[tuple[str, Any]]:
        source, name = self.sources[split], self.split_names[split]
        table = load_table(source, name, f"data.{split}", self.subset)
        self.tables[split] = table.select_columns(image_column(table.column_names))
        self.folders[split] = self.required_folders(split)
        images = {"image", "images"}
        plain = [name for name, feature in table.features.items() if name not in images and not is_media(feature)]
        for index, row in enumerate(table.select_columns(plain)):
            yield f"{source}: {f'{self.subset}: ' if self.subset else ''}{name}: row {index}", row

    def other_held_out(self) -> OtherHeldOut | None:
        known = self.tables["train"].info.splits or {} if "train" in self.tables else {}
        for name in HELD_OUT_NAMES:
            if name in known and name not in self.split_names.values():
                return OtherHeldOut(f"split {name!r} of {self.sources['train']}", f"data.val_split={name}")
        return super().other_held_out()

    def image_folders(self, split: Split) -> ImageFolders:
        import datasets
        from huggingface_hub import constants

        source = Path(self.sources[split])
        named = Path(constants.HF_HUB_CACHE) if not source.exists() else source if source.is_dir() else source.parent
        return ImageFolders("image", (named, Path(datasets.config.DOWNLOADED_DATASETS_PATH)))

    def images(self, split: Split, index: int, row: dict[str, Any]) -> tuple[ImageSource, ...]:
        table = self.tables[split]
        places: Sequence[int | None] = [None]
        if table.column_names == ["images"]:
            cell = table.with_format("arrow")[index]["images"][0]  # no image is copied
            places = range(len(cell) if cell.is_valid else 0)
        if not places:
            raise ValueError("images: expected a list of images, got none")
        return tuple(HubImage(table, index, place, self.sources[split], self.folders[split]) for place in places)


def load_table(name: str, split: str, field: str, subset: str | None = None) -> Any:
    """Load a dataset with its images as encoded bytes.

    Raises:
        ConfigurationError: `datasets` is not installed, or the dataset does not exist, or lacks the split or a column.
    """
    try:
        import datasets
        import pyarrow
    except ImportError as error:
        raise ConfigurationError(f"{field}: this needs `pip install 'datasets>=4'`") from error
    path = Path(name)
    if path.is_dir() and (special := [file for file in walk(path, Counter(), None) if not file.is_file()]):
        raise ConfigurationError(f"{field}: {name} can't be read as a dataset: {special[0]} is not a regular file")
    on_disk = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if subset is not None and (on_disk or path.is_file()):
        raise ConfigurationError(f"data.subset: {field}: {name} has no subsets; expected null, got {subset!r}")
    try:
        if on_disk:
            table = datasets.load_from_disk(name)
            table = named_split(table if isinstance(table, datasets.DatasetDict) else {"train": table}, split)
        elif path.is_file():
            table = datasets.load_dataset("parquet", data_files=name, split=split)
        else:
            with repeated_interrupts():
                table = datasets.load_dataset(name, subset, split=split)
        column = image_column(table.column_names)
        missing = {column, "problem", "solution"}.difference(table.column_names)
        encoded = datasets.Image(decode=False)
        table = (
            table if missing else table.cast_column(column, encoded if column == "image" else datasets.List(encoded))
        )
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, pyarrow.ArrowException) as error:
        raise ConfigurationError(f"{field}: {name} can't be read as a dataset: {_one_line(error)}") from error
    if missing:
        raise ConfigurationError(f"{field}: {name}: no column {min(missing)!r}; it has {', '.join(table.column_names)}")
    if {"image", "images"} <= {*table.column_names}:
        raise ConfigurationError(f"{field}: {name}: expected a column image or a column images, got both")
    return table


def image_column(names: Sequence[str]) -> str:
    """Return which of a dataset's columns has the images."""
    return "images" if "images" in names and "image" not in names else "image"


def named_split(tables: Mapping[str, Any], split: str) -> Any:
    """Return a split of a dataset on disk. Raise ValueError if it has no split of that name."""
    if split not in tables:
        raise ValueError(f"no split {split!r}; it has {', '.join(tables)}")
    return tables[split]


def is_media(feature: Any) -> bool:
    """Return whether a column holds images, audio or video, which must not be decoded."""
    import datasets

    return isinstance(feature, datasets.Image | datasets.Audio | datasets.Video)


def _one_line(error: Exception) -> str:
    """Return the first line of an error's cause, or of the error; if a subset is missing, the names of the subsets."""
    lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
    if lines[0].startswith("Config name is missing") and len(lines) > 1:
        return f"data.subset is missing. {lines[1]}"
    return lines[0]
