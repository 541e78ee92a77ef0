"""Images with one class name each: a folder per class, or a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vrft.data.bad_records import BadRecords
from vrft.data.files import read_text, require_file, require_folder
from vrft.data.record import Record, Split
from vrft.data.records import RecordData
from vrft.errors import ConfigurationError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class ImageFolderData(RecordData):
    """Training images in `root/train/<class name>/*.jpg`, held-out ones in `root/val/<class name>/*.jpg`."""

    def __init__(self, root: str, **kwargs: Any) -> None:
        """Set the folder, which is read when training starts.

        Args:
            root: folder with `train` and `val`, each with a subfolder per class.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.root = Path(root)
        self.check_paths()

    def check_paths(self) -> None:
        """Raise ConfigurationError if a folder is missing."""
        for split in ("train",) if self.val_fraction is not None else ("train", "val"):
            require_folder("root", self.root / split, f"{self.root}/{split}/<class name>/*.jpg")

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        folder = self.root / split
        files = [
            (file, file.parent.name)
            for file in sorted(folder.glob("*/*"))
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
        if not files:
            raise ConfigurationError(f"{folder}: no images; expected {folder}/<class name>/*.jpg")
        return labelled_records(files, [file.relative_to(self.root).as_posix() for file, _ in files])


class CsvData(RecordData):
    """CSV files with a header and a line per image: its path relative to the CSV file, and its class name."""

    def __init__(
        self,
        train_csv: str,
        val_csv: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        """Set the files, which are read when training starts.

        Args:
            train_csv: file of the training images.
            val_csv: file of the held-out images; default: see `val_fraction`.
            image_column: name of the column with paths, relative to the folder of the CSV file.
            label_column: name of the column with class names.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.files: dict[Split, Path] = {"train": Path(train_csv)}
        if val_csv is not None:
            self.files["val"] = Path(val_csv)
        self.check_held_out(val_csv is not None, "val_csv")
        self.columns = image_column, label_column
        for split, path in self.files.items():
            require_file(f"{split}_csv", path, "a CSV file with a header")

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        path = self.files[split]
        files, locations = [], []
        for number, (image, label) in self._lines(path):
            if image and label:
                files.append((path.parent / image, label))
                locations.append(f"{path}: line {number}")
            else:
                bad_records.add(f"{path}: line {number}", f"expected an image and a label, got {image!r} and {label!r}")
        return labelled_records(files, locations)

    def _lines(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        try:
            reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
            missing = [name for name in self.columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigurationError(
                    f"{path}: no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ['nothing'])}"
                )
            for row in reader:
                yield reader.line_num, [(row[name] or "").strip() for name in self.columns]
        except csv.Error as error:
            raise ConfigurationError(f"{path}: not a readable CSV file: {error}") from error


def labelled_records(files: Sequence[tuple[Path, str]], locations: Sequence[str]) -> list[Record]:
    """Return a record for each pair of image and class name. `locations` name the records in messages."""
    return [
        Record(file, location, index, "", label)
        for index, ((file, label), location) in enumerate(zip(files, locations, strict=True))
    ]
