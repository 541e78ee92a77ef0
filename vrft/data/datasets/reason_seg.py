"""ReasonSeg: instructions that require reasoning, each referring to one region of an image (arXiv 2308.00692)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vrft.data.bad_records import OUTLINES, BadRecords
from vrft.data.files import (
    brief,
    check_encoding,
    clip_to,
    decode_json,
    decode_text,
    hull,
    is_number,
    is_text,
    read_bytes,
    refuse_fractions,
    require_folder,
)
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record, Split, boxes_of
from vrft.data.records import RecordData
from vrft.data.split_sources import OtherHeldOut
from vrft.errors import ConfigurationError
from vrft.types import Detection

Polygon = list[float]
"""x0, y0, x1, y1, ... in pixels."""


class ReasonSegData(RecordData):
    """`root/train/*.jpg`, each with a JSON file of the same name in LISA's format; `root/val` is held out.

    The box is the smallest one around all target polygons. `metadata["polygons"]` holds these polygons, and
    `metadata["ignore"]` the regions that count neither for nor against a mask. Each polygon is x0, y0, x1, y1, ... in
    pixels.
    """

    noun = "instruction"
    test_setting = "data.test_split"

    def __init__(
        self,
        root: str,
        val_split: str = "val",
        test_split: str | None = None,
        second_encoding: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the folder, which is read when training starts.

        Args:
            root: folder with `train` and `val`, each with images and JSON files.
            val_split: held-out folder in `root`.
            test_split: folder in `root` for `test`; default: the held-out one.
            second_encoding: encoding of files that are not in `encoding`: cp1252 for some of the official ones.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.encodings = [self.encoding, *([] if second_encoding is None else [second_encoding])]
        for name in self.encodings:
            check_encoding(name)
        self.folders: dict[Split, Path] = {"train": Path(root) / "train", "val": Path(root) / val_split}
        if test_split is not None:
            self.folders["test"] = Path(root) / test_split
            require_folder("test_split", self.folders["test"], "images with JSON files")
        require_folder("root", self.folders["train"], "images with JSON files")
        if self.val_fraction is None:
            require_folder("val_split", self.folders["val"], "images with JSON files")

    def splits(self) -> Collection[Split]:
        return [split for split, folder in self.folders.items() if folder.is_dir()]

    def other_held_out(self) -> OtherHeldOut | None:
        return OtherHeldOut(str(self.folders["val"])) if "val" in self.splits() else None

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders("image", (self.folders[split],))

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        files = sorted(file for file in self.folders[split].glob("*.json") if not file.name.startswith("."))
        if not files:
            raise ConfigurationError(f"{self.folders[split]}: no JSON files; expected one beside each image")
        found: list[Record] = []
        for image_id, file in enumerate(files):
            try:
                found += read_annotation(file, image_id, self.encodings)
            except ValueError as error:
                bad_records.add(str(file), str(error).removeprefix(f"{file}: "))
        refuse_fractions(self.folders[split], (box.box for record in found for box in boxes_of(record)))
        bad_records.read_as[OUTLINES] += len(found)
        return found

    def finish(self, records: list[Record], bad_records: BadRecords) -> list[Record]:
        """Clip boxes to their images."""
        found = []
        for record in records:
            assert isinstance(record.target, tuple)
            x0, y0, x1, y1 = clip_to(record.target[0].box, *record.size)
            if x0 < x1 and y0 < y1:
                found.append(replace(record, target=(Detection((x0, y0, x1, y1), ""),)))
            else:
                bad_records.add(record.location, f"no target in its image of {record.size[0]} x {record.size[1]}")
        return found


def read_annotation(file: Path, image_id: int, encodings: Sequence[str]) -> Iterator[Record]:
    """Yield a record for each instruction in a file. Raise ValueError if the content is invalid."""
    content = decode_json(_decode(read_bytes(file), encodings))
    if not isinstance(content, dict):
        raise ValueError(f"expected text and shapes, got {brief(content)}")
    instructions, shapes = content.get("text"), content.get("shapes")
    instructions = [instructions] if isinstance(instructions, str) else instructions
    if not isinstance(instructions, list) or not instructions or not all(map(is_text, instructions)):
        raise ValueError(f"text: expected an instruction or a list of them, got {brief(content.get('text'))}")
    polygons, ignore = read_shapes(shapes)
    box = hull((x, y) for polygon in polygons for x, y in zip(polygon[::2], polygon[1::2], strict=True))
    metadata = {"polygons": polygons, "ignore": ignore}
    return (
        Record(
            (file.with_suffix(".jpg"),),
            f"{file}: text[{i}]",
            image_id,
            instruction.strip(),
            (Detection(box, ""),),
            metadata=metadata,
        )
        for i, instruction in enumerate(instructions)
    )


def _decode(data: bytes, encodings: Sequence[str]) -> str:
    """Decode text with the first of the encodings that is valid for it."""
    first, *others = encodings
    try:
        return decode_text(data, first)
    except ValueError:
        if not others:
            raise
        return _decode(data, others)


def read_shapes(shapes: Any) -> tuple[list[Polygon], list[Polygon]]:
    """Return the target and the ignored polygons. Raise ValueError if one is invalid or there is no target."""
    if not isinstance(shapes, list):
        raise ValueError(f"shapes: expected a list, got {brief(shapes)}")
    target, ignore = [], []
    for i, shape in enumerate(shapes):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str):
            raise ValueError(f"shapes[{i}]: expected a label and points")
        if label.strip().lower() == "target":
            target.append(read_polygon(shape.get("points"), f"shapes[{i}]"))
        elif "ignore" in label.lower():
            ignore.append(read_polygon(shape.get("points"), f"shapes[{i}]"))
    if not target:
        raise ValueError("shapes: no polygon with the label 'target'")
    return target, ignore


def read_polygon(points: Any, location: str) -> Polygon:
    """Flatten a polygon of [x, y] points. Raise ValueError if the points are invalid."""
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"{location}.points: expected [[x, y], ...]")
    if not all(is_number(value) for point in points for value in point):
        raise ValueError(f"{location}.points: expected finite numbers")
    if len(points) < 3:
        raise ValueError(f"{location}.points: expected at least 3, got {len(points)}")
    return [float(value) for point in points for value in point]
