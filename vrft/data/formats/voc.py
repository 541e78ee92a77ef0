"""Pascal VOC's XML files, one per image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from vrft.data.bad_records import BadRecords
from vrft.data.box_data import AnnotatedData, Corners, Entry
from vrft.data.files import brief, hull, read_all, read_lines, read_number, read_xml, size_of
from vrft.data.folders import find_files
from vrft.data.formats.other_formats import refuse_other_format
from vrft.data.image_names import find_image
from vrft.data.images import image_suffixes
from vrft.errors import ConfigurationError

OFFICIAL = re.compile(r"The VOC20\d\d Database", re.I)
"""Name of the database in the official files, whose corners are pixels counted from 1, the last one included."""

FLAGS = {"0": False, "false": False, "1": True, "true": True}

IMAGE_FOLDERS = ("JPEGImages", "images")
"""Names of image folders beside the folder of annotations."""

SECOND_COLUMN = re.compile(r"\s+-?[01]$")
"""Second column, in lists for a single class, which tells whether the image has the object."""


class VocData(AnnotatedData):
    """A folder of XML files, or a list such as `ImageSets/Main/train.txt` of files in `Annotations/`.

    Images are in `train_images`, beside the XML files, or in `JPEGImages/` or `images/`. Objects marked as difficult
    are ignored, as in the VOC challenge. Coordinates are the edges of the box in pixels, as written by LabelImg, CVAT
    and Roboflow. The official files count pixels from 1, so 1 is subtracted from their xmin and ymin.
    """

    expected = "a folder of Pascal VOC XML files, or a list of them such as ImageSets/Main/train.txt"
    image_field = "filename"

    def default_folders(self, annotations: Path) -> tuple[Path, ...]:
        if annotations.is_dir():
            return (annotations, *(annotations.parent / name for name in IMAGE_FOLDERS))
        return (root_of(annotations) or annotations.parent,)

    def entries(self, annotations: Path, images: Path | None, bad_records: BadRecords) -> Iterator[Entry]:
        files = self._folder(annotations, bad_records) if annotations.is_dir() else self._listed(annotations)
        for location, file in files:
            root = file.parent.parent
            folders = [file.parent, *(root / name for name in IMAGE_FOLDERS)] if images is None else [images]
            try:
                if not os.path.isfile(file):  # unlike Path.is_file, false for a name that is too long
                    raise ValueError(f"no such file: {file}")
                yield read_voc(file, folders, self.encoding)
            except ValueError as error:
                bad_records.add(location, str(error))

    def _folder(self, folder: Path, bad_records: BadRecords) -> Iterator[tuple[str, Path]]:
        files = find_files(folder, {".xml"}, bad_records.passed_over, image_suffixes())
        if not files:
            refuse_other_format(folder, self.expected)
        return ((str(file), file) for file in files)

    def _listed(self, file: Path) -> Iterator[tuple[str, Path]]:
        if file.suffix != ".txt":
            refuse_other_format(file, self.expected)
        root = root_of(file)
        if root is None:
            raise ConfigurationError(f"{file}: no folder Annotations beside or above it; expected {self.expected}")
        for location, line in read_lines(file, self.encoding):
            whole = root / "Annotations" / f"{line}.xml"
            yield location, whole if os.path.isfile(whole) else whole.with_name(f"{SECOND_COLUMN.sub('', line)}.xml")


def root_of(file: Path) -> Path | None:
    """Return the closest of the four folders above a list that contains `Annotations`, or None."""
    return next((folder for folder in file.parents[:4] if (folder / "Annotations").is_dir()), None)


def read_voc(file: Path, folders: Sequence[Path], encoding: str) -> Entry:
    """Read the file of one image.

    Args:
        file: XML file.
        folders: folders that may contain the image.
        encoding: encoding of a file that declares none.

    Raises:
        ValueError: the file is not VOC, or an object has no box.
    """
    root = read_xml(file, encoding)
    if root.tag != "annotation":
        raise ValueError(f"expected <annotation>, got <{root.tag}>")
    width, height = ((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    shift = 1 if OFFICIAL.match(root.findtext("source/database", "").strip()) else 0

    def read(i: int, item: Element) -> tuple[bool, str, Corners]:
        label = (item.findtext("name") or "").strip()
        try:
            x0, y0, x1, y1 = _corners(item)
            return _is_difficult(item), label, (x0 - shift, y0 - shift, x1, y1)
        except ValueError as error:
            raise ValueError(f"object {i} ({label}): {error}") from error

    items = root.findall("object")
    found = read_all(items, read)
    boxes, difficult = (
        [(label, box) for is_difficult, label, box in found if is_difficult == marked] for marked in (False, True)
    )
    image = image_of(file, (root.findtext("filename") or "").strip(), folders)
    outlines = sum(item.find("bndbox") is None for item in items)
    return Entry(image, str(file), size_of(width, height), boxes, difficult, outlines)


def image_of(file: Path, name: str, folders: Sequence[Path]) -> Path:
    """Return the image that an XML file names, or the image with the XML file's name if files were renamed.

    Raises:
        ValueError: both images exist, so that it is unknown which one the boxes belong to.
    """
    image = find_image(name or file.stem, folders)
    exists = os.path.isfile(image)
    if exists and image.stem == file.stem:
        return image
    same_name = find_image(f"{file.stem}.jpg", folders)
    if not os.path.isfile(same_name):
        return image
    # a path in another folder is unambiguous; it is refused elsewhere if it leads out of the allowed folders
    if exists and image.parent in folders:
        raise ValueError(f"filename: {image} or {same_name}, which is called like this file; expected one image")
    return image if exists else same_name


def _is_difficult(item: Element) -> bool:
    text = (item.findtext("difficult") or "0").strip().lower()
    if text not in FLAGS:
        raise ValueError(f"difficult: expected 0 or 1, got {brief(text)}")
    return FLAGS[text]


def _corners(item: Element) -> Corners:
    if item.find("robndbox") is not None:
        raise ValueError("a rotated box (robndbox); expected an upright one")
    if len(item.findall("bndbox")) > 1:
        raise ValueError("several bndbox; expected one")
    box, polygon = item.find("bndbox"), item.find("polygon")
    if box is not None:
        x0, y0, x1, y1 = (_number(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
        return x0, y0, x1, y1
    if polygon is None:
        raise ValueError("expected a bndbox")
    points: list[tuple[float, float]] = []
    while polygon.find(f"x{len(points) + 1}") is not None:
        points.append((_number(polygon, f"x{len(points) + 1}"), _number(polygon, f"y{len(points) + 1}")))
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} points; expected at least 3")
    return hull(points)


def _number(element: Element, path: str) -> float:
    text = (element.findtext(path) or "").strip()
    try:
        return read_number(text)
    except ValueError as error:
        raise ValueError(f"{path}: expected a number, got {brief(text)}") from error
