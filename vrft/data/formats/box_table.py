"""Tables of boxes in CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, read_number, read_text, size_of
from vrft.data.formats.csv_table import OTHER_SEPARATORS
from vrft.data.formats.other_formats import refuse_other_format
from vrft.data.image_names import find_image
from vrft.errors import ConfigurationError

COLUMNS = {
    "image": ("image", "filename", "imagename", "imagepath", "path", "file"),
    "label": ("label", "class", "classname", "category", "labelname", "name"),
    "x0": ("xmin", "x0", "x1", "left"),
    "y0": ("ymin", "y0", "y1", "top"),
    "x1": ("xmax", "x1", "x2", "right"),
    "y1": ("ymax", "y1", "y2", "bottom"),
}
"""Accepted column names, in lower case without blanks, hyphens and underscores."""

SIZE = {"width": ("width", "imagewidth"), "height": ("height", "imageheight")}
CORNERS = ("x0", "y0", "x1", "y1")


class BoxCsvData(AnnotatedData):
    """CSV files with a line per box: image, label, and corners in pixels, e.g. `xmin, ymin, xmax, ymax`.

    The header names the columns. A line without label and corners is an image without objects. Paths of images are
    relative to `train_images`, or to the folder of the file. Optional columns `width` and `height` give the size of the
    image.
    """

    expected = "a CSV file with the columns image, label, xmin, ymin, xmax, ymax"

    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        if annotations.is_dir() or annotations.suffix.lower() in (".json", ".xml", ".yaml"):
            refuse_other_format(annotations, self.expected)
        folder = annotations.parent if images is None else images
        boxes: dict[str, list[tuple[str, Corners]]] = {}
        firsts: dict[str, tuple[str, tuple[int, int] | None]] = {}
        bad: set[str] = set()
        for location, row in self._rows(annotations, bad_records):
            name = row["image"]
            boxes.setdefault(name, [])
            try:
                size = size_of(row.get("width"), row.get("height"))
                first, known = firsts.setdefault(name, (location, size))
                if size != known:
                    raise ValueError(f"the image is {size}, but {known} in {first.removeprefix(f'{annotations}: ')}")
                if row["label"] or any(row[corner] for corner in CORNERS):
                    boxes[name].append((row["label"], _corners(row)))
            except ValueError as error:
                bad.add(name)
                bad_records.add(location, str(error))
        for name, found in boxes.items():
            if name not in bad:
                location, size = firsts[name]
                try:
                    yield Entry(find_image(name, [folder]), location, size, found)
                except ValueError as error:
                    bad_records.add(location, str(error))

    def _rows(self, path: Path, bad_records: BadRecords) -> Iterator[tuple[str, Mapping[str, str]]]:
        reader = csv.reader(io.StringIO(read_text(path, self.encoding), newline=""), strict=True)
        try:
            header = next(reader, [])
            places = find_columns(path, header)
            for row in reader:
                location = f"{path}: line {reader.line_num}"
                if row and len(row) != len(header):
                    bad_records.add(location, f"expected {len(header)} cells, got {len(row)}")
                elif row:
                    yield location, {name: row[place].strip() for name, place in places.items()}
        except csv.Error as error:
            raise ConfigurationError(f"{path}: line {reader.line_num}: not readable as CSV: {error}") from error


def find_columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Return the index of each column. Raise ConfigurationError if one is missing or appears twice."""
    plain = ["".join(c for c in name.lower() if c not in " _-") for name in header]
    if "regionshapeattributes" in plain:
        raise ConfigurationError(f"{path}: a CSV file of VIA; export the annotations as JSON, for --data=ViaData")
    starts_at_one = "x2" in plain  # the names are x1, y1, x2, y2 instead of x0, y0, x1, y1
    found = {}
    for key, names in (COLUMNS | SIZE).items():
        accepted = [name for name in names if (name, starts_at_one) not in (("x1", key == "x1"), ("y1", key == "y1"))]
        places = [place for place, name in enumerate(plain) if name in accepted]
        if len(places) > 1:
            raise ConfigurationError(f"{path}: columns {header[places[0]]!r} and {header[places[1]]!r} mean the same")
        if places:
            found[key] = places[0]
        elif key in COLUMNS:
            said = f"{path}: no column for {key}; expected one of {', '.join(names)}; it has {', '.join(header)}"
            if len(header) == 1 and (signs := [sign for sign in OTHER_SEPARATORS if sign in header[0]]):
                said += f"; cells are separated by {signs[0]!r}, expected ','"
            raise ConfigurationError(said)
    return found


def _corners(row: Mapping[str, str]) -> Corners:
    try:
        x0, y0, x1, y1 = (read_number(row[corner]) for corner in CORNERS)
    except ValueError as error:
        raise ValueError(f"expected corners in pixels, got {brief([row[corner] for corner in CORNERS])}") from error
    return x0, y0, x1, y1
