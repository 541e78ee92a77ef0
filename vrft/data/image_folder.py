"""Images with one class name each: a folder per class, or a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vrft.data.records import Part, Problems, Record, RecordData
from vrft.errors import ConfigurationError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class ImageFolderData(RecordData):
    """`root/train/<class name>/*.jpg` to train on, `root/val/<class name>/*.jpg` held out."""

    def __init__(self, root: str, **kwargs: Any) -> None:
        """Names the folder; it is read when training starts.

        Args:
            root: folder with `train` and `val`, each with one subfolder per class.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.root = Path(root)
        self.check_paths()

    def check_paths(self) -> None:
        """Raise ConfigurationError if a folder is missing."""
        for part in ("train",) if self.val_fraction is not None else ("train", "val"):
            if not (self.root / part).is_dir():
                raise ConfigurationError(
                    f"data.root: no such folder: {self.root / part}; expected {self.root}/{part}/<class name>/*.jpg"
                )

    def records(self, part: Part, problems: Problems) -> list[Record]:
        folder = self.root / part
        files = [
            (file, file.parent.name)
            for file in sorted(folder.glob("*/*"))
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
        if not files:
            raise ConfigurationError(f"{folder}: no images; expected {folder}/<class name>/*.jpg")
        return labelled_records(files, [file.relative_to(self.root).as_posix() for file, _ in files])


class CsvData(RecordData):
    """CSV files with a header and a line per image: the image's path, beside the file, and its class name."""

    def __init__(
        self,
        train_csv: str,
        val_csv: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        """Names the files; they are read when training starts.

        Args:
            train_csv: file to train on.
            val_csv: file of held-out images; default: see `val_fraction`.
            image_column: name of the column with paths, relative to the file's folder.
            label_column: name of the column with class names.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.files: dict[Part, Path] = {"train": Path(train_csv)}
        if val_csv is not None:
            self.files["val"] = Path(val_csv)
        elif self.val_fraction is None:
            raise ConfigurationError("data.val_csv: expected a file, or data.val_fraction")
        self.columns = image_column, label_column
        for part, path in self.files.items():
            if not path.is_file():
                raise ConfigurationError(f"data.{part}_csv: no such file: {path}")

    def records(self, part: Part, problems: Problems) -> list[Record]:
        path = self.files[part]
        files, places = [], []
        for number, (image, label) in self._lines(path):
            if image and label:
                files.append((path.parent / image, label))
                places.append(f"{path}: line {number}")
            else:
                problems.add(f"{path}: line {number}", f"expected an image and a label, got {image!r} and {label!r}")
        return labelled_records(files, places)

    def _lines(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in self.columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigurationError(
                    f"{path}: no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ['nothing'])}"
                )
            for row in reader:
                yield reader.line_num, [(row[name] or "").strip() for name in self.columns]


def labelled_records(files: Sequence[tuple[Path, str]], places: Sequence[str]) -> list[Record]:
    """A record for each image with a class name. `places` name them in messages."""
    return [
        Record(file, where, index, "", label)
        for index, ((file, label), where) in enumerate(zip(files, places, strict=True))
    ]
