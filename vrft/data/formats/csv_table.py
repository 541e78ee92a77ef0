"""Tables of images in CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from vrft.data.bad_records import BadRecords
from vrft.data.files import is_file_name, read_text, require_file
from vrft.data.formats.image_folder import labelled_records
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record, Split
from vrft.data.records import RecordData
from vrft.data.split_sources import OtherHeldOut, beside, given
from vrft.errors import ConfigurationError

OTHER_SEPARATORS = (";", "\t", "|")


class CsvData(RecordData):
    """CSV files with a header and a line per image: its path, relative to the CSV file, and its class name."""

    noun = "class"
    test_setting = "data.test_csv"

    def __init__(
        self,
        train_csv: str,
        val_csv: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        test_csv: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the files, which are read when training starts.

        Args:
            train_csv: file of the training images.
            val_csv: file of the held-out images; default: see `val_fraction`.
            image_column: name of the column with paths, relative to the folder of the CSV file.
            label_column: name of the column with class names.
            test_csv: file of the images for `test`; default: the held-out images.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.files = {split: Path(name) for split, name in given(train_csv, val_csv, test_csv).items()}
        self.selection.check_held_out(val_csv is not None, "val_csv")
        self.columns = {"image_column": image_column, "label_column": label_column}
        for split, path in self.files.items():
            require_file(f"{split}_csv", path, "a CSV file with a header")

    def splits(self) -> Collection[Split]:
        return self.files

    def other_held_out(self) -> OtherHeldOut | None:
        if "val" in self.files:
            return OtherHeldOut(str(self.files["val"]))
        return beside(self.files["train"], "data.val_csv", self.files.values())

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders(self.columns["image_column"], (self.files[split].parent,))

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        path = self.files[split]
        files: list[tuple[Path, str]] = []
        locations: dict[str, str] = {}
        for location, (image, label) in read_rows(path, self.encoding, self.columns, bad_records):
            if not is_file_name(image) or not label:
                bad_records.add(location, f"expected an image and a label, got {image!r} and {label!r}")
            elif image in locations:
                bad_records.add(location, f"{image} is also in {locations[image].removeprefix(f'{path}: ')}")
            else:
                files.append((path.parent / image, label))
                locations[image] = location
        return labelled_records(files, [*locations.values()])


def read_rows(
    path: Path, encoding: str, columns: dict[str, str], bad_records: BadRecords
) -> Iterator[tuple[str, list[str]]]:
    """Yield the location and the cells of each line of a CSV file.

    Args:
        path: file with a header.
        encoding: see `RecordData`.
        columns: names of the columns, keyed by the settings that define them.
        bad_records: receives lines whose number of cells differs from the header's.

    Raises:
        ConfigurationError: a column is missing, or quotes are not closed.
    """
    reader = csv.reader(io.StringIO(read_text(path, encoding), newline=""), strict=True)
    try:
        header = next(reader, [])
        places = [find_column(path, header, name, f"data.{field}") for field, name in columns.items()]
        for row in reader:
            location = f"{path}: line {reader.line_num}"
            if len(row) == len(header):
                yield location, [row[place].strip() for place in places]
            elif row:
                bad_records.add(
                    location, f"expected {len(header)} cells, got {len(row)}; a cell with a comma needs quotes"
                )
    except csv.Error as error:
        raise ConfigurationError(f"{path}: line {reader.line_num}: not readable as CSV: {error}") from error


def find_column(path: Path, header: Sequence[str], name: str, field: str) -> int:
    """Return the index of a column. Raise ConfigurationError unless exactly one column has the name."""
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise ConfigurationError(f"{path}: {header.count(name)} columns are called {name!r}")
    said = f"{path}: no column {name!r}; it has {', '.join(header) or 'nothing'}"
    if len(header) == 1 and (found := [sign for sign in OTHER_SEPARATORS if sign in header[0]]):
        said += f"; cells are separated by {found[0]!r}, expected ','"
    elif similar := [other for other in header if other.strip().lower() == name.lower()]:
        said += f"; set {field} to {similar[0]!r}, exactly as it is written, or rename the column"
    raise ConfigurationError(said)
